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

/* Drawn as wide as its place, so that text keeps its size on a phone. */
const widthOf = (holder) => Math.max(300, Math.min(900, holder.clientWidth || 900));

/* Corners of the shapes, named as in matplotlib, as [angle in turns, radius]; a circle has none. */
const corners = (n, r, turn = 0, inner = r) => Array.from({ length: n }, (_, i) => [turn + i / n, i % 2 ? inner : r]);
const plus = (turn) => [0, 1, 2, 3].flatMap((i) => [[-0.05, 1.3], [0.05, 1.3], [0.125, 0.6]].map(([a, r]) => [turn + i / 4 + a, r]));
const SHAPES = {
  "*": corners(10, 1.55, 0, 0.62), D: corners(4, 1.25), d: corners(4, 1.4, 0, 0.8), s: corners(4, 1.3, 1 / 8),
  "^": corners(3, 1.3), v: corners(3, 1.3, 1 / 2), "<": corners(3, 1.3, -1 / 4), P: plus(0), X: plus(1 / 8),
};

function marker(parent, x, y, style, size = 6) {
  const paint = { fill: style.fill ? style.color : "#fff", stroke: style.color, "stroke-width": 1.6 };
  if (!(style.shape in SHAPES)) return draw(parent, "circle", { cx: x, cy: y, r: size, ...paint });
  const corner = ([turn, r]) => `${x + size * r * Math.sin(2 * Math.PI * turn)},${y - size * r * Math.cos(2 * Math.PI * turn)}`;
  return draw(parent, "polygon", { points: SHAPES[style.shape].map(corner).join(" "), "stroke-linejoin": "round", ...paint });
}

function stroke(style, width) {
  return { fill: "none", stroke: style.color, "stroke-width": width, "stroke-dasharray": style.dash.map((d) => d * width).join(" ") };
}

/* A small picture for a legend; what it shows is drawn into it as into the plot. */
function swatch(width, paint) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [k, v] of Object.entries({ viewBox: `0 0 ${width} 20`, "aria-hidden": "true" })) svg.setAttribute(k, v);
  paint(svg);
  return svg;
}

function ticks(low, high, count = 6) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const values = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) values.push(Math.round(x / step) * step);
  return values;
}

function fill(select, options, selected) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value, text })));
  if (selected !== undefined && options.some(([value]) => String(value) === String(selected))) select.value = selected;
}

function table(head, rows, first = "left") {
  const cell = (text, i) => (i ? make("td", { text }) : make("th", { scope: "row", class: first, text }));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((text, i) => make("th", { scope: "col", class: i ? "" : first, text })))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell)))));
}

/* Curves, strata and documents are compressed (zlib, then base64), so that the page stays small and one file. */
async function unpack(id) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser has no DecompressionStream");
  const bytes = Uint8Array.from(atob($(id).textContent.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/* The selection is part of the address, so that a view can be sent to a colleague. */
const SELECTS = ["cost", "student", "task", "axis", "stratum", "flip", "curve"];
const start = new URLSearchParams(location.hash.slice(1));
function remember() {
  const state = new URLSearchParams();
  for (const id of SELECTS) if ($(id) && $(id).value) state.set(id, $(id).value);
  history.replaceState(null, "", `#${state}`);
}

