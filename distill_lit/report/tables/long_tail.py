"""Tables of the long tail: contrasts, flips, strata, slices, calibration."""

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import Axis
from distill_lit.analysis.long_tail import AT_CHANCE, INSUFFICIENT, LongTail
from distill_lit.analysis.score_table import opponents
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Cell, Table
from distill_lit.report.number_format import ABSENT, number, p_value, points, with_bounds


def contrast_table(scores: Scores, report: LongTail) -> Table:
    """Δ_tail − Δ_head per student and axis, the same without teacher, and the excess."""
    percent = f"{scores.analysis.confidence:.0%}"
    rows, rules, last = [], set(), None
    for _, row in report.contrasts.iterrows():
        if last not in (None, row["model"]):
            rules.add(len(rows))
        cells = [_contrast(row, name) for name in ("tail_loss", "ce_only_tail_loss", "excess")]
        rows.append([Cell(row["model"] if row["model"] != last else ""), Cell(report.title(row["axis"])), *cells])
        last = row["model"]
    return Table(
        "Tail less head of the difference to the teacher, points above chance",
        ["model", "axis", f"distilled [{percent}]", f"without teacher [{percent}]", f"excess [{percent}]"],
        rows,
        left=2,
        rules=rules,
        below=[
            f"Negative: the tail lost more than the head. {_to_blame(scores)} Bold: its interval does not hold 0 (not "
            "corrected for the number of axes)."
        ],
    )


def reads_other_text(scores: Scores) -> bool:
    """Whether a student without teacher that others are compared with was trained on other text than they."""
    others = {other for g in range(len(scores.groups)) for who, other in opponents(scores, g).items() if who == "ce_only"}
    return any(scores.groups[other].other_text for other in others)


def _to_blame(scores: Scores) -> str:
    """What the excess over the student without teacher may be laid to."""
    if reads_other_text(scores):
        return (
            "The student without teacher read other text, so the excess over it is of teacher and text together and cannot "
            "be laid to either."
        )
    return "Only the excess over the student trained without a teacher can be laid to distillation."


