"""Runs as arrays of jobs: one for each level of needs and each shape of job, none larger than the cluster takes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from distill_lit.config import ExperimentConfig
from distill_lit.experiment.planning.planned_run import BUILD, EVALUATE, Run

GPU_FREE = "cpu"  # the accelerator that asks for no GPU


class Shape(NamedTuple):
    """What a job asks for, of one process on each node; gpus and cpus: of each node."""

    nodes: int
    gpus: int
    cpus: int


class Task(NamedTuple):
    """A run, or one part of it: `build` or `evaluate`, empty for both."""

    run: Run
    part: str = ""

    @property
    def is_builder(self) -> bool:
        """Whether the run's model is there after it."""
        return self.part != EVALUATE


@dataclass
class Array:
    """Tasks of one level of needs and one shape. after: indices of earlier arrays that it waits for; after_jobs: ids of
    jobs in the queue that it waits for."""

    shape: Shape
    tasks: list[Task]
    after: set[int] = field(default_factory=set)
    after_jobs: set[str] = field(default_factory=set)


def job_shape(run: Run, part: str) -> Shape:
    """What one job of a run asks for: a training has all its nodes and devices, and what else there is those of one
    process. There is one process on each node, which starts the ranks there."""
    slurm, training = run.config.launcher.slurm, run.config.training
    is_together = training.ranks > 1 and part != EVALUATE and run.may_take_all_ranks
    nodes, ranks = (training.nodes, training.devices) if is_together else (1, 1)
    uses_gpus = slurm.gpus_per_node > 0 and training.accelerator != GPU_FREE
    gpus = (ranks if is_together else slurm.gpus_per_node) if uses_gpus else 0
    return Shape(nodes, gpus, slurm.cpus_per_task * ranks)


def tasks_of(run: Run, is_built: bool) -> list[Task]:
    """The jobs of a run: where several devices train, they do not wait while one evaluates."""
    if job_shape(run, BUILD) == job_shape(run, EVALUATE) or not run.is_model:
        return [Task(run)]
    return [Task(run, EVALUATE)] if is_built else [Task(run, BUILD), Task(run, EVALUATE)]


def plan_arrays(
    todo: Sequence[Run], is_built: Callable[[Run], bool], limit: int, queued: Mapping[str, str] | None = None
) -> list[Array]:
    """The arrays for these runs, each after those that it needs.

    Args:
        todo: runs that are neither done nor queued, each after what it depends on.
        is_built: whether a run's model is there.
        limit: tasks of the largest array that the cluster takes.
        queued: {name of a run that is in the queue: id of its array}.
    """
    queued, levels, groups = queued or {}, {}, {}  # type: ignore[var-annotated]
    for run in todo:
        level = 1 + max((levels[name] for name in run.depends_on if name in levels), default=0)
        for step, task in enumerate(tasks_of(run, is_built(run))):
            groups.setdefault((level + step, job_shape(run, task.part)), []).append(task)
            if task.is_builder:
                levels[run.name] = level
    arrays: list[Array] = []
    builders: dict[str, int] = {}  # {name of a run: index of the array that builds it}
    for (_, shape), tasks in sorted(groups.items(), key=lambda group: group[0][0]):
        for begin in range(0, len(tasks), limit):
            part = tasks[begin : begin + limit]
            array = Array(shape, part, {len(arrays) - 1} if begin else set())  # `workers` holds for all of a level
            needed = {name for task in part for name in _needs(task)}
            array.after |= {builders[name] for name in needed if name in builders}
            array.after_jobs = {queued[name] for name in needed if name in queued and name not in builders}
            builders |= {task.run.name: len(arrays) for task in part if task.is_builder}
            arrays.append(array)
    return arrays


def _needs(task: Task) -> tuple[str, ...]:
    return task.run.depends_on if task.is_builder else (*task.run.depends_on, task.run.name)


def total_tasks(arrays: Sequence[Array]) -> int:
    """Jobs of all arrays."""
    return sum(len(array.tasks) for array in arrays)


def workers_of(config: ExperimentConfig, array: Array) -> int:
    """Tasks of an array at a time."""
    return min(config.launcher.workers, len(array.tasks))
