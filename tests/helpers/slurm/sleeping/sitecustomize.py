"""On the PYTHONPATH of jobs: runs sleep instead of training, and torch is not imported. A step takes a tenth of a second; a
run has as many as `training.max_tokens` says, and fails where the experiment's question is `fails`."""

import json
import signal
import sys
import time
import types

STEP_SECONDS = 0.1


def execute_run(run, folder, report, part=""):
    """A training that is stopped as ours are: noted, saved after the step, Preempted. Its steps are written down."""
    from distill_lit.utils.exceptions import Preempted

    if part == "evaluate":
        (folder / "evaluated").write_text("")
        return
    if (folder / "manifest.json").is_file():  # ours look too, once they have the folder to themselves
        return
    if run.config.question == "fails":
        raise RuntimeError("a bug")
    asked, saved = [], folder / "checkpoints"
    previous = {n: signal.signal(n, lambda number, _: asked.append(number)) for n in (signal.SIGTERM, signal.SIGUSR2)}
    saved.mkdir(exist_ok=True)
    first = max((int(path.stem[5:]) for path in saved.glob("step=*")), default=0)
    total = run.config.training.max_tokens
    with (folder / "steps.txt").open("a", buffering=1) as steps:
        for step in range(first + 1, total + 1):
            time.sleep(STEP_SECONDS)
            steps.write(f"{step}\n")
            report("train", step, total, "steps", {})
            if asked:
                (saved / f"step={step}.ckpt").write_text("")
                raise Preempted(f"{signal.Signals(asked[0]).name} at step {step}")
    for number, handler in previous.items():
        signal.signal(number, handler)
    (folder / "manifest.json").write_text(json.dumps({"identity": run.fingerprint}))


if {"submitit.core._submit", "distill_lit.experiment.execution.worker"} & set(sys.orig_argv):
    stub = types.ModuleType("torch")
    stub.set_num_threads = lambda _: None
    sys.modules["torch"] = stub
    runs = types.ModuleType("distill_lit.experiment.execution.run")
    runs.execute_run = execute_run
    sys.modules["distill_lit.experiment.execution.run"] = runs
