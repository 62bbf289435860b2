"""`distill-lit status`: which runs are done, failed, or missing, and what they have come to so far."""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_lit.cli.arguments import CommandParsers, add_experiment_command, load_experiment_of
from distill_lit.cli.exit_codes import DONE

if TYPE_CHECKING:
    from distill_lit.experiment.planning.planned_run import Run
    from distill_lit.experiment.state.status import RunResults


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    add_experiment_command(
        commands,
        "status",
        "Show which runs are done, failed or missing, with scores, KL and times so far.",
        "distill-lit status experiments/quickstart.yaml",
        run,
    )


def status_table(
    runs: "Sequence[Run]", statuses: Mapping[str, tuple[str, str]], results: "Mapping[str, RunResults]"
) -> Table:
    """A row per run with what it has come to so far. Columns that nothing is known for are left out."""
    from distill_lit.experiment.state.status import format_seconds

    columns: dict[str, dict[str, str]] = {
        "score %": {n: f"{100 * r.score:.1f}" for n, r in results.items() if r.score is not None},
        "above chance %, all tasks": {
            n: f"{100 * r.above_chance:.1f}" for n, r in results.items() if r.above_chance is not None
        },
        "val KL": {n: f"{r.kl:.3f}" for n, r in results.items() if r.kl is not None},
        "time": {n: format_seconds(r.seconds) for n, r in results.items() if r.seconds is not None},
    }
    columns = {name: values for name, values in columns.items() if values}
    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("status")
    for name in columns:
        table.add_column(name, justify="right")
    has_notes = any(note for _, note in statuses.values())
    if has_notes:
        table.add_column("note", overflow="fold")
    for run in runs:
        status, note = statuses[run.name]
        values = [values.get(run.name, "") for values in columns.values()]
        table.add_row(Text(run.label), status, *values, *([Text(note)] if has_notes else []))
    return table


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints the status of every run, as it is on disk."""
    experiment = load_experiment_of(options, writes=False)
    statuses, results = experiment.statuses(), experiment.run_results()
    console.print(status_table(experiment.runs, statuses, results))
    counts = Counter(status for status, _ in statuses.values())
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return DONE
