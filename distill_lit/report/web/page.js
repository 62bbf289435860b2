"use strict";
/* Draws the parts of the page that answer to the reader. Every text from data enters as text, never as markup. */
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const format = (x, digits = 1) => (x === null || x === undefined ? "—" : x.toFixed(digits).replace("-", "−"));
const points = (x, digits = 1) => (x === null || x === undefined ? "—" : format(100 * x, digits));
const bounds = (low, high) => (low === null || low === undefined ? "" : ` [${points(low)}, ${points(high)}]`);
const short = (x) => {
  const step = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]].find(([size]) => x >= size);
  return step ? `${Number((x / step[0]).toPrecision(3))}${step[1]}` : String(Number(x.toPrecision(3)));
};

function make(name, options = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") element.textContent = value;
    else if (key === "class") element.className = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function draw(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function canvas(holder, width, height, title) {
  holder.replaceChildren();
  const svg = draw(holder, "svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": title });
  return svg;
}

/* Corners of the shapes, named as in matplotlib, as [angle in turns, radius]; a circle has none. */
const corners = (n, r, turn = 0, inner = r) => Array.from({ length: n }, (_, i) => [turn + i / n, i % 2 ? inner : r]);
const plus = (turn) => [0, 1, 2, 3].flatMap((i) => [[-0.05, 1.3], [0.05, 1.3], [0.125, 0.6]].map(([a, r]) => [turn + i / 4 + a, r]));
const SHAPES = {
  "*": corners(10, 1.55, 0, 0.62), D: corners(4, 1.25), d: corners(4, 1.4, 0, 0.8), s: corners(4, 1.3, 1 / 8),
  "^": corners(3, 1.3), v: corners(3, 1.3, 1 / 2), "<": corners(3, 1.3, -1 / 4), P: plus(0), X: plus(1 / 8),
};

function marker(parent, x, y, look, size = 6) {
  const paint = { fill: look.fill ? look.colour : "#fff", stroke: look.colour, "stroke-width": 1.6 };
  if (!(look.shape in SHAPES)) return draw(parent, "circle", { cx: x, cy: y, r: size, ...paint });
  const place = ([turn, r]) => `${x + size * r * Math.sin(2 * Math.PI * turn)},${y - size * r * Math.cos(2 * Math.PI * turn)}`;
  return draw(parent, "polygon", { points: SHAPES[look.shape].map(place).join(" "), "stroke-linejoin": "round", ...paint });
}

function stroke(look, width) {
  return { fill: "none", stroke: look.colour, "stroke-width": width, "stroke-dasharray": look.dash.map((d) => d * width).join(" ") };
}

/* A small picture for a legend; what it shows is drawn into it as into the plot. */
function swatch(width, paint) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [k, v] of Object.entries({ viewBox: `0 0 ${width} 20`, "aria-hidden": "true" })) svg.setAttribute(k, v);
  paint(svg);
  return svg;
}

function ticks(low, high, wanted = 6) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) found.push(Math.round(x / step) * step);
  return found;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, text })));
  if (chosen !== undefined && options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}

/* What is chosen stands in the address, so that a view can be sent to a colleague. */
const CHOICES = ["cost", "student", "task", "axis", "stratum", "flip", "curve"];
const start = new URLSearchParams(location.hash.slice(1));
function remember() {
  const state = new URLSearchParams();
  for (const id of CHOICES) if ($(id) && $(id).value) state.set(id, $(id).value);
  history.replaceState(null, "", `#${state}`);
}

/* The frontier */
/* Models of one role are one line; a model that was taken as it is stands alone. */
const seriesOf = (r) => `${r.role}|${r.role in data.roles ? r.variant : r.model}`;

