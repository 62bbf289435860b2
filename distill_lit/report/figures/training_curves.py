"""How training went: distance to the teacher and to the text on held-out rows, mean over seeds in their range."""

from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import ModelGroup, group_cost
from distill_lit.analysis.results import has_different_validation_data, has_several_teachers
from distill_lit.analysis.score_table import find_baselines
from distill_lit.analysis.scores import Scores
from distill_lit.report.figures.style import MATPLOTLIB_RC, add_figure_title, escape_mathtext, line_styles, linestyle
from distill_lit.report.number_format import format_number, join_words

IN_TRAINING_SCORE = "evaluation/above_chance"  # where evaluation.interval asks for scores during training
PANELS = (
    ("validation/teacher_kl", "KL to the teacher, nats per token"),
    ("validation/student_nll", "validation cross-entropy, nats per token"),
    (IN_TRAINING_SCORE, "score above chance, mean of the tasks"),
)


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
    own = ", each on its own data" if has_different_validation_data(scores.results.runs) else ""
    whose = "its own teacher" if has_several_teachers(scores.results.runs) else "the teacher"
    with matplotlib.rc_context(MATPLOTLIB_RC):
        figure = Figure(figsize=(max(8.2, 3.6 * len(known)), 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(known), squeeze=False)[0]
        for axes, (name, words) in zip(panels, [panel for panel in PANELS if panel[0] in known], strict=True):
            for group in trained:
                band, style = _over_tokens(scores, group, curves, name), styles[group.label]
                axes.plot(band.index, band["mean"].to_numpy(), label=escape_mathtext(group.label), linewidth=1.3,
                          color=style["color"],
                          linestyle=linestyle(style["dash"]))  # fmt: skip
                axes.fill_between(band.index, band["min"], band["max"], color=style["color"], alpha=0.15, linewidth=0)
            axes.set_xlabel("training tokens")
            title = words.replace("the teacher", whose) + ("" if name == IN_TRAINING_SCORE else own)
            axes.set_title(title, fontweight="normal", fontsize=9)
        add_figure_title(figure, curves_finding(scores))
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


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
