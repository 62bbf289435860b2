"""How students scale: cross-entropy over tokens, a line per size, and the fitted law or why there is none."""

from pathlib import Path

import pandas as pd

from distill_lit.analysis.results import load_runs_table
from distill_lit.analysis.scaling_law import ScalingLaw, reason_not_fitted, scaling_data
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import format_count, format_number
from distill_lit.utils.exceptions import UserError

SCALING_LAW_FORMULA = "L = T + T^-c0 · (1 + (T / (S·d1))^(1/f1))^(-c1·f1) · (A/N^α + B/D^β)^γ"


def load_scaling_data(folders: list[Path]) -> pd.DataFrame:
    """`scaling_data` of several experiments. Raises UserError where one has no such grid."""
    found = []
    for folder in folders:
        runs = scaling_data(load_runs_table(folder / "runs.csv"), folder.resolve().name)
        if runs.empty:
            raise UserError(
                f"{folder}: no grid over student, training.max_tokens and seed alone, with validated students, in it"
            )
        found.append(runs)
    return pd.concat(found, ignore_index=True)


def scaling_table(runs: pd.DataFrame, law: ScalingLaw | None) -> Table:
    """A row per size and token budget, with what the law says of it."""
    predicted = [float("nan")] * len(runs) if law is None else law.predict(runs)
    rows = []
    for (_, run), value in zip(runs.iterrows(), predicted, strict=True):
        own = _nats(run["loss"]) + (f" ± {_nats(run['loss_std'])}" if run["num_seeds"] > 1 else "")
        others = [_nats(value) for value in (run["ce_only_loss"], run["teacher_loss"], value)]
        rows.append([run["experiment"], run["student"], format_count(run["size"]), f"{run['tokens']:,.0f}", own, *others])
    columns = ["experiment", "student", "non-embedding parameters", "training tokens", "distilled", "without teacher",
               "teacher", "law"]  # fmt: skip
    several = runs["experiment"].nunique() > 1
    shown = slice(0 if several else 1, len(columns) if law is not None else -1)
    below = ["Cross-entropy on held-out text in nats per token, ± its deviation over seeds.", _law_note(runs, law)]
    cells = [[TableCell(str(text)) for text in row[shown]] for row in rows]
    return Table("How students scale", columns[shown], cells, num_text_columns=2 if several else 1, footnotes=below)


def _nats(value: float) -> str:
    return format_number(value, 3)


def _law_note(runs: pd.DataFrame, law: ScalingLaw | None) -> str:
    if law is None:
        return f"No scaling law (2502.08606) is fitted: {reason_not_fitted(runs)}."
    known = ", ".join(f"{name} = {value:.3g}" for name, value in law.coefficients.items())
    return (
        f"Law (2502.08606): {SCALING_LAW_FORMULA}, with T the teacher's cross-entropy, S that without teacher, N in "
        "units of "
        f"{format_count(law.reference_size)} parameters, D of {law.reference_tokens:,.0f} tokens; {known}. Fitted to "
        f"{law.num_runs} runs; the "
        f"median error for a run left out of the fit is {law.leave_one_out_error:.1%}. Several sets of coefficients fit "
        "alike."
    )