def _contrast(row: pd.Series, name: str) -> Cell:
    value, low, high = (row.get(key, np.nan) for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(value):
        return Cell(str(row.get("note") or ABSENT))
    return Cell(with_bounds(value, low, high, signed=True), bold=bool(low > 0 or high < 0))


def flip_table(report: LongTail) -> Table:
    """Lost, gained, agreement per task and student."""
    rows, last = [], None
    for _, row in report.tasks.iterrows():
        rows.append([Cell(row["model"] if row["model"] != last else ""), Cell(row["task"]), *_flip_cells(row)])
        last = row["model"]
    return Table(
        "Answers that changed from teacher to student",
        ["model", "task", "n", "lost", "gained", "agree", "same wrong", "p", "BH"],
        rows,
        left=2,
        below=[
            "Lost: teacher right, student wrong; gained: the reverse. Agree: same choice. Same wrong: of those both "
            "miss, the share with the same wrong choice. p: McNemar, exact, or by passage where documents share one "
            "(Obuchowski 1998); BH: after Benjamini–Hochberg over all "
            f'strata and tasks of the student, "{INSUFFICIENT}" below 100 documents or 10 changed ones.'
        ],
    )


def _flip_cells(row: pd.Series) -> list[Cell]:
    judged = row["verdict"] if row["verdict"] in (INSUFFICIENT, AT_CHANCE) else p_value(row["adjusted"])
    return [
        Cell(f"{int(row['n'])}"),
        Cell(f"{int(row['lost'])}"),
        Cell(f"{int(row['gained'])}"),
        Cell(_percent(row["agreement"])),
        Cell(_percent(row["shared_wrong"])),
        Cell(p_value(row["p"])),
        Cell(judged),
    ]


def _percent(value: float) -> str:
    return ABSENT if pd.isna(value) else f"{points(value, 0)}%"


def axes_table(scores: Scores, report: LongTail, model: str) -> Table:
    """Axis × stratum for one student: its score above chance less the teacher's."""
    mine = report.strata[report.strata["model"] == model]
    strata = range(1, scores.analysis.strata + 1)
    rows = []
    for axis in (a for a in report.axes if a.kind != "category"):
        found = mine[mine["axis"] == axis.name].set_index("stratum")
        last = 2 if axis.kind == "binary" else scores.analysis.strata
        cells = [_stratum_delta(found.loc[s]) if s in found.index else Cell(ABSENT if s <= last else "") for s in strata]
        rows.append([Cell(f"{axis.title}: {axis.head} → {axis.tail}"), *cells])
    notes = ["Points above chance, student less teacher, from head to tail. Bold: its interval does not hold 0."]
    return Table("By every axis", ["axis", *(str(s) for s in strata)], rows, below=notes)


def _stratum_delta(row: pd.Series) -> Cell:
    return Cell(points(row["delta"], signed=True), bold=bool(row["low"] > 0 or row["high"] < 0))


def stratum_table(scores: Scores, report: LongTail, model: str, axis: Axis) -> Table:
    """Every stratum of one axis for one student."""
    mine = report.strata[(report.strata["model"] == model) & (report.strata["axis"] == axis.name)]
    percent = f"{scores.analysis.confidence:.0%}"
    rows = []
    for _, row in mine.iterrows():
        kept = AT_CHANCE if row["note"] == AT_CHANCE else _percent(row["retention"])
        cells = _flip_cells(row) if row["n"] else [Cell("0"), *[Cell(ABSENT)] * 6]
        rows.append(
            [
                Cell(row["label"]),
                Cell(points(row["teacher"])),
                Cell(points(row["student"])),
                Cell(points(row.get("ce_only", np.nan))),
                Cell(with_bounds(row["delta"], row["low"], row["high"], signed=True)),
                Cell(kept),
                *cells,
            ]
        )
    return Table(
        f"By {axis.about}",
        [
            "stratum",
            "teacher",
            "student",
            "without teacher",
            f"Δ teacher [{percent}]",
            "kept",
            "n",
            "lost",
            "gained",
            "agree",
            "same wrong",
            "p",
            "BH",
        ],
        rows,
    )


def slice_table(report: LongTail, model: str) -> Table:
    """Slices that SliceLine proposed for one student, with what the held-out half says."""
    rows = [
        [
            Cell(row["slice"], bold=bool(row["confirmed"])),
            Cell(f"{row['n']}"),
            Cell(f"{row['lost']}"),
            Cell(f"{row['gained']}"),
            Cell(_percent(row["lost_rate"])),
            Cell(_percent(row["rest_rate"])),
            Cell(p_value(row["adjusted"])),
            Cell("confirmed" if row["confirmed"] else "not confirmed"),
        ]
        for _, row in report.slices[model].iterrows()
    ]
    columns = ["slice", "n", "lost", "gained", "loss rate", "elsewhere", "BH", "verdict"]
    notes = [
        "Found by SliceLine on one half of the documents, counted on the other. Loss rate: of what the teacher answers "
        "rightly, the share the student loses."
    ]
    empty = ["No group of documents with higher loss was found, or there are too few documents to look for one."]
    return Table("Groups of documents with higher loss", columns, rows, below=notes if rows else empty)


def confidence_table(report: LongTail) -> Table:
    """Worst tenth, calibration head against tail, and the share that can be answered at the teacher's risk."""
    rows = []
    for _, row in report.confidence.iterrows():
        scores = [Cell(points(row.get(f"ece_{part}", np.nan))) for part in ("all", "head", "tail")]
        brier = [Cell(number(row.get(f"brier_{part}", np.nan), 2)) for part in ("all", "head", "tail")]
        gain, low, high = (row.get(f"coverage_gain{bound}", np.nan) for bound in ("", "_low", "_high"))
        share = "" if pd.isna(row.get("coverage")) else f"{points(row['coverage'], 0)}%"
        cover = [Cell(share), Cell(with_bounds(gain, low, high, signed=True) if share else "")]
        nll = [Cell(number(row.get(name, np.nan), 2, signed=True)) for name in ("excess_nll", "cvar")]
        known = Cell("" if pd.isna(row.get("n")) else f"{row['n']:.0f}")
        rows.append([Cell(row["model"]), known, *nll, *scores, *brier, *cover])
    columns = [
        "model",
        "n",
        "excess NLL",
        "worst tenth",
        "ECE",
        "head",
        "tail",
        "Brier",
        "head",
        "tail",
        "answerable",
        "gain",
    ]
    return Table(
        "How much its probabilities can be trusted", columns, rows,
        below=[
            "Excess NLL: nats by which the right answer is less likely than under the teacher, on average and "
            "over the worst tenth of documents. ECE: points between confidence and accuracy, 10 bins of equal "
            "mass. Head, tail: questions with the most common and the rarest words. Answerable: with a threshold on "
            "its confidence chosen on one half of the documents so that student and, below it, teacher are as often "
            "right as the teacher alone, the share of the other half it answers; gain: points by which the two are "
            "then right more often than the teacher. All from unnormalised likelihoods, tasks weighted equally; n: "
            "documents of all tasks with a finite likelihood for every choice."
        ],
    )  # fmt: skip
