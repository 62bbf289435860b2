"""Is a plan right? `python benchmarks/plan_error.py experiments/quickstart.yaml key=value … --root FOLDER` (seconds).

Compares what a plan says with what finished runs of the same experiment have recorded (`times.json` in their folders):
minutes of every stage, and the memory at the peak. A plan is of an idle machine, and the wall clock holds whatever other
programs took, so a plan is measured by what is `undisturbed`: the processor time of a run, divided by its threads, without
that of processes beside it. Where the folder has no runs, the committed results are read, which must be this processor's:
seconds of every task (records.parquet), by the wall clock alone, and tokens per second of every training step (curves.csv).
The ninth decile of these is undisturbed, unless a run of the same student was twice as fast.

The seconds that every run takes and the memory of a process (`pace.py`, `memory_estimate.py` in `experiment/estimates`)
were set by the quickstart runs below, so its rows start, export and GB do not test them; its arithmetic was set by nothing.

Adds to plan_error.csv, where it replaces what it has of this experiment, and writes plan_error.md.
"""

# ruff: noqa: E402
import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import pandas as pd

from distill_lit.analysis.records_file import RECORDS_FILE, read_records
from distill_lit.config.roles import Role
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.run_times import read_times
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json, write_text

COLUMNS = ("experiment", "source", "runs", "stage", "planned", "wall", "undisturbed", "planned_gb", "peak_gb")
PREPARATION = "prepare evaluation"  # all that is recorded of an evaluation that an earlier run has left in the cache
WALL_ONLY, TIMES = "committed results", "recorded times"
Row = dict[str, Any]


def stage_of(run: Run, name: str) -> str:
    """The stage of a plan that a recorded stage is part of."""
    first = name.split()[0]
    if first in ("train", "validate", "export"):
        return {"train": "training", "validate": "validation", "export": "export"}[first]
    if first in ("evaluate", "surprisal") or name == PREPARATION:
        return "evaluation"
    if first == "start":
        return "start"
    return {Role.TEACHER_CACHE: "teacher", Role.GENERATED: "generation"}.get(run.role, "start")


def recorded_rows(experiment: Experiment) -> Iterator[Row]:
    """A row per stage of every finished run that has recorded its times, and one for all of them; without those that
    earlier runs had done for it."""
    for run, estimate in experiment.estimated_runs():
        times = read_times(experiment.folder_of(run))
        if estimate is None or not times or experiment.statuses()[run.name][0] != "done":
            continue
        threads = times["threads"]
        wall, processor = defaultdict(float), defaultdict(float)
        for found, kind, share in ((wall, "seconds", 1), (processor, "cpu_seconds", threads)):
            for name, seconds in times[kind].items():
                found[stage_of(run, name)] += seconds / 60 / share
        done = dict.fromkeys(stage_of(run, name) for name in times["seconds"] if name != PREPARATION)
        planned = {stage: estimate.parts.get(stage, 0.0) for stage in done}
        for stage in done:
            yield _row(run, stage, planned[stage], wall[stage], processor[stage])
        memory = {"planned_gb": estimate.memory.total / 1e9, "peak_gb": times["peak_memory_bytes"] / 1e9}
        totals = (sum(found[stage] for stage in done) for found in (planned, wall, processor))
        yield _row(run, "all", *totals) | memory


def committed_rows(experiment: Experiment, results: Path) -> Iterator[Row]:
    """The same from the curves and records of committed results. Raises UserError for those of another processor."""
    provenance = read_json(results / "provenance.json")
    processors = {facts["hardware"]["processor"] for facts in provenance.values() if "hardware" in facts}
    if processors != {hardware.describe_hardware()["processor"]}:
        raise UserError(f"{results}: its runs were made with {' and '.join(processors)}, and the plan is of this machine")
    curves, settings = pd.read_csv(results / "curves.csv"), read_records(results / RECORDS_FILE).settings
    planned = {run.label: (run, estimate) for run, estimate in experiment.estimated_runs()}
    speeds = curves.dropna(subset=["train/tokens_per_second"]).groupby("model")["train/tokens_per_second"].quantile(0.9)
    fastest: dict[str, float] = {}
    for label, (run, _) in planned.items():
        fastest[run.student] = max(fastest.get(run.student, 0.0), speeds.get(label, 0.0))
    for label, (run, estimate) in planned.items():
        if estimate is None or label not in settings:
            continue
        tasks = settings[label].values()
        if run.is_trained:
            steps = curves[curves["model"] == label].dropna(subset=["train/tokens_per_second"])
            tokens = steps["train/tokens"].diff().fillna(steps["train/tokens"])
            seconds = float((tokens / steps["train/tokens_per_second"]).sum())
            is_disturbed = 2 * speeds[label] < fastest[run.student]
            quiet = None if is_disturbed else float(tokens.sum()) / speeds[label] / 60
            yield _row(run, "training", estimate.parts["training"], seconds / 60, quiet)
        if all("elapsed_s" in task for task in tasks):
            seconds = sum(task["elapsed_s"] for task in tasks)
            yield _row(run, "evaluation", estimate.parts["evaluation"], seconds / 60, None)


