// Everything over training: curves, what is switched for all of them at once, and what happens on paper.

function everySeries() {
  return data.charts.flatMap((chart) => chart.variants.flatMap((variant) => variant.series));
}
function timeUnit() {
  const longest = Math.max(0, ...everySeries().map((one) => Math.max(0, ...one.second.filter(finite))));
  return longest < 180 ? [1, "s"] : longest < 10800 ? [60, "min"] : [3600, "h"];
}
const [perUnit, unitName] = timeUnit();
function axisOf() {
  if (state.axis === "second") return { label: `training time (${unitName})`, word: unitName };
  return state.axis === "epoch" ? { label: "epochs", word: "epoch" } : { label: "training steps", word: "step" };
}
function ownAxis({ label, names }, lines) {
  const last = Math.max(...lines.flatMap((line) => line.x));
  if (!names.length) return { label, word: label.split(",")[0], whole: true, range: [1, last] };
  return { label, names, whole: true, range: [0.7, names.length + 0.3], name: (where) => `${label} ${names[where - 1]}` };
}
function overTraining(chart, variant, log, id) {
  const inUnits = (seconds) => (finite(seconds) ? seconds / perUnit : null);
  const lines = [...variant.series, ...variant.lost].map((one) => ({
    arm: one.arm,
    x: chart.axis ? one.step : state.axis === "second" ? one.second.map(inUnits) : one[state.axis],
    y: one.mean, low: one.low, high: one.high, runs: one.runs, lost: one.what,
  }));
  const last = (one) => writer(chart.unit)(one.mean.filter(finite).at(-1) ?? NaN);
  const spoken = variant.series.map((one) => `${data.arms[one.arm].name} ends at ${last(one)}`).join("; ");
  const title = [chart.title, variant.label].filter(Boolean).join(", ");
  return { id, title, spoken, unit: chart.unit, log, x: chart.axis ? ownAxis(chart.axis, lines) : axisOf(), lines };
}
function mount(figure, chart, number) {
  let [chosen, log] = [0, chart.log];
  const buttons = html("div", { class: "buttons", role: "group", "aria-label": `${chart.title}: what is shown` });
  const hosts = html("div");
  function redraw() {
    const variants = state.printing ? chart.variants : [chart.variants[chosen]];
    hosts.replaceChildren(...variants.flatMap((variant) => [
      html("p", { class: "variant" }, state.printing ? [chart.label, variant.label].filter(Boolean).join(", ") : ""),
      html("div", { class: "plot" }),
    ]));
    hosts.querySelectorAll(".plot").forEach((host, i) => {
      plot(host, overTraining(chart, variants[i], log, `clip-${number}-${i}`));
    });
  }
  if (chart.variants.length > 1) {
    chart.variants.forEach((variant, i) => buttons.append(button(variant.label, i === 0, () => {
      chosen = i;
      chart.variants.forEach((_, k) => buttons.children[k].setAttribute("aria-pressed", k === i));
      redraw();
    })));
  }
  if (chart.variants.length === 1) buttons.append(html("span", { class: "variant" }, chart.label));
  const series = chart.variants.flatMap((variant) => variant.series);
  const positive = series.every((one) => one.mean.every((value) => !finite(value) || value > 0));
  if (chart.unit !== "share" && positive) {
    const made = button("log scale", log, () => { log = !log; made.setAttribute("aria-pressed", log); redraw(); });
    made.classList.add("scale");
    buttons.append(made);
  }
  figure.querySelector(".mount").append(buttons, hosts);
  redraws.push(redraw);
}
function everything() { redraws.forEach((redraw) => redraw()); }

function controls(bar) {
  const has = (axis) => everySeries().some((one) => one[axis].some(finite));
  const axes = AXES.filter(([axis]) => axis === "step" || has(axis));
  if (axes.length > 1) {
    const group = html("div", { class: "buttons", role: "group", "aria-label": "Horizontal axis" });
    axes.forEach(([axis, label]) => group.append(button(label, axis === state.axis, (made) => {
      state.axis = axis;
      [...group.children].forEach((one) => one.setAttribute("aria-pressed", one === made));
      everything();
    })));
    bar.append(group);
  }
  const legend = html("div", { class: "buttons legend", role: "group", "aria-label": "Arms: press to hide or show" });
  data.arms.forEach((arm, i) => {
    const made = button("", true, () => {
      if (!state.hidden.delete(i)) state.hidden.add(i);
      made.setAttribute("aria-pressed", !state.hidden.has(i));
      everything();
    });
    made.append(swatch(i), ` ${arm.name}`);
    legend.append(made);
  });
  if (data.arms.length > 1) bar.append(legend);
}

document.querySelectorAll("[data-live]").forEach((section) => { section.hidden = false; });
const bar = document.getElementById("controls");
if (bar) controls(bar);
document.querySelectorAll("[data-chart]").forEach((figure) => {
  const number = Number(figure.dataset.chart);
  mount(figure, data.charts[number], number);
});
const room = document.getElementById("layers");
if (room && data.layers.views.length) layers(room);
const terrain = document.getElementById("surfaces");
if (terrain) surfaces(terrain);
everything();

let [known, waiting] = [window.innerWidth, 0];
window.addEventListener("resize", () => {
  if (window.innerWidth === known || state.printing) return;
  known = window.innerWidth;
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(everything);
});
// On paper every curve is shown, and the layers at the last step.
const paper = window.matchMedia("print");
let hiddenBefore = new Set();
function printing(now) {
  if (now === state.printing) return;
  state.printing = now;
  if (now) { hiddenBefore = state.hidden; state.hidden = new Set(); } else { state.hidden = hiddenBefore; }
  everything();
}
paper.addEventListener("change", (event) => printing(event.matches));
window.addEventListener("beforeprint", () => printing(true));
window.addEventListener("afterprint", () => printing(false));
if (paper.matches) printing(true);
