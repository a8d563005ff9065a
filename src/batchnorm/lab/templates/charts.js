// One chart: lines with bands in an SVG, with axes, gaps, and a tooltip for the pointer and for arrow keys. It draws
// what the page carries as JSON; text from the runs only ever becomes text nodes. Where scripts do not run, the page
// shows pictures instead. charts.js, layers.js and training.js become one script, inside one function.
const data = JSON.parse(document.getElementById("chart-data").textContent);
const NARROW = 460;
const CELLS = 24;
const PLAY_MS = 350;
const AXES = [["step", "steps"], ["epoch", "epochs"], ["second", "time"]];
const state = { axis: "step", hidden: new Set(), all: false, printing: false };
const redraws = [];
const live = document.getElementById("spoken");

// --- small things ---

function html(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
function svg(parent, name, attributes = {}, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}
function button(label, pressed, onPress) {
  const made = html("button", { type: "button", "aria-pressed": pressed }, label);
  made.addEventListener("click", () => onPress(made));
  return made;
}
const finite = (value) => value !== null && value !== undefined && Number.isFinite(value);
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(size < 1e-3 || size >= 1e7 ? 1 : 2).replace("e+", "e");
  return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
}
const percent = (value) => `${Number((100 * value).toPrecision(4))}%`;
const writer = (unit) => (unit === "share" ? percent : short);

// --- axes ---

function niceStep(span, count) {
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999) * power;
}
function linearTicks(low, high, count) {
  const step = niceStep(high - low, count);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) {
    ticks.push(Number((k * step).toPrecision(12)));
  }
  return ticks;
}
function logTicks(low, high, count) {
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const decades = [];
  for (let k = from; k <= to; k += Math.max(1, Math.ceil((to - from) / count))) decades.push(10 ** k);
  if (decades.length >= 3) return decades;
  const finer = [];
  for (let k = from - 1; k <= to; k += 1) for (const factor of [1, 2, 5]) finer.push(factor * 10 ** k);
  const inside = finer.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
  return inside.length >= 2 ? inside : linearTicks(low, high, count).filter((tick) => tick > 0);
}
function scale(low, high, from, to, log) {
  const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
  const at = (value) => from + (((log ? Math.log(value) : value) - a) / (b - a || 1)) * (to - from);
  at.inverse = (pixel) => {
    const value = a + ((pixel - from) / (to - from || 1)) * (b - a);
    return log ? Math.exp(value) : value;
  };
  return at;
}
function extent(values, log) {
  const kept = values.filter((value) => finite(value) && (!log || value > 0));
  if (!kept.length) return log ? [0.1, 1] : [0, 1];
  let [low, high] = [kept.reduce((a, b) => Math.min(a, b)), kept.reduce((a, b) => Math.max(a, b))];
  if (low === high) {
    const around = Math.abs(low) * 0.1;
    [low, high] = log ? [low / 2, high * 2] : low === 0 ? [0, 1] : [low - around, high + around];
  }
  return [low, high];
}

// --- how an arm looks: colour, dashes and marker, any one of which is enough ---

const SHAPES = {
  circle: "M-3.4,0a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0Z", square: "M-3,-3H3V3H-3Z", triangle: "M0,-4L4,3H-4Z",
  diamond: "M0,-4.4L4.4,0L0,4.4L-4.4,0Z", down: "M0,4L4,-3H-4Z", cross: "M-3,-3L3,3M-3,3L3,-3", plus: "M0,-4V4M-4,0H4",
};
function mark(parent, arm, x, y) {
  svg(parent, "path", { d: SHAPES[data.arms[arm].marker], class: "mark", transform: `translate(${x},${y})` });
}
function swatch(arm) {
  const look = `arm c${data.arms[arm].color}`;
  const picture = svg(null, "svg", { width: 36, height: 14, class: look, "aria-hidden": "true" });
  svg(picture, "path", { d: "M1,7H35", class: "line", "stroke-dasharray": data.arms[arm].dash });
  mark(picture, arm, 18, 7);
  return picture;
}

// --- one chart ---

