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

/* What has been drawn, drawn again at another width of the window. */
const drawn = [];
let lastWidth = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== lastWidth) for (const drawing of drawn) drawing();
  lastWidth = innerWidth;
});

async function begin() {
  if ($("cost")) {
    fill($("cost"), frontierOptions(), start.get("cost"));
    $("cost").addEventListener("change", () => { frontier(); remember(); });
    drawn.push(frontier);
    frontier();
  }
  if ($("curve")) {
    try { data.curves = await unpack("packed-curves"); }
    catch (error) { $("curves").textContent = `Curves cannot be shown: ${error.message}.`; data.curves = {}; }
  }
  if ($("curve") && Object.keys(data.curves).length) {
    fill($("curve"), Object.keys(data.curves).map((c) => [c, c]), start.get("curve"));
    $("curve").addEventListener("change", () => { curves(); remember(); });
    drawn.push(curves);
    curves();
  }
  if ($("student")) {
    try { longTail = await unpack("packed-long-tail"); }
    catch (error) { $("count").textContent = `Strata and documents cannot be shown: ${error.message}.`; return; }
    fill($("student"), data.students.map((s) => [s, s]), start.get("student"));
    fill($("task"), [["", "all"], ...Object.entries(data.tasks)], start.get("task"));
    fill($("axis"), data.axes.map((a) => [a.name, a.title]), start.get("axis"));
    fill($("flip"), [["lost", "lost: teacher right, student wrong"], ["gained", "gained: teacher wrong, student right"], ["", "both"]], start.has("student") ? start.get("flip") ?? "" : "lost");
    setStrata(start.get("stratum") ?? "");
    for (const id of ["student", "axis"]) $(id).addEventListener("change", () => { setStrata(""); update(); });
    for (const id of ["task", "stratum", "flip"]) $(id).addEventListener("change", () => update());
    drawn.push(strata);
    $("more").addEventListener("click", () => { shown += PER_PAGE; documents(); });
    update();
  }
  document.documentElement.dataset.ready = "yes";
}
begin();
