"""What a task can tell: the teacher's score against chance, and how far models differ on it against how far seeds do."""

from dataclasses import dataclass

import numpy as np

from distill_lit.analysis import scores as sc
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval


@dataclass(frozen=True)
class TaskSignal:
    """Of one task, all as shares of its metric.

    teacher: its score with interval, NaN without the teacher's records. signal: standard deviation of the scores of all
    groups;
    noise: of the seeds of one group, all groups together (NaN with one seed each). Documents move all models alike, and are
    in neither. Heineman et al. 2508.13144, with seeds in place of checkpoints and standard deviations in place of ranges.
    """

    task: str
    metric: str
    n: int
    chance: float
    teacher: Interval
    above_chance: bool  # whether the teacher is, with confidence
    signal: float
    noise: float

    @property
    def signal_to_noise(self) -> float:
        """How many times the noise the signal is; NaN where one of them is not known."""
        return self.signal / self.noise if self.noise > 0 else float("nan")


def task_signals(scores: Scores) -> list[TaskSignal]:
    """One for each task."""
    found = []
    for t, task in enumerate(scores.responses.tasks):
        nothing = Interval(np.nan, np.nan, np.nan)
        teacher = nothing if scores.teacher is None else sc.task_score(scores, t, scores.teacher)
        known = scores.raw[t][np.isfinite(scores.raw[t])]
        signal = float(known.std(ddof=1)) if len(known) > 1 else float("nan")
        chance = float(task.chance.mean())
        found.append(TaskSignal(task.task, task.metric, task.n, chance, teacher, bool(teacher.low > chance), signal,
                                _seed_deviation(scores, t)))  # fmt: skip
    return found


def _seed_deviation(scores: Scores, t: int) -> float:
    """Standard deviation over seeds, pooled over the groups that have several."""
    squares = degrees = 0.0
    for g, group in enumerate(scores.groups):
        deviation = sc.seed_std(scores, g, t)
        if np.isfinite(deviation):
            degrees += len(group.models) - 1
            squares += (len(group.models) - 1) * deviation**2
    return (squares / degrees) ** 0.5 if degrees else float("nan")
