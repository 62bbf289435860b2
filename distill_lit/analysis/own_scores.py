"""Scores of one's own, of any models by any harness, as `Results`: a frame with a row per model and document."""

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import groups_of
from distill_lit.analysis.records_file import INDEX
from distill_lit.analysis.results import Results, align_records
from distill_lit.config.report import ReportConfig
from distill_lit.utils.exceptions import UserError, suggest

REQUIRED_COLUMNS = ("model", "task", "document", "correct")
FRAME_ROLES = ("teacher", "distilled", "ce_only", "untrained", "external")
BASELINES = ("ce_only", "untrained")  # roles of a model that is the baseline of others
MODEL_AXIS = "grid.model"  # tells models apart that have one baseline


def results_of_frame(frame: pd.DataFrame) -> Results:
    """See `Results.from_frame`."""
    rows = _checked_rows(frame)
    roles, baselines = _roles(rows), _one_per_model(rows, "baseline")
    _check_baselines(roles, baselines)
    rows["id"] = _ids(rows)
    repeated = rows.duplicated(["id", *INDEX])
    if repeated.any():
        raise UserError(f"frame: {_place(rows[repeated])} has several rows; models of several seeds need a column `seed`")
    results = Results(
        folder=None,
        runs=_runs(rows, roles, baselines),
        documents=_documents(rows),
        records={name: own.set_index(INDEX)[_record_columns(rows)] for name, own in rows.groupby("id", sort=False)},
        settings_by_model=_settings(rows),
    )
    align_records(results)
    names = dict(zip(rows["id"], rows["model"], strict=True))
    groups = {group.label: names[group.models[0]] for group in groups_of(results)}
    results.display = ReportConfig(labels={label: name for label, name in groups.items() if label != name})
    return results


