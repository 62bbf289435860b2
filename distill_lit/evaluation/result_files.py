"""The result of an evaluation as files: records and settings, as every run keeps them, and JSON in lm-eval's shape."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.evaluation.evaluator import EvaluationResult
from distill_lit.utils.files import atomic_write, write_json

RESULTS_FILE = "results.json"
RECORD_FILES = ("documents.parquet", "records.parquet", "meta.json")
UNKNOWN_ERROR = "N/A"  # lm-eval's word for a standard error that there is not


def write_records(result: EvaluationResult, folder: Path) -> None:
    """Writes documents, records and the settings of each task into a folder, atomically file by file."""
    documents, records, settings = RECORD_FILES
    for name, frame in ((documents, result.documents), (records, result.records)):
        with atomic_write(folder / name) as path:
            frame.to_parquet(path, compression="zstd", index=False)
    write_json(folder / settings, result.meta)


def lm_eval_results(result: EvaluationResult) -> dict[str, Any]:
    """What lm-eval's own results_….json says, under its names: `results`, as {task: {"acc,none": score, "acc_stderr,none":
    standard error}}, and for each task `configs` (here all that is stored of how it was asked), `versions`, `n-shot`,
    `higher_is_better` and `n-samples`. A score that is not finite is None."""
    return {
        "results": {task: _scores(result.records, task, facts) for task, facts in result.meta.items()},
        "configs": {
            task: {key: value for key, value in facts.items() if key != "lm_eval_results"}
            for task, facts in result.meta.items()
        },
        "versions": {task: facts["version"] for task, facts in result.meta.items()},
        "n-shot": {task: facts["num_fewshot"] for task, facts in result.meta.items()},
        "higher_is_better": {
            task: {facts["metric"]: facts["higher_is_better"]}
            for task, facts in result.meta.items()
            if "higher_is_better" in facts  # entries of the evaluation cache from before it was recorded have none
        },
        "n-samples": {
            task: {"original": facts.get("n_total", facts["n"]), "effective": facts["n"]}
            for task, facts in result.meta.items()
        },
    }


def _scores(records: pd.DataFrame, task: str, facts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"alias": task}
    for key, score in facts["lm_eval_results"].items():
        metric, _, filter_name = key.partition(",")
        found[key] = score if math.isfinite(score) else None
        if filter_name:  # sample_len has none
            error = standard_error(records, task, metric, score)
            found[f"{metric}_stderr,{filter_name}"] = UNKNOWN_ERROR if error is None else error
    return found


def standard_error(records: pd.DataFrame, task: str, metric: str, score: float) -> float | None:
    """The standard error over documents, s / √n, of a metric that is their mean; None of any other."""
    values = pd.to_numeric(records.loc[records["task"] == task, "metrics"].map(json.loads).str.get(metric), errors="coerce")
    is_mean = len(values) > 1 and abs(values.mean() - score) < 1e-6
    return float(values.sem()) if is_mean else None