function frontier() {
  const axis = $("cost").value, rows = data.frontier[axis], width = 900, height = 470;
  const left = 58, right = width - 30, top = 18, bottom = height - 58;
  const svg = canvas($("frontier"), width, height, `Score above chance against ${data.costs[axis]}`);
  const logs = rows.map((r) => Math.log(r.cost)), span = Math.max(Math.max(...logs) - Math.min(...logs), 0.3);
  const x0 = Math.min(...logs) - 0.1 * span, x1 = Math.max(...logs) + 0.16 * span;
  const low = Math.min(0, ...rows.map((r) => r.low)) - 0.03, high = Math.max(...rows.map((r) => r.high)) + 0.05;
  const x = (cost) => left + ((Math.log(cost) - x0) / (x1 - x0)) * (right - left);
  const y = (score) => bottom - ((score - low) / (high - low)) * (bottom - top);
  for (const tick of ticks(low * 100, high * 100)) {
    draw(svg, "line", { x1: left, x2: right, y1: y(tick / 100), y2: y(tick / 100), stroke: "#e6e6e6" });
    draw(svg, "text", { x: left - 8, y: y(tick / 100) + 4, "text-anchor": "end" }, format(tick, 0));
  }
  draw(svg, "text", { x: -(top + bottom) / 2, y: 14, transform: "rotate(-90)", "text-anchor": "middle" }, "score above chance, points");
  draw(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, `${data.costs[axis]} (log scale)`);
  let end = -1e9, level = 0;
  for (const cost of [...new Set(rows.map((r) => r.cost))].sort((a, b) => a - b)) {
    const row = rows.find((r) => r.cost === cost), name = row.student || row.model;
    const half = 3.6 * Math.max(name.length, 6);
    level = x(cost) - half < end ? 1 - level : 0;
    end = x(cost) + half;
    draw(svg, "line", { x1: x(cost), x2: x(cost), y1: bottom, y2: bottom + 5, stroke: "#1a1a1a" });
    draw(svg, "text", { x: x(cost), y: bottom + 18 + level * 14, "text-anchor": "middle" }, `${name} ${short(cost)}`);
  }
  draw(svg, "line", { x1: left, x2: right, y1: bottom, y2: bottom, stroke: "#1a1a1a" });
  const teacher = rows.find((r) => r.role === "teacher");
  const lines = [[0, "guessing"]].concat(teacher ? [[teacher.score * data.quality, `${format(100 * data.quality, 0)}% of the teacher`]] : []);
  for (const [score] of lines) {
    draw(svg, "line", { x1: left, x2: right, y1: y(score), y2: y(score), stroke: "#767676", "stroke-dasharray": "2 4" });
  }
  const shift = { untouched: -1, ce_only: 0, distilled: 1 };
  const place = (r) => x(r.cost) + 10 * ((shift[r.role] || 0) + (r.role === "distilled" ? 0.7 * r.place : 0));
  const series = new Map();
  for (const r of rows) series.set(seriesOf(r), [...(series.get(seriesOf(r)) || []), r]);
  for (const mine of series.values()) {
    if (mine.length > 1) {
      const path = mine.map((r) => `${place(r)},${y(r.score)}`).join(" ");
      draw(svg, "polyline", { points: path, ...stroke(mine[0].look, 1.2), opacity: 0.7 });
    }
  }
  for (const r of rows) spot(svg, r, place(r), y);
  for (const [score, words] of lines) draw(svg, "text", { x: left + 6, y: y(score) - 5, class: "soft halo" }, words);
  legend(rows);
  frontierTable(rows, axis);
}

function spot(svg, r, x, y) {
  const said = `${r.model}: ${points(r.score)}${bounds(r.low, r.high)} points above chance, ${short(r.cost)}, ` +
    `on the frontier with probability ${format(r.on_frontier, 2)}${r.seeds > 1 ? `, ${r.seeds} seeds` : ""}`;
  const group = draw(svg, "g", { tabindex: 0, role: "img", "aria-label": said });
  draw(group, "title", {}, said);
  draw(group, "rect", { x: x - 8, y: y(r.high) - 4, width: 16, height: y(r.low) - y(r.high) + 8, fill: "transparent" });
  for (const [x1, y1, x2, y2] of [[x, y(r.low), x, y(r.high)], [x - 4, y(r.low), x + 4, y(r.low)], [x - 4, y(r.high), x + 4, y(r.high)]])
    draw(group, "line", { x1, y1, x2, y2, stroke: r.look.colour, "stroke-width": 1.4 });
  marker(group, x, y(r.score), r.look);
  const tell = () => { $("tip").textContent = said; };
  group.addEventListener("mouseenter", tell);
  group.addEventListener("focus", tell);
}

function legend(rows) {
  const seen = new Map(rows.map((r) => [seriesOf(r), r])), roles = Object.keys(data.looks);
  const known = [...seen.values()].sort((a, b) => roles.indexOf(a.role) - roles.indexOf(b.role) || a.place - b.place);
  $("legend").replaceChildren(...known.map((r) => {
    const words = data.roles[r.role] || r.model;
    return make("span", {}, swatch(20, (svg) => marker(svg, 10, 10, r.look, 5.5)), ` ${r.variant ? `${words} (${r.variant})` : words}`);
  }));
}

