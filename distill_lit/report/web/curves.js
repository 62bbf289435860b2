/* Training curves */
function curves() {
  const name = $("curve").value, rows = Object.entries(data.curves[name]), width = widthOf($("curves")), height = 340;
  const left = 58, right = width - 14, top = 14, bottom = height - 46;
  const svg = canvas($("curves"), width, height, `${name} during training`);
  const all = rows.flatMap(([, line]) => line), xs = all.map((p) => p[0]), ys = all.flatMap((p) => p.slice(1));
  const pad = 0.05 * (Math.max(...ys) - Math.min(...ys) || 1), x1 = Math.max(...xs) || 1;
  const low = Math.min(...ys) - pad, high = Math.max(...ys) + pad;
  const x = (v) => left + (v / x1) * (right - left), y = (v) => bottom - ((v - low) / (high - low)) * (bottom - top);
  for (const tick of ticks(low, high)) {
    draw(svg, "line", { x1: left, x2: right, y1: y(tick), y2: y(tick), stroke: "#e6e6e6" });
    draw(svg, "text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(Number(tick.toPrecision(6))));
  }
  for (const tick of ticks(0, x1, width / 110)) draw(svg, "text", { x: x(tick), y: bottom + 18, "text-anchor": "middle" }, short(tick));
  draw(svg, "line", { x1: left, x2: right, y1: bottom, y2: bottom, stroke: "#1a1a1a" });
  draw(svg, "text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, "optimizer steps");
  $("curve-legend").replaceChildren(...rows.map(([label, line]) => {
    const style = data.curve_styles[label], band = line.filter((p) => p.length > 2);
    const edge = [...band.map((p) => [p[0], p[3]]), ...band.map((p) => [p[0], p[2]]).reverse()];
    if (edge.length) draw(svg, "polygon", { points: edge.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), fill: style.color, opacity: 0.15, class: "band" });
    const path = draw(svg, "polyline", { points: line.map((p) => `${x(p[0])},${y(p[1])}`).join(" "), ...stroke(style, 2) });
    draw(path, "title", {}, label);
    if (line.length === 1) marker(svg, x(line[0][0]), y(line[0][1]), style, 3);
    return make("span", {}, swatch(52, (small) => draw(small, "line", { x1: 0, x2: 52, y1: 10, y2: 10, ...stroke(style, 2) })), ` ${label}`);
  }));
}

