// Layer by layer: one quantity at a chosen step across the layers, and of each layer over training.

// How the page writes the bins of a histogram: one character each, from none to the highest.
const HEIGHTS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

function layers(room) {
  const { views, probes } = data.layers;
  const all = (view) => probes[view.probe];
  const choose = html("select", { id: "view" }, ...views.map((view, i) => html("option", { value: i }, view.title)));
  const slider = html("input", { type: "range", id: "at", min: 0, step: 1, value: 0, "aria-label": "Training step" });
  const told = html("output", { for: "at" });
  const play = button("play", false, () => (timer ? stop() : start()));
  const more = button("", false, () => { state.all = !state.all; redraw(); });
  const note = html("p", { class: "note" });
  const profile = html("div", { class: "plot" });
  const cells = html("div", { class: "cells" });
  const papers = html("div");
  let [view, steps, timer] = [views[0], [], 0];

  const last = (one, step) => one.steps.findLastIndex((value) => value <= step);
  function layerName(which, place) {
    return [...new Set(all(which).map((one) => one.names[place]).filter(Boolean))].join(" / ");
  }
  function pick() {
    view = views[Number(choose.value)];
    const now = steps[Number(slider.value)] ?? Infinity;
    steps = [...new Set(all(view).flatMap((one) => one.steps))].sort((a, b) => a - b);
    slider.max = steps.length - 1;
    slider.value = Math.max(0, steps.findLastIndex((step) => step <= now));
    slider.disabled = play.disabled = steps.length < 2;
    redraw();
  }
  function start() {
    if (Number(slider.value) >= steps.length - 1) slider.value = 0;
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      if (Number(slider.value) >= steps.length - 1) stop();
      redraw();
    }, PLAY_MS);
    play.textContent = "pause";
    play.setAttribute("aria-pressed", true);
    redraw();
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "play";
    play.setAttribute("aria-pressed", false);
  }
  function across(which, step, id) {
    const shown = all(which).filter((one) => !state.hidden.has(one.arm));
    const names = [which.middle, which.low, which.high].filter(Boolean);
    const count = Math.max(...all(which).map((one) => one.names.length));
    const at = (one, name) => (name ? one.values[name][last(one, step)] : null);
    return {
      id, title: `${which.title} across the layers at step ${short(step)}`,
      unit: which.unit, log: which.log, wide: true,
      range: extent(shown.flatMap((one) => names.flatMap((name) => one.values[name].flat())), which.log),
      x: {
        label: "layer, from the input on", whole: true, range: [0.7, count + 0.3],
        name: (where) => `${where}: ${layerName(which, where - 1)}, step ${short(step)}`,
      },
      lines: all(which).filter((one) => last(one, step) >= 0).map((one) => ({
        arm: one.arm, x: one.names.map((_, place) => place + 1), runs: 1,
        y: at(one, which.middle), low: at(one, which.low), high: at(one, which.high),
      })),
    };
  }
  function ended(step) {
    const early = all(view).filter((one) => one.steps.at(-1) < step);
    return early.map((one) => ` ${data.arms[one.arm].name}: as at step ${short(one.steps.at(-1))}, its last.`).join("");
  }
  // A slider cannot be moved on paper: there stands every quantity, at the last step.
  function onPaper(step) {
    papers.replaceChildren();
    views.filter((one) => state.printing && one !== view).forEach((one, i) => {
      const host = html("div", { class: "plot" });
      const title = html("h3", {}, `${one.title}, at step ${short(step)}`);
      papers.append(html("section", {}, title, html("p", { class: "note" }, one.note), host));
      plot(host, across(one, step, `clip-paper-${i}`));
    });
  }
  function redraw() {
    const step = steps[state.printing ? steps.length - 1 : Number(slider.value)];
    const count = Math.max(...all(view).map((one) => one.names.length));
    told.textContent = `step ${short(step)}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    note.textContent = (state.printing ? `${view.title}, at step ${short(step)}. ` : "") + view.note + ended(step);
    plot(profile, across(view, step, "clip-profile"));
    onPaper(step);
    const limit = state.all && !state.printing ? count : Math.min(count, CELLS);
    const shown = Array.from({ length: limit }, (_, i) => Math.round((i * (count - 1)) / Math.max(1, limit - 1)));
    more.hidden = count <= CELLS;
    more.textContent = state.all ? `show ${CELLS} of ${count} layers` : `show all ${count} layers`;
    more.setAttribute("aria-pressed", state.all);
    cells.replaceChildren(...shown.map((place) => (
      html("div", { class: "cell" },
        html("h4", {}, `${place + 1}: ${layerName(view, place)}`), html("div", { class: "plot" }))
    )));
    shown.forEach((place, i) => cell(cells.children[i], place, step));
  }
  function cell(host, place, step) {
    const here = all(view).filter((one) => place < one.names.length);
    plot(host.querySelector(".plot"), {
      id: `clip-cell-${place}`, title: `${view.title} of layer ${place + 1} over training`, compact: true,
      unit: view.unit, log: view.log, cursor: step, x: { label: "training steps", word: "step" },
      lines: here.map((one) => {
        const of = (name) => (name ? one.values[name].map((row) => row[place]) : null);
        return { arm: one.arm, x: one.steps, y: of(view.middle), low: of(view.low), high: of(view.high), runs: 1 };
      }),
    });
    const binned = here.filter((one) => one.bins.length && !state.hidden.has(one.arm));
    if (view.histogram) histogram(host, binned, place, step);
  }
  function histogram(host, here, place, step) {
    const edges = here.flatMap((one) => one.edges.map((row) => row[place])).filter((pair) => pair.every(finite));
    if (!edges.length) return;
    // The range is that of the whole training, so that moving the slider shows the drift;
    // a few outliers may stick out.
    const ranked = [0, 1].map((end) => edges.map((pair) => pair[end]).sort((a, b) => a - b));
    const low = ranked[0][Math.round(0.1 * (edges.length - 1))];
    const high = ranked[1][Math.round(0.9 * (edges.length - 1))];
    const width = Math.max(120, host.clientWidth || 200);
    const x = scale(low, high > low ? high : low + 1, 4, width - 4, false);
    const said = `Histogram of layer ${place + 1} at step ${short(step)}, from ${short(low)} to ${short(high)}`;
    const root = svg(host, "svg", { viewBox: `0 0 ${width} 62`, role: "img", class: "bins", "aria-label": said });
    for (const one of here) {
      const i = last(one, step);
      const bins = i >= 0 ? one.bins[i][place] : "";
      if (!bins) continue;
      const [from, to] = one.edges[i][place];
      const edge = (k) => Math.max(4, Math.min(width - 4, x(from + ((to - from) * k) / bins.length))).toFixed(1);
      const tall = (k) => 46 - (44 * HEIGHTS.indexOf(bins[k])) / (HEIGHTS.length - 1);
      const d = [...bins].map((_, k) => `H${edge(k)}V${tall(k).toFixed(1)}H${edge(k + 1)}`).join("");
      const group = svg(root, "g", { class: `arm c${data.arms[one.arm].color}` });
      svg(group, "path", { d: `M${edge(0)},46${d}V46Z`, class: "band" });
      svg(group, "path", { d: `M${edge(0)},46${d}V46`, class: "line", "stroke-dasharray": data.arms[one.arm].dash });
    }
    svg(root, "path", { d: `M4,46H${width - 4}`, class: "axis" });
    svg(root, "text", { x: 4, y: 59 }, short(low));
    svg(root, "text", { x: width - 4, y: 59, "text-anchor": "end" }, short(high));
  }
  choose.addEventListener("change", pick);
  slider.addEventListener("input", () => { stop(); redraw(); });
  room.querySelector(".mount").append(
    html("div", { class: "buttons moving" }, html("label", { for: "view" }, "Show "), choose, play, slider, told),
    note, profile, cells, html("div", { class: "buttons" }, more), papers);
  redraws.push(redraw);
  choose.value = 0;
  pick();
}
