"""`distill-lit doctor`: checks that this machine can run experiments, and says how to fix what is wrong."""

import argparse
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_lit.cli.arguments import CommandParsers, add_command, load_checked_experiment
from distill_lit.cli.finding import BAD, GOOD, WARNING, Finding
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, read_json, sha256_of
from distill_lit.utils.shards import Shards

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment

# below these, known holes: torch.load before 2.10, lightning 2.6.2 and 2.6.3 were malicious, transformers before 5.3
MIN_PACKAGE_VERSIONS = {"torch": "2.10", "lightning": "2.6.6", "pytorch-lightning": "2.6.6", "transformers": "5.3"}
MIN_PYTHON_VERSION = (3, 11)
MIN_FREE_DISK_BYTES = 5 * 10**9
MIN_FREE_MEMORY_BYTES = 2 * 10**9
# folder below the cache: the name of its manifests, and the entry that says {file: sha256} or {file: {sha256}}
CACHE_MANIFESTS = {
    "tokens": ("manifest.json", "files"),
    "packed": ("manifest.json", "files"),
    "evaluations": ("meta.json", "sha256"),  # of the one file that it is about
}
EVALUATION_RECORDS_FILE = "records.parquet"


def run_checks(root: Path, deep: bool, experiment: "Experiment | None" = None) -> list[Finding]:
    """Everything that is looked at, in the order in which it is shown. `root`: where runs/ are; `deep`: hash caches and
    compile; experiment: whose memory is compared with this machine's."""
    from distill_lit.cli import network_checks

    with ThreadPoolExecutor() as pool:  # the network is slow, and waits beside the rest
        waiting = [pool.submit(network_checks.check_reachable, *place) for place in network_checks.network_endpoints()]
        found = [*check_versions(), *check_processor(), *check_gpu(), check_compiler(deep), check_memory()]
        found += [] if experiment is None else [check_experiment_memory(experiment)]
        found += [check_free_disk(root), check_free_disk(cache_root())]
        found += check_cache() if deep else [Finding("cache", WARNING, f"{cache_root()} not hashed", "drop --quick")]
        return [*found, *(one.result() for one in waiting)]


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "doctor",
        "Look at versions, threads, formats, memory, disk, caches, network and GPU; say what is wrong and what to do.",
        "distill-lit doctor experiments/quickstart.yaml",
        run,
    )
    parser.add_argument(
        "experiment", type=Path, nargs="?", help="experiment file: whether its workers have the memory that they need"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of any key of the experiment")
    parser.add_argument("--root", type=Path, default=Path(), help="where runs/ are (default: here)")
    parser.add_argument(
        "--cluster", action="store_true", help="look at SLURM instead: its commands, limits, and what a compute node sees"
    )
    parser.add_argument("--quick", action="store_true", help="do not hash the caches, nor compile anything")


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints the findings; returns 1 when something is wrong, else 0."""
    experiment = load_checked_experiment(options) if options.experiment is not None else None
    if options.cluster:
        findings = _cluster_findings(options.root.resolve(), experiment)
    else:
        findings = run_checks(options.root.resolve(), not options.quick, experiment)
    table = Table("what", "state", "found", "remedy")
    colors = {GOOD: "green", WARNING: "yellow", BAD: "red"}
    for one in findings:
        table.add_row(one.subject, Text(one.state, colors[one.state]), Text(one.found), Text(one.remedy))
    console.print(table)
    wrong = sum(one.state == BAD for one in findings)
    console.print(f"{wrong} of {len(findings)} wrong" if wrong else "nothing is wrong", highlight=False)
    return 1 if wrong else 0


def _cluster_findings(root: Path, experiment: "Experiment | None") -> list[Finding]:
    """Those about the cluster. Raises UserError without an experiment: its `launcher.slurm` says which partition."""
    from distill_lit.cli.cluster_checks import check_slurm

    if experiment is None:
        raise UserError("--cluster: name an experiment, whose launcher.slurm says what its jobs ask for")
    return list(check_slurm(experiment.config, root / "runs" / experiment.name))


# ---------------------------------------------------------------- software


def check_versions(min_versions: dict[str, str] = MIN_PACKAGE_VERSIONS) -> Iterable[Finding]:
    """Python and every package with a security floor."""
    import sys

    state = GOOD if sys.version_info >= MIN_PYTHON_VERSION else BAD
    yield Finding(
        "python", state, ".".join(map(str, sys.version_info[:3])), "" if state == GOOD else "use Python 3.11 or later"
    )
    for package, floor in min_versions.items():
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Finding(package, BAD, "not installed", f"pip install -c constraints.txt '{package}>={floor}'")
            continue
        high = _numbers(version) >= _numbers(floor)
        remedy = "" if high else f"pip install -c constraints.txt '{package}>={floor}' (below it there are known holes)"
        yield Finding(package, GOOD if high else BAD, f"{version}, at least {floor}", remedy)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


# ---------------------------------------------------------------- hardware


def check_processor() -> Iterable[Finding]:
    """Threads, and how fast each number format is."""
    import torch

    from distill_lit.utils import hardware

    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    remedy = "" if threads <= cores else f"export OMP_NUM_THREADS={cores}"
    yield Finding("threads", GOOD if threads <= cores else BAD, f"{threads} on {cores} usable cores", remedy)
    speeds = hardware.matmul_flops_per_second(torch.device("cpu"))
    speed_text = ", ".join(f"{name} {speed / 1e9:,.0f} GFLOP/s" for name, speed in speeds.items())
    units = torch.backends.cpu.get_cpu_capability()
    yield Finding("processor", GOOD, f"{units}: {speed_text}; auto is {hardware.fastest_dtype(torch.device('cpu'))}")


def check_gpu() -> Iterable[Finding]:
    """CUDA devices; a GPU that torch does not see is wrong, none at all is not."""
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            yield Finding(
                f"gpu {number}",
                GOOD,
                f"{torch.cuda.get_device_name(number)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free",
            )
        return
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        remedy = "install a CUDA build of torch and a driver for it, or set training.accelerator=cpu"
        yield Finding("gpu", BAD, f"there is one, and torch ({build}) does not see it", remedy)
        return
    yield Finding("gpu", WARNING, "none; everything runs on the processor")


def check_compiler(deep: bool) -> Finding:
    """Whether torch.compile works where students train: without it they run as they are, slower. deep: try it."""
    from distill_lit.losses import can_compile
    from distill_lit.profiling import compilation
    from distill_lit.utils import hardware

    device = hardware.device_for("auto")
    needed = "a C++ compiler" if device.type == "cpu" else "Triton"
    remedy = "install g++ or clang++" if device.type == "cpu" else "install triton"
    if not can_compile(device):
        return Finding("torch.compile", WARNING, f"{needed} is missing; nothing is compiled", remedy)
    if not deep:
        return Finding("torch.compile", GOOD, f"{needed} is here; not tried")
    if error := compilation.compile_error(device):
        remedy = "objective.compile=never training.compile=never"
        return Finding("torch.compile", WARNING, f"it does not work: {error}", remedy)
    return Finding("torch.compile", GOOD, f"works on {device.type}")


def check_memory() -> Finding:
    """Memory of this machine, and what of it is free."""
    from distill_lit.utils import hardware

    total, free = hardware.main_memory()
    if not total:
        return Finding("memory", WARNING, "this system does not tell")
    state = GOOD if free >= MIN_FREE_MEMORY_BYTES else BAD
    remedy = "" if state == GOOD else "end other programs"
    wanted = f"{MIN_FREE_MEMORY_BYTES / 1e9:.0f} wanted for one worker"
    return Finding("memory", state, f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free, {wanted}", remedy)


def check_experiment_memory(experiment: "Experiment") -> Finding:
    """What the workers of an experiment need at their peak, against what is free."""
    from distill_lit.experiment.estimates.memory_estimate import peak_memory_bytes
    from distill_lit.experiment.estimates.pace import num_workers
    from distill_lit.utils import hardware

    subject = f"memory for {experiment.name}"
    if not experiment.has_models:
        return Finding(subject, WARNING, "unknown until its models are here", "distill-lit fetch")
    device = hardware.device_for(experiment.config.training.accelerator)
    workers = num_workers(experiment.runs)
    memories = {run.name: estimate.memory for run, estimate in experiment.estimated_runs() if estimate is not None}
    needed, runs = peak_memory_bytes(experiment.runs, memories, workers)
    free = hardware.free_memory(device)
    one = max((memory.total for memory in memories.values()), default=0)
    largest = f" ({runs[0].label})" if runs else ""
    found = f"{one / 1e9:.1f} GB for the largest worker{largest}, {needed / 1e9:.1f} GB for {workers}, "
    found += f"{free / 1e9:.1f} GB free" + (" on the GPU" if device.type == "cuda" else "")
    state = GOOD if needed <= free or not free else BAD
    remedy = (
        ""
        if state == GOOD
        else ("a smaller launcher.workers or training.micro_batch_size, or training.gradient_checkpointing=true")
    )
    return Finding(subject, state, found, remedy)


def check_free_disk(folder: Path) -> Finding:
    """Room where runs and caches go, and the right to write there."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Finding("disk", BAD, f"{place} cannot be written to", "choose another --root or DISTILL_LIT_CACHE")
    state = GOOD if free >= MIN_FREE_DISK_BYTES else BAD
    remedy = "" if state == GOOD else "make room, or choose another --root or DISTILL_LIT_CACHE"
    return Finding("disk", state, f"{folder}: {free / 1e9:,.1f} GB free, {MIN_FREE_DISK_BYTES / 1e9:.0f} wanted", remedy)


# ---------------------------------------------------------------- caches and network


def check_cache() -> list[Finding]:
    """Hashes every cached array and shard anew. What is damaged is rebuilt by the run that needs it."""
    found = []
    tests: dict[str, tuple[str, Callable[[Path], bool]]] = {"teacher_caches": ("manifest.json", _teacher_cache_is_intact)}
    tests |= {kind: (name, functools.partial(_is_whole, key=key)) for kind, (name, key) in CACHE_MANIFESTS.items()}
    for kind, (name, is_whole) in tests.items():
        manifests = sorted((cache_root() / kind).glob(f"*/{name}"))
        damaged = [path.parent for path in manifests if not is_whole(path)]
        said = f"{len(manifests)} entries in {cache_root() / kind}"
        if damaged:
            names = " ".join(str(folder) for folder in damaged)
            found.append(Finding(f"cache {kind}", BAD, f"{len(damaged)} of {said} damaged", f"rm -r {names}"))
        else:
            found.append(Finding(f"cache {kind}", GOOD, f"{said}, all whole"))
    return found


def _teacher_cache_is_intact(manifest: Path) -> bool:
    shards = Shards(manifest.parent)
    return shards.are_intact(shards.manifest().get("shards"))


def _is_whole(manifest: Path, key: str) -> bool:
    try:
        value = read_json(manifest)[key]
        listed: dict[str, Any] = {EVALUATION_RECORDS_FILE: value} if isinstance(value, str) else value
        return all(
            sha256_of(manifest.parent / name) == (entry["sha256"] if isinstance(entry, dict) else entry)
            for name, entry in listed.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
