"""How training went: distance to the teacher and to the text on held-out rows, mean over seeds in their range."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import ModelGroup, group_cost, validation_teacher
from distill_lit.analysis.results import (
    SAME_TEACHER_NATS,
    has_different_validation_data,
    has_other_teacher,
    has_several_teachers,
)
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.config.derivation import STAGE_MODEL
from distill_lit.report.figures.style import (
    BLACK,
    GREY,
    MATPLOTLIB_RC,
    ROLE_STYLE,
    TEXT_COLOR,
    add_figure_title,
    escape_mathtext,
    line_styles,
    linestyle,
)
from distill_lit.report.number_format import format_count, format_number, join_words
from distill_lit.report.tables.long_tail import teacher_label
from distill_lit.report.tables.score_notes import has_other_vocabulary
from distill_lit.report.verdict import short_names

IN_TRAINING_SCORE = "evaluation/above_chance"  # where evaluation.interval asks for scores during training
TEXT_LOSS = "validation/student_nll"
PANELS = (
    ("validation/teacher_kl", "KL to the teacher, nats per token"),
    (TEXT_LOSS, "validation cross-entropy, nats per token"),
    (IN_TRAINING_SCORE, "score above chance, mean of the tasks"),
)
MAX_END_LABELS = 12  # lines that are named at their ends; of more the legend tells
MAX_TITLE_LETTERS = 48  # of a line above a panel
LABEL_HEIGHT = 0.055  # of a panel


def curves_figure(scores: Scores, curves: pd.DataFrame) -> Any:
    """A matplotlib figure; None where no trained model has points. curves: curves.csv, a row per model and step."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    styles = line_styles(scores.groups)
    trained = [group for group in scores.groups if group.label in styles and group.models]
    known = [name for name, _ in PANELS if name in curves]
    if not trained or not known or not {"model", "step"} <= set(curves):
        return None
    own = ", each on its own data" if _have_own_data(scores, trained) else ""
    whose = "its own teacher" if has_other_teacher(scores.results.runs) else "the teacher"
    with matplotlib.rc_context(MATPLOTLIB_RC):
        figure = Figure(figsize=(max(8.2, 3.6 * len(known)), 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(known), squeeze=False)[0]
        for axes, (name, words) in zip(panels, [panel for panel in PANELS if panel[0] in known], strict=True):
            bands = {group.label: _over_tokens(scores, group, curves, name) for group in trained}
            _draw_lines(axes, trained, bands, styles)
            _mark_stages(axes, scores, trained, bands)
            _name_ends(axes, scores, trained, bands, name)
            title = words.replace("the teacher", whose) + ("" if name == IN_TRAINING_SCORE else own)
            axes.set_title(textwrap.fill(title, MAX_TITLE_LETTERS), fontweight="normal", fontsize=9)
        add_figure_title(figure, curves_finding(scores))
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _have_own_data(scores: Scores, groups: list[ModelGroup]) -> bool:
    """Whether these models are validated on different text; others of the table, which made them, may be."""
    runs = scores.results.runs
    return has_different_validation_data(runs[runs["model"].isin([name for group in groups for name in group.models])])


def _draw_lines(
    axes: Any, groups: list[ModelGroup], bands: dict[str, pd.DataFrame], styles: dict[str, dict[str, Any]]
) -> None:
    """Students without teacher are thin and on top, so that both are seen where they lie on each other."""
    is_beside = any(group.role == "distilled" for group in groups)
    for group in groups:
        band, style = bands[group.label], styles[group.label]
        looks = (
            {"linewidth": 2.4, "alpha": 0.6} if is_beside and group.role == "distilled" else {"linewidth": 1.2, "zorder": 3}
        )
        axes.plot(band.index, band["mean"].to_numpy(), label=escape_mathtext(group.label), color=style["color"],
                  linestyle=linestyle(style["dash"]), **looks)  # fmt: skip
        axes.fill_between(band.index, band["min"], band["max"], color=style["color"], alpha=0.15, linewidth=0)
    axes.set_xlabel("training tokens")
    axes.xaxis.set_major_formatter(lambda tokens, _: format_count(tokens))


def _mark_stages(axes: Any, scores: Scores, groups: list[ModelGroup], bands: dict[str, pd.DataFrame]) -> None:
    """A line where a student's next stage begins, with the name of the last one."""
    borders: dict[float, str] = {}
    for group in groups:
        places = bands[group.label].index
        found = [float(x) for x in places[places.duplicated()].unique()]
        names = _stage_borders(scores.results.runs, group.student)
        names = names if len(names) == len(found) else ["next stage"] * len(found)
        borders |= dict(zip(found, names, strict=True))
    for tokens, words in borders.items():
        axes.axvline(tokens, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(escape_mathtext(words), (tokens, 1), (3, -2), xycoords=("data", "axes fraction"),
                      textcoords="offset points", va="top", fontsize=7.5, color=GREY)  # fmt: skip


def _stage_borders(runs: pd.DataFrame, student: str) -> list[str]:
    """`after d22: 22 → 15 layers` for each earlier stage of a student, in their order."""
    start = STAGE_MODEL.format(student=student, stage="")
    models = [*dict.fromkeys(name for name in runs["student"] if name.startswith(start)), student]
    layers = runs.groupby("student")["num_layers"].max().reindex(models) if "num_layers" in runs else pd.Series(0, models)
    cuts = [f": {a:.0f} → {b:.0f} layers" if a != b else "" for a, b in zip(layers[:-1], layers[1:], strict=True)]
    return [f"after {name.removeprefix(start)}{cut}" for name, cut in zip(models[:-1], cuts, strict=True)]


def _name_ends(axes: Any, scores: Scores, groups: list[ModelGroup], bands: dict[str, pd.DataFrame], name: str) -> None:
    """The students' short names where their lines end, one for both of a color; beside losses those of teachers."""
    distilled = [group for group in groups if group.role == "distilled"]
    names = _end_names(scores, distilled or groups)
    colors = line_styles(scores.groups)
    shared = [group for group in groups if colors[group.label]["color"] == ROLE_STYLE["ce_only"]["color"]]
    names |= {group.label: "without teacher" for group in shared[:1]} if distilled and len(shared) == 1 else {}
    ends = [(float(bands[label]["mean"].iloc[-1]), words) for label, words in names.items() if len(bands[label])]
    teachers = _teacher_losses(scores, distilled, names) if name == TEXT_LOSS else {}
    for words, loss in teachers.items():
        axes.axhline(loss, color=BLACK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        ends.append((loss, words))
    if not ends:
        return
    low, high = axes.get_ylim()
    ends = sorted(ends if len(ends) <= MAX_END_LABELS else [(loss, words) for words, loss in teachers.items()])
    places = spread([y for y, _ in ends], LABEL_HEIGHT * (high - low))
    for (_, words), place in zip(ends, places, strict=True):
        axes.annotate(escape_mathtext(words), (1, place), (3, 0), xycoords=("axes fraction", "data"), fontsize=7.5,
                      textcoords="offset points", va="center", color=TEXT_COLOR, annotation_clip=False)  # fmt: skip


def _end_names(scores: Scores, groups: list[ModelGroup]) -> dict[str, str]:
    """{label: what is short and tells these groups apart}, without the parts of a grid point that all of them have."""
    names = short_names(groups, scores.results.display)
    parts = {group.label: group.variant.split(", ") for group in groups}
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    for group in groups:
        if names[group.label] == group.variant:
            names[group.label] = ", ".join(part for part in parts[group.label] if part not in common)
    return names


def _teacher_losses(scores: Scores, distilled: list[ModelGroup], names: dict[str, str]) -> dict[str, float]:
    """{whose: cross-entropy of a teacher on the text}; empty where it does not compare with the students'."""
    if has_other_vocabulary(scores):
        return {}
    losses: list[tuple[float, list[ModelGroup]]] = []
    for group in distilled:
        loss = group_cost(group, scores.results, "val_teacher_nll")
        same = next((taught for known, taught in losses if abs(known - loss) <= SAME_TEACHER_NATS), None)
        if same is not None:
            same.append(group)
        elif np.isfinite(loss):
            losses.append((loss, [group]))
    if len(losses) == 1 and not has_other_teacher(scores.results.runs):  # else not the one that is evaluated
        return {teacher_label(scores): losses[0][0]}
    return {_teacher_name(scores, taught, names): loss for loss, taught in losses}


def _teacher_name(scores: Scores, taught: list[ModelGroup], names: dict[str, str]) -> str:
    """A teacher's name in the grid, else whom it teaches, or whose text that is."""
    values = {dict(group.grid_point).get("grid.teacher") or validation_teacher(group, scores.results) for group in taught}
    if len(values) == 1 and (value := values.pop()):
        return value if value == "teacher" else f"teacher: {value}"
    drawn = [group for group in scores.groups if group.label in names]
    whose = "on the text of" if _have_own_data(scores, drawn) else "of"
    return f"{teacher_label(scores)} {whose} {join_words([names[group.label] for group in taught])}"


def spread(places: list[float], least: float) -> list[float]:
    """Rising places, moved as little as will bring neighbors at least `least` apart (least squares)."""
    from scipy.optimize import isotonic_regression

    steps = least * np.arange(len(places))
    return [float(place) for place in isotonic_regression(np.asarray(places) - steps).x + steps]


def curves_finding(scores: Scores) -> str:
    """Where training ended, beside the same students without teacher, as a title; empty where there are none. KLs to
    several teachers do not compare, so that it then says the loss on the text alone."""
    pairs = [(g, find_baselines(scores, g).get("ce_only")) for g, group in enumerate(scores.groups) if group.models]
    known = [(g, other) for g, other in pairs if other is not None and not scores.groups[other].other_data]
    kl = ("val_kl", "nearer to the teacher", "farther from the teacher")
    loss = ("val_ce", "at a lower loss on the text", "at a higher loss on the text")
    parts = []
    for column, less, more in [loss] if has_several_teachers(scores.results.runs) else [kl, loss]:
        values = np.array([[group_cost(scores.groups[g], scores.results, column) for g in pair] for pair in known])
        if not len(values) or not np.isfinite(values).all():
            continue
        lower = values[:, 0] < values[:, 1]
        if lower.all() or not lower.any():
            ours, without = (_extent(values[:, side]) for side in (0, 1))
            parts.append(f"{less if lower.all() else more} ({ours} nats; without it {without})")
    who = "the student ends" if len(known) == 1 else "students end"
    return f"With the teacher {who} {join_words(parts)}" if parts else ""


def _extent(values: Any) -> str:
    return " to ".join(dict.fromkeys(format_number(value, 2) for value in (values.min(), values.max())))


def seed_band(curves: pd.DataFrame, name: str) -> pd.DataFrame:
    """A quantity over steps: mean, min and max over the seeds of a group; curves: of its models. A step between two stages
    has two rows, as one ended and as the next began."""
    known = curves[curves[name].notna()]
    place = known.groupby(["model", "step"]).cumcount()
    return known.groupby(["step", place])[name].agg(["mean", "min", "max"]).droplevel(1)


def _over_tokens(scores: Scores, group: ModelGroup, curves: pd.DataFrame, name: str) -> pd.DataFrame:
    own = curves[curves["model"].isin(group.models)]
    band, tokens = seed_band(own, name), group_cost(group, scores.results, "training_tokens")
    last = float(own["step"].max())  # of all quantities: not each has one there
    return band.set_axis(band.index / last * tokens) if len(band) and last > 0 else band
