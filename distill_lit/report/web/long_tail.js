/* The long tail */
const PER_PAGE = 10;
let shown = PER_PAGE, longTail = { strata: [], documents: [] };

function selectedAxis() { return data.axes.find((a) => a.name === $("axis").value); }

function setStrata(selected) {
  const axis = selectedAxis();
  const rows = longTail.strata.filter((s) => s.axis === axis.name && s.model === $("student").value);
  fill($("stratum"), [["", "all"], ...rows.map((s) => [s.stratum, s.label])], selected);
}

function strata() {
  const axis = selectedAxis(), student = $("student").value;
  const rows = longTail.strata.filter((s) => s.axis === axis.name && s.model === student).reverse(); // rare to common, as in the figures
  const rowHeight = 40, width = Math.min(430, widthOf($("strata"))), left = 118, right = width - 16, height = 30 + rowHeight * rows.length + 40;
  const svg = canvas($("strata"), width, height, `Difference to the teacher by ${axis.title}`);
  const known = rows.flatMap((r) => [r.low, r.high, r.ce_only_delta_low, r.ce_only_delta_high, r.delta, r.ce_only_delta]).filter((v) => v !== null && v !== undefined);
  const low = Math.min(0, ...known) - 0.02, high = Math.max(0, ...known) + 0.02;
  const x = (v) => left + ((v - low) / (high - low)) * (right - left);
  for (const tick of ticks(low * 100, high * 100, 5)) {
    draw(svg, "line", { x1: x(tick / 100), x2: x(tick / 100), y1: 14, y2: height - 40, stroke: tick ? "#e6e6e6" : "#767676" });
    draw(svg, "text", { x: x(tick / 100), y: height - 24, "text-anchor": "middle" }, format(tick, 0));
  }
  draw(svg, "text", { x: width / 2, y: height - 6, "text-anchor": "middle" }, "score above chance less the teacher's, points");
  rows.forEach((r, i) => {
    const middle = 34 + i * rowHeight;
    const description = `${r.label}: ${r.n} documents, distilled ${points(r.delta)}${bounds(r.low, r.high)}` +
      (r.ce_only_delta === null || r.ce_only_delta === undefined ? "" : `, without teacher ${points(r.ce_only_delta)}${bounds(r.ce_only_delta_low, r.ce_only_delta_high)}`) +
      `; ${r.lost} lost, ${r.gained} gained${r.note ? `; ${r.note}` : ""}`;
    const group = draw(svg, "g", { tabindex: 0, role: "button", "aria-label": description });
    draw(group, "title", {}, description);
    const picked = String($("stratum").value) === String(r.stratum);
    draw(group, "rect", { x: 0, y: middle - rowHeight / 2, width, height: rowHeight, fill: picked ? "#e8f1f8" : "transparent" });
    draw(group, "text", { x: left - 10, y: middle + 4, "text-anchor": "end" }, r.label.length > 17 ? `${r.label.slice(0, 16)}…` : r.label);
    for (const [value, a, b, role, dy] of [[r.ce_only_delta, r.ce_only_delta_low, r.ce_only_delta_high, "ce_only", 7], [r.delta, r.low, r.high, "distilled", -7]]) {
      if (value === null || value === undefined) continue;
      const style = data.role_styles[role];
      if (a !== null && a !== undefined) draw(group, "line", { x1: x(a), x2: x(b), y1: middle + dy, y2: middle + dy, stroke: style.color, "stroke-width": 1.6 });
      marker(group, x(value), middle + dy, style, 5);
    }
    const pick = () => { $("stratum").value = picked ? "" : r.stratum; update(); $("strata").querySelectorAll("[role=button]")[i].focus(); };
    group.addEventListener("click", pick);
    group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); } });
  });
  $("axis-about").textContent = `By ${axis.about}. Filled: distilled; hollow squares: ${data.ce_only_label}. Select a row to read its documents.`;
}

function selectedDocuments() {
  const [student, task, stratum, flip] = ["student", "task", "stratum", "flip"].map((id) => $(id).value);
  const number = data.students.indexOf(student), axis = data.axes.findIndex((a) => a.name === $("axis").value);
  return longTail.documents.filter((d) => {
    const answer = d.students[number];
    return answer && (!task || d.task === task) && (!flip || answer.flip === flip) && (stratum === "" || String(d.strata[axis]) === stratum);
  }).map((d) => ({ document: d, answer: d.students[number] }));
}

function documents() {
  const selected = selectedDocuments();
  $("count").textContent = `${selected.length} document${selected.length === 1 ? "" : "s"}` + (data.omitted_documents ? ` (${data.omitted_documents} more changed documents are in records.parquet only)` : "");
  $("documents").replaceChildren(...selected.slice(0, shown).map(card));
  $("more").hidden = selected.length <= shown;
}

/* The score that decided, as the task's metric has it. */
function answerCell(model, i) {
  const score = model.scores[i];
  return make("td", { text: (score === undefined || score === null ? "—" : format(score / 1000, 3)) + (model.choice === i ? " ◀ answer" : "") });
}

function card({ document: d, answer }) {
  const rows = d.choices.map((choice, i) => {
    const row = make("tr", {},
      make("th", { scope: "row", class: "left", text: choice.trim() + (i === d.gold ? " (right)" : "") }),
      answerCell(d.teacher, i), answerCell(answer, i));
    if (i === d.gold) row.className = "gold";
    return row;
  });
  const names = ["choice", `${data.teacher}, ${data.deciding[d.task]}`, `${$("student").value}, ${data.deciding[d.task]}`];
  const head = make("tr", {}, ...names.map((text, i) => make("th", { scope: "col", class: i ? "" : "left", text })));
  return make("article", {},
    make("h4", {}, make("span", { class: `chip ${answer.flip}`, text: answer.flip }), `${data.tasks[d.task]}, document ${d.id}`),
    make("p", { text: d.prompt }),
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
}

