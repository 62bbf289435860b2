"""Tables of the long tail: contrasts, flips, strata, slices, calibration."""

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import RARITY, SECONDARY_AXES
from distill_lit.analysis.long_tail import INSUFFICIENT, NOTE_AT_CHANCE, LongTail
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import benjamini_hochberg
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import (
    MISSING_VALUE,
    format_number,
    format_p_value,
    format_percent,
    format_points,
    format_with_interval,
)
from distill_lit.report.tables.footnotes import sample_limit_notes
from distill_lit.report.tables.score_notes import FDR_MARK

KEY_AXES = {"rarity_answer": "rare answers", RARITY.name: "rare questions"}  # in the small table and in words
CONTRASTS = ("tail_loss", "ce_only_tail_loss", "excess")
BESIDE = ("retention_change", "student_change")  # the same on other scales


def teacher_label(scores: Scores) -> str:
    """What the teacher is called."""
    return scores.results.display.label("teacher")


def tail_table(scores: Scores, long_tail: LongTail) -> Table:
    """One row per student: how much more rare answers and rare questions lose, what of it is beyond the student without
    teacher, and the confirmed slices."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    contrasts = with_adjusted_p(long_tail.tail_contrasts)
    axes = [] if contrasts.empty else [axis for axis in KEY_AXES if axis in set(contrasts["axis"])]
    has_excess = "excess" in contrasts and contrasts["excess"].notna().any()
    columns = ["model"]
    for axis in axes:
        columns += [f"{KEY_AXES[axis]} [{percent}]"] + ([f"excess [{percent}]"] if has_excess else [])
    rows, end = [], stratum_fraction(scores)
    for model in long_tail.flips:
        mine = contrasts[contrasts["model"] == model].set_index("axis") if axes else contrasts
        cells = [TableCell(model)]
        for axis in axes:
            names = ["tail_loss", "excess"] if has_excess else ["tail_loss"]
            cells += [_contrast(scores, mine.loc[axis], name) for name in names]
        slices = long_tail.slices.get(model, pd.DataFrame())
        found = f"{int(slices['confirmed'].astype(bool).sum())} of {len(slices)}" if len(slices) else MISSING_VALUE
        rows.append([*cells, TableCell(found)])
    return Table(
        "Do rare answers and questions lose more?",
        [*columns, "confirmed slices"],
        rows,
        header_notes=sample_limit_notes(scores),
        footnotes=[
            f"Loss on the rarest {end} less loss on the most common {end}, in points above chance (negative: the rare ones "
            f"lose more). {_excess_note(scores) if has_excess else ''} {_fdr_note(scores)} Slices: groups of "
            "documents with higher loss, found on one half and confirmed on the other."
        ],
    )


def _fdr_note(scores: Scores) -> str:
    q = scores.analysis.false_discovery_rate
    return f"{FDR_MARK} significant after Benjamini–Hochberg over all students and axes at {q:.3g}."


def stratum_fraction(scores: Scores) -> str:
    """`fifth`: what share of the documents a stratum is, in words."""
    return "fifth" if scores.analysis.num_strata == 5 else f"1/{scores.analysis.num_strata}"


def with_adjusted_p(contrasts: pd.DataFrame) -> pd.DataFrame:
    """The contrasts with `<name>_p_adjusted`: Benjamini–Hochberg over all students and axes, for each of CONTRASTS and the
    student's own change."""
    for name in (*CONTRASTS, "student_change"):
        if f"{name}_p" in contrasts and f"{name}_p_adjusted" not in contrasts:
            adjusted = benjamini_hochberg(contrasts[f"{name}_p"].tolist())
            contrasts = contrasts.assign(**{f"{name}_p_adjusted": adjusted})
    return contrasts


