"""A grid with two axes as a heat map: a panel per student or whatever else varies, its value written into every cell."""

from typing import Any, NamedTuple

import numpy as np

from distill_lit.analysis.array_types import FloatArray
from distill_lit.report.figures.style import GREY, MATPLOTLIB_RC, TEXT_COLOR, add_figure_note, escape_mathtext

MAX_PANELS_PER_ROW = 3


class HeatMapPanel(NamedTuple):
    """rows: labels; values: (rows, columns), NaN where there is no model; texts and is_bold: of every cell."""

    title: str
    rows: list[str]
    values: FloatArray
    texts: list[list[str]]
    is_bold: list[list[bool]]


def heat_map_figure(
    panels: list[HeatMapPanel],
    columns: list[str],
    axes_names: tuple[str, str],
    quantity: str,
    is_difference: bool,
    note: str = "",
) -> Any:
    """A matplotlib figure. columns: their labels; axes_names: of rows and columns; quantity: what the values are, with
    their unit; is_difference: colors diverge from 0; note: small print above."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    wide = min(len(panels), MAX_PANELS_PER_ROW)
    high = -(-len(panels) // wide)
    longest = max(len(text) for panel in panels for row in panel.texts for text in row)
    cell = max(0.55, 0.078 * longest)  # inches
    rows = max(len(panel.rows) for panel in panels)
    with matplotlib.rc_context(MATPLOTLIB_RC | {"axes.grid": False}):
        size = (1.9 + wide * (1.0 + cell * len(columns)), 0.9 + high * (0.8 + 0.42 * rows))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        every = figure.subplots(high, wide, squeeze=False).ravel()
        norm, colors = _colors(np.concatenate([panel.values.ravel() for panel in panels]), is_difference)
        for place, panel in enumerate(panels):
            image = _draw_panel(every[place], panel, columns, norm, colors)
            every[place].set_title(escape_mathtext(panel.title), fontweight="normal", fontsize=9)
            every[place].set_xlabel(escape_mathtext(axes_names[1]))
            every[place].set_ylabel(escape_mathtext(axes_names[0]))
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        bar = figure.colorbar(image, ax=list(every), shrink=0.9, aspect=18)
        bar.set_label(escape_mathtext(quantity))
        bar.outline.set_visible(False)
        add_figure_note(figure, note)
    return figure


def _colors(values: FloatArray, is_difference: bool) -> tuple[Any, Any]:
    """Norm and color map: cividis, which color-blind readers see alike; for differences from purple over white at 0 to
    orange."""
    import matplotlib
    from matplotlib.colors import Normalize

    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if is_difference:
        reach = max(abs(low), abs(high)) or 1.0
        low, high = -reach, reach
    colors = matplotlib.colormaps["PuOr_r" if is_difference else "cividis"].copy()
    colors.set_bad("#F2F2F2")
    return Normalize(low, high if high > low else low + 1.0), colors


def _draw_panel(axes: Any, panel: HeatMapPanel, columns: list[str], norm: Any, colors: Any) -> Any:
    image = axes.imshow(np.ma.masked_invalid(panel.values), norm=norm, cmap=colors, aspect="auto")
    for place, text in np.ndenumerate(np.array(panel.texts, dtype=object)):
        r, c = place
        color = GREY
        if np.isfinite(panel.values[r, c]):
            red, green, blue, _ = colors(norm(panel.values[r, c]))
            color = TEXT_COLOR if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"  # ITU-R BT.601
        weight = "bold" if panel.is_bold[r][c] else "normal"
        axes.text(c, r, escape_mathtext(text), ha="center", va="center", fontsize=8, color=color, weight=weight)
    axes.set_xticks(range(len(columns)), [escape_mathtext(name) for name in columns])
    axes.set_yticks(range(len(panel.rows)), [escape_mathtext(name) for name in panel.rows])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return image
