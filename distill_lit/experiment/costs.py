"""`distill-lit cost`: measures what the finished models of an experiment cost to run, into its results folder.

results/<experiment>/cost.csv    a row per model, turn and point of the grid, as measured
results/<experiment>/cost.json   which cells each model stands for, machine, settings, and the axes with intervals
"""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from distill_lit.analysis.inference_cost import read_costs, summarise
from distill_lit.config import ExperimentConfig, decisive, to_dict
from distill_lit.experiment import run as work
from distill_lit.experiment.fingerprint import TEACHER
from distill_lit.experiment.paths import results_folder, runs_folder
from distill_lit.experiment.plan import Cell
from distill_lit.profiling.inference import measure_costs
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint, write_json, writing

# what decides how fast a model is: cells that agree in it are measured once
SHAPE = ("parameters", "non_embedding_parameters", "layers", "flops_per_token", "kv_bytes_per_token", "bytes")
WITHOUT_EFFECT = ("measure", "price")
BUSY = 0.5  # programs waiting per core, from which timings are not to be trusted


def measure_experiment(config: ExperimentConfig, cells: list[Cell], root: Path, console: Console) -> Path:
    """Measures one model of every shape, all in turn; returns the results folder. Where the same models have been measured
    in the same way on this machine, their numbers are summarised anew. Raises UserError without a finished teacher."""
    target, runs = results_folder(root, config), runs_folder(root, config)
    if config.launcher.threads:
        torch.set_num_threads(config.launcher.threads)
    stands_for, folders, prints = choose_models(cells, runs)
    identity = fingerprint(
        {
            "models": prints,
            "settings": {k: v for k, v in to_dict(config.cost).items() if k not in WITHOUT_EFFECT},
            "machine": hardware.describe(),
        }
    )
    known = read_costs(target)
    if known.get("identity") == identity and (target / "cost.csv").is_file():
        console.print(f"{target / 'cost.csv'}: these models have been measured on this machine", highlight=False)
        rows = pd.read_csv(target / "cost.csv")
        write_json(target / "cost.json", {**known, **_summary(config, rows, next(iter(folders))), "stands_for": stands_for})
        return target
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    if load > BUSY * (os.cpu_count() or 1):
        console.print(f"other programs are busy (load {load:.1f}): the timings will be theirs too", style="yellow")
    device = hardware.device_for(config.training.accelerator)
    rows = measure_costs(
        folders, config.cost, device, lambda done, of, name: console.print(f"turn {done} of {of}: {name}", highlight=False)
    )
    with writing(target / "cost.csv") as path:
        rows.to_csv(path, index=False, float_format="%.6g")
    facts: dict[str, Any] = {
        "identity": identity,
        "machine": {**hardware.describe(), "device": str(device), "load": load, "threads": torch.get_num_threads()},
        "stands_for": stands_for,
        "parameters": {model: _facts(runs, cells, model).get("parameters") for model in folders},
        **_summary(config, rows, next(iter(folders))),
    }
    write_json(target / "cost.json", facts)
    return target


def _summary(config: ExperimentConfig, rows: pd.DataFrame, teacher: str) -> dict[str, Any]:
    """What of cost.json follows from the measurements and the config: settings with the price, axes with intervals."""
    axes = summarise(rows, teacher, config.analysis.bootstrap, config.analysis.confidence)
    return {
        "settings": to_dict(config.cost),
        "confidence": config.analysis.confidence,
        "axes": axes.to_dict("records"),
    }


def choose_models(cells: list[Cell], runs: Path) -> tuple[dict[str, list[str]], dict[str, Path], dict[str, dict[str, str]]]:
    """({model: labels of all cells of its shape}, {model: its folder}, {model: its fingerprint}), the teacher first.

    A cell that is not built has the shape of one that begins in the same way: what a student costs is known before it is
    trained."""
    stands_for: dict[str, list[str]] = {}
    folders: dict[str, Path] = {}
    prints: dict[str, dict[str, str]] = {}
    known: dict[str, str] = {}
    begun: dict[str, str] = {}
    later: list[Cell] = []
    for cell in sorted((c for c in cells if c.is_model), key=lambda c: c.role != TEACHER):
        folder = runs / cell.name
        if not work.is_built(cell, folder):
            later.append(cell)
            continue
        manifest = work.read_manifest(folder / "manifest.json")
        shape = fingerprint([cell.student or cell.label, *(manifest.get(name) for name in SHAPE)])
        model = begun[_beginning(cell)] = known.setdefault(shape, cell.label)
        stands_for.setdefault(model, []).append(cell.label)
        if model == cell.label:
            work.allow_own_code(cell, folder)
            folders[model], prints[model] = work.model_place(folder, manifest), manifest["fingerprint"]
    if not any(c.role == TEACHER and c.label in folders for c in cells):
        raise UserError("cost: the teacher of this experiment has not been built; run the experiment first")
    for cell in later:
        if model := begun.get(_beginning(cell), ""):
            stands_for[model].append(cell.label)
    return stands_for, folders, prints


def _beginning(cell: Cell) -> str:
    """Identifies how a student is made; training changes its weights, not its shape."""
    made = decisive(cell.config.students[cell.student]) if cell.student else cell.identity
    return fingerprint([cell.student, made, cell.config.teacher.model])


def _facts(runs: Path, cells: list[Cell], label: str) -> dict[str, Any]:
    return next(work.read_manifest(runs / cell.name / "manifest.json") for cell in cells if cell.label == label)
