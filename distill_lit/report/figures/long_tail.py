"""The long tail per student: loss by the rarity of answers and questions, and hard less easy end of every axis."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import MISSING_STRATUM, SECONDARY_AXES
from distill_lit.analysis.long_tail import LongTail
from distill_lit.report.figures.style import (
    GREY,
    MATPLOTLIB_RC,
    add_figure_note,
    add_figure_title,
    bar_options,
    escape_mathtext,
    omitted_students_note,
    role_style,
)
from distill_lit.report.tables.long_tail import KEY_AXES

MAX_ROWS = 4  # students drawn


def long_tail_figure(
    long_tail: LongTail, sample_limit_note: str = "", ce_only_label: str = "without teacher", title: str = ""
) -> Any:
    """A matplotlib figure with a row per distilled student, at most MAX_ROWS; None when there is nothing to draw.
    ce_only_label: how the student without teacher is called; title: what was found."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if long_tail.stratum_scores.empty:
        return None
    models = list(long_tail.flips)[:MAX_ROWS]
    rarity = [axis for axis in KEY_AXES if axis in set(long_tail.stratum_scores["axis"])]
    with matplotlib.rc_context(MATPLOTLIB_RC):
        figure = Figure(figsize=(1.5 + 3 * (len(rarity) + 1), 2.5 * len(models) + 0.8), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(models), len(rarity) + 1, squeeze=False, sharex="col")
        for row, model in zip(panels, models, strict=True):
            for axes in row[1 : len(rarity)]:
                axes.sharey(row[0])
            for axes, axis in zip(row, rarity, strict=False):
                _by_rarity(axes, _strata(long_tail, model, axis), ce_only_label)
            contrasts = long_tail.tail_contrasts[long_tail.tail_contrasts["model"] == model]
            _by_axis(row[-1], contrasts, long_tail)
            row[0].set_title(escape_mathtext(model), pad=8)
            row[0].set_ylabel("score less the teacher's, points")
        for axes, axis in zip(panels[-1], rarity, strict=False):
            axes.set_xlabel(f"words of the {KEY_AXES[axis].removeprefix('rare ').removesuffix('s')}, rare → common")
        panels[-1][-1].set_xlabel("loss on the hard end less that on the easy end\n← hard end loses more, points")
        add_figure_title(figure, title)
        handles, names = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        add_figure_note(figure, f"{sample_limit_note} {omitted_students_note(len(models), len(long_tail.flips))}".strip())
    return figure


def _strata(long_tail: LongTail, model: str, axis: str) -> pd.DataFrame:
    """The strata of an axis, rarest first."""
    frame = long_tail.stratum_scores
    mine = frame[(frame["model"] == model) & (frame["axis"] == axis) & (frame["stratum"] != MISSING_STRATUM)]
    return mine.sort_values("stratum", ascending=False)


def _by_rarity(axes: Any, strata: pd.DataFrame, without: str) -> None:
    """The difference to the teacher per stratum, rare to common; hollow squares are the student without teacher."""
    axes.axhline(0, color=GREY, linewidth=0.8)
    places = np.arange(len(strata), dtype=float)
    axes.set_xticks(places, [escape_mathtext(label.replace("most common", "common")) for label in strata["label"]])
    axes.tick_params(axis="x", labelsize=7)
    for columns, role, words, shift in (
        (("ce_only_delta", "ce_only_delta_low", "ce_only_delta_high"), "ce_only", without, 0.1),
        (("delta", "low", "high"), "distilled", "distilled", -0.1),
    ):
        if columns[0] in strata and strata[columns[0]].notna().any():
            value, bars = _bars(strata, *columns)
            axes.errorbar(places + shift, value, yerr=bars, label=words, **bar_options(role_style(role)))


def _by_axis(axes: Any, contrasts: pd.DataFrame, report: LongTail) -> None:
    is_known = contrasts.get("tail_loss", pd.Series(np.nan, contrasts.index)).notna()
    known = contrasts[is_known & ~contrasts["axis"].isin(SECONDARY_AXES)] if len(contrasts) else contrasts
    if known.empty:
        axes.text(0.5, 0.5, "too few documents", ha="center", color=GREY, transform=axes.transAxes)
    places = np.arange(len(known), dtype=float)
    axes.set_yticks(places, [textwrap.fill(escape_mathtext(report.axis_title(a)), 26) for a in known["axis"]], fontsize=7)
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
        if value in frame and frame[value].notna().any():
            x, bars = _bars(frame, value, low, high)
            axes.errorbar(x, places + shift, xerr=bars, **bar_options(role_style(role)))


def _bars(frame: pd.DataFrame, value: str, low: str, high: str) -> tuple[Any, Any]:
    """(estimates, lengths of their bars) in points; an interval need not hold its estimate."""
    x = frame[value].to_numpy(float) * 100
    bars = np.nan_to_num([x - frame[low].to_numpy(float) * 100, frame[high].to_numpy(float) * 100 - x])
    return x, np.maximum(bars, 0)
