"""Model groups: the same role, student and grid point over all its seeds. A row of a paper's table."""

from dataclasses import dataclass

import pandas as pd

from distill_lit.analysis.results import ROLES, Results
from distill_lit.config.grid_points import shortest_names
from distill_lit.config.schema import GRID_VALUE_SEPARATOR

ROLE_LABELS = {
    "quantized": "int8",
    "external": "external",
    "derived": "",
    "untrained": "before training",
    "ce_only": "without teacher",
    "distilled": "distilled",
}
REFERENCE_ROLES = ("teacher", "quantized", "external")  # roles of models that no run trains or prunes
NAMED_ROLES = (*REFERENCE_ROLES, "derived")  # roles of models that are no student of the grid, and bear names of their own
NON_VARIANT_AXES = ("grid.student", "grid.seed")  # columns of their own


@dataclass(frozen=True)
class ModelGroup:
    """One row of a table. `models` holds the ids that have records; `num_planned` counts all its runs."""

    role: str
    student: str
    grid_point: tuple[tuple[str, str], ...]  # grid key: value
    models: tuple[str, ...]
    seeds: tuple[int, ...]  # of `models`; empty for models without a seed
    num_planned: int
    label: str
    reason: str = ""  # why runs are missing
    variant: str = ""  # the grid point in words, empty without one
    other_data: bool = False  # without teacher, and trained on other data than the distilled students of this shape


def groups_of(results: Results) -> list[ModelGroup]:
    """All groups, teacher first, then by student size and role; groups without any record are kept."""
    runs = results.runs.copy()
    axes = [c for c in runs.columns if c.startswith("grid.") and c not in NON_VARIANT_AXES and runs[c].notna().any()]
    varied = [c.removeprefix("grid.") for c in runs.columns if c.startswith("grid.") and runs[c].notna().any()]
    short = {f"grid.{key}": name for key, name in shortest_names(varied).items()}
    size = runs.groupby("student")["parameters"].max() if "parameters" in runs else pd.Series(dtype=float)
    found: dict[tuple, list[int]] = {}
    for row in runs.index:
        point = tuple((a, str(runs.at[row, a])) for a in axes if pd.notna(runs.at[row, a]))
        name = runs.at[row, "model" if runs.at[row, "role"] in REFERENCE_ROLES[1:] else "student"]
        found.setdefault((runs.at[row, "role"], name, point), []).append(row)
    distilled_data = runs[runs["role"] == "distilled"].groupby("student")["validation_data_fingerprint"].agg(set)
    groups = [
        _group(
            results,
            runs.loc[rows],
            key,
            short,
            key[0] == "ce_only" and _trained_on_other_data(runs.loc[rows], distilled_data.get(key[1])),
        )
        for key, rows in found.items()
    ]
    rank = {role: i for i, role in enumerate(ROLES)}
    first = {group.label: i for i, group in enumerate(groups)}

    def sort_key(group: ModelGroup) -> tuple:
        top = rank[group.role] if group.role in REFERENCE_ROLES else len(ROLES)
        biggest = size.get(group.student, float("nan"))
        return (
            top,
            -biggest if biggest == biggest else 0.0,
            group.student,
            rank.get(group.role, 9),
            first[group.label],
        )

    return sorted(groups, key=sort_key)


def _trained_on_other_data(rows: pd.DataFrame, distilled_fingerprints: set[str] | None) -> bool:
    """Whether models read other data than each of those that distilled students read."""
    data, distilled_data = set(rows["validation_data_fingerprint"]), distilled_fingerprints or set()
    return bool(distilled_data) and "" not in data | distilled_data and not data & distilled_data


def _group(results: Results, rows: pd.DataFrame, key: tuple, short: dict[str, str], other_data: bool) -> ModelGroup:
    role, student, point = key
    models = tuple(m for m in rows["model"] if m in results.records)
    seeds = rows.loc[rows["model"].isin(models), "seed"].tolist() if "seed" in rows else []
    missing_runs = rows[~rows["model"].isin(models)]
    reason = "; ".join(
        dict.fromkeys(
            f"{s}: {r}" if r else str(s) for s, r in zip(missing_runs["status"], missing_runs["reason"], strict=True)
        )
    )
    variant = ", ".join([*(f"{short[axis]}={value}" for axis, value in point), *(["other data"] if other_data else [])])
    base_name = "teacher" if role == "quantized" else student
    label = "teacher" if role == "teacher" else " ".join(w for w in (base_name, ROLE_LABELS.get(role, "")) if w)
    known = tuple(int(s) for s in seeds if s == s)
    return ModelGroup(
        role=role,
        student=student,
        grid_point=point,
        models=models,
        seeds=known if len(known) == len(models) else (),
        num_planned=len(rows),
        label=f"{label} ({variant})" if variant else label,
        reason=reason,
        variant=variant,
        other_data=other_data,
    )


def baseline_of(group: ModelGroup, role: str, groups: list[ModelGroup]) -> ModelGroup | None:
    """The group of that role a distilled `group` is compared with: same student, and it stands for its grid point."""
    point = dict(group.grid_point)
    for other in groups:
        same = role == "teacher" or other.student == group.student
        here = all(point.get(key, value) in (value, *value.split(GRID_VALUE_SEPARATOR)) for key, value in other.grid_point)
        if other.role == role and other.models and same and here:
            return other
    return None


def group_cost(group: ModelGroup, results: Results, column: str) -> float:
    """Mean of a numeric column of runs.csv over the group's finished models; NaN when unknown."""
    if column not in results.runs:
        return float("nan")
    return float(results.runs.loc[results.runs["model"].isin(group.models), column].mean())
