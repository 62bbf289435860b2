"""How training went: distance to the teacher and to the text on held-out rows, over tokens, mean over seeds."""

from typing import Any

import pandas as pd

from distill_lit.analysis.model_groups import ModelGroup, group_cost
from distill_lit.analysis.results import has_different_validation_data, has_several_teachers
from distill_lit.analysis.scores import Scores
from distill_lit.report.figures.style import MATPLOTLIB_RC, escape_mathtext, line_styles, linestyle

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
                line, style = _over_tokens(scores, group, curves, name), styles[group.label]
                axes.plot(line.index, line.to_numpy(), label=escape_mathtext(group.label), linewidth=1.3,
                          color=style["color"],
                          linestyle=linestyle(style["dash"]))  # fmt: skip
            axes.set_xlabel("training tokens")
            title = words.replace("the teacher", whose) + ("" if name == IN_TRAINING_SCORE else own)
            axes.set_title(title, fontweight="normal", fontsize=9)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def mean_curve(group: ModelGroup, curves: pd.DataFrame, name: str) -> pd.Series:
    """A quantity over steps, mean over the group's seeds."""
    group_curves = curves[curves["model"].isin(group.models)].dropna(subset=[name])
    return group_curves.groupby("step")[name].mean()


def _over_tokens(scores: Scores, group: ModelGroup, curves: pd.DataFrame, name: str) -> pd.Series:
    line, tokens = mean_curve(group, curves, name), group_cost(group, scores.results, "training_tokens")
    last = float(curves.loc[curves["model"].isin(group.models), "step"].max())  # of all quantities: not each has one there
    return line.set_axis(line.index / last * tokens) if len(line) and last > 0 else line
