"""The frontier: score above chance against a cost, one series per role, the teacher marked."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import NAMED_ROLES
from distill_lit.analysis.pareto import COST_AXES
from distill_lit.config.report import ReportConfig
from distill_lit.report.figures.label_placement import LINE_LABEL_POSITIONS, Box, Label, place_labels, segment_boxes
from distill_lit.report.figures.style import (
    GREY,
    MATPLOTLIB_RC,
    TEXT_COLOR,
    add_figure_note,
    add_figure_title,
    bar_options,
    escape_mathtext,
    linestyle,
    marker_options,
    role_style,
)
from distill_lit.report.number_format import format_bytes, format_count

SERIES_OFFSET = 0.012  # share of the axis by which roles of one student stand apart
PANEL_AXES = ("parameters", "bytes", "decode_s_per_token")  # cost axes of the figure
PROPORTIONAL = 0.02  # spread of the ratio of two costs below which a panel would show the same twice
ROLE_SHIFT = {"untrained": -1, "ce_only": 0, "distilled": 1}
COST_FORMATS: dict[str, Callable[[float], str]] = {  # {part of a cost axis' name: how its values are written}
    "bytes": format_bytes,
    "_s": lambda seconds: f"{1000 * seconds:.3g} ms",
}
MAX_NAMES_PER_TICK = 3
WIDE_INCHES = 5  # from which on the title of a panel's axis is one line
LETTER_INCHES = 0.058  # of the labels of ticks


def pareto_figure(
    frames: dict[str, pd.DataFrame],
    quality_threshold: float,
    confidence: float,
    sample_limit_note: str,
    variant_indices: dict[str, int],
    title: str,
    role_labels: Mapping[str, str],
) -> Any:
    """A matplotlib figure with a panel per cost axis of `frames`, {axis: `pareto_frontier(scores, axis)`}.

    quality_threshold: share of the teacher's score drawn as a line; variant_indices: `variant_numbers(scores.groups)`,
    which colors them as in the other figures; title: what was found, maybe empty; role_labels: {role: its words}."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames = {axis: frame for axis, frame in frames.items() if not frame.empty}
    with matplotlib.rc_context(MATPLOTLIB_RC):
        width = 6.4 if len(frames) < 2 else 0.5 + 4.4 * len(frames)
        figure = Figure(figsize=(width, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        add_figure_note(figure, sample_limit_note)
        add_figure_title(figure, title)
        panels = figure.subplots(1, max(len(frames), 1), squeeze=False, sharey=True)[0]
        if not frames:
            panels[0].text(0.5, 0.5, "no model has both a score and a cost", ha="center", transform=panels[0].transAxes)
            return figure
        drawn = []
        for axes, (axis, frame) in zip(panels, frames.items(), strict=True):
            _frame(axes, frame, axis, width / len(frames) - 0.5)
            labels, obstacles, handles = _series(axes, deduplicate_untrained(frame), variant_indices, role_labels)
            drawn.append((axes, labels, obstacles, *_guides(axes, frame, quality_threshold)))
        panels[0].set_ylabel(f"score above chance, points [{confidence:.0%}]")
        if handles:  # of the last panel: all show the same models in the same looks
            figure.legend(handles=handles, loc="outside lower center", ncols=3 if len(frames) < 2 else 6)
        figure.canvas.draw()
        for axes, labels, obstacles, lines, boxes in drawn:
            placed = place_labels(axes, lines, obstacles, LINE_LABEL_POSITIONS)
            place_labels(axes, labels, obstacles + boxes + placed)
    return figure


def quality_label(quality: float, roles: pd.Series) -> str:
    """What the line of that share of the teacher's score is called. roles: of the models in the figure, where one that is
    made of the teacher may stand beside it."""
    return f"{quality:.0%} of the teacher{' as released' if (roles == 'derived').any() else ''}"


def with_labels(frame: pd.DataFrame, display: ReportConfig) -> pd.DataFrame:
    """A frontier with the teacher and students as labels call them; models that are no students go by their names."""
    teacher = frame["model"].where(frame["role"] != "teacher", display.label("teacher"))
    students = frame["student"].map(display.label).where(~frame["role"].isin(NAMED_ROLES), "")
    return frame.assign(model=teacher, student=students)


def panel_frames(frames: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Those of PANEL_AXES, or else the first; without axes that are proportional to an earlier one."""
    shown: dict[str, pd.DataFrame] = {}
    for axis in [name for name in PANEL_AXES if name in frames] or list(frames)[:1]:
        if not any(_are_proportional(frames[axis], frame) for frame in shown.values()):
            shown[axis] = frames[axis]
    return shown


def _are_proportional(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    ratio = one.set_index("model")["cost"] / other.set_index("model")["cost"]
    return bool(ratio.notna().all() and ratio.max() <= (1 + PROPORTIONAL) * ratio.min())


def cost_format(axis: str) -> Callable[[float], str]:
    """How costs of an axis are written."""
    return next((show for part, show in COST_FORMATS.items() if part in axis), format_count)


def deduplicate_untrained(frame: pd.DataFrame) -> pd.DataFrame:
    """A student before training is the same whatever it would read: one point for all grid points at which it is equal."""
    same = ["role", "student", "cost", "score"]
    again = (frame["role"] == "untrained") & frame.duplicated(same, keep=False)
    deduplicated = frame[~(again & frame.duplicated(same))].copy()
    deduplicated.loc[again.reindex(deduplicated.index), "variant"] = ""
    return deduplicated


def _frame(axes: Any, frame: pd.DataFrame, axis: str, inches: float) -> None:
    """Limits, ticks at the models' costs and the title of the axis. inches: how wide the panel is."""
    axes.set_xscale("log")
    low, high = frame["cost"].min(), frame["cost"].max()
    span = max(np.log(high / low), 0.3)
    axes.set_xlim(low * np.exp(-0.12 * span), high * np.exp(0.16 * span))
    bottom, top = min(frame["low"].min(), 0.0) * 100, frame["high"].max() * 100
    room = 0.08 * max(top - bottom, 10)
    axes.set_ylim(bottom - room, top + 1.5 * room)
    ticks = _ticks(frame, axis)
    lines = max(text.count("\n") for text in ticks.values()) + 1
    # labels that would touch step down
    ends = dict.fromkeys(range(4), -np.inf)
    texts = []
    for cost, text in ticks.items():
        half = LETTER_INCHES / inches * 0.5 * (max(map(len, text.split("\n"))) + 1) * 1.28 * span
        level = next((d for d, end in ends.items() if np.log(cost) - half > end), 0)
        ends[level] = np.log(cost) + half
        texts.append("\n" * (lines * level) + text)
    axes.set_xticks(list(ticks), texts)
    axes.minorticks_off()
    beside = f";{' ' if inches > WIDE_INCHES else chr(10)}models of one cost side by side"
    scale = f"log scale{beside if frame['role'].isin(ROLE_SHIFT).any() else ''}"
    axes.set_xlabel(f"{COST_AXES.get(axis, axis)} ({scale})")


def _ticks(frame: pd.DataFrame, axis: str) -> dict[float, str]:
    """{cost: the models that have it, and the cost}. Models that were measured apart differ in digits that nobody reads."""
    show = cost_format(axis)
    shapes = frame.assign(shape=frame["student"].where(frame["student"] != "", frame["model"]))
    shapes = shapes.assign(shown=shapes["cost"].map(show)).drop_duplicates(["shape", "shown"])
    found = {}
    for shown, rows in shapes.groupby("shown", sort=False):
        names = [escape_mathtext(name) for name in rows["shape"]]
        more = [f"and {len(names) - MAX_NAMES_PER_TICK} more"] if len(names) > MAX_NAMES_PER_TICK else []
        found[float(rows["cost"].mean())] = "\n".join([*names[:MAX_NAMES_PER_TICK], *more, str(shown)])
    return dict(sorted(found.items()))


def _series(
    axes: Any, frame: pd.DataFrame, variants: dict[str, int], role_labels: Mapping[str, str]
) -> tuple[list[Label], list[Box], list[Any]]:
    """Draws every (role, variant); returns labels of the models that have names of their own, what labels must not cover,
    and a handle for the legend of each other series."""
    from matplotlib.lines import Line2D

    labels: list[Label] = []
    obstacles: list[Box] = []
    handles: list[tuple[float, Any]] = []  # with their places among the models of one cost
    low, high = axes.get_xlim()
    step = SERIES_OFFSET * np.log(high / low)
    series = frame["variant"].where(~frame["role"].isin(NAMED_ROLES), frame["model"])
    for (role, _), series_rows in frame.groupby(["role", series], sort=False):
        variant = str(series_rows["variant"].iloc[0])
        style = role_style(role, variants.get(variant, 0))
        shift = ROLE_SHIFT.get(role, 0) + 0.6 * variants.get(variant, 0) * (role == "distilled")
        x, y = series_rows["cost"].to_numpy(float) * np.exp(shift * step), series_rows["score"].to_numpy(float) * 100
        down, up = y - series_rows["low"].to_numpy(float) * 100, series_rows["high"].to_numpy(float) * 100 - y
        # a percentile interval need not hold its estimate
        bars = np.nan_to_num([np.maximum(down, 0), np.maximum(up, 0)])
        axes.errorbar(x, y, yerr=bars, **bar_options(style))
        if len(x) > 1 and role not in NAMED_ROLES:
            axes.plot(x, y, linestyle=linestyle(style["dash"]), color=style["color"], linewidth=1.0, alpha=0.7, zorder=2)
            for a, b in zip(zip(x, y, strict=True), list(zip(x, y, strict=True))[1:], strict=False):
                obstacles += segment_boxes(a, b, log_x=True)
        obstacles += [(a, b - c, a, b + d) for a, b, c, d in zip(x, y, *bars, strict=True)]
        if role in NAMED_ROLES:  # dark, for the colors of markers are too light to be read
            labels.append((escape_mathtext(series_rows["model"].iloc[0]), TEXT_COLOR, list(zip(x, y, strict=True))))
            continue
        words = f"{role_labels[role]} ({variant})" if variant else role_labels[role]
        looks = marker_options(style) | {"linestyle": linestyle(style["dash"])}
        handles.append((shift, Line2D([], [], label=escape_mathtext(words), **looks)))
    return labels, obstacles, [handle for _, handle in sorted(handles, key=lambda pair: pair[0])]


def _guides(axes: Any, frame: pd.DataFrame, quality: float) -> tuple[list[Label], list[Box]]:
    """The lines of guessing and of `quality` times the teacher's score; returns their labels and their boxes."""
    low, high = axes.get_xlim()
    lines = [(0.0, "guessing")]
    teacher = frame.loc[frame["role"] == "teacher", "score"]
    if len(teacher) and teacher.iloc[0] > 0:
        lines.append((teacher.iloc[0] * 100 * quality, quality_label(quality, frame["role"])))
    places = np.geomspace(low, high, 25)[1:-1]
    labels: list[Label] = []
    boxes: list[Box] = []
    for y, words in lines:
        axes.axhline(y, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        labels.append((words, GREY, [(x, y) for x in reversed(places)]))
        boxes.append((low, y, high, y))
    return labels, boxes
