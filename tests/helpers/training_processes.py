"""Trainings in processes of their own, which can be killed."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import ROOT, warm_processes

Stop = Callable[[str, int, Path], bool]  # (stage, how often it was reported, run folder) → now

EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", source: {source}, dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 32, validation_sequences: 6, max_tokens: 4096, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective:
  compile: never
  terms:
    ce: {{weight: {{shape: linear, start: 1.0, end: 0.2}}}}
    kl: {{kind: forward_kl, temperature: {{shape: cosine, start: 4.0, end: 1.0}}}}
training: {{max_tokens: 4608, micro_batch_size: 2, gradient_accumulation_steps: 3, precision: float32,
           accelerator: cpu, checkpoint_interval: 5,
           val_check_interval: 0.17, keep_checkpoints: true}}
evaluation: {{tasks: [colours], include_path: "{tasks}"}}
analysis: {{n_resamples: 100}}
baselines: []
"""
STEPS, WINDOW = 24, 3
SECRETS = {"HF_TOKEN": "hf_0123456789abcdefSECRET", "OPENAI_API_KEY": "sk-proj-0123456789SECRET"}
SABOTAGE = os.pathsep.join([str(Path(__file__).parent / "sabotage"), os.environ.get("PYTHONPATH", "")])


def write_experiment(
    folder: Path, teacher: Path, corpus: Path, tasks: Path, source: str = "online", more: str = ""
) -> Path:
    """An experiment of 24 steps of three micro-batches, with schedules and six validations."""
    path = folder / "tiny.yaml"
    path.write_text(EXPERIMENT.format(teacher=teacher, corpus=corpus, tasks=tasks, source=source) + more)
    return path


def start(
    experiment: Path,
    root: Path,
    stop: str = "",
    overrides: tuple[str, ...] = (),
    patch: str = "",
    cache: Path | None = None,
    environment: tuple[tuple[str, str], ...] = (),
) -> subprocess.Popen[bytes]:
    """Builds the distilled student below `root` in a new process. `stop`: '<signal> <stage> <n>', sent by the process to
    itself at the n-th report of a stage; `patch`: name of a function below, called first; `environment`: set before, where
    ranks find it too."""
    return call("build", str(experiment), str(root), stop, overrides, patch, str(cache or ""), environment)


def call(function: str, *arguments: Any) -> subprocess.Popen[bytes]:
    """A process of its own that calls a function of this module."""
    code = f"{warm_processes.MAY_BE_WARM}import json, sys\nfrom helpers import training_processes\n"
    code += f"training_processes.{function}(*json.loads(sys.argv[1]))"
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, "-c", code, json.dumps(arguments)], env=environment)


