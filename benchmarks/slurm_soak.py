"""A sweep on a cluster that goes wrong, shown: 24 students on a SLURM of two nodes with preemptions, ends of time,
requeues, cancelled tasks, a node that fails and a controller that is killed, against the same sweep on this machine left
alone. Every table and every student must be equal.

    python benchmarks/slurm_soak.py                        # results/slurm_soak/: slurm_soak.png, slurm_soak.md, faults.csv
    python benchmarks/slurm_soak.py --seeds 2 --out /tmp/soak   # a small one

Needs root and the four packages that tests/helpers/slurm/start names: the cluster is on this machine. The model is a random
two-layer Llama: what is tested is the suite. Exit code 0 when nothing was lost.
"""

# ruff: noqa: E402
import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT / "tests")  # instead of this folder
sys.path += [str(ROOT), str(ROOT / "benchmarks")]

from helpers import slurm_cluster
from soak import differences, draw_progress, driver_environment, prepare_experiment

from distill_lit.experiment.launcher.slurm.progress_file import read_progress
from distill_lit.experiment.launcher.slurm.queued_runs import queued_runs
from distill_lit.experiment.launcher.slurm.squeue import QueuedTask, SlurmError

EXPERIMENT = """
name: soak
question: Is anything lost on a cluster that goes wrong?
teacher: {{model: "file:{folder}/teacher", source: offline, dtype: float32}}
students:
  first: {{layers: [0]}}
  second: {{layers: [1]}}
  both: {{layers: [0, 1]}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 4096,
  corpora: {{text: {{path: "file:{folder}/text.jsonl"}}}}}}
objective: {{compile: never, terms: {{ce: {{weight: 0.5}}, kl: {{kind: forward_kl, temperature: 2}}}}}}
training: {{max_tokens: {tokens}, micro_batch_size: 2, gradient_accumulation_steps: 2, precision: float32,
  accelerator: cpu, checkpoint_interval: 8}}
evaluation: {{tasks: [colours], include_path: "{folder}/tasks"}}
analysis: {{n_resamples: 200}}
launcher: {{workers: 1, threads_per_worker: 1,
  slurm: {{time: 30, warn: 30, gpus_per_node: 0, cpus_per_task: 1}}}}
grid: {{student: [first, second, both], seed: [{seeds}]}}
baselines: []
"""
# kinds of faults, in the order in which they are done over and over
KINDS = ("end of time", "preemption", "cancelled task", "node failure", "end of time", "requeue", "controller killed")
GIVE_UP_SECONDS = 3600.0


@dataclass
class Diary:
    """What was done to the cluster, and how far the sweep was: (seconds since the start, kind, runs done)."""

    start: float = field(default_factory=time.monotonic)
    faults: list[tuple[float, str, int]] = field(default_factory=list)
    progress: list[tuple[float, int]] = field(default_factory=list)
    submissions: int = 0

    def note(self, kind: str, done: int) -> None:
        """A fault."""
        self.faults.append((round(time.monotonic() - self.start, 1), kind, done))
        print(f"{self.faults[-1][0]:7.0f} s  {done:3} done  {kind}", flush=True)


def main() -> None:
    """Runs both, compares, draws."""
    options = parse()
    if lost := slurm_cluster.missing():
        sys.exit(f"no cluster here: {lost}")
    work = Path(tempfile.mkdtemp(prefix="slurm-soak-"))
    try:
        file = prepare_experiment(work, EXPERIMENT, options.seeds, tokens=options.tokens)
        local, cluster = work / "local", work / "cluster"
        start = time.monotonic()
        drive(file, local, work / "cache-local")
        seconds = [time.monotonic() - start]
        count = len(list(local.glob("runs/soak/*/evaluation.json")))
        print(f"{count} students here in {seconds[0]:.0f} s; now on a cluster that goes wrong", flush=True)
        with slurm_cluster.cluster(nodes=2, cpus=1) as folder:
            diary = run_with_faults(file, cluster, work / "cache-cluster", folder, count, options)
        seconds.append(time.monotonic() - diary.start)
        lost_files = differences(local, cluster)
        write_report(options.out, count, diary, lost_files, seconds)
        print(f"{len(diary.faults)} faults, {len(lost_files)} differences")
        sys.exit(1 if lost_files else 0)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="seeds; students are 3 × seeds")
    parser.add_argument("--tokens", type=int, default=24_576, help="tokens that each student reads")
    parser.add_argument("--fault-share", type=float, default=0.6, help="faults for each student")
    parser.add_argument("--seed", type=int, default=0, help="of who is hit")
    parser.add_argument("--out", type=Path, default=ROOT / "results/slurm_soak")
    return parser.parse_args()


