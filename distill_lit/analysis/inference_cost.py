"""Measured cost: one number per model and axis with an interval over blocks, and its ratio to the teacher's.

Every axis is a cost, so less is better: seconds per token where people say tokens per second.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.array_types import FloatArray
from distill_lit.analysis.significance import student_quantile
from distill_lit.utils.files import read_json

TIMED = {  # axis: (kind of row, column)
    "prefill_s_per_token": ("grid", "prefill_s_per_token"),
    "decode_s_per_token": ("grid", "decode_s_per_token"),
    "ttft_s": ("requests", "ttft_s"),
    "itl_p50_s": ("requests", "itl_p50_s"),
    "itl_p95_s": ("requests", "itl_p95_s"),
    "joules_per_token": ("grid", "joules"),
}
MEMORY_COST_AXIS = "peak_memory_bytes"
MEASURED = (*TIMED, MEMORY_COST_AXIS)
COST_SUMMARY_COLUMNS = ["model", "axis", "value", "low", "high", "ratio", "ratio_low", "ratio_high"]


def summarize_costs(rows: pd.DataFrame, teacher: str, confidence: float) -> pd.DataFrame:
    """One row per model and axis. `rows`: cost.csv. value: mean over blocks (geometric over the points of the grid) with
    bounds; ratio: the teacher's over the model's, from the same blocks. Axes that were not measured are left out."""
    found = []
    for axis, (kind, column) in TIMED.items():
        table = _blocks(rows[rows["kind"] == kind], column)
        for model in table.columns if teacher in table else ():
            value = _interval(table[model].to_numpy(), confidence)
            ratio = _interval((table[teacher] - table[model]).to_numpy(), confidence)
            found.append(dict(zip(COST_SUMMARY_COLUMNS, [model, axis, *value, *ratio], strict=True)))
    memory = rows.groupby("model", sort=False)[MEMORY_COST_AXIS].first()
    for model, value in memory.items():
        ratio = memory[teacher] / value
        found.append(dict(zip(COST_SUMMARY_COLUMNS, [model, MEMORY_COST_AXIS, *[value] * 3, *[ratio] * 3], strict=True)))
    return pd.DataFrame(found, columns=COST_SUMMARY_COLUMNS)


def _blocks(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """(block × model) mean logarithm of a column over the points of the grid; only blocks that all models have."""
    logs = rows.assign(log=np.log(rows[column].where(rows[column] > 0)))
    table = logs.pivot_table(index="block", columns="model", values="log", aggfunc="mean", sort=False)
    return table.dropna(axis="columns", how="all").dropna()


def _interval(logs: FloatArray, confidence: float) -> tuple[float, float, float]:
    """Geometric mean over blocks with Student's interval of the mean logarithm: five blocks redrawn vary too little.
    Without bounds for one block."""
    mean = float(logs.mean())
    if len(logs) < 2:
        return float(np.exp(mean)), float("nan"), float("nan")
    reach = float(student_quantile(1 - (1 - confidence) / 2, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5)
    return float(np.exp(mean)), float(np.exp(mean - reach)), float(np.exp(mean + reach))


def read_costs(folder: Path) -> dict[str, Any]:
    """cost.json of a results folder, its intervals drawn anew from cost.csv where that is there; empty where nothing was
    measured, or it cannot be read."""
    try:
        found: dict[str, Any] = read_json(folder / "cost.json")
        if not {"stands_for", "axes"} <= set(found):
            return {}
        if (folder / "cost.csv").is_file():
            rows, teacher = pd.read_csv(folder / "cost.csv"), next(iter(found["stands_for"]))
            found["axes"] = summarize_costs(rows, teacher, found.get("confidence_level", 0.95)).to_dict("records")
        return found
    except (OSError, ValueError, TypeError, LookupError, AttributeError, StopIteration):
        return {}


def add_costs(runs: pd.DataFrame, costs: dict[str, Any]) -> pd.DataFrame:
    """`runs` with the measured axes as columns <axis>, <axis>_low, _high and <axis>_ratio, _ratio_low, _ratio_high (the
    teacher's cost over the model's), and `price_per_million_tokens` from the price of an hour, where one is known."""
    runs = runs.copy()
    for row in costs.get("axes", []):
        is_measured = runs["model"].isin(costs["stands_for"].get(row["model"], []))
        known = costs.get("parameters", {}).get(row["model"])
        if known is not None:
            is_measured &= runs["parameters"] == known  # measured before the experiment was changed
        for name, suffix in (("value", ""), ("low", "_low"), ("high", "_high"), ("ratio", "_ratio"),
                             ("ratio_low", "_ratio_low"), ("ratio_high", "_ratio_high")):  # fmt: skip
            runs.loc[is_measured, row["axis"] + suffix] = row[name]
    price = float(costs.get("settings", {}).get("price_per_hour", 0.0))
    if price > 0 and "decode_s_per_token" in runs:
        for suffix in ("", "_low", "_high"):
            runs[f"price_per_million_tokens{suffix}"] = runs[f"decode_s_per_token{suffix}"] * 1e6 / 3600 * price
        for suffix in ("_ratio", "_ratio_low", "_ratio_high"):
            runs[f"price_per_million_tokens{suffix}"] = runs[f"decode_s_per_token{suffix}"]
    return runs