def _row(run: Run, stage: str, planned: float, wall: float, undisturbed: float | None) -> Row:
    name = f"{run.student} {run.role}" if run.student else str(run.role)
    return {"name": name, "stage": stage, "planned": planned, "wall": wall, "undisturbed": undisturbed}


def table_of(experiment: Experiment, rows: list[Row], source: str) -> pd.DataFrame:
    """One row per kind of run and stage: sums of minutes, largest memory."""
    frame = pd.DataFrame(rows)
    for column in ("planned_gb", "peak_gb"):
        frame[column] = frame.get(column)
    frame["disturbed"] = frame["undisturbed"].isna().map({True: ", disturbed", False: ""})
    frame["name"] += frame["disturbed"].where(frame["stage"] == "training", "")
    sums = frame.groupby(["name", "stage"], sort=False).agg(
        runs=("stage", "size"),
        planned=("planned", "sum"),
        wall=("wall", "sum"),
        undisturbed=("undisturbed", lambda values: values.sum(min_count=1)),
        planned_gb=("planned_gb", "max"),
        peak_gb=("peak_gb", "max"),
    )
    found = sums.reset_index()
    found["runs"] = found["name"] + " (" + found["runs"].astype(str) + ")"
    return found.assign(experiment=experiment.name, source=source)[list(COLUMNS)]


def markdown(table: pd.DataFrame) -> str:
    """The table, and in one line for each experiment how far off its plan was."""
    lines = ["# What plans say, and what runs took", "", (__doc__ or "").split("\n\n", 1)[1].rsplit("\n\n", 1)[0], ""]
    for (name, source), part in table.groupby(["experiment", "source"], sort=False):
        totals = part[part["stage"] == "all"] if (part["stage"] == "all").any() else part
        known = totals[totals["undisturbed"].notna()]
        planned, took = known["planned"].sum(), known["undisturbed"].sum()
        lines += [
            f"`{name}`, {source}: planned {planned:.1f} minutes, took {took:.1f} undisturbed (planned / taken "
            f"{planned / took:.2f}), {known['wall'].sum():.1f} by the wall clock.",
            "",
        ]
    header = [
        "experiment", "runs", "stage", "planned min", "wall min", "undisturbed min", "planned / taken", "planned GB",
        "peak GB",
    ]  # fmt: skip
    lines += [f"| {' | '.join(header)} |", "|---|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in table.itertuples():
        ratio = f"{row.planned / row.undisturbed:.2f}" if row.undisturbed > 0 else "–"
        times = [_number(minutes) for minutes in (row.planned, row.wall, row.undisturbed)]
        cells = [row.experiment, row.runs, row.stage, *times, ratio, _number(row.planned_gb), _number(row.peak_gb)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2f}"


def main() -> None:
    """Compares one experiment, and draws all that have been compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--root", type=Path, default=ROOT, help="where runs/ are")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder of plan_error.csv and .md")
    options = parser.parse_intermixed_args()
    experiment = Experiment.from_yaml(options.experiment, options.overrides, options.root)
    rows, source = list(recorded_rows(experiment)), TIMES
    if not rows:
        rows, source = list(committed_rows(experiment, ROOT / "results" / experiment.name)), WALL_ONLY
    source = ", ".join([source, *options.overrides])
    new, path = table_of(experiment, rows, source), options.out / "plan_error.csv"
    if path.is_file():
        known = pd.read_csv(path)
        new = pd.concat([known[(known["experiment"] != experiment.name) | (known["source"] != source)], new])
    new.to_csv(path, index=False, float_format="%.4g")
    write_text(options.out / "plan_error.md", markdown(new))
    print(markdown(new))


if __name__ == "__main__":
    main()
