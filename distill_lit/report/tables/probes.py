"""What models make of held-out text: averages over probes, and bits per byte by how frequent the words are."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from distill_lit.analysis.endpoints import PROBE_AVERAGE
from distill_lit.analysis.probe_long_tail import ProbeLongTail
from distill_lit.analysis.results import has_several_teachers
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import benjamini_hochberg
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import MISSING_VALUE, format_number
from distill_lit.report.tables.endpoints import format_change
from distill_lit.report.tables.footnotes import tasks_in_words
from distill_lit.report.tables.long_tail import teacher_label
from distill_lit.report.tables.score_notes import FDR_MARK, HOLM_MARK

CONTRAST = "contrast"  # the band that is the rarest words less the most common
BESIDE = {"kl": "KL to the teacher, nats per token", "draft_acceptance": "draft acceptance"}
DIGITS = 3


@dataclass(frozen=True)
class HeldOutText:
    """What a report says of probes. answer: whether rare words lose more, empty where no probe can tell; models: of
    `probe_table`; words: of `word_table`, maybe without rows."""

    answer: str
    models: Table
    words: Table


def held_out_text(scores: Scores, frame: pd.DataFrame, tail: ProbeLongTail) -> HeldOutText | None:
    """Both tables and their answer, or None without probes. frame: `endpoint_frame`; tail: `probe_long_tail`."""
    models = probe_table(scores, frame)
    return HeldOutText(rare_word_answer(scores, tail), models, word_table(scores, tail)) if models.rows else None


def probe_table(scores: Scores, frame: pd.DataFrame) -> Table:
    """A row per model: bits per byte on the average over probes, Δ without teacher, KL, draft acceptance. frame:
    `endpoint_frame`. No rows without probes."""
    rows = frame[frame["is_probe"] & (frame["task"] == PROBE_AVERAGE)]
    by_endpoint = {name: found.set_index("model") for name, found in rows.groupby("endpoint", sort=False)}
    percent = f"{scores.analysis.confidence_level:.0%}"
    bits, beside = by_endpoint.get("bits_per_byte"), {name: BESIDE[name] for name in BESIDE if name in by_endpoint}
    cells = []
    for model, row in () if bits is None else bits.iterrows():
        mark = HOLM_MARK if row["ce_only_p_adjusted"] <= scores.analysis.alpha else ""
        change = "" if pd.isna(row["ce_only_delta"]) else format_change(row) + mark
        texts = [_name(scores, str(model)), _with_interval(row, "score"), change]
        texts += [_value(by_endpoint[name], str(model)) for name in beside]
        cells.append([TableCell(text) for text in texts])
    tasks = [] if scores.results.probes is None else scores.results.probes.tasks
    own_teacher = (
        "KL, draft acceptance: to each student's own teacher, so that they do not compare between teachers; of a student "
        "without teacher that stands beside several, to the first."
    )
    return Table(
        "Held-out text",
        ["model", f"bits per byte [{percent}]", f"Δ without teacher [{percent}]", *beside.values()],
        cells,
        footnotes=[
            f"Mean over probes: {tasks_in_words(scores, tasks)}. Less is better; {HOLM_MARK} significant after Holm over "
            f"the students at {scores.analysis.alpha:.3g}. Bits per byte reward fit to the domain of the training text "
            "too.",
            *([own_teacher] if beside and has_several_teachers(scores.results.runs) else []),
        ],
    )


def _name(scores: Scores, model: str) -> str:
    return teacher_label(scores) if model == "teacher" else model


def _value(found: pd.DataFrame, model: str) -> str:
    return format_number(float(found.at[model, "score"]), 2) if model in found.index else ""


def _with_interval(row: pd.Series, name: str, signed: bool = False) -> str:
    bounds = ("low", "high") if name == "score" else (f"{name}_low", f"{name}_high")
    value, *around = (row.get(column, np.nan) for column in (name, *bounds))
    if pd.isna(value):
        return MISSING_VALUE
    interval = ", ".join(format_number(bound, DIGITS, signed) for bound in around)
    return format_number(value, DIGITS, signed) + (f" [{interval}]" if pd.notna(around).all() else "")


def word_table(scores: Scores, found: ProbeLongTail) -> Table:
    """A row per model, a column per band of word frequency, rarest first: bits per byte, and of distilled students the
    difference to themselves without teacher."""
    bands, rows, changes = found.bands, [], rare_word_changes(found)
    names = {} if bands.empty else dict(zip(bands["band"], bands["label"], strict=True))
    adjusted = dict(zip(changes["model"], changes["p_adjusted"], strict=True))
    for model in () if bands.empty else bands["model"].unique():
        mine = bands[bands["model"] == model].set_index("band").reindex(list(names))
        rows.append([_name(scores, model), *(_with_interval(row, "score") for _, row in mine.iterrows())])
        if model in adjusted:
            cells = [_with_interval(row, "ce_only_delta", signed=True) for _, row in mine.iterrows()]
            cells[-1] += FDR_MARK if adjusted[model] <= scores.analysis.false_discovery_rate else ""
            rows.append(["… less the same without teacher", *cells])
    return Table(
        "Bits per byte by how frequent the words are",
        ["model", *names.values()],
        [[TableCell(text) for text in row] for row in rows],
        footnotes=[
            "Bands: log10 of occurrences per billion words (wordfreq), rarest first, the bytes of each word counted in its "
            f"own; mean over probes, with {scores.analysis.confidence_level:.0%} intervals. {FDR_MARK} significant after "
            f"Benjamini–Hochberg over the students at {scores.analysis.false_discovery_rate:.3g}. Passages by the rarity "
            "of their words are in probes.csv."
        ],
    )


def rare_word_changes(found: ProbeLongTail) -> pd.DataFrame:
    """Of each distilled student by how much more the teacher raised bits per byte on the rarest words than on the most
    common: model, ce_only_delta, _low, _high and p_adjusted (Benjamini–Hochberg over the students); empty where that is
    unknown."""
    bands = found.bands
    if bands.empty or "ce_only_delta" not in bands:
        return pd.DataFrame(columns=["model", "p_adjusted"])
    rows = bands[(bands["band"] == CONTRAST) & (bands["role"] == "distilled") & bands["ce_only_delta"].notna()]
    return rows.assign(p_adjusted=benjamini_hochberg(rows["ce_only_delta_p"].tolist()))


def rare_word_answer(scores: Scores, found: ProbeLongTail) -> str:
    """Whether rare words of held-out text lose more by the teacher than common ones; empty without such probes."""
    rows = rare_word_changes(found)
    if rows.empty:
        return ""
    sure = rows[rows["p_adjusted"] <= scores.analysis.false_discovery_rate]
    against = "against the same student trained without the teacher"
    if sure.empty:
        most = format_number(float(rows["ce_only_delta_high"].max()), 2)
        return (
            f"On held-out text, whether rare words lose more than common ones {against} is undecided (more than {most} "
            "bits per byte is excluded for every student)."
        )
    values = sorted(sure["ce_only_delta"])
    size = " to ".join(dict.fromkeys(format_number(value, 2, signed=True) for value in (values[0], values[-1])))
    who = "" if len(rows) == 1 else f" for {len(sure)} of {len(rows)} students"
    return (
        f"On held-out text the rarest words change by {size} bits per byte more than the most common {against} "
        f"(negative: rare words gain more), significantly{who}."
    )
