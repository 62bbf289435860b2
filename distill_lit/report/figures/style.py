"""One look for all figures: Okabe–Ito colors, a shape per role, sizes for a column of a paper."""

import textwrap
from collections import Counter
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from distill_lit.analysis.model_groups import ModelGroup, baseline_of
from distill_lit.utils.files import atomic_write

# Okabe & Ito 2008: told apart by color-blind readers; the lightness differs too, and so do the shapes
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#767676",
)
TEXT_COLOR = "#1A1A1A"
MAX_PNG_BYTES = 80_000
PNG_DPI = (200, 150, 120, 100, 80)
PNG_COLORS = 64
MARGINS: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.08}
Dash = tuple[float, ...]  # on and off in line widths
SOLID: Dash = ()
DOTTED, DASHED, LONG_DASHED = (1.0, 1.6), (4.0, 1.8), (9.0, 2.5)
DASH_DOTTED, DASH_DOT_DOTTED = (6.0, 1.6, 1.0, 1.6), (6.0, 1.6, 1.0, 1.6, 1.0, 1.6)
DASHES: tuple[Dash, ...] = (SOLID, DOTTED, DASH_DOTTED, DASHED, DASH_DOT_DOTTED, LONG_DASHED)
CE_ONLY_DASH_PATTERNS: tuple[Dash, ...] = (DASHED, DASH_DOT_DOTTED, LONG_DASHED, DOTTED, DASH_DOTTED)  # never solid
ROLE_STYLE: dict[str, dict[str, Any]] = {
    "teacher": {"color": BLACK, "marker": "*", "markersize": 13, "fill": True, "dash": SOLID},
    "quantized": {"color": BLACK, "marker": "*", "markersize": 13, "fill": False, "dash": SOLID},
    "external": {"color": PURPLE, "marker": "D", "markersize": 6, "fill": True, "dash": DASH_DOTTED},
    "derived": {"color": BLACK, "marker": "D", "markersize": 6, "fill": False, "dash": DASH_DOTTED},
    "untrained": {"color": GREY, "marker": "o", "markersize": 6, "fill": False, "dash": DOTTED},
    "ce_only": {"color": RED, "marker": "s", "markersize": 6, "fill": False, "dash": DASHED},
    "distilled": {"color": BLUE, "marker": "o", "markersize": 7, "fill": True, "dash": SOLID},
}
# their numbers have no common divisor, so that 40 variants differ in color or shape
VARIANT_COLORS = (BLUE, GREEN, SKY, ORANGE, PURPLE)
VARIANT_MARKERS = ("o", "^", "v", "P", "X", "s", "<", "d")
MATPLOTLIB_RC = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


def role_style(role: str, variant: int = 0) -> dict[str, Any]:
    """Color, marker and line of a role; distilled variants (grid points) differ in color and shape."""
    style = dict(ROLE_STYLE.get(role, ROLE_STYLE["external"]))
    if role == "distilled":
        style["color"] = VARIANT_COLORS[variant % len(VARIANT_COLORS)]
        style["marker"] = VARIANT_MARKERS[variant % len(VARIANT_MARKERS)]
    return style


def number_unique(names: Iterable[str]) -> dict[str, int]:
    """{name: its number}, in order of first appearance."""
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def variant_numbers(groups: list[ModelGroup]) -> dict[str, int]:
    """{variant of the distilled groups: the number that `role_style` takes}, the same in all figures of an experiment."""
    return number_unique(group.variant for group in groups if group.role == "distilled")


