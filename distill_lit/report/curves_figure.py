"""How training went: distance to the teacher and to the text on held-out rows, over tokens, mean over seeds."""

from typing import Any

import pandas as pd

from distill_lit.analysis.groups import Group, cost_of
from distill_lit.analysis.results import reads_different_text
from distill_lit.analysis.scores import Scores
from distill_lit.report.style import RC, VARIANT_COLOURS, plain, role_style

PANELS = (
    ("validation/teacher_kl", "KL to the teacher, nats per token"),
    ("validation/student_nll", "cross-entropy on the text, nats per token"),
)
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1, 1, 1)))


def curves_figure(scores: Scores, curves: pd.DataFrame) -> Any:
    """A matplotlib figure; None where no trained model has points. curves: curves.csv, a row per model and step."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = [group for group in scores.groups if group.role in ("ce_only", "distilled") and group.models]
    known = [name for name, _ in PANELS if name in curves]
    if not trained or not known or not {"model", "step"} <= set(curves):
        return None
    own = ", each on its own text" if reads_different_text(scores.results.cells) else ""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(8.2, 3.9), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(known), squeeze=False)[0]
        for axes, (name, words) in zip(panels, [panel for panel in PANELS if panel[0] in known], strict=True):
            for group, style in zip(trained, _styles(trained), strict=True):
                line = _mean_line(scores, group, curves, name)
                axes.plot(line.index, line.to_numpy(), label=plain(group.label), linewidth=1.3, **style)
            axes.set_xlabel("training tokens")
            axes.set_title(words + own, fontweight="normal", fontsize=9)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


def _mean_line(scores: Scores, group: Group, curves: pd.DataFrame, name: str) -> pd.Series:
    """A quantity over tokens, mean over the group's seeds."""
    mine = curves[curves["model"].isin(group.models)].dropna(subset=[name])
    line = mine.groupby("step")[name].mean()
    tokens = cost_of(group, scores.results, "training_tokens")
    last = float(line.index.max()) if len(line) else 0.0
    return line.set_axis(line.index / last * tokens) if last > 0 else line


def _styles(groups: list[Group]) -> list[dict[str, Any]]:
    """Beside distilled students those without teacher are dashed, in a colour of their own; all others in as many colours
    as there are, then dashed."""
    plain_ones, distilled, found = 0, 0, []
    contrasted = {group.role for group in groups} == {"ce_only", "distilled"}
    for group in groups:
        if group.role == "ce_only" and contrasted:
            found.append({**_line(role_style("ce_only")["color"], 1), "alpha": 1.0 - 0.2 * (plain_ones % 4)})
            plain_ones += 1
        else:
            colours = len(VARIANT_COLOURS)
            found.append(_line(VARIANT_COLOURS[distilled % colours], 2 * (distilled // colours)))
            distilled += 1
    return found


def _line(colour: str, dash: int) -> dict[str, Any]:
    return {"color": colour, "linestyle": DASHES[dash % len(DASHES)]}
