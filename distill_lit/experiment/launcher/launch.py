"""Chooses the engine of an experiment."""

from collections.abc import Mapping
from pathlib import Path

from distill_lit.config import ExperimentConfig
from distill_lit.experiment.estimates.compilation import choose_compilation
from distill_lit.experiment.estimates.run_estimate import Estimate
from distill_lit.experiment.execution.services import services_beside
from distill_lit.experiment.execution.stopping import stopping_on_signals
from distill_lit.experiment.launcher.display import Display
from distill_lit.experiment.launcher.drivers import driver_lease
from distill_lit.experiment.launcher.local import LocalLauncher
from distill_lit.experiment.launcher.outcome import Outcome
from distill_lit.experiment.launcher.prepare import prepare_runs
from distill_lit.experiment.planning.planned_run import Run


def launch_runs(
    config: ExperimentConfig,
    runs: list[Run],
    estimates: Mapping[str, Estimate | None],
    folder: Path,
    display: Display,
    is_shared: bool = False,
    detach: bool = False,
) -> Outcome:
    """Runs what is not done, each run in its folder below `folder`. On SLURM some runs may be left, see `Outcome`.

    estimates: what runs take, by their names; is_shared: other drivers may be at work on runs of the same experiment;
    detach: return once jobs are submitted. Raises UserError when another process is at it or a run has only corrupt
    checkpoints, Terminated when asked to stop, FatalRunError when going on is hopeless."""
    if config.launcher.engine == "slurm":
        from distill_lit.experiment.launcher.slurm.engine import launch_on_slurm

        return launch_on_slurm(config, runs, folder, display, detach)
    folder.mkdir(parents=True, exist_ok=True)
    with driver_lease(folder, is_shared), stopping_on_signals() as signals:
        runs = choose_compilation(runs, estimates, folder, display.note)
        todo = prepare_runs(config, runs, folder, display.note)
        display.start(runs, todo)
        outcome = Outcome()
        if todo:
            launcher = LocalLauncher(config, folder, todo, display, outcome, signals)
            with services_beside(todo, folder, lambda: tuple(launcher.pending), display.note):
                launcher.run()
        return outcome
