"""Many models of one size: scores above chance one below the other, where a frontier would be a single column."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.report.figures.pareto import ROLE_SHIFT, cost_format, deduplicate_untrained, quality_label
from distill_lit.report.figures.style import (
    GREY,
    MATPLOTLIB_RC,
    add_figure_note,
    add_figure_title,
    bar_options,
    escape_mathtext,
    role_style,
)

MAX_MODELS_PER_COST = 3  # trained models of one kind and cost, above which they cannot be told apart beside each other


def is_crowded(frame: pd.DataFrame) -> bool:
    """Whether all models have one cost, or more than MAX_MODELS_PER_COST, all distilled or none, or two that look the same:
    of one role and, where distilled, one variant. frame: that of `pareto_frontier`."""
    trained = frame[frame["role"].isin(["distilled", "ce_only"])]
    students = deduplicate_untrained(frame[frame["role"].isin(ROLE_SHIFT)])
    look = students["variant"].where(students["role"] == "distilled", "")
    is_column = len(trained) > 1 and frame["cost"].nunique() == 1
    are_many = (trained.groupby(["role", "cost"]).size() > MAX_MODELS_PER_COST).any()
    return bool(is_column or are_many or students.assign(look=look).duplicated(["role", "look", "cost"]).any())


def ranking_figure(
    frames: Mapping[str, pd.DataFrame], quality: float, confidence: float, sample_limit_note: str = "", title: str = ""
) -> Any:
    """A matplotlib figure of {axis: `pareto_frontier(scores, axis)`}: by the first axis the most expensive first, then the
    best, with intervals; costs on every axis beside the names. quality: share of the teacher's score drawn as a line;
    title: what was found."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frame = next(iter(frames.values()))
    rows = frame.sort_values(["cost", "score"], ascending=False, kind="stable", ignore_index=True)
    costs = pd.DataFrame({axis: one.set_index("model")["cost"].map(cost_format(axis)) for axis, one in frames.items()})
    with matplotlib.rc_context(MATPLOTLIB_RC):
        figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for place, row in rows.iterrows():
            value = row["score"] * 100
            # a percentile interval need not hold its estimate
            bars = np.maximum(np.nan_to_num([[value - row["low"] * 100], [row["high"] * 100 - value]]), 0)
            axes.errorbar(value, place, xerr=bars, **bar_options(role_style(str(row["role"]))))
        last = rows["cost"].to_numpy()
        for place in np.flatnonzero(last[1:] != last[:-1]):
            axes.axhline(place + 0.5, color="#C0C0C0", linewidth=0.8)
        axes.set_yticks(
            range(len(rows)), [f"{escape_mathtext(m)}, {', '.join(costs.loc[m].dropna())}" for m in rows["model"]]
        )
        axes.set_ylim(len(rows) - 0.4, -0.9)
        axes.set_xlabel(f"score above chance, points [{confidence:.0%}]")
        _guides(axes, rows, quality)
        add_figure_note(figure, sample_limit_note)
        add_figure_title(figure, title)
    return figure


def _guides(axes: Any, rows: pd.DataFrame, quality: float) -> None:
    """The lines of guessing and of `quality` times the teacher's score, named at the top."""
    lines = [(0.0, "guessing")]
    teacher = rows.loc[rows["role"] == "teacher", "score"]
    if len(teacher) and teacher.iloc[0] > 0:
        lines.append((teacher.iloc[0] * 100 * quality, quality_label(quality, rows["role"])))
    for x, words in lines:
        axes.axvline(x, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(words, (x, -0.9), (0, 2), textcoords="offset points", ha="center", fontsize=7.5, color=GREY)
