"""Where does the time of a step go? `python benchmarks/profile_step.py` (2 cores: three minutes; `--quick`: less).

The steps of kd_step.py, ours, online and offline teacher, by torch's profiler: seconds of a step in matrix products,
attention, the optimizer, copies and casts, the rest of the operators, and in none of them, which is Python and waiting;
each as a share of the step and in units of its floor. On a CPU the shares of operators are the profiler's, which slows
them, scaled by what the step takes without it; on a GPU they are the kernels' own seconds. `--quickstart` runs `make
quickstart` with Python's own profiler in every process, and says what its packages take. Writes profile_step.md and .csv
(with --device cuda: profile_step_cuda.*), or profile_quickstart.*.
"""

# ruff: noqa: E402
import argparse
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))

import pandas as pd

from benchmarks.arguments import available_device, existing_folder, positive

# the first that has an operator's name (aten::), or a part of it
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "mkldnn", "onednn"),
    "attention": ("attention", "sdpa"),
    "optimizer": ("Optimizer.", "_foreach", "_fused_adam"),
    "fused element-wise part": ("_FusedLinearLoss", "CompiledFunction", "Torch-Compiled", "triton", "graph_"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous", "aten::cat"),
    "zeros and memory": ("aten::empty", "aten::zero_", "aten::fill_", "aten::resize_", "Memset", "Memcpy"),
}
OTHER, NONE = "other operators", "Python and waiting"
# sitecustomize.py of the processes of the quickstart: each writes its profile when it ends
SITE = """
import atexit, cProfile, os
profile = cProfile.Profile()
profile.enable()
def _write():
    profile.disable()
    profile.dump_stats(os.path.join(os.environ["PROFILE_FOLDER"], f"{os.getpid()}.prof"))
atexit.register(_write)
"""


def group_of(name: str) -> str:
    """Of an operator, by its name."""
    for group, marks in GROUPS.items():
        if any(name == mark if mark.startswith("aten::") else mark in name for mark in marks):
            return group
    return OTHER


def profile(run: Callable[[], None], floor: Callable[[], None], rounds: int, is_cuda: bool) -> list[dict[str, Any]]:
    """Rows of one step: group, seconds, share, time / floor."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from benchmarks.kd_step import time_run

    for warm_up in (run, floor):
        warm_up()
    whole = pd.Series([time_run(run) for _ in range(rounds)]).median()
    least = pd.Series([time_run(floor) for _ in range(rounds)]).median()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * is_cuda
    with torch_profile(activities=activities) as recorded:
        profiled = sum(time_run(run) for _ in range(rounds))
    seconds: dict[str, float] = defaultdict(float)
    scale = 1 / rounds if is_cuda else whole / profiled  # the profiler slows Python and operators, but no kernel
    for event in recorded.key_averages():
        if event.device_type != DeviceType.CPU:  # the time of a kernel is that of the operator which started it
            continue
        spent = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        seconds[group_of(event.key)] += spent / 1e6 * scale
    seconds[NONE] = max(0.0, whole - sum(seconds.values()))
    rows = [("step", whole), *sorted(seconds.items(), key=lambda pair: -pair[1]), ("floor", least)]
    return [{"part": name, "seconds": s, "share": s / whole, "time / floor": s / least} for name, s in rows]


def profile_steps(arguments: argparse.Namespace) -> pd.DataFrame:
    """Of both steps."""
    import torch

    from benchmarks.kd_losses import FLOOR, OURS
    from benchmarks.kd_step import step_runs
    from distill_lit.utils import hardware

    device = torch.device(arguments.device)
    dtype = getattr(torch, hardware.fastest_dtype(device))
    rows: list[dict[str, Any]] = []
    for case, is_offline in (("online teacher", False), ("offline teacher", True)):
        runs = step_runs(dtype, device, arguments.quick, is_offline, arguments.teacher, only=(OURS, FLOOR))
        found = profile(runs[OURS], runs[FLOOR], arguments.rounds, device.type == "cuda")
        rows += [{"case": case, **row} for row in found]
    return pd.DataFrame(rows)


def profile_quickstart() -> pd.DataFrame:
    """Seconds of all processes of `make quickstart` by package, each function's own time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sitecustomize.py").write_text(SITE)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((name, str(ROOT))), "PROFILE_FOLDER": name}
        command = [
            sys.executable,
            "-m",
            "distill_lit",
            "run",
            "experiments/quickstart.yaml",
            f"output_dir={folder / 'runs'}",
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        whole = time.perf_counter() - start
        seconds: dict[tuple[str, str], float] = defaultdict(float)
        for path in folder.glob("*.prof"):
            for (file, _, function), (_, _, own, _, _) in pstats.Stats(str(path)).stats.items():  # type: ignore[attr-defined]
                seconds[_package(file), function if file == "~" else ""] += own
    rows = [{"package": package, "function": function, "seconds": own} for (package, function), own in seconds.items()]
    table = pd.DataFrame(rows).sort_values("seconds", ascending=False).head(40)
    return pd.concat([pd.DataFrame([{"package": "whole", "function": "", "seconds": whole}]), table], ignore_index=True)


def _package(file: str) -> str:
    """What a file belongs to: a module of ours, another's package, or Python and C."""
    path = Path(file)
    if "distill_lit" in path.parts:
        return ".".join(path.with_suffix("").parts[path.parts.index("distill_lit") :][:3])
    if "site-packages" in path.parts:
        return path.parts[path.parts.index("site-packages") + 1]
    return "importing" if "importlib" in file else "C" if file == "~" else "Python"


def write(table: pd.DataFrame, path: Path, title: str, measured: str) -> None:
    """The table as CSV and Markdown. measured: what and how."""
    from distill_lit.utils import hardware

    table.to_csv(path.with_suffix(".csv"), index=False, float_format="%.4g")
    command = " ".join(["python benchmarks/profile_step.py", *sys.argv[1:]])
    machine = ", ".join(f"{key} {value}" for key, value in hardware.describe_hardware().items() if value)
    lines = [
        f"# {title}",
        "",
        f"`{command}`: {measured} Machine: {machine}.",
        "",
        "| " + " | ".join(table.columns) + " |",
        "|---|" + "---:|" * (len(table.columns) - 1),
    ]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(value if isinstance(value, str) else f"{value:.3g}" for value in row) + " |")
    path.with_suffix(".md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


def main(arguments: argparse.Namespace) -> None:
    """Profiles what is asked for, and writes it."""
    out = arguments.out
    if arguments.quickstart:
        how = "each function's own seconds in all processes under Python's profiler, which slows them; whole: of the clock."
        write(profile_quickstart(), out / "profile_quickstart", "Where the time of the quickstart goes", how)
        return
    name = "profile_step_cuda" if arguments.device == "cuda" else "profile_step"
    how = f"the steps of [kd_step.md](kd_step.md), ours, median seconds of {arguments.rounds} rounds without the profiler."
    write(profile_steps(arguments), out / name, "Where the time of a step goes", how)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quickstart", action="store_true", help="the quickstart, not a step")
    parser.add_argument("--quick", action="store_true", help="a small step, to see that it runs")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", type=available_device, default="cpu", metavar="{cpu,cuda}")
    parser.add_argument("--teacher", default="", help="reference of the teacher; default: that of kd_step.py")
    parser.add_argument("--out", type=existing_folder, default=Path(__file__).parent, help="folder of the tables")
    main(parser.parse_args())
