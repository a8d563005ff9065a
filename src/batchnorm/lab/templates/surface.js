// Surfaces that can be turned: by dragging, or with the arrow keys.

// From low to high; lighter is higher, so that it can be read in grey.
const HEIGHT_COLORS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const TURN = 0.12;

function heightColor(share) {
  const at = Math.min(Math.max(share, 0), 1) * (HEIGHT_COLORS.length - 1);
  const low = Math.min(Math.floor(at), HEIGHT_COLORS.length - 2);
  const mixed = HEIGHT_COLORS[low].map((part, i) => Math.round(part + (at - low) * (HEIGHT_COLORS[low + 1][i] - part)));
  return `rgb(${mixed.join(" ")})`;
}

function surfaces(room) {
  const choose = html("select", { "aria-label": "Which surface" },
    ...data.surfaces.map((one, i) => html("option", { value: i }, one.title)));
  const host = html("div", { class: "plot surface", tabindex: 0, role: "img" });
  let [view, turn, lift, held] = [data.surfaces[0], 0.6, 0.55, null];

  function redraw() {
    const size = view.values.length;
    const known = view.values.flat().filter(finite);
    const [bottom, top] = [Math.min(...known), Math.max(...known)];
    const share = (value) => (top > bottom ? (value - bottom) / (top - bottom) : 0.5);
    const width = Math.min(Math.max(host.clientWidth, 280), 640);
    const height = width * 0.72;
    const zoom = width * 0.58;
    function project(row, column, up) {
      const [a, b, z] = [row / (size - 1) - 0.5, column / (size - 1) - 0.5, 0.5 * (up - 0.5)];
      const [across, near] = [a * Math.cos(turn) - b * Math.sin(turn), a * Math.sin(turn) + b * Math.cos(turn)];
      const down = near * Math.sin(lift) - z * Math.cos(lift);
      return [width / 2 + zoom * across, height / 2 + zoom * down, near * Math.cos(lift) + z * Math.sin(lift)];
    }
    const tiles = [];
    for (let row = 0; row + 1 < size; row += 1) {
      for (let column = 0; column + 1 < size; column += 1) {
        const places = [[row, column], [row + 1, column], [row + 1, column + 1], [row, column + 1]];
        const ups = places.map(([i, k]) => view.values[i][k]);
        if (!ups.every(finite)) continue;
        const corners = places.map(([i, k], at) => project(i, k, share(ups[at])));
        const mean = ups.reduce((sum, up) => sum + share(up), 0) / 4;
        tiles.push({ corners, mean, depth: corners.reduce((sum, corner) => sum + corner[2], 0) });
      }
    }
    const points = (corners) => corners.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
    host.replaceChildren();
    const root = svg(host, "svg", { viewBox: `0 0 ${width} ${height}`, style: `max-width: ${width}px` });
    const floor = [[0, 0], [size - 1, 0], [size - 1, size - 1], [0, size - 1]].map(([i, k]) => project(i, k, 0));
    svg(root, "polygon", { class: "floor", points: points(floor) });
    tiles.sort((one, other) => one.depth - other.depth).forEach((tile) => {
      svg(root, "polygon", { class: "tile", points: points(tile.corners), fill: heightColor(tile.mean) });
    });
    view.corners.forEach((name, i) => {
      const [x, y] = floor[i];
      svg(root, "text", { x, y: y + 14, "text-anchor": x < width / 2 ? "start" : "end" }, name);
    });
    svg(root, "text", { x: 0, y: 12 }, `${view.label}: ${short(10 ** bottom)} to ${short(10 ** top)}`);
    host.setAttribute("aria-label", `${view.title}, ${view.label} from ${short(10 ** bottom)} to ${short(10 ** top)}`);
  }
  function rotate(across, up) {
    turn += across;
    lift = Math.min(Math.max(lift + up, 0.05), Math.PI / 2);
    redraw();
  }
  choose.addEventListener("change", () => { view = data.surfaces[Number(choose.value)]; redraw(); });
  host.addEventListener("pointerdown", (event) => {
    held = [event.clientX, event.clientY];
    host.setPointerCapture(event.pointerId);
  });
  host.addEventListener("pointermove", (event) => {
    if (!held) return;
    rotate((held[0] - event.clientX) / 150, (event.clientY - held[1]) / 150);
    held = [event.clientX, event.clientY];
  });
  ["pointerup", "pointercancel"].forEach((name) => host.addEventListener(name, () => { held = null; }));
  const keys = { ArrowLeft: [TURN, 0], ArrowRight: [-TURN, 0], ArrowUp: [0, TURN], ArrowDown: [0, -TURN] };
  host.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    rotate(...keys[event.key]);
  });
  room.querySelector(".mount").append(html("div", { class: "buttons" }, choose), host);
  redraws.push(redraw);
}
