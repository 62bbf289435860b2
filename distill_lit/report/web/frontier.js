/* The frontier */
/* Models of one role are one line; a model that was taken as it is stands alone. */
const seriesOf = (r) => `${r.role}|${r.role in data.role_labels ? r.variant : r.model}`;
const SIDE_BY_SIDE = "";

function frontierOptions() {
  const axes = Object.entries(data.costs);
  return data.panel_axes.length < 2 ? axes : [[SIDE_BY_SIDE, "side by side"], ...axes];
}

function frontier() {
  const axes = $("cost").value === SIDE_BY_SIDE ? data.panel_axes : [$("cost").value];
  const panels = axes.map(() => make("div", {}));
  $("frontier").replaceChildren(...panels);
  axes.forEach((axis, i) => frontierPanel(panels[i], axis));
  legend(data.frontier[axes[0]]);
  $("frontier-table").replaceChildren(...axes.map((axis) => frontierTable(data.frontier[axis], axis)));
}

/* Where the name and cost of each shape stand below the axis: further down where they would touch. */
function shapeLabels(rows, x, right) {
  const ends = [], shapes = new Map(rows.map((r) => [`${r.student || r.model}|${short(r.cost)}`, r]));
  return [...shapes].sort((a, b) => a[1].cost - b[1].cost).map(([shape, { cost }]) => {
    const words = [shape.slice(0, shape.lastIndexOf("|")), short(cost)];
    const half = 3.8 * Math.max(...words.map((word) => word.length)) + 3;
    const place = Math.max(half, Math.min(x(cost), right + 10 - half));
    const free = ends.findIndex((end) => place - half > end), level = free < 0 ? ends.length : free;
    ends[level] = place + half;
    return { words, place, level, at: x(cost) };
  });
}

function frontierPanel(holder, axis) {
  const rows = data.frontier[axis], width = widthOf(holder), left = 46, right = width - 14, top = 18;
  const logs = rows.map((r) => Math.log(r.cost)), span = Math.max(Math.max(...logs) - Math.min(...logs), 0.3);
  const x0 = Math.min(...logs) - 0.12 * span, x1 = Math.max(...logs) + 0.16 * span;
  const x = (cost) => left + ((Math.log(cost) - x0) / (x1 - x0)) * (right - left);
  const labels = shapeLabels(rows, x, right), below = 28 * (1 + Math.max(...labels.map((label) => label.level)));
  const bottom = top + Math.max(220, Math.min(400, 0.6 * width)), height = bottom + below + 24;
  const svg = canvas(holder, width, height, `Score above chance against ${data.costs[axis]}`);
  const low = Math.min(0, ...rows.map((r) => r.low)) - 0.03, high = Math.max(...rows.map((r) => r.high)) + 0.02;
  const y = (score) => bottom - ((score - low) / (high - low)) * (bottom - top);
  for (const tick of ticks(low * 100, high * 100)) {
    draw(svg, "line", { x1: left, x2: right, y1: y(tick / 100), y2: y(tick / 100), stroke: "#e6e6e6" });
    draw(svg, "text", { x: left - 8, y: y(tick / 100) + 4, "text-anchor": "end" }, format(tick, 0));
  }
  draw(svg, "text", { x: -(top + bottom) / 2, y: 12, transform: "rotate(-90)", "text-anchor": "middle" }, "score above chance, points");
  draw(svg, "text", { x: (left + right) / 2, y: height - 4, "text-anchor": "middle" }, `${data.costs[axis]} (log scale)`);
  for (const { words, place, level, at } of labels) {
    draw(svg, "line", { x1: at, x2: at, y1: bottom, y2: bottom + 4, stroke: "#1a1a1a" });
    words.forEach((word, i) => draw(svg, "text", { x: place, y: bottom + 16 + level * 28 + i * 13, "text-anchor": "middle", class: i ? "soft" : "" }, word));
  }
  draw(svg, "line", { x1: left, x2: right, y1: bottom, y2: bottom, stroke: "#1a1a1a" });
  const teacher = rows.find((r) => r.role === "teacher");
  const lines = [[0, "guessing"]].concat(teacher && teacher.score > 0 ? [[teacher.score * data.quality_threshold, data.quality_label]] : []);
  for (const [score] of lines) draw(svg, "line", { x1: left, x2: right, y1: y(score), y2: y(score), stroke: "#767676", "stroke-dasharray": "2 4" });
  const shift = { untrained: -1, ce_only: 0, distilled: 1 }, step = Math.min(10, width / 60);
  const markerX = (r) => x(r.cost) + step * ((shift[r.role] || 0) + (r.role === "distilled" ? 0.7 * r.variant_index : 0));
  const series = new Map();
  for (const r of rows) series.set(seriesOf(r), [...(series.get(seriesOf(r)) || []), r]);
  for (const group of series.values()) {
    if (group.length > 1) {
      const path = group.map((r) => `${markerX(r)},${y(r.score)}`).join(" ");
      draw(svg, "polyline", { points: path, ...stroke(group[0].style, 1.2), opacity: 0.7 });
    }
  }
  for (const r of rows) model(svg, r, markerX(r), y);
  for (const [score, words] of lines) draw(svg, "text", { x: left + 6, y: y(score) - 5, class: "soft halo" }, words);
}

function model(svg, r, x, y) {
  const description = `${r.model}: ${points(r.score)}${bounds(r.low, r.high)} points above chance, ${short(r.cost)}, ` +
    `on the frontier with probability ${format(r.on_frontier, 2)}${r.num_seeds > 1 ? `, ${r.num_seeds} seeds` : ""}`;
  const group = draw(svg, "g", { tabindex: 0, role: "img", "aria-label": description });
  draw(group, "title", {}, description);
  draw(group, "rect", { x: x - 8, y: y(r.high) - 4, width: 16, height: y(r.low) - y(r.high) + 8, fill: "transparent" });
  for (const [x1, y1, x2, y2] of [[x, y(r.low), x, y(r.high)], [x - 4, y(r.low), x + 4, y(r.low)], [x - 4, y(r.high), x + 4, y(r.high)]])
    draw(group, "line", { x1, y1, x2, y2, stroke: r.style.color, "stroke-width": 1.4 });
  marker(group, x, y(r.score), r.style);
  const describe = () => { $("tip").textContent = description; };
  group.addEventListener("mouseenter", describe);
  group.addEventListener("focus", describe);
}

function legend(rows) {
  const seen = new Map(rows.map((r) => [seriesOf(r), r])), roles = Object.keys(data.role_styles);
  const known = [...seen.values()].sort((a, b) => roles.indexOf(a.role) - roles.indexOf(b.role) || a.variant_index - b.variant_index);
  $("legend").replaceChildren(...known.map((r) => {
    const role = data.role_labels[r.role], alone = r.role === "teacher" ? data.teacher : r.model;  // whose name has its variant
    const words = role ? (r.variant ? `${role} (${r.variant})` : role) : alone;
    return make("span", {}, swatch(20, (svg) => marker(svg, 10, 10, r.style, 5.5)), ` ${words}`);
  }));
}

function frontierTable(rows, axis) {
  const head = ["model", data.costs[axis], "above chance", "on the frontier"];
  const body = rows.map((r) => [r.model, short(r.cost), points(r.score) + bounds(r.low, r.high), format(r.on_frontier, 2)]);
  return table(head, body);
}