function frontierTable(rows, axis) {
  const head = ["model", data.costs[axis], "above chance", "on the frontier"];
  const body = rows.map((r) => [r.model, short(r.cost), points(r.score) + bounds(r.low, r.high), format(r.on_frontier, 2)]);
  $("frontier-table").replaceChildren(table(head, body));
}

function table(head, rows, first = "left") {
  const cell = (text, i) => (i ? make("td", { text }) : make("th", { scope: "row", class: first, text }));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text, i) => make("th", { scope: "col", class: i ? "" : first, text })))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell)))));
}

/* The long tail */
const PER_PAGE = 10;
let shown = PER_PAGE;

function chosenAxis() { return data.axes.find((a) => a.name === $("axis").value); }

function setStrata(chosen) {
  const axis = chosenAxis();
  const found = data.strata.filter((s) => s.axis === axis.name && s.model === $("student").value);
  fill($("stratum"), [["", "all"], ...found.map((s) => [s.stratum, s.label])], chosen);
}

function strata() {
  const axis = chosenAxis(), student = $("student").value;
  const rows = data.strata.filter((s) => s.axis === axis.name && s.model === student);
  const rowHeight = 40, width = 430, left = 130, right = width - 16, height = 30 + rowHeight * rows.length + 40;
  const svg = canvas($("strata"), width, height, `Difference to the teacher by ${axis.title}`);
  const known = rows.flatMap((r) => [r.low, r.high, r.ce_only_low, r.ce_only_high, r.delta, r.ce_only_delta]).filter((v) => v !== null && v !== undefined);
  const low = Math.min(0, ...known) - 0.02, high = Math.max(0, ...known) + 0.02;
  const x = (v) => left + ((v - low) / (high - low)) * (right - left);
  for (const tick of ticks(low * 100, high * 100, 5)) {
    draw(svg, "line", { x1: x(tick / 100), x2: x(tick / 100), y1: 14, y2: height - 40, stroke: tick ? "#e6e6e6" : "#767676" });
    draw(svg, "text", { x: x(tick / 100), y: height - 24, "text-anchor": "middle" }, format(tick, 0));
  }
  draw(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "score above chance less the teacher's, points");
  rows.forEach((r, i) => {
    const middle = 34 + i * rowHeight;
    const said = `${r.label}: ${r.n} documents, distilled ${points(r.delta)}${bounds(r.low, r.high)}` +
      (r.ce_only_delta === null || r.ce_only_delta === undefined ? "" : `, without teacher ${points(r.ce_only_delta)}${bounds(r.ce_only_low, r.ce_only_high)}`) +
      `; ${r.lost} lost, ${r.gained} gained${r.note ? `; ${r.note}` : ""}`;
    const group = draw(svg, "g", { tabindex: 0, role: "button", "aria-label": said });
    draw(group, "title", {}, said);
    const picked = String($("stratum").value) === String(r.stratum);
    draw(group, "rect", { x: 0, y: middle - rowHeight / 2, width, height: rowHeight, fill: picked ? "#e8f1f8" : "transparent" });
    draw(group, "text", { x: left - 10, y: middle + 4, "text-anchor": "end" }, r.label.length > 18 ? `${r.label.slice(0, 17)}…` : r.label);
    for (const [value, a, b, role, dy] of [[r.ce_only_delta, r.ce_only_low, r.ce_only_high, "ce_only", 7], [r.delta, r.low, r.high, "distilled", -7]]) {
      if (value === null || value === undefined) continue;
      const look = data.looks[role];
      if (a !== null && a !== undefined) draw(group, "line", { x1: x(a), x2: x(b), y1: middle + dy, y2: middle + dy, stroke: look.colour, "stroke-width": 1.6 });
      marker(group, x(value), middle + dy, look, 5);
    }
    const pick = () => { $("stratum").value = picked ? "" : r.stratum; update(); $("strata").querySelectorAll("[role=button]")[i].focus(); };
    group.addEventListener("click", pick);
    group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } });
  });
  $("axis-about").textContent = `By ${axis.about}. Filled: distilled; hollow squares: ${data.without}. Choose a row to read its documents.`;
}

function matching() {
  const [student, task, stratum, flip] = ["student", "task", "stratum", "flip"].map((id) => $(id).value);
  const number = data.students.indexOf(student), axis = data.axes.findIndex((a) => a.name === $("axis").value);
  return data.documents.filter((d) => {
    const answer = d.students[number];
    return answer && (!task || d.task === task) && (!flip || answer.flip === flip) && (stratum === "" || String(d.strata[axis]) === stratum);
  }).map((d) => ({ document: d, answer: d.students[number] }));
}

