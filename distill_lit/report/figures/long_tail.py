"""The long tail in three panels per student: score by word frequency, loss by quintile, tail less head by axis."""

from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import MISSING_STRATUM, RARITY
from distill_lit.analysis.long_tail import LongTail
from distill_lit.report.figures.style import (
    GREY,
    MATPLOTLIB_RC,
    add_figure_note,
    bar_options,
    escape_mathtext,
    linestyle,
    marker_options,
    omitted_students_note,
    role_style,
)

MAX_ROWS = 6  # students drawn


def long_tail_figure(long_tail: LongTail, sample_limit_note: str = "", ce_only_label: str = "without teacher") -> Any:
    """A matplotlib figure with a row per distilled student, at most MAX_ROWS; None when there is nothing to draw.
    ce_only_label: how the student without teacher is called."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if long_tail.stratum_scores.empty:
        return None
    models = list(long_tail.flips)[:MAX_ROWS]
    with matplotlib.rc_context(MATPLOTLIB_RC):
        figure = Figure(figsize=(10.5, 2.9 * len(models) + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(models), 3, squeeze=False, sharex="col")
        for row, model in zip(panels, models, strict=True):
            student_strata = long_tail.stratum_scores[
                (long_tail.stratum_scores["model"] == model) & (long_tail.stratum_scores["stratum"] != MISSING_STRATUM)
            ]
            strata = student_strata[student_strata["axis"] == RARITY.name]
            if not strata.empty:
                _by_frequency(row[0], strata, _frequencies(long_tail), ce_only_label)
                _by_stratum(row[1], strata)
            _by_axis(row[2], long_tail.tail_contrasts[long_tail.tail_contrasts["model"] == model], long_tail)
            row[0].set_title(escape_mathtext(model), pad=10)
        panels[-1][0].set_xlabel("occurrences of the question's rarest words\nper billion words (log10), rare → common")
        panels[-1][1].set_xlabel("score above chance less the teacher's, points")
        panels[-1][2].set_xlabel("tail less head of that difference, points\n← tail lost more    head lost more →")
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        add_figure_note(figure, f"{sample_limit_note} {omitted_students_note(len(models), len(long_tail.flips))}".strip())
    return figure


def _frequencies(report: LongTail) -> pd.Series:
    """Mean log frequency per rarity stratum, tasks weighted equally."""
    value = -report.axis_values[RARITY.name]
    per_task = value.groupby([report.stratum_codes[RARITY.name], value.index.get_level_values("task")]).mean()
    return per_task.groupby(level=0).mean()


def _by_frequency(axes: Any, strata: pd.DataFrame, frequency: pd.Series, without: str) -> None:
    x = frequency.loc[strata["stratum"]].to_numpy(float)
    for role, column, words in (
        ("teacher", "teacher", "teacher"),
        ("ce_only", "ce_only", without),
        ("distilled", "student", "distilled"),
    ):
        if column not in strata or strata[column].isna().all():
            continue
        style = role_style(role)
        options = marker_options(style) | {"linestyle": linestyle(style["dash"]), "linewidth": 1.2}
        axes.plot(x, strata[column] * 100, label=words, **options)
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_ylabel("score above chance, points")


def _by_stratum(axes: Any, strata: pd.DataFrame) -> None:
    places = np.arange(len(strata), dtype=float)
    axes.set_yticks(places, [escape_mathtext(label) for label in strata["label"]])
    _forest(
        axes,
        places,
        strata,
        (
            ("ce_only_delta", "ce_only_delta_low", "ce_only_delta_high", "ce_only", 0.14),
            ("delta", "low", "high", "distilled", -0.14),
        ),
    )
    axes.set_ylabel("rarity of the question's words")
    axes.invert_yaxis()


def _by_axis(axes: Any, contrasts: pd.DataFrame, report: LongTail) -> None:
    known = contrasts[contrasts.get("tail_loss", pd.Series(np.nan, contrasts.index)).notna()]
    if known.empty:
        axes.text(0.5, 0.5, "too few documents", ha="center", color=GREY, transform=axes.transAxes)
    places = np.arange(len(known), dtype=float)
    axes.set_yticks(places, [escape_mathtext(report.axis_title(a)) for a in known["axis"]])
    _forest(
        axes,
        places,
        known,
        (
            ("ce_only_tail_loss", "ce_only_tail_loss_low", "ce_only_tail_loss_high", "ce_only", 0.14),
            ("tail_loss", "tail_loss_low", "tail_loss_high", "distilled", -0.14),
        ),
    )
    axes.invert_yaxis()


def _forest(axes: Any, places: Any, frame: pd.DataFrame, series: tuple) -> None:
    """Estimates with horizontal bars; hollow squares are the student without teacher."""
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.grid(axis="y", visible=False)
    for value, low, high, role, shift in series:
        if value not in frame or frame[value].isna().all():
            continue
        x = frame[value].to_numpy(float) * 100
        bars = np.nan_to_num([x - frame[low].to_numpy(float) * 100, frame[high].to_numpy(float) * 100 - x])
        axes.errorbar(x, places + shift, xerr=np.maximum(bars, 0), **bar_options(role_style(role)))
