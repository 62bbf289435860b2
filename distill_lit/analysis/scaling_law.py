"""Cross-entropy of students against their size, their tokens and their teacher, and the law of Busbridge et al. 2025.

Distillation Scaling Laws, 2502.08606: with N parameters without embeddings, D training tokens, the teacher's cross-entropy
T and the cross-entropy S of the same student without teacher,

    L = T + T^-c0 · (1 + (T / (S·d1))^(1/f1))^(-c1·f1) · (A/N^α + B/D^β)^γ      nats per token

S is here what was measured for the same size and tokens, where the paper takes it from a second law.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.array_types import FloatArray
from distill_lit.config.schema import GRID_VALUE_SEPARATOR

TEACHER_AXES = ("grid.teacher", "grid.teacher.model")
SCALING_AXES = ("grid.student", "grid.seed", "grid.training.max_tokens", *TEACHER_AXES)
MIN_DISTINCT_FOR_FIT = {"runs": 12, "sizes": 3, "token budgets": 3, "teachers": 2}  # distinct values a fit asks for
COEFFICIENTS = ("c0", "c1", "d1", "f1", "A", "α", "B", "β", "γ")
# bounds of each on a log scale, A and B being those of N and D in units of the geometric means of the runs
LOG_LOWER_BOUNDS = np.log([1e-3, 1e-3, 0.1, 1e-2, 1e-4, 0.02, 1e-4, 0.02, 0.05])
LOG_UPPER_BOUNDS = np.log([10.0, 1e2, 10.0, 10.0, 1e3, 3.0, 1e3, 3.0, 5.0])
STARTS = 24


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law. `leave_one_out_error`: median error of its prediction for a run that the fit did not see, as a share of
    the loss; `reference_size`, `reference_tokens`: what N and D are divided by."""

    coefficients: dict[str, float]
    leave_one_out_error: float
    num_runs: int
    reference_size: float
    reference_tokens: float

    def predict(self, runs: pd.DataFrame) -> FloatArray:
        """Cross-entropy in nats per token for rows with size, tokens, teacher_loss and ce_only_loss."""
        return _law(np.log(list(self.coefficients.values())), _inputs(runs, self.reference_size, self.reference_tokens))


def scaling_data(runs: pd.DataFrame, experiment: str = "") -> pd.DataFrame:
    """One row per teacher, student and token budget: experiment (with the teacher's name where there are several), student,
    size (non-embedding parameters), tokens, num_seeds, loss, loss_std (over seeds), teacher_loss, ce_only_loss (the same
    student without teacher, NaN where it was not trained), validation_data_fingerprint. Empty where the grid has other
    axes, or nothing was validated.

    runs: runs.csv, of one experiment."""
    columns = ["experiment", "student", "size", "tokens", "num_seeds", "loss", "loss_std", "teacher_loss", "ce_only_loss",
               "validation_data_fingerprint"]  # fmt: skip
    needed = {"non_embedding_parameters", "training_tokens", "val_ce", "val_teacher_nll"}
    others = [c for c in runs if c.startswith("grid.") and c not in SCALING_AXES and runs[c].nunique() > 1]
    if others or not needed <= set(runs):
        return pd.DataFrame(columns=columns)
    trained = runs[runs["role"].isin(["distilled", "ce_only"])].dropna(subset=sorted(needed))
    frames = [pd.DataFrame(_of_teacher(part, name), columns=columns) for name, part in _by_teacher(trained, experiment)]
    ordered = [frame.sort_values(["size", "tokens"], ascending=[False, True]) for frame in frames if len(frame)]
    return pd.concat(ordered, ignore_index=True) if ordered else pd.DataFrame(columns=columns)


def _by_teacher(runs: pd.DataFrame, experiment: str) -> list[tuple[str, pd.DataFrame]]:
    """(name, its runs) for every teacher of an experiment: its distilled students, and those without teacher that stand
    beside them. The name is the experiment's, and the teacher's where there are several."""
    axis = next((name for name in TEACHER_AXES if name in runs and runs[name].nunique() > 1), None)
    if axis is None:
        return [(experiment, runs)]
    teachers = runs.loc[runs["role"] == "distilled", axis].dropna().unique()
    stands_for = runs[axis].fillna("").str.split(GRID_VALUE_SEPARATOR)
    return [
        (f"{experiment}, teacher {name}".removeprefix(", "), runs[[name in one or one == [""] for one in stands_for]])
        for name in teachers
    ]


