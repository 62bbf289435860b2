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

async function begin() {
  if ($("cost")) {
    fill($("cost"), Object.entries(data.costs), start.get("cost"));
    $("cost").addEventListener("change", () => { frontier(); remember(); });
    frontier();
  }
  if ($("curve")) {
    fill($("curve"), Object.keys(data.curves).map((c) => [c, c]), start.get("curve"));
    $("curve").addEventListener("change", () => { curves(); remember(); });
    curves();
  }
  if ($("student")) {
    try { longTail = await unpack("packed-long-tail"); }
    catch (error) { $("count").textContent = `Strata and documents cannot be shown: ${error.message}.`; return; }
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
  document.documentElement.dataset.ready = "yes";
}
begin();
