"""One line about a run at work that fits the terminal: label, stage, bar, count, time left, loss, validation KL."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from distill_lit.experiment.state.status import format_seconds

LOSS, VALIDATION_KL, TRAINING_KL = "train/loss", "validation/teacher_kl", "train/teacher_kl"
MIN_LABEL, MIN_BAR, MAX_BAR = 10, 4, 20
GAP = "  "


@dataclass
class Work:
    """A run at work. began: when, by the display's clock."""

    label: str
    began: float
    stage: str = "starting"
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    metrics: dict[str, float] = field(default_factory=dict)  # the latest of all stages
    _stages: dict[str, tuple[float, float]] = field(default_factory=dict)  # {stage: (seconds in it, what was done in them)}
    _last: float = 0.0

    def update(self, stage: str, done: float, total: float, unit: str, metrics: Mapping[str, float], now: float) -> None:
        """A report of the worker."""
        if stage == self.stage:
            seconds, worked = self._stages.get(stage, (0.0, 0.0))
            self._stages[stage] = seconds + now - self._last, worked + max(0.0, done - self.done)
        self.stage, self.done, self.total, self.unit, self._last = stage, done, total, unit, now
        self.metrics.update(metrics)

    def seconds_left(self, now: float) -> float | None:
        """Of the stage, at the speed that it has had when it was at work; None where that is not known."""
        seconds, worked = self._stages.get(self.stage, (0.0, 0.0))
        if not worked or not self.total:
            return None
        return max(0.0, (self.total - self.done) * seconds / worked - (now - self._last))

    def losses(self) -> list[str]:
        """Loss and validation KL, or the training KL before there was a validation."""
        named = (("loss", LOSS), ("val KL", VALIDATION_KL))
        found = [f"{name} {self.metrics[key]:.3g}" for name, key in named if key in self.metrics]
        if VALIDATION_KL not in self.metrics and TRAINING_KL in self.metrics:
            found.append(f"KL {self.metrics[TRAINING_KL]:.3g}")
        return found

    def plain_line(self) -> str:
        """For an output that is no terminal: no bar."""
        left = self.seconds_left(self._last)
        parts = [f"{self.stage} {short_count(self.done)}/{short_count(self.total)} {self.unit}".rstrip()]
        parts += [] if left is None else [f"{format_seconds(left)} left"]
        return GAP.join([*parts, *self.losses()])


def short_count(value: float) -> str:
    """999, 13.3k, 2M, 1.5G: at most five characters."""
    for limit, divisor, suffix in ((1e4, 1.0, ""), (999_950, 1e3, "k"), (999_950_000, 1e6, "M"), (float("inf"), 1e9, "G")):
        if value < limit:
            return f"{value / divisor:.1f}".removesuffix(".0") + suffix if suffix else f"{value:.0f}"
    return "∞"


def progress_line(work: Work, width: int, now: float) -> Text:
    """One line of at most `width` cells. Where there is little room, the bar gets shorter, then the label; then losses,
    time left and count are left out, the last one first."""
    left = work.seconds_left(now)
    count = f"{short_count(work.done)}/{short_count(work.total)}" if work.total else ""
    tail = [part for part in (count, "" if left is None else f"{format_seconds(left)} left", *work.losses()) if part]
    while tail and _cells([work.stage, *tail]) + MIN_LABEL + MIN_BAR + 2 * len(GAP) > width:
        tail.pop()
    room = width - _cells([work.stage, *tail]) - 2 * len(GAP)
    bar = max(MIN_BAR, min(MAX_BAR, room - cell_len(work.label)))
    line = Text(no_wrap=True, overflow="crop")
    line.append(fit(work.label, max(MIN_LABEL, room - bar)), "bold")
    line.append(GAP + work.stage + GAP)
    filled = round(bar * min(1.0, work.done / work.total)) if work.total else 0
    line.append("━" * filled, "green")
    line.append("━" * (bar - filled), "dim")
    line.append("".join(GAP + part for part in tail))
    line.truncate(width)
    return line


def fit(label: str, cells: int) -> str:
    """A label in at most so many cells: its middle is left out, since labels differ at both ends."""
    if cell_len(label) <= cells:
        return label
    front = (cells - 1) // 2
    return set_cell_size(label, front).rstrip() + "…" + _last_cells(label, cells - 1 - front)


def _last_cells(text: str, cells: int) -> str:
    while cell_len(text) > cells:
        text = text[1:]
    return text


def _cells(parts: list[str]) -> int:
    return sum(map(cell_len, parts)) + len(GAP) * (len(parts) - 1)