def line_styles(groups: list[ModelGroup]) -> dict[str, dict[str, Any]]:
    """{label of a trained group: its style}: colors are those of the variants, or of the students where there is one
    variant; groups of one color differ in marker and dash. A student without teacher has the color of the only distilled
    one that is compared with it, and where there are several its usual one; it is never solid.
    """
    beside = any(group.role == "distilled" for group in groups)
    own = [group for group in groups if group.role == ("distilled" if beside else "ce_only")]
    variants, students = number_unique(group.variant for group in own), number_unique(group.student for group in own)
    used: Counter[str] = Counter()
    styles = {}
    for group in own:
        number = variants[group.variant] if len(variants) > 1 else students[group.student]
        number %= len(VARIANT_COLORS)
        style = role_style("distilled", number + used[VARIANT_COLORS[number]] * len(VARIANT_COLORS))
        styles[group.label] = style | {"dash": DASHES[used[style["color"]] % len(DASHES)]}
        used[style["color"]] += 1
    used.clear()
    for group in groups if beside else ():
        if group.role == "ce_only":
            taught = [other for other in own if baseline_of(other, "ce_only", groups) is group]
            style = role_style("ce_only") | ({"color": styles[taught[0].label]["color"]} if len(taught) == 1 else {})
            styles[group.label] = style | {"dash": CE_ONLY_DASH_PATTERNS[used[style["color"]] % len(CE_ONLY_DASH_PATTERNS)]}
            used[style["color"]] += 1
    return {group.label: styles[group.label] for group in groups if group.label in styles}


def linestyle(dash: Dash) -> Any:
    """matplotlib's line style of a dash."""
    return (0, dash) if dash else "-"


def marker_options(style: dict[str, Any]) -> dict[str, Any]:
    """Options of `Axes.plot` for that style, hollow where the role is."""
    return {
        "color": style["color"],
        "marker": style["marker"],
        "markersize": style["markersize"],
        "mfc": style["color"] if style["fill"] else "white",
        "mec": style["color"],
        "mew": 1.4,
        "zorder": 3,
    }


def bar_options(style: dict[str, Any]) -> dict[str, Any]:
    """Options of `Axes.errorbar` for that style."""
    return marker_options(style) | {"linestyle": "none", "elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1}


def omitted_students_note(shown: int, students: int) -> str:
    """What a figure says that has no room for all students; empty where it shows them all."""
    return f"The first {shown} of {students} distilled students; the tables have all." if shown < students else ""


def add_figure_note(figure: Any, text: str) -> None:
    """Writes a note above everything else, in lines as wide as the figure."""
    lines = textwrap.fill(escape_mathtext(text), int(18 * figure.get_figwidth()))  # characters per inch
    figure.text(0.005, 1.0, lines, va="bottom", fontsize=7.5, color=GREY, style="italic")


def add_figure_title(figure: Any, text: str) -> None:
    """Writes what was found above the panels, in lines as wide as the figure."""
    if text:
        lines = textwrap.fill(escape_mathtext(text), int(13 * figure.get_figwidth()))
        figure.suptitle(lines, x=0.01, ha="left", fontsize=10, fontweight="bold")


def escape_mathtext(text: str) -> str:
    """Text from data for matplotlib, in which `$` would start mathematics."""
    return " ".join(str(text).replace("$", r"\$").split())


def save_figure(figure: Any, path: Path, all_formats: bool = False) -> list[Path]:
    """Writes `figure` as PNG of at most MAX_PNG_BYTES, and with `all_formats`, or where it is there already, as PDF beside
    it; without dates, so that the same data give the same bytes. Returns the paths."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(_small_png(figure))
    vector = path.with_suffix(".pdf")
    if not all_formats and not vector.exists():
        return [path]
    with atomic_write(vector) as temporary:
        metadata = {"CreationDate": None, "Producer": None, "Creator": None}
        figure.savefig(temporary, format="pdf", metadata=metadata, **MARGINS)
    return [path, vector]


def _small_png(figure: Any) -> bytes:
    """With a palette, which figures of few colors lose nothing by, and only as fine as fits."""
    from PIL import Image

    for dpi in PNG_DPI:
        drawn, packed = BytesIO(), BytesIO()
        figure.savefig(drawn, format="png", dpi=dpi, pil_kwargs={"compress_level": 0}, **MARGINS)
        image = Image.open(drawn).convert("RGB")
        image = image.quantize(PNG_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        image.save(packed, format="png", optimize=True)
        if len(packed.getvalue()) <= MAX_PNG_BYTES:
            break
    return packed.getvalue()
