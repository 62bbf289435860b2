"""Rate and distortion of teacher caches: `python benchmarks/rate_distortion.py --root FOLDER` (seconds).

Reads a finished `distill-lit run experiments/rate_distortion.yaml`: of every trained student its KL from the teacher on the
held-out rows, over the whole distribution, and of the cache it learned from the bytes of a token on disk; a student without
teacher has read none. Writes results/rate_distortion/rate_distortion.csv, one line for each kind and size with mean, least
and most over seeds, and rate_distortion.png.
"""

# ruff: noqa: E402
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import pandas as pd

from benchmarks.arguments import existing_folder
from distill_lit.config.roles import Role
from distill_lit.experiment.experiment import Experiment
from distill_lit.report.figures.style import BLUE, GREEN, GREY, MATPLOTLIB_RC, ORANGE, PURPLE, RED, save_figure
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_mapping, write_text

EXPERIMENT = ROOT / "experiments" / "rate_distortion.yaml"
TABLE, FIGURE = "rate_distortion.csv", "rate_distortion.png"
LABELS_ALONE = "labels"
TICKS = (20, 50, 100, 200, 500, 1000)  # bytes
# of a variant, by the first part of its name: what the figure calls it, its color, its marker, and how far from the marker
# its size is written; None: nowhere, as the same k stands above it
KINDS = {
    "top": ("top k, truncated KL", RED, "s", (5, 4)),
    "tail": ("the same k, others as one", ORANGE, "^", None),
    "nucleus": ("top p, others as one", PURPLE, "v", (7, 2)),
    "sampled": ("k samples", BLUE, "o", (-12, -12)),
    "hidden": ("hidden states", GREEN, "D", (4, -12)),
}


def collect(experiment: Experiment) -> pd.DataFrame:
    """One line for each trained student: variant, seed, bytes_per_token, kl (nats per token, held-out rows).

    Raises UserError where a run is missing.
    """
    by_name, rows = {run.name: run for run in experiment.runs}, []
    for run in experiment.runs:
        if run.role in (Role.DISTILLED, Role.CE_ONLY):
            is_taught = run.role == Role.DISTILLED
            caches = [name for name in run.depends_on if by_name[name].role == Role.TEACHER_CACHE and is_taught]
            made, *read = (read_mapping(experiment.runs_folder / name / "manifest.json") for name in (run.name, *caches))
            if not made or not all(read):
                raise UserError(f"{experiment.runs_folder / run.name}: it is not done; run the experiment first")
            variant = run.grid_values["variant"] if is_taught else LABELS_ALONE
            size = sum(cache["bytes_per_token"] for cache in read)
            kl = made["metrics"]["validation/teacher_kl"]
            rows.append({"variant": variant, "seed": run.seed, "bytes_per_token": size, "kl": kl})
    return pd.DataFrame(rows)


def summarize(students: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and most KL over the seeds of each variant, by kind and rate."""
    grouped = students.groupby("variant", sort=False)
    table = grouped.agg(
        bytes_per_token=("bytes_per_token", "mean"),
        kl=("kl", "mean"),
        kl_least=("kl", "min"),
        kl_most=("kl", "max"),
        seeds=("kl", "size"),
    )
    table = table.reset_index()
    table.insert(0, "kind", table["variant"].str.split("_").str[0])
    return table.sort_values(["kind", "bytes_per_token"], ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    """The KL against bytes per token, a line for each kind with the size of each cache beside its point; what a student
    without teacher comes to as a level."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(MATPLOTLIB_RC):
        figure, axes = plt.subplots(figsize=(6.8, 4.4), layout="constrained")
        for kind, (name, color, marker, offset) in KINDS.items():
            part = table[table["kind"] == kind]
            spread = [part["kl"] - part["kl_least"], part["kl_most"] - part["kl"]]
            axes.errorbar(
                part["bytes_per_token"], part["kl"], spread, label=name, color=color, marker=marker, markersize=5, capsize=2
            )
            for row in part.itertuples() if offset else ():
                axes.annotate(
                    _size(row.variant),
                    (row.bytes_per_token, row.kl),
                    offset,
                    textcoords="offset points",
                    color=color,
                    fontsize=7,
                )
        for level in table.loc[table["kind"] == LABELS_ALONE, "kl"]:
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1, label="labels alone, no teacher")
        axes.set(xscale="log", yscale="log", xlabel="bytes kept of the teacher for each token")
        axes.margins(y=0.1)
        axes.set_ylabel("KL of the student to the teacher, nats per token\n(bars: least and most of the seeds)")
        axes.set_xticks(TICKS, list(map(str, TICKS)))
        axes.xaxis.minorticks_off()
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        figure.legend(loc="outside upper left", ncols=3)
        save_figure(figure, path)
        plt.close(figure)


def _size(variant: str) -> str:
    """What is written beside the point of a variant: k, p, or bits."""
    kind, size = variant.split("_")
    return f"0.{size}".rstrip("0") if kind == "nucleus" else f"{size} bits" if kind == "hidden" else size


def main() -> None:
    """Reads runs, writes the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value, as the experiment was run with")
    parser.add_argument("--root", type=existing_folder, default=Path(), help="folder that has runs/rate_distortion")
    options = parser.parse_args()
    try:
        experiment = Experiment.from_yaml(EXPERIMENT, options.overrides, options.root)
        table = summarize(collect(experiment))
    except UserError as error:
        parser.error(str(error))
    folder = ROOT / "results" / experiment.name
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / TABLE, table.to_csv(index=False, float_format="%.6g"))
    draw(table, folder / FIGURE)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
