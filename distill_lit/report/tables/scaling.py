"""How students scale: cross-entropy over tokens, a line per size, and the fitted law or why there is none."""

from pathlib import Path
from typing import Any

import pandas as pd

from distill_lit.analysis.results import read_cells
from distill_lit.analysis.scaling_law import Law, is_grid, refusal, scaling_runs
from distill_lit.report.figures.style import GREY, RC, VARIANT_COLOURS, VARIANT_MARKERS, plain, save_figure
from distill_lit.report.formats.table import Cell, Table, to_csv, to_markdown
from distill_lit.report.number_format import count, number
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_text

LAW = "L = T + T^-c0 · (1 + (T / (S·d1))^(1/f1))^(-c1·f1) · (A/N^α + B/D^β)^γ"
WITHOUT: dict[str, Any] = {"linestyle": "--", "mfc": "white"}  # without teacher
OF_LAW: dict[str, Any] = {"linestyle": ":", "linewidth": 2.5, "alpha": 0.6}


def read_runs(folders: list[Path]) -> pd.DataFrame:
    """`scaling_runs` of several experiments. Raises UserError where one has no such grid."""
    found = []
    for folder in folders:
        runs = scaling_runs(read_cells(folder / "cells.csv"), folder.resolve().name)
        if runs.empty:
            raise UserError(
                f"{folder}: no grid over student, training.tokens and seed alone, with validated students, in it"
            )
        found.append(runs)
    return pd.concat(found, ignore_index=True)


def draw_scaling(folder: Path, runs: pd.DataFrame, law: Law | None) -> list[Path]:
    """scaling.md, .csv, .png and .pdf in `folder`; nothing, and what was there goes, where there is no curve to draw."""
    names = [folder / f"scaling{suffix}" for suffix in (".md", ".csv", ".png", ".pdf")]
    if not is_grid(runs):
        for path in names:
            path.unlink(missing_ok=True)
        return []
    write_text(names[0], "\n".join([to_markdown(scaling_table(runs, law)), "![Scaling](scaling.png)", ""]))
    write_text(names[1], to_csv(runs if law is None else runs.assign(law=law.predict(runs))))
    save_figure(scaling_figure(runs, law), names[2])
    return names


def scaling_table(runs: pd.DataFrame, law: Law | None) -> Table:
    """A row per size and token budget, with what the law says of it."""
    predicted = [float("nan")] * len(runs) if law is None else law.predict(runs)
    rows = []
    for (_, run), value in zip(runs.iterrows(), predicted, strict=True):
        own = _nats(run["loss"]) + (f" ± {_nats(run['deviation'])}" if run["seeds"] > 1 else "")
        others = [_nats(value) for value in (run["supervised_loss"], run["teacher_loss"], value)]
        rows.append([run["experiment"], run["student"], count(run["size"]), f"{run['tokens']:,.0f}", own, *others])
    columns = ["experiment", "student", "parameters without embeddings", "training tokens", "distilled", "without teacher",
               "teacher", "law"]  # fmt: skip
    several = runs["experiment"].nunique() > 1
    shown = slice(0 if several else 1, len(columns) if law is not None else -1)
    below = ["Cross-entropy on held-out text in nats per token, ± its deviation over seeds.", _said_of_law(runs, law)]
    cells = [[Cell(str(text)) for text in row[shown]] for row in rows]
    return Table("How students scale", columns[shown], cells, left=2 if several else 1, below=below)


def _nats(value: float) -> str:
    return number(value, 3)


def _said_of_law(runs: pd.DataFrame, law: Law | None) -> str:
    if law is None:
        return f"No scaling law (2502.08606) is fitted: {refusal(runs)}."
    known = ", ".join(f"{name} = {value:.3g}" for name, value in law.coefficients.items())
    return (
        f"Law (2502.08606): {LAW}, with T the teacher's cross-entropy, S that without teacher, N in units of "
        f"{count(law.mean_size)} parameters, D of {law.mean_tokens:,.0f} tokens; {known}. Fitted to {law.runs} runs; the "
        f"median error for a run left out of the fit is {law.left_out:.1%}. Several sets of coefficients fit alike."
    )


def scaling_figure(runs: pd.DataFrame, law: Law | None) -> Any:
    """A panel per experiment (that is: teacher), cross-entropy over tokens, a colour per size; dashed without teacher."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels = list(runs.groupby("experiment", sort=False))
    sizes = sorted(runs["size"].unique(), reverse=True)
    looks = {size: _look(place) for place, size in enumerate(sizes)}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(1.6 + 3.4 * len(panels), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, mine) in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
            _draw_panel(axes, mine, looks, law)
            axes.set_title(plain(str(name)), fontweight="normal", fontsize=9)
        figure.supylabel("cross-entropy on the text, nats per token", fontsize=9)
        handles = [Line2D([], [], label=f"{count(size)} parameters", **looks[size]) for size in sizes]
        handles.append(Line2D([], [], label="without teacher", **{**_look(0), **WITHOUT, "color": GREY}))
        handles += [] if law is None else [Line2D([], [], label="law", color=GREY, **OF_LAW)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _look(place: int) -> dict[str, Any]:
    """Colour and marker of the size at this place, largest first."""
    colour, marker = (each[place % len(each)] for each in (VARIANT_COLOURS, VARIANT_MARKERS))
    return {"color": colour, "marker": marker, "markersize": 5}


def _draw_panel(axes: Any, runs: pd.DataFrame, looks: dict[float, dict[str, Any]], law: Law | None) -> None:
    for (_, size), line in runs.groupby(["student", "size"], sort=False):
        axes.errorbar(line["tokens"], line["loss"], line["deviation"].fillna(0), capsize=2, **looks[size])
        axes.plot(line["tokens"], line["supervised_loss"], **looks[size], **WITHOUT)
        if law is not None:
            axes.plot(line["tokens"], law.predict(line), color=looks[size]["color"], **OF_LAW)
    teacher = runs["teacher_loss"].mean()
    axes.axhline(teacher, color="black", linewidth=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right", "fontsize": 7.5}
    axes.annotate("teacher", (1, teacher), (-2, 3), **place)
    axes.set_xscale("log")
    budgets = sorted(runs["tokens"].unique())
    axes.set_xticks(budgets, [count(tokens) for tokens in budgets])
    axes.minorticks_off()
    axes.set_xlabel("training tokens")
