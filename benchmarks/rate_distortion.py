"""Rate and distortion of teacher caches: `python benchmarks/rate_distortion.py --root FOLDER` (seconds).

Reads a finished `distill-lit run experiments/rate_distortion.yaml`: of every distilled student its KL from the teacher on
the held-out rows, over the whole distribution, and of the cache it learned from the bytes of a token on disk. Writes
results/rate_distortion/rate_distortion.csv, one line for each kind and size with the mean and the standard error over
seeds, and rate_distortion.png.
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
from distill_lit.report.figures.style import VARIANT_COLORS, VARIANT_MARKERS
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_mapping, write_text

EXPERIMENT = ROOT / "experiments" / "rate_distortion.yaml"
TABLE, FIGURE = "rate_distortion.csv", "rate_distortion.png"
KINDS = {
    "top": "k best tokens, truncated KL",
    "tail": "k best tokens, others as one",
    "nucleus": "tokens with a mass of p, others as one",
    "sampled": "drawn tokens",
    "hidden": "hidden states in 8 and 16 bits",
}


def collect(experiment: Experiment) -> pd.DataFrame:
    """One line for each distilled student: variant, seed, bytes_per_token, kl (nats per token, held-out rows).

    Raises UserError where a run is missing.
    """
    by_name, rows = {run.name: run for run in experiment.runs}, []
    for run in experiment.runs:
        if run.role == Role.DISTILLED:
            caches = [name for name in run.depends_on if by_name[name].role == Role.TEACHER_CACHE]
            made, cache = (read_mapping(experiment.runs_folder / name / "manifest.json") for name in (run.name, *caches))
            if not made or not cache:
                raise UserError(f"{experiment.runs_folder / run.name}: it is not done; run the experiment first")
            facts = {"variant": run.grid_values["variant"], "seed": run.seed, "bytes_per_token": cache["bytes_per_token"]}
            rows.append({**facts, "kl": made["metrics"]["validation/teacher_kl"]})
    return pd.DataFrame(rows)


def summarize(students: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard error of the KL over the seeds of each variant, by kind and rate."""
    grouped = students.groupby("variant", sort=False)
    table = grouped.agg(
        bytes_per_token=("bytes_per_token", "mean"), kl=("kl", "mean"), kl_error=("kl", "sem"), seeds=("kl", "size")
    )
    table = table.reset_index()
    table.insert(0, "kind", table["variant"].str.split("_").str[0])
    return table.sort_values(["kind", "bytes_per_token"], ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    """The KL against bytes per token, both axes logarithmic, a line for each kind."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    looks = zip(VARIANT_COLORS, VARIANT_MARKERS, strict=False)
    for (kind, part), (color, marker) in zip(table.groupby("kind", sort=False), looks, strict=False):
        label = KINDS.get(str(kind), kind)
        axes.errorbar(
            part["bytes_per_token"], part["kl"], yerr=part["kl_error"], color=color, marker=marker, label=label, capsize=3
        )
    axes.set(
        xscale="log", yscale="log", xlabel="bytes for each token", ylabel="KL of the student to the teacher, nats per token"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")  # all values may lie between two powers of ten
    axes.legend(title="mean ± standard error over seeds")
    figure.savefig(path, dpi=150)
    plt.close(figure)


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
