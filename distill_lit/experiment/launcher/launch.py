"""Chooses the engine of an experiment."""

import contextlib
from pathlib import Path
from typing import NamedTuple

from distill_lit.config import ExperimentConfig
from distill_lit.experiment.display import Display
from distill_lit.experiment.launcher.local import LocalLauncher
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.prepare import exclusive_driver, prepare_runs
from distill_lit.experiment.planned_run import Run
from distill_lit.experiment.services import services_beside
from distill_lit.experiment.stopping import stopping_on_signals


class LaunchMode(NamedTuple):
    """is_shared: other drivers may be at work on runs of the same experiment; detach: return once jobs are submitted."""

    is_shared: bool = False
    detach: bool = False


ALONE = LaunchMode()


def launch_runs(
    config: ExperimentConfig, runs: list[Run], folder: Path, display: Display, mode: LaunchMode = ALONE
) -> Outcome:
    """Runs what is not done, each run in its folder below `folder`. On SLURM some runs may be left, see `Outcome`.

    Raises UserError when another process is at it or a run has only corrupt
    checkpoints, Terminated when asked to stop, FatalRunError when going on is hopeless."""
    if config.launcher.engine == "slurm":
        from distill_lit.experiment.launcher.slurm.engine import launch_on_slurm

        return launch_on_slurm(config, runs, folder, display, mode.detach)
    folder.mkdir(parents=True, exist_ok=True)
    driver = contextlib.nullcontext() if mode.is_shared else exclusive_driver(folder)
    with driver, stopping_on_signals() as signals:
        todo = prepare_runs(config, runs, folder, display.note)
        display.start(runs, todo)
        outcome = Outcome()
        if todo:
            launcher = LocalLauncher(config, folder, todo, display, outcome, signals)
            with services_beside(todo, lambda: tuple(launcher.pending), display.note):
                launcher.run()
        return outcome
