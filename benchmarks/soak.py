"""Durability, shown: one experiment of 60 runs, a fifth of them killed at random moments and its driver killed twice,
against the same experiment left alone. Every table of both must be equal.

    python benchmarks/soak.py                     # results/soak/: soak.png, soak.md, kills.csv; about seven minutes
    python benchmarks/soak.py --seeds 2 --out /tmp/soak     # a small one

The model is a random two-layer Llama: what is tested is the suite, not a student. Exit code 0 when nothing was lost.
"""

# ruff: noqa: E402
import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "tests")  # instead of this folder

import pandas as pd
import psutil
from helpers import tiny_models, tiny_tasks

EXPERIMENT = """
name: soak
question: Is anything lost when runs and their driver are killed at random?
teacher: {{model: "file:{folder}/teacher", source: offline, dtype: float32}}
students:
  first: {{layers: [0]}}
  second: {{layers: [1]}}
  both: {{layers: [0, 1]}}
  fresh: {{config: {{num_hidden_layers: 1}}}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 4096,
  corpora: {{text: {{path: "file:{folder}/text.jsonl"}}}}}}
objective: {{compile: never, terms: {{ce: {{weight: 0.5}}, kl: {{kind: forward_kl, temperature: 2}}}}}}
training: {{max_tokens: 8192, micro_batch_size: 2, gradient_accumulation_steps: 2, precision: float32,
  accelerator: cpu, checkpoint_interval: 8}}
evaluation: {{tasks: [colours], include_path: "{folder}/tasks"}}
analysis: {{n_resamples: 200}}
launcher: {{workers: {workers}, threads_per_worker: 1}}
grid: {{student: [first, second, both, fresh], objective.terms.kl.weight: [{weights}], seed: [{seeds}]}}
baselines: []
"""
KILLED_SHARE, DRIVER_KILLS = 0.2, 2
COMPARED_TABLES = ("table.csv", "table.md", "longtail.csv", "longtail.md", "frontier.csv", "curves.csv")
TIMING_COLUMNS = ("train/tokens_per_second",)  # columns that tell the time of day and not the result


@dataclass
class KillLog:
    """What was done to the disturbed run: (seconds since its start, what was killed, runs done then)."""

    kills: list[tuple[float, str, int]] = field(default_factory=list)
    progress: list[tuple[float, int]] = field(default_factory=list)

    def points(self, what: str) -> list[tuple[float, int]]:
        """[(seconds, runs done then)] of the kills of a kind."""
        return [(when, done) for when, kind, done in self.kills if kind == what]

    def count(self, what: str) -> int:
        """How many of a kind were killed."""
        return len(self.points(what))


def main() -> None:
    """Runs both, compares, draws."""
    options = parse()
    work_folder = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        file = prepare_experiment(work_folder, EXPERIMENT, options.seeds, weights=options.weights, workers=options.workers)
        undisturbed_root, disturbed_root = work_folder / "undisturbed", work_folder / "disturbed"
        print("undisturbed", flush=True)
        start = time.monotonic()
        wait_for_driver(start_driver(file, undisturbed_root, work_folder / "cache-undisturbed"))
        undisturbed_seconds = time.monotonic() - start
        num_runs = len(pd.read_csv(undisturbed_root / "results/soak/runs.csv"))
        print(f"{num_runs} runs in {undisturbed_seconds:.0f} s; now with kills", flush=True)
        kill_log, disturbed_seconds = run_with_kills(
            file, disturbed_root, work_folder / "cache-disturbed", num_runs, options.seed
        )
        lost = differences(undisturbed_root, disturbed_root)
        write_report(options.out, num_runs, kill_log, lost, (undisturbed_seconds, disturbed_seconds), command())
        print(f"{kill_log.count('worker')} workers and {kill_log.count('driver')} drivers killed, {len(lost)} losses")
        sys.exit(1 if lost else 0)
    finally:
        shutil.rmtree(work_folder, ignore_errors=True)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="seeds; runs are 4 students × 3 weights × seeds")
    parser.add_argument("--weights", default="0.25, 0.5, 1.0", help="weights of the divergence")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", type=Path, default=ROOT / "results/soak")
    return parser.parse_args()


def command() -> str:
    """What was typed."""
    return " ".join(["python benchmarks/soak.py", *sys.argv[1:]])


def prepare_experiment(folder: Path, template: str, num_seeds: int, **fields: Any) -> Path:
    """Teacher, text, task and experiment file. template: its text; `folder`, `seeds` and `fields` are filled in."""
    tiny_models.make_model(folder / "teacher", attention_dropout=0.1)
    tiny_models.make_corpus(folder / "text.jsonl")
    tiny_tasks.make_tasks(folder / "tasks", "colours")
    seeds = ", ".join(map(str, range(num_seeds)))
    (folder / "soak.yaml").write_text(template.format(folder=folder, seeds=seeds, **fields))
    return folder / "soak.yaml"


