"""How an experiment is stopped: what a first signal sets going, what a second one does, and what is never cut short."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

STALLED_SECONDS = 600.0  # after which a checkpoint that does not change is not being written any more
SAME_PRESS_SECONDS = 0.5  # a terminal and a program between may both pass on one Ctrl-C
CHECKPOINT_STAGES = ("train", "validate")  # those that a signal ends with a checkpoint


class Terminated(Exception):
    """The driver was asked to stop; `code` is its exit code: 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, code: int) -> None:
        super().__init__(f"stopped, exit code {code}")
        self.code = code


class StopSignals:
    """Signals that ask the driver to stop: the first raises Terminated; a Ctrl-C after it says that somebody will not wait.
    Other signals do not: a scheduler sends several by itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.first = ""  # the name of the first one
        self.is_urgent = False  # whether a second Ctrl-C has come
        self._since = 0.0

    def handle_signal(self, number: int, _: Any = None) -> None:
        """The signals' handler."""
        if not self.first:
            self.first, self._since = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name, self.clock()
            raise Terminated(130 if number == signal.SIGINT else 143)
        self.is_urgent |= number == signal.SIGINT and self.clock() - self._since > SAME_PRESS_SECONDS


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[StopSignals]:
    """Inside, signals that ask to stop are those of what it yields."""
    signals = StopSignals()
    # SLURM warns by one of the users' signals before a job's time is over; unhandled they would kill
    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, signals.handle_signal) for number in asking}
    try:
        yield signals
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class CheckpointWatch:
    """Which workers write a checkpoint: those with a file that is not complete, and that has not stood still too long."""

    def __init__(self) -> None:
        self._changed: dict[int, tuple[tuple[int, int], float]] = {}  # {worker: (its file as it was last, since when)}

    def is_writing(self, worker: int, unfinished: tuple[int, int] | None, now: float) -> bool:
        """Whether a worker writes. unfinished: as `unfinished_checkpoint` gives it; now: seconds of any clock."""
        if unfinished is None:
            return False
        state, since = self._changed.setdefault(worker, (unfinished, now))
        if state != unfinished:
            self._changed[worker], since = (unfinished, now), now
        return now - since < STALLED_SECONDS


def describe_stop(name: str, stages: Mapping[str, str], seconds: float) -> str:
    """What a first signal sets going, how long that may take, and what a second one does.

    Args:
        name: of the signal.
        stages: {label of a run at work: its stage}.
        seconds: that workers are given.
    """
    training = [label for label, stage in stages.items() if stage in CHECKPOINT_STAGES]
    others = [label for label in stages if label not in training]
    again = "Ctrl-C again" if name == "Ctrl-C" else "Ctrl-C"
    sentences = [f"{name}: stopping."]
    if training:
        sentences.append(f"A checkpoint is written after the present step of {_listed(training)}.")
    if others:
        sentences.append(f"What is not finished of {_listed(others)} will be done again.")
    sentences.append(f"This may take up to {seconds:.0f} s, longer only while a checkpoint is being written.")
    lost = ", and loses what was done since the last checkpoint" if training else ""
    sentences.append(f"{again} does not wait{lost}; a checkpoint that is being written is finished all the same.")
    return " ".join(sentences)


def _listed(labels: Sequence[str]) -> str:
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