def _of_teacher(runs: pd.DataFrame, experiment: str) -> list[list[Any]]:
    rows = []
    for (student, tokens), budget_runs in runs.groupby(["student", "training_tokens"], sort=False):
        distilled, ce_only = budget_runs[budget_runs["role"] == "distilled"], budget_runs[budget_runs["role"] == "ce_only"]
        ce_only = ce_only[ce_only["validation_data_fingerprint"].isin(distilled["validation_data_fingerprint"])]
        if len(distilled):
            rows.append([experiment, student, distilled["non_embedding_parameters"].iloc[0], tokens, len(distilled),
                         distilled["val_ce"].mean(), distilled["val_ce"].std(ddof=1), distilled["val_teacher_nll"].mean(),
                         ce_only["val_ce"].mean(), distilled["validation_data_fingerprint"].iloc[0]])  # fmt: skip
    return rows


def has_scaling_curve(runs: pd.DataFrame) -> bool:
    """Whether there is anything to draw a curve through: a size with two token budgets."""
    return bool(len(runs) and (runs.groupby(["experiment", "student"])["tokens"].nunique() > 1).any())


def reason_not_fitted(runs: pd.DataFrame) -> str:
    """Why no law is fitted to these runs, or nothing."""
    if runs["validation_data_fingerprint"].nunique() > 1:
        return "the students are validated on different text"
    if runs["ce_only_loss"].isna().any():
        return "not every student has been trained without the teacher on as many tokens"
    found = {"runs": len(runs), "sizes": runs["size"].nunique(), "token budgets": runs["tokens"].nunique(),
             "teachers": runs["teacher_loss"].round(3).nunique()}  # fmt: skip
    short = [
        f"{found[what]} {what} of at least {least}" for what, least in MIN_DISTINCT_FOR_FIT.items() if found[what] < least
    ]
    return f"there are {', '.join(short)}" if short else ""


def fit_scaling_law(runs: pd.DataFrame) -> ScalingLaw | None:
    """The law with the least Huber loss of the log of the cross-entropy; None where `reason_not_fitted` has a reason."""
    if reason_not_fitted(runs):
        return None
    size, tokens = float(np.exp(np.log(runs["size"]).mean())), float(np.exp(np.log(runs["tokens"]).mean()))
    inputs, loss = _inputs(runs, size, tokens), runs["loss"].to_numpy(float)
    best = _fit(inputs, loss)
    errors = []
    for number in range(len(runs)):
        train_mask = np.arange(len(runs)) != number
        part = _fit(inputs[:, train_mask], loss[train_mask], best)
        errors.append(abs(_law(part, inputs[:, [number]])[0] / loss[number] - 1))
    coefficients = dict(zip(COEFFICIENTS, np.exp(best).tolist(), strict=True))
    return ScalingLaw(coefficients, float(np.median(errors)), len(runs), size, tokens)


def _inputs(runs: pd.DataFrame, size: float, tokens: float) -> FloatArray:
    """(4, runs): N and D in units of `size` and `tokens`, T, S."""
    columns = [runs["size"] / size, runs["tokens"] / tokens, runs["teacher_loss"], runs["ce_only_loss"]]
    return np.array(columns, float)


def _law(logs: FloatArray, inputs: FloatArray) -> FloatArray:
    """The formula above. logs: of COEFFICIENTS."""
    c0, c1, d1, f1, a, alpha, b, beta, gamma = np.exp(logs)
    n, d, teacher, supervised = inputs
    bend = -c1 * f1 * np.logaddexp(0.0, np.log(teacher / (supervised * d1)) / f1)
    return np.asarray(teacher + teacher**-c0 * np.exp(bend) * (a / n**alpha + b / d**beta) ** gamma, float)


def _fit(inputs: FloatArray, loss: FloatArray, start: FloatArray | None = None) -> FloatArray:
    """Logs of the coefficients, from `start` or from many places."""
    from scipy.optimize import least_squares

    rng = np.random.default_rng(0)
    starts = [start] if start is not None else [rng.uniform(LOG_LOWER_BOUNDS, LOG_UPPER_BOUNDS) for _ in range(STARTS)]
    found = [
        least_squares(
            lambda logs: np.log(np.maximum(_law(logs, inputs), 1e-9) / loss),
            place,
            bounds=(LOG_LOWER_BOUNDS, LOG_UPPER_BOUNDS),
            loss="huber",
            f_scale=0.01,
        )
        for place in starts
    ]
    return np.asarray(min(found, key=lambda result: result.cost).x, float)