function documents() {
  const found = matching();
  $("count").textContent = `${found.length} document${found.length === 1 ? "" : "s"}` + (data.left_out_documents ? ` (${data.left_out_documents} more changed documents are in records/ only)` : "");
  $("documents").replaceChildren(...found.slice(0, shown).map(card));
  $("more").hidden = found.length <= shown;
}

function card({ document: d, answer }) {
  const mark = (p, own) => `${p === null || p === undefined ? "—" : `${format(100 * p, 1)}%`}${own ? " ◀ chosen" : ""}`;
  const rows = d.choices.map((choice, i) => {
    const row = make("tr", {},
      make("th", { scope: "row", class: "left", text: choice.trim() + (i === d.gold ? " (right)" : "") }),
      make("td", { text: mark(d.teacher.p[i], d.teacher.chosen === i) }),
      make("td", { text: mark(answer.p[i], answer.chosen === i) }));
    if (i === d.gold) row.className = "gold";
    return row;
  });
  const head = make("tr", {}, ...["choice", "teacher", $("student").value].map((text, i) => make("th", { scope: "col", class: i ? "" : "left", text })));
  return make("article", {},
    make("h4", {}, make("span", { class: `chip ${answer.flip}`, text: answer.flip }), `${d.task}, document ${d.id}`),
    make("p", { text: d.prompt }),
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
}

/* Training curves */
function curves() {
  const name = $("curve").value, rows = Object.entries(data.curves[name]), width = 900, height = 340;
  const left = 66, right = width - 20, top = 14, bottom = height - 46;
  const svg = canvas($("curves"), width, height, `${name} during training`);
  const all = rows.flatMap(([, line]) => line), xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const pad = 0.05 * (Math.max(...ys) - Math.min(...ys) || 1), x1 = Math.max(...xs) || 1;
  const low = Math.min(...ys) - pad, high = Math.max(...ys) + pad;
  const x = (v) => left + (v / x1) * (right - left), y = (v) => bottom - ((v - low) / (high - low)) * (bottom - top);
  for (const tick of ticks(low, high)) {
    draw(svg, "line", { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: "#e6e6e6" });
    draw(svg, "text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toPrecision(6))));
  }
  for (const tick of ticks(0, x1)) draw(svg, "text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, short(tick));
  draw(svg, "line", { x1: left, x2: right, y1: bottom, y2: bottom, stroke: "#1a1a1a" });
  draw(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "optimizer steps");
  $("curve-legend").replaceChildren(...rows.map(([label, line]) => {
    const look = data.curve_looks[label];
    const path = draw(svg, "polyline", { points: line.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), ...stroke(look, 2) });
    draw(path, "title", {}, label);
    if (line.length === 1) marker(svg, x(line[0][0]), y(line[0][1]), look, 3);
    return make("span", {}, swatch(52, (small) => draw(small, "line", { x1: 0, x2: 52, y1: 10, y2: 10, ...stroke(look, 2) })), ` ${label}`);
  }));
}

/* Paper has no folds to open. */
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => { for (const details of folded) details.open = false; });

function update(full = true) {
  if (full) shown = PER_PAGE;
  strata();
  documents();
  remember();
}

function begin() {
  if ($("cost")) {
    fill($("cost"), Object.entries(data.costs), start.get("cost"));
    $("cost").addEventListener("change", () => { frontier(); remember(); });
    frontier();
  }
  if ($("student")) {
    fill($("student"), data.students.map((s) => [s, s]), start.get("student"));
    fill($("task"), [["", "all"], ...data.tasks.map((t) => [t, t])], start.get("task"));
    fill($("axis"), data.axes.map((a) => [a.name, a.title]), start.get("axis"));
    fill($("flip"), [["lost", "lost: teacher right, student wrong"], ["gained", "gained: teacher wrong, student right"], ["", "both"]], start.has("student") ? start.get("flip") ?? "" : "lost");
    setStrata(start.get("stratum") ?? "");
    for (const id of ["student", "axis"]) $(id).addEventListener("change", () => { setStrata(""); update(); });
    for (const id of ["task", "stratum", "flip"]) $(id).addEventListener("change", () => update());
    $("more").addEventListener("click", () => { shown += PER_PAGE; documents(); });
    update();
  }
  if ($("curve")) {
    fill($("curve"), Object.keys(data.curves).map((c) => [c, c]), start.get("curve"));
    $("curve").addEventListener("change", () => { curves(); remember(); });
    curves();
  }
  document.documentElement.dataset.ready = "yes";
}
begin();
