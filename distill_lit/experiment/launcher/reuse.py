"""Runs that another experiment has done: a model with the same fingerprint is taken from it instead of made again."""

import contextlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from distill_lit.data.own_text import own_text_fingerprints
from distill_lit.experiment.execution.run import OWN_TEXT, source_facts
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.claims import LEASE_NAME, is_claimed
from distill_lit.experiment.state.completion import is_run_built, is_run_evaluated
from distill_lit.experiment.state.run_state import STATE_NAME
from distill_lit.training.tensorboard_summary import FINAL_FOLDER
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import TEMPORARY_PREFIX, read_mapping, write_json

LEFT_BEHIND = (f"{LEASE_NAME}*", STATE_NAME, "checkpoints", f"{TEMPORARY_PREFIX}*")  # of its worker there


def take_runs_of_others(runs: Iterable[Run], folder: Path, note: Callable[[str], None]) -> None:
    """Copies models that runs without a folder would make, with their records and curves, from experiments beside `folder`:
    the same fingerprint, made of the very files that they would be made of here. runs: each after what it depends on."""
    missing = [run for run in runs if run.is_model and not (folder / run.name).exists()]
    known = _folders_of_others({run.fingerprint[:8] for run in missing}, folder)
    for run in missing:
        found = [path for path in known.get(run.fingerprint[:8], ()) if _is_same(run, path, folder)]
        place = min(found, key=lambda path: not is_run_evaluated(run, path), default=None)
        if place is not None and _copy(place, folder / run.name):
            _copy_final_point(run, place, folder)
            note(f"{run.label}: {_origin(place)}")


def _folders_of_others(wanted: set[str], folder: Path) -> dict[str, list[Path]]:
    """{first characters of a fingerprint: folders of other experiments' runs that have it}."""
    known: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.parent.glob("*/*-*")) if wanted else ():
        name = path.name.rpartition("-")[2]
        if name in wanted and path.parent != folder:
            known[name].append(path)
    return known


def _is_same(run: Run, path: Path, folder: Path) -> bool:
    """Whether the folder of another experiment, in which nobody works, holds what a run would make in `folder`."""
    try:
        if is_claimed(path) or not is_run_built(run, path):
            return False
        manifest = read_mapping(path / "manifest.json")
        sources = source_facts(run, folder / run.name).get("sources", {})
        own_text = {} if run.model_reference else own_text_fingerprints(run.config.data)
    except (OSError, UserError):  # what it is made from is not there yet, or the folder is another user's
        return False
    # a model may have another name there
    return set(manifest.get("sources", {}).values()) == set(sources.values()) and manifest.get(OWN_TEXT, {}) == own_text


def _copy(place: Path, target: Path) -> bool:
    """Copies the folder of a run; False where another driver has been faster, whose folder `atomic_write_folder` would
    replace."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}.{os.getpid()}")
    try:
        shutil.copytree(place, temporary, ignore=shutil.ignore_patterns(*LEFT_BEHIND), copy_function=_link_or_copy)
        manifest = read_mapping(temporary / "manifest.json")
        write_json(temporary / "manifest.json", manifest | {"notes": [*manifest.get("notes", []), _origin(place)]})
        with contextlib.suppress(OSError):
            temporary.rename(target)
            return True
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _origin(place: Path) -> str:
    return f"taken from {place.parent.name}, which has the same run"


def _copy_final_point(run: Run, place: Path, folder: Path) -> None:
    """Copies the point of a run in TensorBoard's table of hyperparameters, where it was asked the same questions."""
    final = place.parent / FINAL_FOLDER / place.name
    if final.is_dir() and is_run_evaluated(run, place):
        shutil.copytree(final, folder / FINAL_FOLDER / run.name, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    """Weights are written once, under another name first, so that both experiments may have the same file on disk."""
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):  # another disk, or one without links
            os.link(source, target)
            return
    shutil.copy2(source, target)
