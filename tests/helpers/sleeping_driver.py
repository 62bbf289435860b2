"""A driver of runs that sleep: `python sleeping_driver.py FOLDER COUNT I/N`, as on one of several machines."""

import sys
from pathlib import Path

from distill_lit.config import (
    ExperimentConfig,
    LauncherConfig,
    ObjectiveConfig,
    StudentConfig,
    TeacherConfig,
    TermConfig,
    TrainingConfig,
)
from distill_lit.config.roles import Role
from distill_lit.experiment.launcher import launch, local, prepare
from distill_lit.experiment.launcher.display import SilentDisplay
from distill_lit.experiment.launcher.shards import choose_shard, parse_shard
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.files import fingerprint


def sleeping_runs(count: int) -> list[Run]:
    """Runs of two steps; all but the first need the first."""
    config = ExperimentConfig(
        name="sleep", teacher=TeacherConfig(model="file:/nowhere"), students={"s": StudentConfig()}, student="s",
        objective=ObjectiveConfig(terms={"ce": TermConfig(weight=1.0)}),
        training=TrainingConfig(max_tokens=2, accelerator="cpu"), launcher=LauncherConfig(workers=2, threads_per_worker=1),
    )  # fmt: skip
    first = Run(Role.TEACHER_CACHE, "first", "first".ljust(16, "0"), config)
    labels = [f"run{number}" for number in range(1, count)]
    return [first, *(Run(Role.DISTILLED, n, fingerprint(n), config, "s", 0, depends_on=(first.name,)) for n in labels)]


def is_done(_: Run, folder: Path) -> bool:
    """What is done is what has a manifest."""
    return (folder / "manifest.json").is_file()


if __name__ == "__main__":
    for module in (local, prepare):
        module.is_run_complete = is_done
    prepare.is_run_built = is_done
    local.read_run_results = lambda *_: local.RunResults()
    runs = sleeping_runs(int(sys.argv[2]))
    own = {*choose_shard(runs, *parse_shard(sys.argv[3])), runs[0].name}
    todo = [run for run in runs if run.name in own]
    outcome = launch.launch_runs(runs[0].config, todo, {}, Path(sys.argv[1]), SilentDisplay(), is_shared=True)
    assert not outcome.failed, outcome.failed
