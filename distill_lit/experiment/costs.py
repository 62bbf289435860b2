"""`distill-lit cost`: measures what the finished models of an experiment cost to run, into its results folder.

results/<experiment>/cost.csv    a row per model, turn and point of the grid, as measured
results/<experiment>/cost.json   which runs each model stands for, machine, settings, and the axes with intervals
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from distill_lit.analysis.inference_cost import read_costs, summarize_costs
from distill_lit.config import ExperimentConfig, non_default_fields, to_dict
from distill_lit.config.roles import Role
from distill_lit.experiment.execution import run as work
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import is_run_built, run_model_folder
from distill_lit.profiling.inference import measure_costs
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write, fingerprint, read_mapping, write_json

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment

# what decides how fast a model is: runs that agree in it are measured once
SHAPE_FIELDS = ("parameters", "non_embedding_parameters", "num_layers", "flops_per_token", "kv_cache_bytes_per_token",
                "bytes")  # fmt: skip
UNMEASURED_COST_FIELDS = ("measure", "price_per_hour")


def measure_experiment_costs(experiment: "Experiment", note: Callable[[str], None]) -> Path:
    """Measures one model of every shape, all in turn; returns the results folder. Where the same models have been measured
    in the same way on this machine, their numbers are summarized anew. Raises UserError without a finished teacher."""
    config, runs = experiment.resolved_config, experiment.runs
    target, runs_dir = experiment.results_folder, experiment.runs_folder
    if config.launcher.threads_per_worker:
        torch.set_num_threads(config.launcher.threads_per_worker)
    stands_for, folders, fingerprints = choose_models(runs, runs_dir)
    measured = fingerprint(
        {
            "models": fingerprints,
            "settings": {k: v for k, v in to_dict(config.cost).items() if k not in UNMEASURED_COST_FIELDS},
            "machine": hardware.describe_hardware(),
        }
    )
    known = read_costs(target)
    if known.get("fingerprint") == measured and (target / "cost.csv").is_file():
        note(f"{target / 'cost.csv'}: these models have been measured on this machine")
        rows = pd.read_csv(target / "cost.csv")
        write_json(target / "cost.json", {**known, **_summary(config, rows, next(iter(folders))), "stands_for": stands_for})
        return target
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    if load > hardware.BUSY_LOAD * (os.cpu_count() or 1):
        note(f"other programs are busy (load {load:.1f}): the timings will be theirs too")
    device = hardware.device_for(config.training.accelerator)
    rows = measure_costs(folders, config.cost, device, lambda stage, done, of, *_: note(f"turn {done} of {of}: {stage}"))
    with atomic_write(target / "cost.csv") as path:
        rows.to_csv(path, index=False, float_format="%.6g")
    facts: dict[str, Any] = {
        "fingerprint": measured,
        "machine": {
            **hardware.describe_hardware(),
            "device": str(device),
            "load": load,
            "threads": torch.get_num_threads(),
        },
        "stands_for": stands_for,
        "parameters": {model: _manifest_of(runs_dir, runs, model).get("parameters") for model in folders},
        **_summary(config, rows, next(iter(folders))),
    }
    write_json(target / "cost.json", facts)
    return target


def _summary(config: ExperimentConfig, rows: pd.DataFrame, teacher: str) -> dict[str, Any]:
    """What of cost.json follows from the measurements and the config: settings with the price, axes with intervals."""
    axes = summarize_costs(rows, teacher, config.analysis.confidence_level)
    return {
        "settings": to_dict(config.cost),
        "confidence_level": config.analysis.confidence_level,
        "axes": axes.to_dict("records"),
    }


def choose_models(
    runs: list[Run], runs_dir: Path
) -> tuple[dict[str, list[str]], dict[str, Path], dict[str, dict[str, str]]]:
    """({model: labels of all runs of its shape}, {model: its folder}, {model: its fingerprint}), the teacher first.

    A run that is not built has the shape of one that begins in the same way: what a student costs is known before it is
    trained."""
    stands_for: dict[str, list[str]] = {}
    folders: dict[str, Path] = {}
    fingerprints: dict[str, dict[str, str]] = {}
    model_of_shape: dict[str, str] = {}
    model_of_initial_student: dict[str, str] = {}
    unbuilt: list[Run] = []
    for run in sorted((c for c in runs if c.is_model), key=lambda c: c.role != Role.TEACHER):
        folder = runs_dir / run.name
        if not is_run_built(run, folder):
            unbuilt.append(run)
            continue
        manifest = read_mapping(folder / "manifest.json")
        shape = fingerprint([run.student or run.label, *(manifest.get(name) for name in SHAPE_FIELDS)])
        model = model_of_initial_student[_initial_student_key(run)] = model_of_shape.setdefault(shape, run.label)
        stands_for.setdefault(model, []).append(run.label)
        if model == run.label:
            work.allow_run_remote_code(run, folder)
            folders[model], fingerprints[model] = run_model_folder(folder, manifest), manifest["fingerprint"]
    if not any(c.role == Role.TEACHER and c.label in folders for c in runs):
        raise UserError("cost: the teacher of this experiment has not been built; run the experiment first")
    for run in unbuilt:
        if model := model_of_initial_student.get(_initial_student_key(run), ""):
            stands_for[model].append(run.label)
    return stands_for, folders, fingerprints


def _initial_student_key(run: Run) -> str:
    """Identifies how a student is made; training changes its weights, not its shape."""
    made = non_default_fields(run.config.students[run.student]) if run.student else run.fingerprint
    return fingerprint([run.student, made, run.config.teacher.model])


def _manifest_of(runs_dir: Path, runs: list[Run], label: str) -> dict[str, Any]:
    return next(read_mapping(runs_dir / run.name / "manifest.json") for run in runs if run.label == label)
