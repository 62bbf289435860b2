"""What every engine has in common: folders of runs that were renamed, checkpoints that are whole."""

import contextlib
from collections.abc import Callable
from pathlib import Path

from distill_lit.config import ExperimentConfig, to_yaml
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.claims import is_claimed
from distill_lit.experiment.state.completion import is_run_built, is_run_complete
from distill_lit.training.checkpoint import find_latest_checkpoint
from distill_lit.utils.files import write_text


def prepare_runs(config: ExperimentConfig, runs: list[Run], folder: Path, note: Callable[[str], None]) -> list[Run]:
    """The runs that are not done, their folders in order, and the experiment beside them."""
    _rename_relabeled_folders(runs, folder)
    todo = [run for run in runs if not is_run_complete(run, folder / run.name)]
    for line in _check_checkpoints(todo, folder):
        note(line)
    write_text(folder / "experiment.yaml", to_yaml(config))
    return todo


def _rename_relabeled_folders(runs: list[Run], folder: Path) -> None:
    """A run whose label alone has changed, as when the grid gets another axis, goes on in the folder it has."""
    names = {run.name for run in runs}
    known: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if path.name not in names and path.is_dir() and not is_claimed(path):
            known.setdefault(path.name.rpartition("-")[2], []).append(path)
    for run in runs:
        others = known.get(run.fingerprint[:8], [])
        if len(others) == 1 and not (folder / run.name).exists():
            with contextlib.suppress(FileNotFoundError):  # another driver has just done so
                others[0].rename(folder / run.name)


def _check_checkpoints(todo: list[Run], folder: Path) -> list[str]:
    """What is to be said about checkpoints that will be passed over. Raises UserError when a run has only such."""
    unbuilt = [run for run in todo if not is_run_built(run, folder / run.name)]
    return [line for run in unbuilt for line in find_latest_checkpoint(folder / run.name / "checkpoints")[1]]
