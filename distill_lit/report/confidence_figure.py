"""When to defer to the teacher, and whether confidence can be trusted: two panels over all distilled students."""

from typing import Any

from distill_lit.analysis.confidence import confidence_curves
from distill_lit.analysis.scores import Scores
from distill_lit.report.style import GREY, RC, VARIANT_COLOURS, VARIANT_MARKERS, first_of, plain, role_style
from distill_lit.report.tables import watermark

MAX_STUDENTS = len(VARIANT_COLOURS)


def confidence_figure(scores: Scores) -> Any:
    """A matplotlib figure: coverage curves and reliability of the first seeds; None without teacher or students."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    students = {g.label: g.models[0] for g in scores.groups if g.role == "distilled" and g.models}
    teacher = {} if scores.teacher is None else {"teacher": scores.groups[scores.teacher].models[0]}
    coverage, reliability = confidence_curves(scores, dict(list(students.items())[:MAX_STUDENTS]) | teacher)
    if not students or coverage.empty:
        return None
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8.2, 3.7), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _coverage(left, coverage, list(students))
        _reliability(right, reliability, list(students))
        handles, names = right.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        said = " ".join([*watermark(scores), first_of(min(len(students), MAX_STUDENTS), len(students))])
        figure.text(0.005, 1.0, plain(said), va="bottom", fontsize=7.5, color=GREY, style="italic")
    return figure


def _coverage(axes: Any, coverage: Any, students: list[str]) -> None:
    alone = coverage.loc[coverage["label"] == "teacher", "together"].iloc[0] * 100
    axes.axhline(alone, color=role_style("teacher")["color"], linewidth=1.0, linestyle=(0, (1, 2)))
    axes.annotate("teacher alone", (100, alone), (0, 3), textcoords="offset points", ha="right", fontsize=8)
    for number, label in enumerate(students[:MAX_STUDENTS]):
        mine = coverage[coverage["label"] == label]
        colour = VARIANT_COLOURS[number]
        axes.plot(mine["coverage"] * 100, mine["together"] * 100, color=colour, linewidth=1.4)
        every = max(1, len(mine) // 6)
        axes.plot(mine["coverage"][::every] * 100, mine["together"][::every] * 100, linestyle="none", color=colour,
                  marker=VARIANT_MARKERS[number], markersize=5)  # fmt: skip
    axes.set_title("Who answers?")
    axes.set_xlabel("documents the student answers, most confident first, %")
    axes.set_ylabel("student and teacher together, % right")


def _reliability(axes: Any, reliability: Any, students: list[str]) -> None:
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    for number, label in enumerate(["teacher", *students[:MAX_STUDENTS]]):
        mine = reliability[reliability["label"] == label]
        style = {"color": VARIANT_COLOURS[number - 1], "marker": VARIANT_MARKERS[number - 1], "markersize": 5}
        if label == "teacher":
            style = {"color": role_style("teacher")["color"], "marker": "*", "markersize": 9}
        axes.plot(mine["confidence"] * 100, mine["accuracy"] * 100, linewidth=1.2, label=plain(label), **style)
    axes.set_title("Is its confidence right?")
    axes.set_xlabel("probability of the likeliest choice, %")
    axes.set_ylabel("right, %")
