"""The tables behind the answer: the average without each task, pairs of values of an axis, and what a task can tell."""

import numpy as np

from distill_lit.analysis.answer import Answer
from distill_lit.analysis.axis_tests import AxisTest
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.task_signal import task_signals
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import (
    format_interval,
    format_number,
    format_p_value,
    format_points,
    format_with_interval,
)
from distill_lit.report.tables.score_notes import HOLM_MARK


def leave_one_out_table(scores: Scores, answer: Answer) -> Table:
    """Per student the difference to itself without teacher on every task, and the average without that task."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    rows: list[list[TableCell]] = []
    headings: dict[int, str] = {}
    for effect in answer.effects:
        mark = HOLM_MARK if effect.p_adjusted <= answer.alpha else ""
        average = format_with_interval(*effect.difference, signed=True)
        headings[len(rows)] = f"{effect.model}: {average}{mark}"
        for task in effect.tasks:
            without = format_with_interval(*task.without, signed=True) if np.isfinite(task.without.value) else ""
            p = format_p_value(task.without_p) if without else ""
            texts = [
                scores.results.display.label(task.task),
                format_with_interval(*task.difference, signed=True),
                without,
                p,
            ]
            rows.append([TableCell(text) for text in texts])
        for other in effect.other_endpoints:
            value = format_with_interval(*other.difference, signed=True)
            rows.append([TableCell(text) for text in (f"by {other.endpoint}", "", value, format_p_value(other.p))])
    return Table(
        "Difference to the student without teacher, one task left out at a time",
        ["task", f"Δ on the task [{percent}]", f"Δ of the average without it [{percent}]", "p"],
        rows,
        headings_before=headings,
        footnotes=[
            "Points; p without correction. A task without which a significant difference is none carries it. By the other "
            "metric (acc where the task's is acc_norm, and the reverse): of all tasks."
        ],
    )


def pair_table(scores: Scores, test: AxisTest) -> Table:
    """Every pair of values of an axis of the grid, with Holm over the pairs."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    rows = [
        [
            TableCell(f"{pair.first} less {pair.second}"),
            TableCell(format_with_interval(*pair.difference, signed=True)),
            TableCell(format_p_value(pair.p)),
            TableCell(format_p_value(pair.p_adjusted)),
        ]
        for pair in test.pairs
    ]
    where = ", ".join(part for part in (test.student, test.at) if part)
    seeds = "documents and seeds together" if test.covers_seeds else "documents alone, with one seed each"
    left = f" Left out, for they have other seeds: {', '.join(test.left_out)}." if test.left_out else ""
    return Table(
        f"Pairs of values of {test.axis}" + (f" ({where})" if where else ""),
        ["pair", f"difference above chance [{percent}]", "p", "p (Holm)"],
        rows,
        footnotes=[
            f"All values at once: p {format_p_value(test.p)}, of {seeds}. Spread between values over spread between seeds: "
            f"{format_number(test.spread_ratio)}.{left}"
        ],
    )


def task_signal_table(scores: Scores) -> Table:
    """What each task can tell: the teacher against chance, and how far models differ against how far seeds do."""
    rows = []
    for task in task_signals(scores):
        teacher = f"{format_points(task.teacher.value)} {format_interval(task.teacher.low, task.teacher.high)}".strip()
        texts = [
            scores.results.display.label(task.task),
            teacher,
            format_points(task.chance),
            "yes" if task.above_chance else "no",
        ]
        texts += [format_points(task.signal), format_points(task.noise), format_number(task.signal_to_noise), f"{task.n}"]
        rows.append([TableCell(text) for text in texts])
    return Table(
        "What each task can tell",
        ["task", "teacher", "chance", "above chance", "signal", "noise", "signal to noise", "n"],
        rows,
        footnotes=[
            "Signal: standard deviation of the scores of all models; noise: of the seeds of one model; both in points "
            "(Heineman et al. 2508.13144)."
        ],
    )