def driver_environment(cache: Path) -> dict[str, str]:
    """With a cache of its own, so that no run finds what another has made."""
    return {**os.environ, "DISTILL_LIT_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start_driver(file: Path, root: Path, cache: Path) -> subprocess.Popen[bytes]:
    """The experiment, in a process of its own."""
    root.mkdir(parents=True, exist_ok=True)
    log = (root / "driver.log").open("ab")
    words = [sys.executable, "-m", "distill_lit", "run", str(file), "--root", str(root)]
    return subprocess.Popen(words, cwd=ROOT, env=driver_environment(cache), stdout=log, stderr=log)


def wait_for_driver(driver: subprocess.Popen[bytes]) -> None:
    """Waits; a run that nobody disturbs must end well."""
    if driver.wait():
        sys.exit(f"the undisturbed run ended with {driver.returncode}")


def run_with_kills(file: Path, root: Path, cache: Path, num_runs: int, seed: int) -> tuple[KillLog, float]:
    """Runs the experiment until it is complete, killing workers and drivers on the way."""
    rng, kill_log, start = random.Random(seed), KillLog(), time.monotonic()
    victims = round(KILLED_SHARE * num_runs)
    # a driver dies when about a third and two thirds of the runs are done
    driver_marks = [round(num_runs * (i + 1) / (DRIVER_KILLS + 1)) for i in range(DRIVER_KILLS)]
    marks = sorted(rng.sample(range(round(0.9 * num_runs)), victims))
    while True:
        driver = start_driver(file, root, cache)
        for done in watch_progress(driver, root):
            now = time.monotonic() - start
            kill_log.progress.append((now, done))
            if driver_marks and done >= driver_marks[0]:
                driver_marks.pop(0)
                driver.kill()
                kill_log.kills.append((now, "driver", done))
            elif marks and done >= marks[0] and kill_worker(driver.pid, rng):
                marks.pop(0)
                kill_log.kills.append((now, "worker", done))
        if driver.returncode == 0:
            return kill_log, time.monotonic() - start
        if driver.returncode not in (3, -signal.SIGKILL):
            sys.exit(f"the disturbed run ended with {driver.returncode}; see {root / 'driver.log'}")


def watch_progress(driver: subprocess.Popen[bytes], root: Path) -> Iterator[int]:
    """The number of evaluated runs, several times a second, until the driver ends."""
    while driver.poll() is None:
        yield len(list(root.glob("runs/soak/*/evaluation.json")))
        time.sleep(0.2)


def kill_worker(driver: int, rng: random.Random) -> bool:
    """kill -9 to a worker of the driver after a random moment; whether there was one at work."""
    time.sleep(rng.uniform(0, 2.0))
    with contextlib.suppress(psutil.NoSuchProcess):
        workers = [
            p
            for p in psutil.Process(driver).children()
            if "distill_lit.experiment.execution.worker" in " ".join(p.cmdline())
        ]
        busy = [p for p in workers if p.cpu_times().user > 1]
        if busy:
            rng.choice(busy).kill()
            return True
    return False


def differences(undisturbed: Path, disturbed: Path) -> list[str]:
    """Tables that are not equal, runs that are not done, students whose weights differ."""
    found = []
    one, two = undisturbed / "results/soak", disturbed / "results/soak"
    for name in COMPARED_TABLES:
        if not (one / name).is_file():
            continue
        if not (two / name).is_file() or comparable_text(one / name) != comparable_text(two / name):
            found.append(name)
    states = pd.read_csv(two / "runs.csv").set_index("model")["status"]
    found += [f"{model} is {state}" for model, state in states.items() if state != "done"]
    for path in sorted(undisturbed.glob("runs/soak/*/student/model.safetensors")):
        twin = disturbed / path.relative_to(undisturbed)
        if not twin.is_file() or path.read_bytes() != twin.read_bytes():
            found.append(str(path.relative_to(undisturbed)))
    return found


def comparable_text(path: Path) -> str:
    """A table without what tells the time of day."""
    if path.suffix == ".csv":
        frame = pd.read_csv(path)
        return frame.drop(columns=[name for name in frame if name in TIMING_COLUMNS]).to_csv()
    return path.read_text()


def write_report(
    out: Path, num_runs: int, kill_log: KillLog, lost: list[str], seconds: tuple[float, float], command_line: str
) -> None:
    """kills.csv, soak.md and soak.png. seconds: of the undisturbed experiment, and of the disturbed one."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "kills.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("seconds", "killed", "runs done"), *kill_log.kills])
    workers, drivers = kill_log.count("worker"), kill_log.count("driver")
    rows = [
        ("runs", num_runs), ("workers killed with kill -9", workers), ("drivers killed with kill -9", drivers),
        ("runs lost", sum("is " in line for line in lost)), ("tables and students that differ", len(lost)),
        ("seconds undisturbed", round(seconds[0])), ("seconds disturbed", round(seconds[1])),
    ]  # fmt: skip
    lines = ["# Soak", "", f"`{command_line}`", "", "| | |", "| --- | ---: |", *(f"| {k} | {v} |" for k, v in rows)]
    lines += ["", *(f"* differs: {name}" for name in lost)]
    (out / "soak.md").write_text("\n".join(lines).rstrip() + "\n")
    styles = {"worker": ("x", "#c44e52"), "driver": ("D", "#222222")}
    kills = {f"{kill_log.count(kind)} {kind}s killed": (*style, kill_log.points(kind)) for kind, style in styles.items()}
    title = f"{num_runs} runs, {len(kill_log.kills)} kills, {len(lost)} losses"
    draw_progress(out / "soak.png", num_runs, "runs", kill_log.progress, kills, title)


def draw_progress(
    path: Path,
    total: int,
    what: str,
    progress: list[tuple[float, int]],
    events: dict[str, tuple[str, str, list[tuple[float, int]]]],
    title: str,
) -> None:
    """What is done over time, with every fault. progress: [(seconds, done)]; events: {label: (mark, color, the same)}."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.step(*zip(*progress, strict=True), where="post", color="#4878a8", label=f"{what} done")
    for label, (mark, color, points) in events.items():
        if points:
            axes.scatter(*zip(*points, strict=True), marker=mark, color=color, zorder=3, label=label)
    axes.axhline(total, color="#999999", linewidth=0.8, linestyle=":")
    axes.set(xlabel="seconds", ylabel=what, ylim=(0, total * 1.08))
    axes.set_title(title, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=160)
    plt.close(figure)


if __name__ == "__main__":
    main()
