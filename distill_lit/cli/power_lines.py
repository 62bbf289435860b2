"""What the documents and seeds of a plan can decide, in lines."""

from rich.console import Console

from distill_lit.experiment.power import PlannedPower
from distill_lit.report.number_format import format_points, join_words


def print_power(planned: PlannedPower, limit: int, console: Console) -> None:
    """Prints the smallest difference that is found, by what that is known, and a warning where it is larger than any that a
    teacher makes. limit: of documents per task, 0 without one."""
    power = planned.power
    points = format_points(power.difference)
    seeds = "1 seed" if planned.num_seeds == 1 else f"{planned.num_seeds} seeds"
    sizes = sorted(set(planned.documents.values()))
    documents = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    tasks = f"{len(planned.documents)} task{'s' if len(planned.documents) > 1 else ''}"
    after = f", {power.alpha:.0%}" + (f" after Holm over {planned.comparisons}" if planned.comparisons > 1 else "")
    lines = [
        f"decides: differences of at least {points} points (scores above chance) between a distilled student and the same "
        f"without the teacher ({power.power:.0%} power{after}; {documents} documents on each of {tasks}, {seeds})"
    ]
    if power.covers_seeds:
        with_documents = f"{format_points(power.seeds_only)} with many more documents"
        if not power.seeds_only:
            with_documents = "the records show no difference between seeds that many more documents would leave"
        lines.append(f"  {format_points(power.documents_only)} with many more seeds, {with_documents}")
    else:
        lines.append("  other documents only: with one seed, or records of one, another seed may differ by more")
    lines.append(f"  by the variances in {planned.records}{_reservations(planned)}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if power.decides_nothing:
        cause = f"limit={limit} decides" if limit else "these documents and seeds decide"
        console.print(
            f"warning: {cause} nothing: what a teacher adds is less than {points} points; raise evaluation.limit, or name "
            "more tasks or seeds",
            style="yellow", highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip


def _reservations(planned: PlannedPower) -> str:
    found = []
    if planned.at_chance:
        found.append(f"whose teacher is at chance on {join_words(list(planned.at_chance))}, not averaged")
    if planned.power.unknown:
        found.append(f"without {join_words(list(planned.power.unknown))}, for which the others' average stands")
    return "".join(f", {words}" for words in found)
