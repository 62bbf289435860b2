"use strict";
/* Sorts and filters the experiments; the selection is part of the address. */
const $ = (id) => document.getElementById(id);
const cards = [...document.querySelectorAll("section.card")];
const start = new URLSearchParams(location.hash.slice(1));

function compare(a, b) {
  const key = $("sort").value;
  if (key === "name") return a.dataset.name.localeCompare(b.dataset.name);
  const value = (card) => (card.dataset[key] === undefined ? -Infinity : Number(card.dataset[key]));
  return value(b) - value(a) || a.dataset.name.localeCompare(b.dataset.name);
}

function update() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean), outcome = $("outcome").value;
  for (const card of cards) {
    const text = card.textContent.toLowerCase();
    card.hidden = !(words.every((word) => text.includes(word)) && (!outcome || card.dataset.outcome === outcome));
  }
  $("main").append(...[...cards].sort(compare));
  $("count").textContent = `${cards.filter((card) => !card.hidden).length} of ${cards.length} experiments`;
  const state = new URLSearchParams();
  for (const id of ["filter", "outcome", "sort"]) if ($(id).value) state.set(id, $(id).value);
  history.replaceState(null, "", `#${state}`);
}

for (const id of ["filter", "outcome", "sort"]) {
  if (start.get(id) && [...($(id).options || [{ value: start.get(id) }])].some((o) => o.value === start.get(id))) $(id).value = start.get(id);
  $(id).addEventListener("input", update);
}
update();
document.documentElement.dataset.ready = "yes";
