"""The plan as a table: runs with tokens, arithmetic, disk and minutes."""

from rich.console import Console
from rich.table import Table

from distill_lit import assets
from distill_lit.experiment.estimate import Estimate, sum_estimates
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.planned_run import Run

Planned = list[tuple[Run, Estimate | None]]


def print_plan(experiment: Experiment, planned: Planned, console: Console) -> None:
    """Prints runs with their estimates, after the question and what is to be downloaded."""
    if experiment.config.question:
        console.print(f"[bold]{experiment.name}[/bold]: {experiment.config.question}", highlight=False)
    for plugin in experiment.config.plugins:
        console.print(f"plugin: the code in {plugin} is run", style="yellow", highlight=False, soft_wrap=True)
    for note in experiment.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for reference in experiment.required_assets:
        if not assets.is_fetched(reference):
            size = assets.download_megabytes(reference)
            console.print(f"to download: {reference}" + (f", {size} MB" if size else ""), highlight=False)
    is_known = experiment.has_models
    table = Table("run", "role", "tokens", "PFLOPs", "disk MB", "minutes", title=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for run, estimate in planned:
        table.add_row(run.label, run.role, *_numbers(estimate))
    if is_known:
        table.add_section()
        total = sum_estimates([estimate for _, estimate in planned if estimate is not None])
        table.add_row(f"{len(planned)} runs", "", *_numbers(total))
    console.print(table)
    if any("~" in run.label for run, _ in planned):
        console.print("a name that ends in ~ and a hash would be too long for a file, or another one's in other letters")
    if is_known and any(estimate is None for _, estimate in planned):
        console.print("the totals leave out runs whose text is not here yet: distill-lit fetch downloads it")
    if not is_known:
        console.print("minutes and disk are known once the models are here: distill-lit fetch")


def _numbers(estimate: Estimate | None) -> tuple[str, ...]:
    if estimate is None:
        return ("–",) * 4
    return (
        f"{estimate.tokens:,}",
        f"{estimate.flops / 1e15:.2f}",
        f"{estimate.disk_bytes / 1e6:,.0f}",
        f"{estimate.minutes:.1f}",
    )
