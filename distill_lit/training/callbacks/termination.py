"""Signals that ask a training to stop, noted until a checkpoint is written."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TerminationRequest:
    """Which signal has asked to stop, empty while none has."""

    def __init__(self) -> None:
        self.signal_name = ""

    def handle_signal(self, number: int, *_: Any) -> None:
        """The signal's handler."""
        self.signal_name = self.signal_name or signal.Signals(number).name


@contextmanager
def catch_termination_signals() -> Iterator[TerminationRequest]:
    """Inside, SIGTERM does not end the process but is noted, so that a checkpoint can be written first; so are SIGUSR1 and
    SIGUSR2, by which schedulers warn before a job's time is over."""
    termination = TerminationRequest()
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    previous = {number: signal.signal(number, termination.handle_signal) for number in numbers}
    try:
        yield termination
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
