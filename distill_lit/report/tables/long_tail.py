"""Tables of the long tail: contrasts, flips, strata, slices, calibration."""

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import DocumentAxis
from distill_lit.analysis.long_tail import INSUFFICIENT, NOTE_AT_CHANCE, LongTail
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import (
    MISSING_VALUE,
    format_number,
    format_p_value,
    format_points,
    format_with_interval,
)


def contrast_table(scores: Scores, long_tail: LongTail) -> Table:
    """Δ_tail − Δ_head per student and axis, the same without teacher, and the excess."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    rows, rules, last = [], set(), None
    for _, row in long_tail.tail_contrasts.iterrows():
        if last not in (None, row["model"]):
            rules.add(len(rows))
        cells = [_contrast(row, name) for name in ("tail_loss", "ce_only_tail_loss", "excess")]
        rows.append(
            [TableCell(row["model"] if row["model"] != last else ""), TableCell(long_tail.axis_title(row["axis"])), *cells]
        )
        last = row["model"]
    return Table(
        "Tail less head of the difference to the teacher, points above chance",
        ["model", "axis", f"distilled [{percent}]", f"without teacher [{percent}]", f"excess [{percent}]"],
        rows,
        num_text_columns=2,
        rules_before=rules,
        footnotes=[
            f"Negative: the tail lost more than the head. {_attribution_note(scores)} Bold: its interval does not hold "
            "0 (not "
            "corrected for the number of axes)."
        ],
    )


def baseline_uses_other_data(scores: Scores) -> bool:
    """Whether a student without teacher that others are compared with was trained on other data than they."""
    others = {
        other for g in range(len(scores.groups)) for who, other in find_baselines(scores, g).items() if who == "ce_only"
    }
    return any(scores.groups[other].other_data for other in others)


def _attribution_note(scores: Scores) -> str:
    """What the excess over the student without teacher may be attributed to."""
    if baseline_uses_other_data(scores):
        return (
            "The student without teacher read other data, so the excess over it is of teacher and data together and cannot "
            "be attributed to either."
        )
    return "Only the excess over the student trained without a teacher can be attributed to distillation."


def _contrast(row: pd.Series, name: str) -> TableCell:
    value, low, high = (row.get(key, np.nan) for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(value):
        return TableCell(str(row.get("note") or MISSING_VALUE))
    return TableCell(format_with_interval(value, low, high, signed=True), bold=bool(low > 0 or high < 0))


def flip_table(long_tail: LongTail) -> Table:
    """Lost, gained, agreement per task and student."""
    rows, last = [], None
    for _, row in long_tail.task_flips.iterrows():
        rows.append([TableCell(row["model"] if row["model"] != last else ""), TableCell(row["task"]), *_flip_cells(row)])
        last = row["model"]
    return Table(
        "Answers that changed from teacher to student",
        ["model", "task", "n", "lost", "gained", "agreement", "same wrong", "p", "p (BH)"],
        rows,
        num_text_columns=2,
        footnotes=[
            "Lost: teacher right, student wrong; gained: the reverse. Agreement: same choice. Same wrong: of those both "
            "miss, the share with the same wrong choice. p: McNemar, exact, or by passage where documents share one "
            "(Obuchowski 1998); p (BH): after Benjamini–Hochberg over all "
            f'strata and tasks of the student, "{INSUFFICIENT}" below 100 documents or 10 changed ones.'
        ],
    )


def _flip_cells(row: pd.Series) -> list[TableCell]:
    judged = row["verdict"] if row["verdict"] in (INSUFFICIENT, NOTE_AT_CHANCE) else format_p_value(row["p_adjusted"])
    return [
        TableCell(f"{int(row['n'])}"),
        TableCell(f"{int(row['lost'])}"),
        TableCell(f"{int(row['gained'])}"),
        TableCell(_percent(row["agreement"])),
        TableCell(_percent(row["same_wrong_rate"])),
        TableCell(format_p_value(row["p"])),
        TableCell(judged),
    ]


def _percent(value: float) -> str:
    return MISSING_VALUE if pd.isna(value) else f"{format_points(value, 0)}%"


def stratum_overview_table(scores: Scores, long_tail: LongTail, model: str) -> Table:
    """Axis × stratum for one student: its score above chance less the teacher's."""
    student_strata = long_tail.stratum_scores[long_tail.stratum_scores["model"] == model]
    strata = range(1, scores.analysis.num_strata + 1)
    rows = []
    for axis in (a for a in long_tail.axes if a.kind != "category"):
        found = student_strata[student_strata["axis"] == axis.name].set_index("stratum")
        last = 2 if axis.kind == "binary" else scores.analysis.num_strata
        cells = [
            _stratum_delta(found.loc[s]) if s in found.index else TableCell(MISSING_VALUE if s <= last else "")
            for s in strata
        ]
        rows.append([TableCell(f"{axis.title}: {axis.head_label} → {axis.tail_label}"), *cells])
    notes = ["Points above chance, student less teacher, from head to tail. Bold: its interval does not hold 0."]
    return Table("By every axis", ["axis", *(str(s) for s in strata)], rows, footnotes=notes)


def _stratum_delta(row: pd.Series) -> TableCell:
    return TableCell(format_points(row["delta"], signed=True), bold=bool(row["low"] > 0 or row["high"] < 0))


