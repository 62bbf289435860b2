"""What SLURM's commands say: the queue, the limits, and what cancels a job."""

import re
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from distill_lit.utils.exceptions import one_line_message

TIMEOUT_SECONDS = 60.0
QUEUE_FORMAT = "%i|%F|%K|%j|%T|%N|%r"
# in what sinfo says of a node, as gpu:4, gpu:2080ti:8(S:0-1) or gpu:nvidia_a100-sxm4-80gb:4
GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)*:(\d+)(?=[,(]|$)")
IDS_PER_COMMAND = 500
ORDINARY_REASONS = ("None", "Resources", "Priority", "Dependency", "BeginTime", "JobArrayTaskLimit", "Cleaning")


class SlurmError(Exception):
    """A command of SLURM failed or did not answer; one line."""


class QueuedTask(NamedTuple):
    """A job in the queue. array: id of its array; tag and number: which task it is; state: as SLURM says it, such as
    PENDING; node: where it runs; reason: why it waits."""

    job: str
    array: str
    tag: str
    number: int
    state: str
    node: str
    reason: str

    @property
    def is_pending(self) -> bool:
        """Whether it waits."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING")

    @property
    def is_held(self) -> bool:
        """Whether it waits until somebody releases it."""
        return self.is_pending and ("held" in self.reason.lower() or self.state in ("REQUEUE_HOLD", "SPECIAL_EXIT"))

    def __str__(self) -> str:
        if self.is_held:
            return f"job {self.job} ({self.reason}); scontrol release {self.job}"
        if self.is_pending:
            return f"job {self.job}" + ("" if self.reason in ("", "None") else f" ({self.reason})")
        return f"job {self.job} on {self.node}" + ("" if self.state == "RUNNING" else f" ({self.state.lower()})")


def has_slurm() -> bool:
    """Whether SLURM's commands are here."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scontrol", "sinfo"))


def run_command(words: Sequence[str], timeout: float = TIMEOUT_SECONDS) -> str:
    """What a command prints. Raises SlurmError."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise SlurmError(f"{words[0]} is not here") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{words[0]} does not answer within {timeout:.0f} s") from None
    if done.returncode:
        raise SlurmError(f"{words[0]}: {one_line_message(Exception(done.stderr or done.stdout))}")
    return done.stdout


def queued_tasks(tags: Collection[str]) -> list[QueuedTask]:
    """This user's jobs of these arrays. Raises SlurmError."""
    return parse_queue(run_command(["squeue", "--me", "--array", "--noheader", f"--format={QUEUE_FORMAT}"]), tags)


def parse_queue(text: str, tags: Collection[str]) -> list[QueuedTask]:
    """The jobs of these arrays in what squeue prints."""
    found = []
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) == 7 and (tag := fields[3].rpartition(".")[2]) in tags:
            number = int(fields[2]) if fields[2].isdigit() else 0  # an array of one is no array
            found.append(QueuedTask(fields[0], fields[1], tag, number, *fields[4:]))
    return found


def job_name(experiment: str, tag: str) -> str:
    """What the jobs of an array are called."""
    return f"{experiment}.{tag}"


def cancel(jobs: Iterable[str]) -> None:
    """Cancels jobs by their ids. Raises SlurmError."""
    ids = list(jobs)
    for begin in range(0, len(ids), IDS_PER_COMMAND):
        run_command(["scancel", *ids[begin : begin + IDS_PER_COMMAND]])


def cluster_settings() -> dict[str, str]:
    """The cluster's configuration. Raises SlurmError."""
    lines = run_command(["scontrol", "show", "config"]).splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines) if value}


class Partition(NamedTuple):
    """A partition, as sinfo has it. minutes: the longest job, 0 for no limit; cpus: of its largest node; gpus: the same."""

    name: str
    is_default: bool
    minutes: int
    nodes: int
    cpus: int
    gpus: int


def partitions() -> dict[str, Partition]:
    """{name: partition}. Raises SlurmError."""
    return parse_partitions(run_command(["sinfo", "--noheader", "--format=%P|%l|%D|%c|%G"]))


def parse_partitions(text: str) -> dict[str, Partition]:
    """What sinfo says of partitions, a line for each kind of node."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, limit, nodes, cpus, gres = (part.strip() for part in line.split("|", 4))
        gpus = sum(map(int, GPUS.findall(gres)))
        bare = name.rstrip("*")
        before = found.get(bare, Partition(bare, name.endswith("*"), 0, 0, 0, 0))
        cores = int(re.sub(r"\D", "", cpus) or 0)
        found[bare] = Partition(
            bare, before.is_default, parse_minutes(limit), before.nodes + int(nodes), max(before.cpus, cores),
            max(before.gpus, gpus),
        )  # fmt: skip
    return found


def parse_minutes(text: str) -> int:
    """Minutes of `1-12:30:00`, `2:00:00` or `30:00`; 0 for `infinite`."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", text):
        return 0
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    seconds: int = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    return int(days or 0) * 1440 + seconds // 60


def by_run(tasks: Iterable[QueuedTask], records: "Mapping[str, Sequence[tuple[str, str]]]") -> dict[str, QueuedTask]:
    """{name of a run: its job in the queue}, the one at work where there are several."""
    found: dict[str, QueuedTask] = {}
    for task in tasks:
        names = records.get(task.tag, ())
        if task.number < len(names):
            name = names[task.number][0]
            if name not in found or found[name].is_pending:
                found[name] = task
    return found
