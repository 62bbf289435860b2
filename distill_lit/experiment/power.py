"""What the documents and seeds of a plan can decide, by the variances in records of other runs, or of this experiment."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lit.analysis.pooled_seeds import TRAINED_ROLES
from distill_lit.analysis.power import (
    Power,
    TaskVariances,
    detectable_difference,
    variances_from_json,
)
from distill_lit.config import ExperimentConfig
from distill_lit.config.roles import Role
from distill_lit.evaluation.task_names import TASK_GROUPS
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json

if TYPE_CHECKING:
    from distill_lit.analysis.task_signal import TaskSignal
    from distill_lit.experiment.experiment import Experiment


@dataclass(frozen=True)
class PlannedPower:
    """The smallest difference that a plan can decide, and by what it is known.

    documents: {task that is averaged: documents}. at_chance: tasks on which the teacher of the records is at chance, which
    are not averaged. comparisons: students with one without teacher. num_seeds: of the student with the fewest. records:
    the folder.
    """

    power: Power
    documents: dict[str, int]
    at_chance: tuple[str, ...]
    num_seeds: int
    comparisons: int
    records: Path


def planned_power(experiment: "Experiment", records: Path | None = None) -> PlannedPower | None:
    """Of the comparison of each distilled student with the same student without the teacher.

    records: results folder to go by; None: the experiment's own, else the one beside it that shares most of its tasks. None
    where there are no records to go by, or nothing is compared. Raises UserError where a folder is named that holds none.
    """
    seeds = Counter(_point(run) for run in experiment.models if run.role == Role.DISTILLED)
    if not seeds or Role.CE_ONLY not in experiment.config.baselines or not experiment.config.evaluation.tasks:
        return None
    names = task_names(experiment.config)
    folder = records or _records_of(experiment, names)
    variances = {} if folder is None else read_variances(folder) if records else _readable_variances(folder)
    if folder is None or not variances:
        if records is not None:
            raise UserError(f"--records {records}: no student in it is compared with the same student without the teacher")
        return None
    at_chance = tuple(name for name in names if name in variances and not variances[name].is_averaged)
    documents = {name: _documents(experiment.config, variances, name) for name in names if name not in at_chance}
    if not documents:
        return None
    fewest = min(seeds.values())
    students = len({(run.role, _point(run)) for run in experiment.models if run.role in TRAINED_ROLES})
    power = detectable_difference(variances, documents, fewest, len(seeds), students, experiment.config.analysis.alpha)
    return PlannedPower(power, documents, at_chance, fewest, len(seeds), folder)


def _point(run: Run) -> tuple[str, ...]:
    values = {key: value for key, value in run.grid_values.items() if key != "seed"}
    return (run.student, *(f"{key}={value}" for key, value in values.items()))


def task_names(config: ExperimentConfig) -> list[str]:
    """The tasks that are averaged: those of the config, and of its groups of ours each one."""
    return list(dict.fromkeys(name for asked in config.evaluation.tasks for name in TASK_GROUPS.get(asked, [asked])))


def _documents(config: ExperimentConfig, variances: dict[str, TaskVariances], name: str) -> int:
    """Documents of a task: all it has, or as many as the limit says."""
    totals = [one.n_total for one in variances.values() if one.n_total]
    total = variances[name].n_total if name in variances else int(sum(totals) / max(len(totals), 1))
    limit = config.evaluation.limit
    return min(limit or total, total) or limit or 1


def _readable_variances(folder: Path) -> dict[str, TaskVariances]:
    """Those of results that nobody named: none where they are damaged, for the plan can do without."""
    try:
        return read_variances(folder)
    except UserError:
        return {}


def read_variances(folder: Path) -> dict[str, TaskVariances]:
    """Of a results folder: from its summary, else from its records. Raises UserError for a folder without either."""
    try:
        found = read_json(folder / "summary.json").get("task_variances")
        if found is not None:
            return variances_from_json(found)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        pass
    from distill_lit.analysis.results import load_results
    from distill_lit.analysis.scores import compute_scores
    from distill_lit.analysis.task_variances import task_variances
    from distill_lit.config.evaluation import AnalysisConfig

    return task_variances(compute_scores(load_results(folder), AnalysisConfig()))


def _records_of(experiment: "Experiment", names: list[str]) -> Path | None:
    """The results to go by: the experiment's own; else those that share most tasks, of these those with most trained
    models."""
    best, most = None, (0, 0)
    for path in sorted((experiment.root / "results").glob("*/summary.json")):
        try:
            tasks, trained = read_json(path)["tasks"], _trained(path.parent / "runs.csv")
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            continue
        shared = len({*tasks} & {*names})
        if shared and trained:
            rank = (len(names) + 1, 0) if path.parent == experiment.results_folder else (shared, trained)
            best, most = (path.parent, rank) if rank > most else (best, most)
    return best


def _trained(path: Path) -> int:
    """Finished models of a table of runs, 0 where it has not both those with and those without a teacher."""
    with path.open(encoding="utf-8", newline="") as file:
        roles = Counter(row["role"] for row in csv.DictReader(file) if row.get("status", "done") == "done")
    return roles[Role.DISTILLED] + roles[Role.CE_ONLY] if roles[Role.DISTILLED] and roles[Role.CE_ONLY] else 0


def teacher_signals(folder: Path) -> "list[TaskSignal]":
    """What the records of a results folder say of each of its tasks. Raises UserError where there are none."""
    from distill_lit.analysis.results import load_results
    from distill_lit.analysis.scores import compute_scores
    from distill_lit.analysis.task_signal import task_signals
    from distill_lit.config.evaluation import AnalysisConfig

    return task_signals(compute_scores(load_results(folder), AnalysisConfig()))
