"""The plan as a table: a column for each axis of the grid, then tokens, arithmetic, memory, disk and minutes."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_lit import assets
from distill_lit.config.grid_points import grid_keys, shortest_names, value_text
from distill_lit.config.hypothesis_validation import untestable_hypotheses
from distill_lit.config.schema import GRID_VALUE_SEPARATOR
from distill_lit.experiment.estimates.memory_estimate import MEMORY_PARTS
from distill_lit.experiment.estimates.pace import WORKER_SECONDS, makespan, num_workers
from distill_lit.experiment.estimates.run_estimate import Estimate, sum_estimates
from distill_lit.experiment.estimates.strategy import fit_line
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.hardware import BUSY_LOAD, load_per_core

Planned = list[tuple[Run, Estimate | None]]
NUMBERS = ("tokens", "PFLOPs", "memory\nGB", "disk\nMB", "minutes")
MIN_NAME = 12  # columns that a name has before it is folded


def print_plan(experiment: Experiment, planned: Planned, console: Console) -> None:
    """Prints runs with their estimates, after the question and what is to be downloaded."""
    if experiment.config.question:
        console.print(Text.assemble((experiment.name, "bold"), f": {experiment.config.question}"))
    for plugin in experiment.config.plugins:
        console.print(f"plugin: the code in {plugin} is run", style="yellow", highlight=False, soft_wrap=True)
    for note in experiment.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for problem in untestable_hypotheses(experiment.config).values():
        console.print(f"not to be tested: {problem}", style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in gpu_lines(experiment, [run for run, _ in planned]):
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for reference in experiment.required_assets:
        if not assets.is_fetched(reference):
            size = assets.download_megabytes(reference)
            console.print(f"to download: {reference}" + (f", {size} MB" if size else ""), highlight=False)
    console.print(plan_table(planned, experiment.has_models))
    if any("~" in run.label for run, _ in planned):
        console.print("a name that ends in ~ and a hash would be too long for a file, or another one's in other letters")
    if not experiment.has_models:
        console.print("minutes, memory and disk are known once the models are here: distill-lit fetch")
        return
    if any(estimate is None for _, estimate in planned):
        console.print("the totals leave out runs whose text is not here yet: distill-lit fetch downloads it")
    console.print(memory_table(planned))
    for line in fit_lines(planned):
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in time_lines(planned, load_per_core()):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def plan_table(planned: Planned, is_known: bool) -> Table:
    """A row per run. is_known: whether there are estimates. Where there is little room, names are folded, never numbers."""
    runs = [run for run, _ in planned]
    axes = plan_axes(runs)
    rows = [
        [_name(run), run.role.value, *(_axis_value(run, key) for key in axes), *_numbers(estimate)]
        for run, estimate in planned
    ]
    total = sum_estimates([estimate for _, estimate in planned if estimate is not None])
    totals = [f"{len(planned)} runs", "", *("" for _ in axes), *_numbers(total)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    widths = [max(map(len, column)) for column in zip(*rows, totals, strict=True)]
    table.add_column("run", overflow="fold", min_width=min(MIN_NAME, widths[0]))
    table.add_column("role", min_width=widths[1])
    for name, width in zip(axes.values(), widths[2:], strict=False):
        table.add_column(name, overflow="fold", min_width=min(MIN_NAME, width))
    for name, width in zip(NUMBERS, widths[-len(NUMBERS) :], strict=True):
        table.add_column(name, justify="right", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    if is_known:
        table.add_section()
        table.add_row(*totals)
    return table


def plan_axes(runs: Sequence[Run]) -> dict[str, str]:
    """{key of the grid: its shortest name} of the axes with more than one value; students are named anyway."""
    keys = grid_keys(runs[0].config.grid)
    names = shortest_names(keys)
    values = {key: {_axis_value(run, key) for run in runs if _axis_value(run, key)} for key in keys}
    return {key: names[key] for key in keys if key != "student" and len(values[key]) > 1}


def _axis_value(run: Run, key: str) -> str:
    """The value of a run on an axis; empty where it stands for all of them."""
    if key == "seed":
        return "" if run.seed is None else str(run.seed)
    return value_text(run.grid_values.get(key, "")).replace(GRID_VALUE_SEPARATOR, ", ")


def _name(run: Run) -> str:
    """What a run is called beside columns with its role and its values on the axes."""
    return run.student if run.student and "~" not in run.label else run.label


def _numbers(estimate: Estimate | None) -> tuple[str, ...]:
    if estimate is None:
        return ("–",) * len(NUMBERS)
    return (
        f"{estimate.tokens:,}",
        f"{estimate.flops / 1e15:.2f}",
        f"{estimate.memory.total / 1e9:.1f}",
        f"{estimate.disk_bytes / 1e6:,.0f}",
        f"{estimate.minutes:.1f}",
    )


def memory_table(planned: Planned) -> Table:
    """What the memory of runs is made of, in GB, a row for all runs that need the same."""
    known = sorted(((run, estimate.memory) for run, estimate in planned if estimate), key=lambda pair: -pair[1].total)
    parts = [name for name in MEMORY_PARTS if any(getattr(memory, name) for _, memory in known)]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run, memory in known:
        values = [getattr(memory, name) for name in parts]
        row = (*(f"{value / 1e9:.2f}" if value else "" for value in values), f"{memory.total / 1e9:.2f}")
        groups.setdefault(row, []).append(run)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("GB of memory", overflow="fold", min_width=MIN_NAME)
    for name in (*parts, "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, runs in groups.items():
        names = dict.fromkeys(f"{run.student} {run.role}" if run.student else run.role.value for run in runs)
        table.add_row(Text(", ".join(names)), *row)
    return table


def fit_lines(planned: Planned) -> list[str]:
    """Which runs need more memory than a device has, a line for all that need the same, and what would fit."""
    architectures, lines = Architectures([run for run, _ in planned]), {}
    for run, estimate in planned:
        if estimate is not None and (run.role, estimate.memory) not in lines:
            lines[run.role, estimate.memory] = fit_line(run, estimate.memory, architectures)
    return [line for line in lines.values() if line]


def gpu_lines(experiment: Experiment, runs: Sequence[Run]) -> list[str]:
    """What these runs would be refused for on this machine."""
    try:
        experiment.check_gpus(runs)
    except UserError as error:
        return [str(error)]
    return []


def time_lines(planned: Planned, load: float) -> list[str]:
    """What the minutes are spent on, when all is done with the workers there are, and what makes it take longer.

    load: programs at work now, for each core."""
    known = {run.name: estimate for run, estimate in planned if estimate is not None}
    runs = [run for run, _ in planned if run.name in known]
    if not runs:
        return []
    workers = num_workers(runs)
    wall = makespan(runs, lambda run: known[run.name].minutes, workers) + WORKER_SECONDS / 60
    parts = sum_estimates(list(known.values())).parts
    largest = sorted(parts.items(), key=lambda part: -part[1])
    spent = ", ".join(f"{name} {minutes:.1f}" for name, minutes in largest if minutes >= 0.05)
    beside = f" with {workers} workers" if workers > 1 else ""
    lines = [f"about {wall:.1f} minutes{beside} on an idle machine, if nothing is done yet: {spent}"]
    if load > BUSY_LOAD:
        lines.append(
            f"other programs are busy ({load:.1f} for each core): beside them it takes about {1 + load:.1f} times as long"
        )
    return lines
