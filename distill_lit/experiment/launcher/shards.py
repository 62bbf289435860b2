"""Some runs of an experiment, for a scheduler that starts the driver itself: every n-th one, or those of a name."""

from collections.abc import Sequence

from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.exceptions import UserError, suggest


def parse_shard(text: str) -> tuple[int, int]:
    """(2, 8) of `2/8`, the second of eight shards. Raises UserError."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard {text}: give i/n with 1 ≤ i ≤ n, as 1/8 for the first of eight")
    return int(number), int(count)


def choose_shard(runs: Sequence[Run], number: int, count: int) -> list[str]:
    """The names of every `count`-th run, from the `number`-th on. All shards together have every run once."""
    return [run.name for run in runs[number - 1 :: count]]


def choose_named(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """The names of the runs with these labels or names. Raises UserError for one that there is not."""
    labels = {run.label: run.name for run in runs} | {run.name: run.name for run in runs}
    for name in names:
        if name not in labels:
            raise UserError(f"--run {name}: there is no such run{suggest(name, {run.label for run in runs})}")
    return [labels[name] for name in names]