def contrast_table(scores: Scores, long_tail: LongTail) -> Table:
    """Loss on the hard end of every axis less that on the easy end, per student, the same without teacher, the excess."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    rows: list[list[TableCell]] = []
    headings: dict[int, str] = {}
    contrasts = with_adjusted_p(long_tail.tail_contrasts)
    for model, found in [] if contrasts.empty else contrasts.groupby("model", sort=False):
        headings[len(rows)] = str(model)
        for _, row in found.iterrows():
            title = long_tail.axis_title(row["axis"]) + (" (secondary)" if row["axis"] in SECONDARY_AXES else "")
            rows.append([TableCell(title), *(_contrast(scores, row, name) for name in (*CONTRASTS, *BESIDE))])
    fraction, scales = stratum_fraction(scores), ("distilled", "without teacher", "excess", "retained", "own change")
    return Table(
        f"Loss on the hardest {fraction} less loss on the easiest {fraction}, points above chance",
        ["axis", *(f"{words} [{percent}]" for words in scales)],
        rows,
        headings_before=headings,
        footnotes=[
            f"Negative: the hard {fraction} loses more. {_excess_note(scores)} {_fdr_note(scores)} Retained: the same of "
            "shares of the teacher's score, which a teacher that is better on one end does not move; own change: of the "
            "student's score alone. Secondary axes are the teacher's own evidence for an answer: documents at one end are "
            "those on which it is right by luck."
        ],
    )


def baseline_uses_other_data(scores: Scores) -> bool:
    """Whether a student without teacher that others are compared with was trained on other data than they."""
    others = {
        other for g in range(len(scores.groups)) for who, other in find_baselines(scores, g).items() if who == "ce_only"
    }
    return any(scores.groups[other].other_data for other in others)


def _excess_note(scores: Scores) -> str:
    """What the excess over the student without teacher may be attributed to."""
    if baseline_uses_other_data(scores):
        return (
            "The student without teacher read other data, so the excess over it is of teacher and data together and cannot "
            "be attributed to either."
        )
    return "Only the excess over the student trained without a teacher can be attributed to distillation."


def _contrast(scores: Scores, row: pd.Series, name: str) -> TableCell:
    value, low, high = (row.get(key, np.nan) for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(value):
        note = row.get("note")
        return TableCell(str(note) if isinstance(note, str) and note else MISSING_VALUE)
    mark = FDR_MARK if row.get(f"{name}_p_adjusted", np.nan) <= scores.analysis.false_discovery_rate else ""
    return TableCell(format_with_interval(value, low, high, signed=True) + mark)


def flip_table(scores: Scores, long_tail: LongTail) -> Table:
    """Lost, gained, agreement per task and student."""
    rows: list[list[TableCell]] = []
    headings: dict[int, str] = {}
    for model, found in long_tail.task_flips.groupby("model", sort=False):
        headings[len(rows)] = str(model)
        label = scores.results.display.label
        rows += [[TableCell(label(row["task"])), *_flip_cells(row)] for _, row in found.iterrows()]
    return Table(
        "Answers that changed from teacher to student",
        ["task", "lost", "gained", "n", "agreement", "both wrong, same choice", "p (BH)"],
        rows,
        headings_before=headings,
        footnotes=[
            "Lost: teacher right, student wrong; gained: the reverse. Agreement: same choice. Both wrong, same choice: of "
            "those both miss, the share with the same wrong choice. p: McNemar, exact, or by passage where documents share "
            "one (Obuchowski 1998), after Benjamini–Hochberg over all strata and tasks of the student; "
            f'"{INSUFFICIENT}" below 100 documents or 10 changed ones.'
        ],
    )


def _flip_cells(row: pd.Series) -> list[TableCell]:
    judged = row["verdict"] if row["verdict"] in (INSUFFICIENT, NOTE_AT_CHANCE) else format_p_value(row["p_adjusted"])
    counts = [f"{int(row[name])}" for name in ("lost", "gained", "n")]
    shares = [format_percent(row[name]) for name in ("agreement", "same_wrong_rate")]
    return [TableCell(text) for text in (*counts, *shares, judged)]


def slice_table(long_tail: LongTail) -> Table:
    """The confirmed slices of all students, with what the held-out half says."""
    rows: list[list[TableCell]] = []
    headings: dict[int, str] = {}
    for model, slices in long_tail.slices.items():
        confirmed = slices[slices["confirmed"].astype(bool)] if len(slices) else slices
        if len(confirmed):
            headings[len(rows)] = model
        for _, row in confirmed.iterrows():
            rates = [format_percent(row["inside_loss_rate"]), format_percent(row["outside_loss_rate"])]
            counts = [f"{row[name]}" for name in ("lost", "gained", "n")]
            rows.append([TableCell(text) for text in (row["slice"], *rates, *counts, format_p_value(row["p_adjusted"]))])
    notes = [
        "Found by SliceLine on one half of the documents, counted and tested on the other. Loss rate: of what the teacher "
        "answers correctly, the share the student loses. Slices that were not confirmed are in longtail.csv."
    ]
    empty = ["No group of documents with higher loss was confirmed, or there are too few documents to look for one."]
    columns = ["slice", "loss rate", "elsewhere", "lost", "gained", "n", "p (BH)"]
    title = "Groups of documents with higher loss, confirmed"
    return Table(
        title, columns, rows, headings_before=headings, footnotes=notes if rows else [], warnings=[] if rows else empty
    )


def _guessing(scores: Scores, long_tail: LongTail) -> str:
    """What Brier's score of equal probabilities is, and whether anyone beats it."""
    frame = long_tail.calibration
    if "brier_guessing" not in frame or frame["brier_guessing"].isna().all():
        return ""
    guessing = float(frame["brier_guessing"].mean())
    worse = frame.loc[frame["brier_all"] >= frame["brier_guessing"], "model"].tolist()
    worse = [teacher_label(scores) if model == "teacher" else model for model in worse]
    than = f", and {', '.join(worse)} no better" if worse else ""
    return f"Brier: equal probabilities have {format_number(guessing, 2)}{than}. "