def stratum_table(scores: Scores, long_tail: LongTail, model: str, axis: DocumentAxis) -> Table:
    """Every stratum of one axis for one student."""
    student_strata = long_tail.stratum_scores[
        (long_tail.stratum_scores["model"] == model) & (long_tail.stratum_scores["axis"] == axis.name)
    ]
    percent = f"{scores.analysis.confidence_level:.0%}"
    rows = []
    for _, row in student_strata.iterrows():
        retained = NOTE_AT_CHANCE if row["note"] == NOTE_AT_CHANCE else _percent(row["retention"])
        cells = _flip_cells(row) if row["n"] else [TableCell("0"), *[TableCell(MISSING_VALUE)] * 6]
        rows.append(
            [
                TableCell(row["label"]),
                TableCell(format_points(row["teacher"])),
                TableCell(format_points(row["student"])),
                TableCell(format_points(row.get("ce_only", np.nan))),
                TableCell(format_with_interval(row["delta"], row["low"], row["high"], signed=True)),
                TableCell(retained),
                *cells,
            ]
        )
    return Table(
        f"By {axis.description}",
        [
            "stratum",
            "teacher",
            "student",
            "without teacher",
            f"Δ teacher [{percent}]",
            "retained",
            "n",
            "lost",
            "gained",
            "agreement",
            "same wrong",
            "p",
            "p (BH)",
        ],
        rows,
    )


def slice_table(long_tail: LongTail, model: str) -> Table:
    """Slices that SliceLine proposed for one student, with what the held-out half says."""
    rows = [
        [
            TableCell(row["slice"], bold=bool(row["confirmed"])),
            TableCell(f"{row['n']}"),
            TableCell(f"{row['lost']}"),
            TableCell(f"{row['gained']}"),
            TableCell(_percent(row["inside_loss_rate"])),
            TableCell(_percent(row["outside_loss_rate"])),
            TableCell(format_p_value(row["p_adjusted"])),
            TableCell("confirmed" if row["confirmed"] else "not confirmed"),
        ]
        for _, row in long_tail.slices[model].iterrows()
    ]
    columns = ["slice", "n", "lost", "gained", "loss rate", "elsewhere", "p (BH)", "verdict"]
    notes = [
        "Found by SliceLine on one half of the documents, counted on the other. Loss rate: of what the teacher answers "
        "correctly, the share the student loses."
    ]
    empty = ["No group of documents with higher loss was found, or there are too few documents to look for one."]
    return Table("Groups of documents with higher loss", columns, rows, footnotes=notes if rows else empty)


def _guessing(long_tail: LongTail) -> str:
    """What Brier's score of equal probabilities is, and whether anyone beats it."""
    frame = long_tail.calibration
    if "brier_guessing" not in frame or frame["brier_guessing"].isna().all():
        return ""
    guessing = float(frame["brier_guessing"].mean())
    worse = frame.loc[frame["brier_all"] >= frame["brier_guessing"], "model"].tolist()
    than = f", and {', '.join(worse)} no better" if worse else ""
    return f"Brier: equal probabilities have {format_number(guessing, 2)}{than}. "


def calibration_table(long_tail: LongTail) -> Table:
    """Excess bits per byte and their CVaR, calibration of head and tail, and the coverage at the teacher's risk."""
    rows = []
    for _, row in long_tail.calibration.iterrows():
        error = [row.get(f"ece_{name}", np.nan) for name in ("all", "low", "high")]
        scores = [TableCell(format_with_interval(*error))]
        scores += [TableCell(format_points(row.get(f"ece_{part}", np.nan))) for part in ("scaled", "head", "tail")]
        brier = [TableCell(format_number(row.get(f"brier_{part}", np.nan), 2)) for part in ("all", "head", "tail")]
        gain, low, high = (row.get(f"coverage_gain{bound}", np.nan) for bound in ("", "_low", "_high"))
        share = "" if pd.isna(row.get("coverage")) else f"{format_points(row['coverage'], 0)}%"
        cover = [TableCell(share), TableCell(format_with_interval(gain, low, high, signed=True) if share else "")]
        excess = ("excess_bits_per_byte", "cvar_bits_per_byte")
        nll = [TableCell(format_number(row.get(name, np.nan), 2, signed=True)) for name in excess]
        known = TableCell("" if pd.isna(row.get("n")) else f"{row['n']:.0f}")
        rows.append([TableCell(row["model"]), known, *nll, *scores, *brier, *cover])
    columns = [
        "model",
        "n",
        "excess bits per byte",
        "CVaR 10%",
        "ECE",
        "scaled",
        "head",
        "tail",
        "Brier",
        "head",
        "tail",
        "coverage",
        "gain at coverage",
    ]
    return Table(
        "Calibration and selective prediction", columns, rows,
        footnotes=[
            "Excess bits per byte: of the right answer, above the teacher's, on average and over the worst tenth of "
            "documents (CVaR). ECE: points between confidence and accuracy, 10 bins of equal mass; its interval begins at "
            "0 where a calibrated model may show as much on so many documents; scaled: after temperature scaling on the "
            "other half of the documents. Head, tail: questions with the most common and the rarest words. "
            f"{_guessing(long_tail)}Coverage: with a threshold on "
            "its confidence chosen on one half of the documents so that student and, below it, teacher are as often "
            "right as the teacher alone, the share of the other half it answers; gain: points by which the two are "
            "then right more often than the teacher. Confidence is the softmax over the choices of what each task's metric "
            "compares: likelihood, or likelihood per character (acc_norm). Tasks are weighted equally; n: documents of the "
            "averaged tasks with a finite likelihood for every choice."
        ],
    )  # fmt: skip
