"""When to defer to the teacher, and whether confidence can be trusted: two panels over all distilled students."""

from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.calibration import coverage_and_reliability_curves
from distill_lit.analysis.scores import Scores
from distill_lit.report.figures.style import (
    MATPLOTLIB_RC,
    add_figure_note,
    add_figure_title,
    escape_mathtext,
    line_styles,
    marker_options,
    omitted_students_note,
    role_style,
)
from distill_lit.report.tables.footnotes import sample_limit_notes
from distill_lit.report.tables.long_tail import teacher_label

MAX_STUDENTS = 5


def calibration_figure(scores: Scores, title: str = "") -> Any:
    """A matplotlib figure: coverage curves and reliability of the first seeds; None without teacher or students.
    title: what was found."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    students = [g for g in scores.groups if g.role == "distilled" and g.models]
    drawn = {g.label: g.models[0] for g in students[:MAX_STUDENTS]}
    teacher = {} if scores.teacher is None else {"teacher": scores.groups[scores.teacher].models[0]}
    coverage, reliability = coverage_and_reliability_curves(scores, teacher | drawn)
    if not students or coverage.empty:
        return None
    with matplotlib.rc_context(MATPLOTLIB_RC):
        figure = Figure(figsize=(8.2, 3.7), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        known = line_styles(scores.groups)
        styles = {"teacher": role_style("teacher") | {"markersize": 9}}
        styles |= {label: known[label] | {"markersize": 5} for label in drawn}
        teacher_name = teacher_label(scores)
        _coverage(left, coverage, styles, teacher_name)
        _reliability(right, reliability, styles)
        add_figure_title(figure, title)
        handles, names = right.get_legend_handles_labels()
        names = [escape_mathtext(teacher_name) if name == "teacher" else name for name in names]
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        add_figure_note(figure, " ".join([*sample_limit_notes(scores), omitted_students_note(len(drawn), len(students))]))
    return figure


def _coverage(axes: Any, coverage: pd.DataFrame, styles: dict[str, dict[str, Any]], teacher_name: str) -> None:
    alone = coverage.loc[coverage["label"] == "teacher", "combined_accuracy"].iloc[0] * 100
    axes.axhline(alone, color=styles["teacher"]["color"], linewidth=1.0, linestyle=(0, (1, 2)))
    axes.annotate(
        escape_mathtext(f"{teacher_name} alone"), (100, alone), (0, 3), textcoords="offset points", ha="right", fontsize=8
    )
    for label, points in coverage[coverage["label"] != "teacher"].groupby("label", sort=False):
        every = max(1, len(points) // 6)
        axes.plot(points["coverage"] * 100, points["combined_accuracy"] * 100, markevery=every, linewidth=1.4,
                  **marker_options(styles[label]))  # fmt: skip
    axes.set_title("Student where it is confident, else teacher", fontweight="normal", fontsize=9)
    axes.set_xlabel("documents the student answers, most confident first, %")
    axes.set_ylabel("accuracy of student and teacher together, %")


def _reliability(axes: Any, reliability: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """Over the documents, for most have a confidence near 1; the mean distance of the two lines is the ECE."""
    for label, points in reliability.groupby("label", sort=False):
        places = (np.arange(len(points)) + 0.5) / len(points) * 100  # bins have equal mass
        axes.plot(places, points["confidence"] * 100, color=styles[label]["color"], linewidth=1.2, linestyle=(0, (1, 1.2)))
        axes.plot(
            places, points["accuracy"] * 100, label=escape_mathtext(label), linewidth=1.2, **marker_options(styles[label])
        )
    axes.set_ylim(0, 104)
    axes.set_xlim(0, 100)
    axes.set_title("Confidence beside accuracy", fontweight="normal", fontsize=9)
    axes.set_xlabel("documents, least confident first, %")
    axes.set_ylabel("confidence (dotted), accuracy (solid), %")
