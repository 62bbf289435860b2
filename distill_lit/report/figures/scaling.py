"""The scaling figure: loss against size, with the fitted law."""

from typing import Any

import pandas as pd

from distill_lit.analysis.scaling_law import ScalingLaw
from distill_lit.report.figures.style import GREY, MATPLOTLIB_RC, VARIANT_COLORS, VARIANT_MARKERS, escape_mathtext
from distill_lit.report.number_format import format_count

CE_ONLY_LINE_STYLE: dict[str, Any] = {"linestyle": "--", "mfc": "white"}  # without teacher
LAW_LINE_STYLE: dict[str, Any] = {"linestyle": ":", "linewidth": 2.5, "alpha": 0.6}


def scaling_figure(runs: pd.DataFrame, law: ScalingLaw | None) -> Any:
    """A panel per experiment (that is: teacher), cross-entropy over tokens, a color per size; dashed without teacher."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = list(runs.groupby("experiment", sort=False))
    sizes = sorted(runs["size"].unique(), reverse=True)
    looks = {size: _look(place) for place, size in enumerate(sizes)}
    with matplotlib.rc_context(MATPLOTLIB_RC):
        figure = Figure(figsize=(1.6 + 3.4 * len(panels), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, panel_runs) in zip(
            figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True
        ):
            _draw_panel(axes, panel_runs, looks, law)
            axes.set_title(escape_mathtext(str(name)), fontweight="normal", fontsize=9)
        figure.supylabel("cross-entropy on the text, nats per token", fontsize=9)
        handles = [Line2D([], [], label=f"{format_count(size)} parameters", **looks[size]) for size in sizes]
        handles.append(Line2D([], [], label="without teacher", **{**_look(0), **CE_ONLY_LINE_STYLE, "color": GREY}))
        handles += [] if law is None else [Line2D([], [], label="law", color=GREY, **LAW_LINE_STYLE)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _look(place: int) -> dict[str, Any]:
    """Colour and marker of the size at this place, largest first."""
    color, marker = (each[place % len(each)] for each in (VARIANT_COLORS, VARIANT_MARKERS))
    return {"color": color, "marker": marker, "markersize": 5}


def _draw_panel(axes: Any, runs: pd.DataFrame, looks: dict[float, dict[str, Any]], law: ScalingLaw | None) -> None:
    for (_, size), line in runs.groupby(["student", "size"], sort=False):
        axes.errorbar(line["tokens"], line["loss"], line["loss_std"].fillna(0), capsize=2, **looks[size])
        axes.plot(line["tokens"], line["ce_only_loss"], **looks[size], **CE_ONLY_LINE_STYLE)
        if law is not None:
            axes.plot(line["tokens"], law.predict(line), color=looks[size]["color"], **LAW_LINE_STYLE)
    teacher = runs["teacher_loss"].mean()
    axes.axhline(teacher, color="black", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "fontsize": 7.5}
    axes.annotate("teacher", (1, teacher), (-2, 3), **place)
    axes.set_xscale("log")
    budgets = sorted(runs["tokens"].unique())
    axes.set_xticks(budgets, [format_count(tokens) for tokens in budgets])
    axes.minorticks_off()
    axes.set_xlabel("training tokens")