function stretches(line, y) {
  const found = [];
  let run = [];
  line.x.forEach((x, i) => {
    if (finite(x) && y(i)) run.push(i);
    else if (run.length) { found.push(run); run = []; }
  });
  return run.length ? [...found, run] : found;
}
function drawLine(parent, line, x, y, spec) {
  const group = svg(parent, "g", { class: `arm c${data.arms[line.arm].color}${line.lost ? " lost" : ""}` });
  const good = (value) => finite(value) && (!spec.log || value > 0);
  const floor = (value) => (good(value) ? y(value) : y.bottom);
  const point = (i, value) => `${x(line.x[i]).toFixed(1)},${Math.max(-9e3, Math.min(9e3, value)).toFixed(1)}`;
  if (line.low && !line.lost) {
    for (const run of stretches(line, (i) => good(line.high[i]))) {
      const up = run.map((i) => point(i, y(line.high[i])));
      const down = run.map((i) => point(i, floor(line.low[i]))).reverse();
      svg(group, "path", { d: `M${[...up, ...down].join("L")}Z`, class: "band" });
    }
  }
  const runs = stretches(line, (i) => good(line.y[i]));
  for (const run of runs) {
    const points = run.map((i) => point(i, y(line.y[i])));
    const dash = line.lost || points.length < 2 ? "" : data.arms[line.arm].dash;
    const d = `M${points.join("L")}${points.length < 2 ? "h.01" : ""}`;
    svg(group, "path", { d, class: "line", "stroke-dasharray": dash });
  }
  const all = runs.flat();
  const inside = (i) => Math.max(y.top + 4, Math.min(y.bottom, y(line.y[i])));
  if (line.lost && all.length) {
    const last = all[all.length - 1];
    const where = `translate(${x(line.x[last])},${inside(last)})`;
    svg(group, "path", { d: "M-4,-4L4,4M-4,4L4,-4", class: "end", transform: where });
  } else if (all.length) {
    const every = Math.max(1, Math.round(all.length / (spec.compact ? 3 : 8)));
    const start = Math.floor(((line.arm + 0.5) * every) / (data.arms.length + 1));
    const marked = all.filter((_, k) => k % every === start % every);
    for (const i of marked.length ? marked : all) {
      if (y(line.y[i]) >= y.top - 1) mark(group, line.arm, x(line.x[i]), y(line.y[i]));
    }
  }
}
function valueAt(line, where) {
  const next = line.x.findIndex((x) => finite(x) && x >= where);
  if (next < 0) return null;
  if (line.x[next] !== where && next === 0) return null;
  const share = line.x[next] === where ? 0 : (line.x[next] - where) / (line.x[next] - line.x[next - 1]);
  function mixed(values) {
    if (share === 0) return values[next];
    const [before, after] = [values[next - 1], values[next]];
    return finite(before) && finite(after) ? after + share * (before - after) : null;
  }
  const runs = Array.isArray(line.runs) ? line.runs[next] : line.runs;
  return { y: mixed(line.y), low: line.low ? mixed(line.low) : null, high: line.high ? mixed(line.high) : null, runs };
}