def calibration_table(scores: Scores, long_tail: LongTail) -> Table:
    """Excess bits per byte and their CVaR, calibration of head and tail, and the coverage at the teacher's risk."""
    rows = []
    for _, row in long_tail.calibration.iterrows():
        error = [row.get(f"ece_{name}", np.nan) for name in ("all", "low", "high")]
        cells = [TableCell(format_with_interval(*error))]
        cells += [TableCell(format_points(row.get(f"ece_{part}", np.nan))) for part in ("scaled", "head", "tail")]
        brier = [TableCell(format_number(row.get(f"brier_{part}", np.nan), 2)) for part in ("all", "head", "tail")]
        gain, low, high = (row.get(f"coverage_gain{bound}", np.nan) for bound in ("", "_low", "_high"))
        share = "" if pd.isna(row.get("coverage")) else f"{format_points(row['coverage'], 0)}%"
        cover = [TableCell(share), TableCell(format_with_interval(gain, low, high, signed=True) if share else "")]
        excess = ("excess_bits_per_byte", "cvar_bits_per_byte")
        nll = [TableCell(format_number(row.get(name, np.nan), 2, signed=True)) for name in excess]
        known = TableCell("" if pd.isna(row.get("n")) else f"{row['n']:.0f}")
        name = TableCell(teacher_label(scores) if row["model"] == "teacher" else row["model"])
        rows.append([name, known, *nll, *cells, *brier, *cover])
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
            f"{_guessing(scores, long_tail)}Coverage: with a threshold on "
            "its confidence chosen on one half of the documents so that student and, below it, teacher are as often "
            "right as the teacher alone, the share of the other half it answers; gain: points by which the two are "
            "then right more often than the teacher. Confidence is the softmax over the choices of what each task's metric "
            "compares: likelihood, or likelihood per character (acc_norm). Tasks are weighted equally; n: documents of the "
            "averaged tasks with a finite likelihood for every choice."
        ],
    )  # fmt: skip
