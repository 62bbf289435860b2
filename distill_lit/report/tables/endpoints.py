"""The difference that the teacher makes by endpoints beside accuracy, the declared one first."""

from typing import Any

import pandas as pd

from distill_lit.analysis.endpoints import ACCURACY, PROBE_AVERAGE
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import MISSING_VALUE, format_number
from distill_lit.report.tables.score_notes import HOLM_MARK

UNITS_IN_HUNDREDTHS = {"share": "points"}


def endpoint_table(scores: Scores, frame: pd.DataFrame) -> Table:
    """A row per distilled student, a column per endpoint: Δ without teacher on the average. frame: `endpoint_frame`."""
    averages = primary_first(frame)
    averages = averages[averages["role"] == "distilled"]
    kinds = averages[["endpoint", "is_probe"]].drop_duplicates()
    columns, cells = ["model"], {model: [TableCell(str(model))] for model in averages["model"].unique()}
    for endpoint, is_probe in kinds.itertuples(index=False):
        rows = averages[(averages["endpoint"] == endpoint) & (averages["is_probe"] == is_probe)].set_index("model")
        columns.append(endpoint_title(rows.iloc[0]))
        for model, row in cells.items():
            row.append(TableCell(_change(scores, rows.loc[model]) if model in rows.index else MISSING_VALUE))
    return Table(
        "Δ without teacher by every endpoint",
        columns,
        list(cells.values()),
        footnotes=[
            f"Averages over tasks, paired; {HOLM_MARK} significant after Holm over the students, for each endpoint by "
            f"itself, at {scores.analysis.alpha:.3g}. The declared endpoint stands first, the others are secondary. Bits "
            "per byte reward fit to the domain of the training text too."
        ],
    )


def endpoint_sentence(scores: Scores, frame: pd.DataFrame) -> str:
    """By how many students other endpoints than the declared one are significantly better or worse with the teacher."""
    rows = primary_first(frame)
    rows = rows[(rows["role"] == "distilled") & rows["ce_only_delta"].notna() & ~rows["is_primary"]]
    parts = []
    for _, found in rows.groupby(["endpoint", "is_probe"], sort=False):
        sure = found["ce_only_p_adjusted"] <= scores.analysis.alpha
        better = (found["ce_only_delta"] > 0) == found["higher_is_better"]
        counts = {"better": int((sure & better).sum()), "worse": int((sure & ~better).sum())}
        shown = ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "none"
        parts.append(f"{endpoint_name(found.iloc[0])} {shown}")
    of = rows["model"].nunique()
    students = f"{of} student{'s' if of > 1 else ''}"
    return f"Other endpoints (significant after Holm, of {students}): {'; '.join(parts)}." if parts else ""


def primary_first(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of averages, the declared endpoint's first, then accuracy's."""
    averages = frame[frame["task"].isin([MACRO_AVERAGE, PROBE_AVERAGE])]
    order = averages.assign(other=(averages["endpoint"] != ACCURACY) & ~averages["is_primary"])
    return order.sort_values(["is_primary", "other"], ascending=[False, True], kind="stable").drop(columns="other")


def endpoint_title(row: pd.Series) -> str:
    """The endpoint of a row in words, with its unit and, where that is unusual, its direction."""
    name, unit = endpoint_name(row), UNITS_IN_HUNDREDTHS.get(row["unit"], row["unit"])
    words = name if name.endswith(unit) else f"{name}, {unit}"
    return f"{words}{'' if row['higher_is_better'] else ' (less is better)'}"


def endpoint_name(row: pd.Series) -> str:
    """The endpoint of a row in words."""
    where = "probes, " if row["is_probe"] else ""
    return f"{where}{'above chance' if row['endpoint'] == ACCURACY else row['title']}"


def format_change(row: pd.Series) -> str:
    """Δ without teacher with its interval, in the unit of the endpoint."""
    scale, digits = (100.0, 1) if row["unit"] in UNITS_IN_HUNDREDTHS else (1.0, 3)
    names = ("ce_only_delta", "ce_only_delta_low", "ce_only_delta_high")
    value, low, high = (format_number(scale * row[name], digits, signed=True) for name in names)
    return f"{value} [{low}, {high}]"


def _change(scores: Scores, row: Any) -> str:
    if pd.isna(row["ce_only_delta"]):
        return MISSING_VALUE
    return format_change(row) + (HOLM_MARK if row["ce_only_p_adjusted"] <= scores.analysis.alpha else "")