function plot(host, spec) {
  const lines = spec.lines.filter((line) => !state.hidden.has(line.arm));
  const onPaper = spec.compact ? 220 : spec.wide ? 860 : 420;
  const width = state.printing ? onPaper : Math.max(120, Math.round(host.clientWidth || onPaper));
  const height = spec.compact ? 112 : Math.round(Math.max(210, Math.min(300, width * 0.55)));
  const main = lines.some((line) => !line.lost) ? lines.filter((line) => !line.lost) : lines;
  const shown = main.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]);
  let [low, high] = spec.range || extent(shown, spec.log);
  if (!spec.log && spec.unit === "share" && low >= 0 && low < 0.3 * high) low = 0;
  const pad = spec.log ? (high / low) ** 0.04 : (high - low) * 0.05;
  const ends = spec.log ? [low / pad, high * pad] : [low === 0 ? 0 : low - pad, high + pad];
  if (spec.unit === "share" && high <= 1) ends[1] = Math.min(ends[1], 1.02);
  const ticks = (spec.log ? logTicks : linearTicks)(...ends, spec.compact ? 3 : 6);
  const write = writer(spec.unit);
  const left = Math.max(26, 12 + 6.6 * Math.max(1, ...ticks.map((tick) => write(tick).length)));
  const [xLow, xHigh] = spec.x.range || [0, extent(spec.lines.flatMap((line) => line.x), false)[1]];
  const x = scale(xLow, xHigh, left, width - 12, false);
  const bottom = height - (spec.compact ? 20 : 40);
  const y = scale(...ends, bottom, 8, spec.log);
  y.top = 8; y.bottom = bottom;

  const said = `${spec.title}. ${spec.spoken || ""}`;
  const root = svg(null, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": said });
  const inside = { x: left, y: 2, width: width - left - 6, height: bottom - 1 };
  svg(svg(root, "clipPath", { id: spec.id }), "rect", inside);
  for (const tick of ticks) {
    svg(root, "path", { d: `M${left},${y(tick)}H${width - 12}`, class: "grid" });
    svg(root, "text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, write(tick));
  }
  const places = spec.x.names ? spec.x.names.map((_, place) => place + 1) : null;
  for (const tick of places || linearTicks(xLow, xHigh, spec.compact ? 2 : width < NARROW ? 4 : 7)) {
    if (spec.x.whole && !Number.isInteger(tick)) continue;
    svg(root, "path", { d: `M${x(tick)},${bottom}v4`, class: "axis" });
    const name = spec.x.names ? spec.x.names[tick - 1] : short(tick);
    const centre = Math.min(x(tick), width - 3.3 * name.length - 1);
    svg(root, "text", { x: centre, y: bottom + 15, "text-anchor": "middle" }, name);
  }
  svg(root, "path", { d: `M${left},${bottom}H${width - 12}`, class: "axis" });
  const under = { x: (left + width - 12) / 2, y: height - 6, "text-anchor": "middle", class: "label" };
  if (!spec.compact) svg(root, "text", under, spec.x.label);
  const inner = svg(root, "g", { "clip-path": `url(#${spec.id})` });
  if (finite(spec.cursor)) svg(inner, "path", { d: `M${x(spec.cursor)},4V${bottom}`, class: "now" });
  // Runs that were lost first, dashes last: where lines coincide, both can be seen.
  const order = (line) => (line.lost ? 0 : data.arms[line.arm].dash ? 2 : 1);
  for (const line of [...lines].sort((a, b) => order(a) - order(b))) drawLine(inner, line, x, y, spec);
  if (!lines.length) svg(root, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no arm is shown");
  const hair = svg(root, "path", { class: "hair", d: "" });
  const tip = html("div", { class: "tip", hidden: "" });
  host.replaceChildren(root, tip);
  hover(host, root, tip, hair, { spec, lines, x, bottom, left, width, write });
}

function hover(host, root, tip, hair, { spec, lines, x, bottom, left, width, write }) {
  const places = [...new Set(lines.flatMap((line) => line.x.filter(finite)))].sort((a, b) => a - b);
  let place = -1;
  function show(index, spoken) {
    place = Math.max(0, Math.min(places.length - 1, index));
    const where = places[place];
    if (where === undefined) return;
    const rows = lines.map((line) => [line, valueAt(line, where)])
      .filter(([, found]) => found && finite(found.y));
    const head = spec.x.name ? spec.x.name(where) : `${spec.x.word} ${short(where)}`;
    const said = rows.map(([line, found]) => {
      const wide = finite(found.low) && finite(found.high) && found.low !== found.high;
      const name = [data.arms.length > 1 ? data.arms[line.arm].name : "", line.lost].filter(Boolean).join(", ");
      return {
        line,
        name: name ? `${name}: ` : "",
        value: write(found.y) + (wide ? ` (${write(found.low)} to ${write(found.high)})` : ""),
        runs: found.runs > 1 ? `, ${found.runs} runs` : "",
      };
    });
    const told = said.map((one) => (
      html("div", {}, swatch(one.line.arm), ` ${one.name}`, html("b", {}, one.value), one.runs)
    ));
    tip.replaceChildren(html("strong", {}, head), ...told);
    tip.hidden = false;
    const ratio = root.clientWidth / width || 1;
    const at = x(where) * ratio;
    tip.style.left = `${Math.max(0, at > host.clientWidth / 2 ? at - tip.offsetWidth - 10 : at + 10)}px`;
    hair.setAttribute("d", `M${x(where)},4V${bottom}`);
    if (spoken) live.textContent = `${head}. ${said.map((one) => one.name + one.value).join("; ")}`;
  }
  const hide = () => { tip.hidden = true; hair.setAttribute("d", ""); place = -1; };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const where = x.inverse(((event.clientX - box.left) / box.width) * width);
    const nearer = (best, value, i) => (Math.abs(value - where) < Math.abs(places[best] - where) ? i : best);
    show(places.reduce(nearer, 0), false);
  });
  root.addEventListener("pointerleave", hide);
  root.addEventListener("blur", hide);
  root.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: places.length - 1 };
    if (event.key === "Escape") hide();
    else if (event.key in moves) {
      show(place < 0 && event.key === "ArrowLeft" ? places.length - 1 : moves[event.key], true);
      event.preventDefault();
    }
  });
}