def drive(file: Path, root: Path, cache: Path, *words: str) -> None:
    """`distill-lit run`, with a cache of its own; it must end well."""
    root.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with (root / "driver.log").open("ab") as log:
        command = [sys.executable, "-m", "distill_lit", "run", str(file), "--root", str(root), *words]
        done = subprocess.run(
            command, cwd=ROOT, env={**driver_environment(cache), "PYTHONPATH": path}, stdout=log, stderr=log
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {(root / 'driver.log').read_text()[-2000:]}")


def run_with_faults(file: Path, root: Path, cache: Path, cluster: Path, count: int, options: argparse.Namespace) -> Diary:
    """The sweep on the cluster, until it is complete; what is neither done nor queued is submitted again by the same
    command."""
    rng, diary, runs = random.Random(options.seed), Diary(), root / "runs/soak"
    marks = [int(number / options.fault_share) for number in range(1, round(options.fault_share * count))]
    kinds = [KINDS[number % len(KINDS)] for number in range(len(marks))]
    words = ("launcher.engine=slurm", "launcher.workers=2")
    while (done := len(list(runs.glob("*/evaluation.json")))) < count:
        diary.progress.append((time.monotonic() - diary.start, done))
        if time.monotonic() - diary.start > GIVE_UP_SECONDS:
            sys.exit(f"not complete after an hour: {slurm_cluster.queue()}")
        if not look_after_queue():
            drive(file, root, cache, *words, "--detach")
            diary.submissions += 1
        elif marks and done >= marks[0] and do_fault(kinds[0], runs, cluster, rng):
            diary.note(kinds.pop(0), done)
            marks.pop(0)
        time.sleep(0.5)
    diary.progress.append((time.monotonic() - diary.start, done))
    slurm_cluster.wait_until(lambda: not slurm_cluster.queue(), each=look_after_queue)
    drive(file, root, cache, *words)
    return diary


def look_after_queue() -> bool:
    """Lets requeued jobs start now, releases what SLURM holds; whether anything is in the queue."""
    try:
        lines = slurm_cluster.queue("%i", "%r")
        slurm_cluster.kick()
        for line in lines:
            if "held" in line.lower():
                subprocess.run(["scontrol", "release", line.partition("|")[0]], check=False, capture_output=True)
    except subprocess.SubprocessError:
        return True  # the controller does not answer just now
    return bool(lines)


def do_fault(kind: str, runs: Path, cluster: Path, rng: random.Random) -> bool:
    """One fault; False where there is nobody to suffer it just now: a run that trains."""
    if kind == "controller killed":
        slurm_cluster.restart_controller(cluster)
        return True
    try:
        training = [task for name, task in queued_runs(runs).items() if is_training(runs / name, task)]
    except SlurmError:
        return False
    if not training:
        return False
    victim = rng.choice(sorted(training))
    actions: dict[str, Callable[[], object]] = {
        "end of time": lambda: slurm_cluster.warn_of_end(victim.job),
        "requeue": lambda: slurm_cluster.say("scontrol", "requeue", victim.job),
        "cancelled task": lambda: slurm_cluster.say("scancel", victim.job),
        "preemption": lambda: preempt(victim.node),
        "node failure": lambda: fail_node(victim.node),
    }
    try:
        actions[kind]()
    except subprocess.SubprocessError:  # it has ended meanwhile, or the controller is busy
        return False
    return True


def is_training(folder: Path, task: QueuedTask) -> bool:
    """Whether a run is between its first and its last step."""
    event = read_progress(folder)
    return task.state == "RUNNING" and event.get("stage") == "train" and 0 < event["done"] < event["total"]


def preempt(node: str) -> None:
    """A job of a partition that goes first takes a node for a moment."""
    script = "#!/bin/sh\nsleep 1\n"
    words = ["sbatch", "--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null"]
    subprocess.run(words, input=script, text=True, check=True, capture_output=True)


def fail_node(node: str) -> None:
    """A node goes down with what runs on it, and comes back."""
    slurm_cluster.say("scontrol", "update", f"nodename={node}", "state=down", "reason=soak")
    time.sleep(2)
    subprocess.run(
        ["scontrol", "update", f"nodename={node}", "state=resume"], check=False, capture_output=True
    )  # it may be back


def write_report(out: Path, count: int, diary: Diary, lost: list[str], seconds: list[float]) -> None:
    """faults.csv, slurm_soak.md and slurm_soak.png. seconds: of the sweep here, and on the cluster."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "faults.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("seconds", "fault", "runs done"), *diary.faults])
    kinds = [kind for _, kind, _ in diary.faults]
    rows = [("students", count), ("nodes", 2), *((kind, kinds.count(kind)) for kind in dict.fromkeys(kinds))]
    rows += [("times that the command was given", diary.submissions + 1), ("tables and students that differ", len(lost))]
    rows += [("seconds here, undisturbed", round(seconds[0])), ("seconds on the cluster", round(seconds[1]))]
    command = " ".join(["python benchmarks/slurm_soak.py", *sys.argv[1:]])
    lines = ["# Soak on SLURM", "", f"`{command}`", "", "| | |", "| --- | ---: |", *(f"| {k} | {v} |" for k, v in rows)]
    (out / "slurm_soak.md").write_text("\n".join([*lines, "", *(f"* differs: {name}" for name in lost)]).rstrip() + "\n")
    faults = {}
    for number, (kind, mark) in enumerate(zip(dict.fromkeys(kinds), "xDs^vP*", strict=False), 1):
        points = [(when, done) for when, what, done in diary.faults if what == kind]
        faults[f"{len(points)} {kind}"] = (mark, f"C{number}", points)
    title = f"{count} students on two nodes, {len(diary.faults)} faults, {len(lost)} differences"
    draw_progress(out / "slurm_soak.png", count, "students", diary.progress, faults, title)


if __name__ == "__main__":
    main()
