"""Time spent on training alone."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PausableTimer:
    """Counts seconds from its start on, but for pauses, which may be nested; before the start it stands."""

    def __init__(self) -> None:
        self._before = 0.0  # seconds of finished stretches
        self._since: float | None = None  # when the present stretch began
        self._pauses = 0
        self._is_started = False

    def start(self) -> None:
        """Begins at zero, now."""
        self._before, self._is_started = 0.0, True
        self._since = None if self._pauses else time.perf_counter()

    def lap(self) -> float:
        """The seconds since the start or the last call of this."""
        now = time.perf_counter()
        seconds = self._before + (now - self._since if self._since is not None else 0.0)
        self._before, self._since = 0.0, now if self._since is not None else None
        return seconds

    def pause(self) -> None:
        """What follows does not count."""
        self._pauses += 1
        if self._since is not None:
            self._before += time.perf_counter() - self._since
            self._since = None

    def resume(self) -> None:
        """The end of a pause."""
        self._pauses -= 1
        if self._is_started and not self._pauses:
            self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is inside does not count."""
        self.pause()
        try:
            yield
        finally:
            self.resume()
