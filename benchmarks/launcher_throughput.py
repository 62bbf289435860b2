"""How long ten thousand runs take to be planned, and to be submitted to a SLURM in arrays: nothing is trained.

    python benchmarks/launcher_throughput.py               # benchmarks/launcher_throughput.md

Seconds are those of one processor (planning) and of the clock (submission, to a cluster that is started on this machine and
whose partition is down; without root or SLURM it is left out).
"""

# ruff: noqa: E402
import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "tests")  # instead of this folder
sys.path.append(str(ROOT))

from helpers import slurm_cluster, tiny_models, tiny_tasks

from distill_lit.config import load_experiment
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.launcher.slurm import engine
from distill_lit.experiment.launcher.slurm.queued_runs import queued_runs, stop_jobs
from distill_lit.experiment.planning.planned_run import Run

EXPERIMENT = """
name: many
teacher: {{model: "file:{folder}/teacher", source: online, dtype: float32}}
students: {{first: {{layers: [0]}}, second: {{layers: [1]}}}}
data: {{sequence_length: 32, validation_sequences: 4, corpora: {{text: {{path: "file:{folder}/text.jsonl"}}}}}}
objective: {{compile: never, terms: {{ce: {{weight: 0.5}}, kl: {{kind: forward_kl, temperature: 2}}}}}}
training: {{max_tokens: 8192, micro_batch_size: 2, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [colours], include_path: "{folder}/tasks"}}
launcher: {{engine: slurm, workers: 8, slurm: {{time: 10, warn: 30, gpus_per_node: 0, cpus_per_task: 1}}}}
grid: {{student: [first, second], objective.terms.kl.weight: [{weights}], seed: [{seeds}]}}
baselines: []
"""


def main() -> None:
    """Plans, submits, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="seeds; runs are 100 × seeds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/launcher_throughput.md")
    options = parser.parse_args()
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiment = load(folder, options.seeds)
        with timed(
            rows, "planned: every point checked, named and identified (seconds of one processor)", time.process_time
        ):
            experiment.validate()
            runs = experiment.runs
        rows.insert(0, ("runs", f"{len(runs):,}"))
        if not slurm_cluster.missing():
            with slurm_cluster.cluster():
                submit(experiment, runs, folder / "runs", rows)
    lines = [f"| {what} | {value} |" for what, value in rows]
    command = " ".join(["python benchmarks/launcher_throughput.py", *sys.argv[1:]])
    text = "\n".join(["# Throughput of the launcher", "", f"`{command}`", "", "| | |", "| --- | ---: |", *lines])
    options.out.write_text(text + "\n")
    print(text)


def load(folder: Path, seeds: int) -> Experiment:
    """The experiment; what is imported once is imported before the clock starts."""
    tiny_models.make_model(folder / "teacher")
    tiny_models.make_corpus(folder / "text.jsonl")
    tiny_tasks.make_tasks(folder / "tasks", "colours")
    weights = ", ".join(str(round(0.01 * number, 2)) for number in range(1, 51))
    text = EXPERIMENT.format(folder=folder, weights=weights, seeds=", ".join(map(str, range(seeds))))
    (folder / "many.yaml").write_text(text)
    Experiment(load_experiment(folder / "many.yaml", ["student=first", "grid={seed: [0]}"]), folder).validate()
    return Experiment(load_experiment(folder / "many.yaml"), folder)


def submit(experiment: Experiment, runs: list[Run], folder: Path, rows: list[tuple[str, str]]) -> None:
    """Submits all runs to a partition that starts none."""
    slurm_cluster.say("scontrol", "update", "partitionname=main", "state=down")
    folder.mkdir()
    notes: list[str] = []
    with timed(rows, "submitted (seconds)", time.monotonic):
        engine.submit(experiment.config, runs, folder, notes.append)
    rows.append(("arrays", str(len(list((folder / "slurm").glob("*.json"))))))
    rows.append(("largest array that the cluster takes", str(engine.array_limit())))
    with timed(rows, "status of all from the queue (seconds)", time.monotonic):
        rows.append(("in the queue", f"{len(queued_runs(folder)):,}"))
    stop_jobs(folder)


@contextlib.contextmanager
def timed(rows: list[tuple[str, str]], what: str, clock: Callable[[], float]) -> Iterator[None]:
    """Adds a row with how long the inside took."""
    began = clock()
    yield
    seconds = clock() - began
    rows.append((what, f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2f}"))


if __name__ == "__main__":
    main()
