"""Several experiments as one, so that a table compares their models on the same documents, paired."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import pandas as pd

from distill_lit.analysis.model_groups import REFERENCE_ROLES
from distill_lit.analysis.results import RUN_TEXT_COLUMNS, Results, align_records
from distill_lit.utils.exceptions import UserError, check_not_one_text, suggest

EXPERIMENT_AXIS = "grid.experiment"  # the column of a merged runs.csv that says where a model comes from
ModelNames = Mapping[str, Mapping[str, str]]  # {experiment: {model: its name in the merged results}}


def restrict_tasks(results: Results, patterns: list[str]) -> Results:
    """The results on the tasks that a pattern fits. Raises UserError for a pattern that fits none."""
    check_not_one_text("tasks", patterns)
    for pattern in patterns:
        if not any(fnmatchcase(task, pattern) for task in results.tasks):
            raise UserError(f"task: unknown value {pattern!r}{suggest(pattern, results.tasks)}")
    kept = [task for task in results.tasks if any(fnmatchcase(task, pattern) for pattern in patterns)]
    return results if kept == results.tasks else _with_tasks(results, kept)


def _with_tasks(results: Results, tasks: list[str]) -> Results:
    def rows(frame: pd.DataFrame) -> pd.DataFrame:
        return frame[frame.index.get_level_values("task").isin(tasks)]

    return replace(
        results,
        tasks=tasks,
        documents=rows(results.documents),
        records={model: rows(frame) for model, frame in results.records.items()},
        settings_by_model={
            model: {task: facts for task, facts in found.items() if task in tasks}
            for model, found in results.settings_by_model.items()
        },
        surprisal=None if results.surprisal is None else rows(results.surprisal),
    )


def left_out_tasks(parts: Mapping[str, Results]) -> dict[str, list[str]]:
    """{task: experiments without it}: what a merged table cannot show."""
    every = dict.fromkeys(task for part in parts.values() for task in part.tasks)
    lacking = {task: [name for name, part in parts.items() if task not in part.tasks] for task in every}
    return {task: names for task, names in lacking.items() if names}


def merge_results(parts: Mapping[str, Results], teachers: Mapping[str, str]) -> Results:
    """{experiment: its results} as one, on the tasks that all have. Their models differ in the grid key `experiment`.

    There is one teacher, that of the first experiment that has one: what is retained is a share of its score in every row.
    The same teacher of another experiment is left out; another one becomes an external model. teachers: {experiment:
    reference of its teacher}.

    Probes are kept that all have and that were scored in the same way.

    Raises UserError where they share no task, or were evaluated in different ways on one.
    """
    tasks = [task for task in next(iter(parts.values())).tasks if all(task in part.tasks for part in parts.values())]
    if not tasks:
        shown = "; ".join(f"{name}: {', '.join(part.tasks) or 'none'}" for name, part in parts.items())
        raise UserError(f"the experiments share no task, so they cannot be compared ({shown})")
    parts = _one_teacher({name: _with_tasks(part, tasks) for name, part in parts.items()}, teachers)
    names = _model_names(parts)
    runs = pd.concat([_runs(name, part, names[name]) for name, part in parts.items()], ignore_index=True)
    runs[list(RUN_TEXT_COLUMNS)] = runs[list(RUN_TEXT_COLUMNS)].fillna("")
    merged = _joined(parts, names, runs, tasks)
    _align(merged)
    merged.probes = _merged_probes(parts, names, runs)
    return merged


def _joined(parts: Mapping[str, Results], names: ModelNames, runs: pd.DataFrame, tasks: list[str]) -> Results:
    """The documents and records of all parts."""
    documents = pd.concat([part.documents for part in parts.values()])
    first = next(iter(parts.values()))
    return Results(
        folder=first.folder,
        runs=runs,
        documents=documents[~documents.index.duplicated()],
        records={names[name][model]: frame for name, part in parts.items() for model, frame in part.records.items()
                 if model in names[name]},
        settings_by_model={names[name][model]: facts for name, part in parts.items()
                           for model, facts in part.settings_by_model.items() if model in names[name]},
        tasks=tasks,
        display=first.display,
    )  # fmt: skip


def _merged_probes(parts: Mapping[str, Results], names: ModelNames, runs: pd.DataFrame) -> Results | None:
    """The probes that all have and that were scored in the same way; None where there is no such."""
    probes = {name: part.probes for name, part in parts.items() if part.probes is not None}
    if len(probes) < len(parts):
        return None
    shared = [task for task in next(iter(probes.values())).tasks if all(task in part.tasks for part in probes.values())]

    def merged(tasks: list[str]) -> Results:
        return _joined({name: _with_tasks(part, tasks) for name, part in probes.items()}, names, runs, tasks)

    kept = [task for task in shared if _compares(merged([task]))]
    if not kept:
        return None
    found = merged(kept)
    align_records(found)
    return found


def _align(merged: Results) -> None:
    """Compares every model with the teacher. Raises UserError, with the tasks on which they do compare."""
    try:
        align_records(merged)
    except UserError as error:
        rest = [task for task in merged.tasks if _compares(_with_tasks(merged, [task]))]
        only = f"; on {', '.join(rest)} they can: --where task={','.join(rest)}" if rest else ""
        raise UserError(f"{error}{only}") from None


def _compares(results: Results) -> bool:
    try:
        align_records(results)
    except UserError:
        return False
    return True


def _one_teacher(parts: dict[str, Results], teachers: Mapping[str, str]) -> dict[str, Results]:
    """The same, with one teacher: that of the first experiment that has one."""
    reference = next((name for name, part in parts.items() if part.teacher()), None)
    found = {}
    for name, part in parts.items():
        runs = part.runs
        if reference is not None and name != reference:
            is_teacher = runs["role"] == "teacher"
            is_other = teachers[name] != teachers[reference]
            runs = runs.assign(role=runs["role"].mask(is_teacher, "external")) if is_other else runs[~is_teacher]
        found[name] = replace(part, runs=runs)
    return found


def _model_names(parts: Mapping[str, Results]) -> dict[str, dict[str, str]]:
    """{experiment: {model: its name in the merged results}}: with its experiment, as errors call it, but for a reference
    whose name no other experiment has."""
    seen = Counter(model for part in parts.values() for model in part.runs["model"])
    return {
        name: {
            model: model if seen[model] == 1 and role in REFERENCE_ROLES[1:] else f"{model} ({name})"
            for model, role in zip(part.runs["model"], part.runs["role"], strict=True)
        }
        for name, part in parts.items()
    }


def _runs(name: str, part: Results, names: dict[str, str]) -> pd.DataFrame:
    """The rows of an experiment under their new names, with the experiment as the first axis, which labels begin with."""
    experiment = pd.Series(name, part.runs.index, dtype=object).mask(part.runs["role"] == "teacher", None)
    runs = part.runs.assign(model=part.runs["model"].map(names))
    runs.insert(0, EXPERIMENT_AXIS, experiment)
    return runs