def finish(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end; returns the exit code, negative for a signal."""
    return process.wait(120)


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> int:
    """kill -9 from outside, unless it ends before."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    return finish(process)


def run_folder(root: Path) -> Path:
    """The one run below a root."""
    return next(path for path in (root / "runs/tiny").iterdir() if path.name.startswith("one-"))


def lines(root: Path) -> list[dict[str, Any]]:
    """The logged steps, without the clock's."""
    found = [json.loads(line) for line in (run_folder(root) / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "train/tokens_per_second"} for line in found]


def weights(root: Path) -> bytes:
    """The bytes of the exported student."""
    return (run_folder(root) / "student/model.safetensors").read_bytes()


def log_of(root: Path) -> str:
    """What the process said."""
    return (run_folder(root) / "log.txt").read_text()


def build(
    experiment: str,
    root: str,
    stop: str,
    overrides: tuple[str, ...],
    patch: str,
    cache: str,
    environment: tuple[tuple[str, str], ...],
) -> None:
    """What `start` starts."""
    os.environ.update(environment)
    sys.path.insert(0, str(Path(__file__).parent / "sabotage"))  # for the ranks
    if cache:
        os.environ["DISTILL_LIT_CACHE"] = cache
    import torch

    from distill_lit.config import load_experiment
    from distill_lit.config.roles import Role
    from distill_lit.experiment.execution import run as run_module
    from distill_lit.experiment.execution.worker import execute_and_report
    from distill_lit.experiment.plan import plan_runs

    torch.set_num_threads(1)
    config = load_experiment(Path(experiment), list(overrides))
    run = next(run for run in plan_runs(config) if run.role == Role.DISTILLED)
    number, stage, count = [*stop.split(), "", "", ""][:3]
    seen: dict[str, int] = {}

    def report(where: str, *_: Any) -> None:
        seen[where] = seen.get(where, 0) + 1
        if where == stage and seen[where] == int(count):
            os.kill(os.getpid(), getattr(signal, number))

    if patch:
        os.environ["RUN_FOLDER"] = str(Path(root) / "runs" / config.name / run.name)
        globals()[patch]()
    run_module.evaluate_run = lambda *_: None  # building is what is tested
    ended: dict[str, Any] = {}
    execute_and_report(run, Path(root) / "runs" / config.name / run.name, report, lambda **event: ended.update(event))
    (run_folder(Path(root)) / "ended.json").write_text(json.dumps(ended))
    if ended["event"] != "done":
        raise SystemExit(1)


def half_written_checkpoint() -> None:
    """The third checkpoint is cut off by kill -9 in the middle of writing."""
    from distill_lit.training import checkpoint as checkpoints

    saved = [0]
    whole = checkpoints._save

    def cut(checkpoint: dict[str, Any], file: Any) -> None:
        saved[0] += 1
        whole(checkpoint, file)
        if saved[0] == 3:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoints._save = cut


def small_files() -> None:
    """No file may grow beyond 100 kB: what a full disk does, with another errno."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def hold_folder(folder: str) -> None:
    """Claims a folder and never gives it back."""
    from distill_lit.experiment.state.claims import claim_folder

    with claim_folder(Path(folder), timeout=0):
        (Path(folder) / "held").touch()
        time.sleep(1000)


def forgotten_generators() -> None:
    """Resumes without the states of the generators."""
    from distill_lit.training.callbacks.random_state import RNGStateCallback

    RNGStateCallback.load_state_dict = lambda self, state: None


def poisoned_loss() -> None:
    """The loss of the twentieth micro-batch is not a number; which rows were read is written down."""
    _poison(lambda loss: loss * float("nan"))


def poisoned_gradient() -> None:
    """The loss of the twentieth micro-batch is fine and its gradient is infinite."""

    def change(loss: Any) -> Any:
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    _poison(change)


def _poison(change: Callable[[Any], Any]) -> None:
    from distill_lit.training.distiller import Distiller

    step, rows = Distiller.training_step, []

    def training_step(self: Any, batch: Any, index: int) -> Any:
        rows.append(batch["rows"].tolist())
        (Path(os.environ["RUN_FOLDER"]) / "rows.json").write_text(json.dumps(rows))
        loss = step(self, batch, index)
        return change(loss) if len(rows) == 20 else loss

    Distiller.training_step = training_step


def poisoned_validation() -> None:
    """The last validation's loss is not a number."""
    from distill_lit.training.callbacks.step_logger import StepLogger
    from distill_lit.training.metrics import TokenMeans

    log, compute, step = StepLogger.on_validation_epoch_end, TokenMeans.compute, [0]

    def noting(self: Any, trainer: Any, module: Any) -> None:
        step[0] = trainer.global_step
        log(self, trainer, module)

    def poisoned(self: Any, stage: str) -> dict[str, float]:
        found = compute(self, stage)
        return {k: float("nan") for k in found} if stage == "validation" and step[0] == STEPS else found

    StepLogger.on_validation_epoch_end, TokenMeans.compute = noting, poisoned


def watched_teacher() -> None:
    """Compares the teacher's weights in memory before and after the training."""
    import torch

    from distill_lit.experiment.execution import student as building

    train = building.train

    def watched(run: Any) -> Any:
        model = run.distiller.loss.teacher.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        metrics = train(run)
        same = all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        (Path(os.environ["RUN_FOLDER"]) / "teacher.txt").write_text("the same" if same else "changed")
        return metrics

    building.train = watched


def random_seconds(seed: int, longest: float, count: int) -> list[float]:
    """When to kill."""
    draw = random.Random(seed)
    return [draw.uniform(0.05, longest) for _ in range(count)]


def command(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "distill_lit", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, everything said) once it has ended."""
    said, errors = process.communicate(timeout=300)
    return process.returncode, said + errors


def cli(*arguments: str | Path, **environment: str) -> tuple[int, str]:
    """(exit code, everything said) of a command."""
    return outcome(command(*arguments, **environment))


def wait_until(happened: Callable[[], Any], longest: float = 120.0) -> Any:
    """What `happened` returns once it is true."""
    end = time.monotonic() + longest
    while not (found := happened()):
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)
    return found


def python(code: str, **environment: str) -> tuple[int, str]:
    """(exit code, everything said) of a piece of Python in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    return result.returncode, result.stdout + result.stderr


def processor_seconds(work: Callable[[], Any]) -> float:
    """Processor time that child processes spend on it."""
    begin = os.times()
    with warm_processes.cold():
        work()
    end = os.times()
    return end.children_user - begin.children_user + end.children_system - begin.children_system


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    begin = time.monotonic()
    work()
    return time.monotonic() - begin