def _checked_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with text as text and numbers as numbers, `document` as key. Raises UserError for what is none."""
    if not isinstance(frame, pd.DataFrame):
        raise UserError(f"frame: a {type(frame).__name__} is no pandas DataFrame")
    rows = frame.reset_index(drop=True).rename(columns={} if "key" in frame else {"document": "key"})
    absent = [name for name in REQUIRED_COLUMNS if {"document": "key"}.get(name, name) not in rows]
    if absent:
        raise UserError(f"frame: no column {absent[0]!r}; it needs {', '.join(REQUIRED_COLUMNS)}, a row per answer")
    if rows.empty:
        raise UserError("frame: it has no rows")
    for name in ("model", *INDEX):
        if rows[name].isna().any():
            raise UserError(f"frame: {name} is empty in row {rows[name].isna().idxmax()}")
        rows[name] = rows[name].astype(str)
    rows["correct"] = _numbers(rows, "correct", rows["correct"])
    rows["chance"] = _numbers(rows, "chance", rows["chance"]) if "chance" in rows else 0.0
    if not rows["chance"].between(0, 1, inclusive="left").all():
        raise UserError("frame: chance is the share that guessing gets right, from 0 to below 1")
    clusters = rows["cluster"] if "cluster" in rows else rows["key"]
    rows["cluster"] = rows["task"] + "-" + clusters.fillna(rows["key"]).astype(str)
    if "seed" in rows:
        seeds = _numbers(rows[rows["seed"].notna()], "seed", rows["seed"].dropna())
        if (seeds % 1 != 0).any():
            raise UserError(f"frame: seed {seeds[seeds % 1 != 0].iloc[0]} is no whole number")
        rows["seed"] = seeds
    else:
        rows["seed"] = np.nan
    return rows


def _numbers(rows: pd.DataFrame, name: str, values: pd.Series) -> pd.Series:
    found = pd.to_numeric(values, errors="coerce").astype(float)
    if not np.isfinite(found).all():
        wrong = ~np.isfinite(found)
        raise UserError(f"frame: {name} of {_place(rows[wrong])} is {values[wrong].iloc[0]}, no number")
    return found


def _place(rows: pd.DataFrame) -> str:
    """The first of some rows, in words."""
    row = rows.iloc[0]
    return f"model {row['model']!r} on document {row['key']!r} of {row['task']!r}"


def _one_per_model(rows: pd.DataFrame, column: str) -> dict[str, str]:
    """{model: its text in a column}, empty where it has none."""
    if column not in rows:
        return dict.fromkeys(rows["model"], "")
    texts = rows[column].where(rows[column].notna(), "").astype(str)
    several = texts.groupby(rows["model"], sort=False).unique()
    for model, values in several.items():
        if len(values) > 1:
            raise UserError(f"frame: {column} of model {model!r} is {values[0]!r} and {values[1]!r}; it has one")
    return {str(model): str(values[0]) for model, values in several.items()}


def _roles(rows: pd.DataFrame) -> dict[str, str]:
    """{model: role}. Where none is given, the model called teacher is the teacher, and one that is a baseline ce_only."""
    used = set(_one_per_model(rows, "baseline").values())
    found = {}
    for model, role in _one_per_model(rows, "role").items():
        if role and role not in FRAME_ROLES:
            raise UserError(f"frame: role {role!r} of model {model!r}{suggest(role, FRAME_ROLES)}")
        found[model] = role or ("teacher" if model == "teacher" else "ce_only" if model in used else "distilled")
    teachers = rows.loc[rows["model"].map(found) == "teacher", ["model", "seed"]].drop_duplicates()
    if len(teachers) > 1:
        raise UserError(f"frame: several teachers ({', '.join(dict.fromkeys(teachers['model']))}); one is compared with")
    return found


def _check_baselines(roles: dict[str, str], baselines: dict[str, str]) -> None:
    for model, baseline in baselines.items():
        if not baseline:
            continue
        if baseline not in roles:
            raise UserError(f"frame: baseline {baseline!r} of model {model!r} has no rows{suggest(baseline, roles)}")
        if roles[model] != "distilled" or roles[baseline] not in BASELINES:
            raise UserError(
                f"frame: {baseline!r} ({roles[baseline]}) is the baseline of {model!r} ({roles[model]}); a baseline has "
                "role ce_only or untrained, and is that of a distilled model"
            )


def _ids(rows: pd.DataFrame) -> pd.Series:
    """A name for each model and seed."""
    seeds = rows.groupby("model")["seed"].transform("nunique")
    return rows["model"].where(seeds < 2, rows["model"] + "-seed=" + rows["seed"].map("{:.0f}".format))


def _runs(rows: pd.DataFrame, roles: dict[str, str], baselines: dict[str, str]) -> pd.DataFrame:
    """A row per model and seed, in the order of the models and of their seeds, as in runs.csv. A student is what has one
    baseline, and that baseline."""
    order = {model: place for place, model in enumerate(dict.fromkeys(rows["model"]))}
    runs = rows.drop_duplicates("id")[["id", "model", "seed"]].assign(place=lambda one: one["model"].map(order))
    runs = runs.sort_values(["place", "seed"], ignore_index=True)
    names = runs["model"]
    role, baseline = names.map(roles), names.map(baselines)
    made = pd.DataFrame({"model": runs["id"], "role": role, "student": baseline.where(baseline != "", names)})
    made.loc[role == "teacher", "student"] = ""
    made["seed"] = runs["seed"]
    if (baseline != "").any():
        made[MODEL_AXIS] = names.where(baseline != "", np.nan)
    return made.assign(validation_data_fingerprint="", status="done", reason="")


def _documents(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per document: what guessing gets right, and the passage it shares with others."""
    for name in ("chance", "cluster"):
        several = rows.groupby(INDEX, sort=False)[name].transform("nunique") > 1
        if several.any():
            task, key = rows.loc[several, INDEX].iloc[0]
            raise UserError(f"frame: {name} of document {key!r} of {task!r} differs between models")
    first = rows.drop_duplicates(INDEX).sort_values("task", kind="stable", key=lambda tasks: pd.factorize(tasks)[0])
    return first.set_index(INDEX)[["chance", "cluster"]]


def _record_columns(rows: pd.DataFrame) -> list[str]:
    return ["correct", *(["pred"] if "pred" in rows else [])]


def _settings(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, object]]]:
    """{model: {task: its metric}}: acc of right or wrong answers, else score."""
    is_right_or_wrong = rows["correct"].isin([0.0, 1.0]).groupby(rows["task"]).all()
    metrics = {task: "acc" if right_or_wrong else "score" for task, right_or_wrong in is_right_or_wrong.items()}
    held = rows.drop_duplicates(["id", "task"]).groupby("id", sort=False)["task"]
    return {str(name): {task: {"metric": metrics[task]} for task in tasks} for name, tasks in held}
