"""One look for all figures: Okabe–Ito colours, a shape per role, sizes for a column of a paper."""

from pathlib import Path
from typing import Any

from distill_lit.files import writing

# Okabe & Ito 2008: told apart by colour-blind readers; the lightness differs too, and so do the shapes
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
ROLE_STYLE: dict[str, dict[str, Any]] = {
    "teacher": {"color": BLACK, "marker": "*", "markersize": 13, "fill": True, "line": "-"},
    "quantised": {"color": BLACK, "marker": "*", "markersize": 13, "fill": False, "line": "-"},
    "rival": {"color": PURPLE, "marker": "D", "markersize": 6, "fill": True, "line": "-."},
    "untouched": {"color": GREY, "marker": "o", "markersize": 6, "fill": False, "line": ":"},
    "ce_only": {"color": RED, "marker": "s", "markersize": 6, "fill": False, "line": "--"},
    "distilled": {"color": BLUE, "marker": "o", "markersize": 7, "fill": True, "line": "-"},
}
VARIANT_COLOURS = (BLUE, GREEN, SKY, ORANGE, PURPLE)
VARIANT_MARKERS = ("o", "^", "v", "P", "X")
RC = {
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
    """Colour, marker and line of a role; distilled variants (grid points) differ in colour and shape."""
    style = dict(ROLE_STYLE.get(role, ROLE_STYLE["rival"]))
    if role == "distilled":
        style["color"] = VARIANT_COLOURS[variant % len(VARIANT_COLOURS)]
        style["marker"] = VARIANT_MARKERS[variant % len(VARIANT_MARKERS)]
    return style


def marker_options(style: dict[str, Any]) -> dict[str, Any]:
    """Options of `Axes.errorbar` for that style, hollow where the role is."""
    face = style["color"] if style["fill"] else "white"
    return {
        "color": style["color"],
        "marker": style["marker"],
        "markersize": style["markersize"],
        "mfc": face,
        "mec": style["color"],
        "mew": 1.4,
        "elinewidth": 1.1,
        "capsize": 2.5,
        "capthick": 1.1,
        "zorder": 3,
    }


def first_of(shown: int, students: int) -> str:
    """What a figure says that has no room for all students; empty where it shows them all."""
    return f"The first {shown} of {students} distilled students; the tables have all." if shown < students else ""


def plain(text: str) -> str:
    """Text from data for matplotlib, in which `$` would start mathematics."""
    return " ".join(str(text).replace("$", r"\$").split())


def save_figure(figure: Any, path: Path) -> list[Path]:
    """Writes `figure` as PNG and PDF beside each other, without dates, so that the same data give the same bytes."""
    written = []
    for suffix, metadata in (
        (".png", {"Software": None}),
        (".pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
    ):
        target = path.with_suffix(suffix)
        with writing(target) as temporary:
            figure.savefig(temporary, dpi=200, metadata=metadata, bbox_inches="tight", pad_inches=0.08)
        written.append(target)
    return written
