"""On the path of a subprocess, this lets things go wrong: FAULTS holds lines of '<deed> <run> <stage> <n>', done at the
n-th report of a stage in a run whose label it is; RANK_FAULTS lines of '<deed> <rank> <stage> <n>', done by that one of
several ranks; HANGS names a file that is there once a run hangs; NO_SOCKETS names a file where attempts to connect are
written down."""

import importlib.abc
import importlib.machinery
import os
import signal
import socket
import sys
import time

FAULTS = [line.split() for line in os.environ.get("FAULTS", "").splitlines() if line]
RANK_FAULTS = [line.split() for line in os.environ.get("RANK_FAULTS", "").splitlines() if line]


def do(deed):
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif deed == "kill_last":  # only in the validation after the last step
        if os.path.exists(os.path.join(os.environ["RUN_FOLDER"], "checkpoints", "step=24.ckpt")):
            os.kill(os.getpid(), signal.SIGKILL)
    elif deed == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif deed == "fill":  # no file may grow any more: what a full disk does, with another errno
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    elif deed == "poison":
        from distill_lit.training.distiller import Distiller

        step = Distiller.training_step
        Distiller.training_step = lambda *arguments: step(*arguments) * float("nan")
    elif deed == "refuse":
        from distill_lit.utils.exceptions import UserError

        raise UserError("training.micro_batch_size: no")
    elif deed == "leave":  # ends well, without having finished
        os._exit(0)
    elif deed == "exhaust":
        import numpy

        numpy.empty(1 << 60, dtype=numpy.uint8)
    elif deed == "raise":
        raise RuntimeError("a bug, with <b>markup</b> | and _more_")
    elif deed == "tell":
        print("the token is", os.environ["HF_TOKEN"], flush=True)
        raise RuntimeError(f"401 for {os.environ['HF_TOKEN']}")
    elif deed == "slow":
        time.sleep(0.08)
    elif deed == "hang":
        open(os.environ["HANGS"], "w").close()
        time.sleep(600)
    elif deed == "slow_checkpoints":  # as of a large model
        from distill_lit.training import checkpoint

        save = checkpoint._save

        def save_slowly(content, file):
            file.write(b"half")
            file.flush()
            time.sleep(4)
            file.seek(0)
            save(content, file)

        checkpoint._save = save_slowly


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "distill_lit.experiment.execution.run":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        whole = spec.loader.exec_module

        def execute(module):
            whole(module)
            execute_run, build_run_on_rank = module.execute_run, module.build_run_on_rank
            module.execute_run = lambda run, folder, report, part="": execute_run(
                run, folder, sabotaged(run.label, report, FAULTS), part
            )

            def build(run, folder, report):
                from distill_lit.utils.distributed.ranks import get_rank

                os.environ["RUN_FOLDER"] = str(folder)
                (folder / f"pid.{get_rank()}").write_text(str(os.getpid()))
                build_run_on_rank(run, folder, sabotaged(str(get_rank()), report, RANK_FAULTS))

            build.__qualname__, build.__module__ = "build_run_on_rank", "distill_lit.experiment.execution.run"
            module.build_run_on_rank = build

        spec.loader.exec_module = execute
        return spec


def sabotaged(label, report, faults):
    seen = {}

    def reporting(stage, *rest):
        report(stage, *rest)
        first = stage.split()[0]
        seen[first] = seen.get(first, 0) + 1
        for deed, run, where, count in faults:
            if run in (label, "*") and where == first and count in (str(seen[first]), "*"):
                do(deed)

    return reporting


if FAULTS or RANK_FAULTS:
    sys.meta_path.insert(0, Finder())
if log := os.environ.get("NO_SOCKETS"):
    connect = socket.socket.connect

    def refuse(self, address, *_):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            with open(log, "a") as file:
                file.write(f"{sys.argv} {address}\n")
            raise OSError("connections are forbidden here")
        return connect(self, address)

    def resolve(*address, **_):
        with open(log, "a") as file:
            file.write(f"{sys.argv} {address}\n")
        raise OSError("names are not resolved here")

    socket.socket.connect = socket.socket.connect_ex = refuse
    socket.getaddrinfo = resolve
