"""TensorBoard's curves: over tokens, and what never changes once."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from distill_lit.training.curve_axis import CurveAxis

SCHEDULED = ("weight/", "temperature/")  # what is set in advance, and mostly constant
AXIS_METRICS = ("train/tokens", "epoch")  # what the axis says already


class CurvesLogger(TensorBoardLogger):
    """Lightning's logger on an axis of tokens or steps; weights and temperatures are written when they change."""

    def __init__(self, *args: Any, curve_axis: CurveAxis, **options: Any) -> None:
        """curve_axis: where a step is; everything else as Lightning's."""
        super().__init__(*args, **options)
        self.curve_axis = curve_axis
        self._scheduled: dict[str, float] = {}  # as they were written last

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # type: ignore[override]
        """Writes what is new."""
        new = {name: value for name, value in metrics.items() if self._is_new(name, value)}
        if new:
            super().log_metrics(new, None if step is None else self.curve_axis.position(step))

    def finalize(self, status: str) -> None:
        """What was logged is on disk; the file stays open. Lightning ends the validation before a training and the training
        by this, and two files of one second are read in the order of their numbers as text, 10 before 9, when TensorBoard
        takes the first one's steps for those of a run that was begun anew."""
        if self._experiment is not None:
            self._experiment.flush()
        if status == "success":
            self.save()

    def close(self) -> None:
        """Closes the file, behind all trainings and validations."""
        if self._experiment is not None:
            self._experiment.close()

    def _is_new(self, name: str, value: float) -> bool:
        if name in AXIS_METRICS:
            return False
        if not name.startswith(SCHEDULED):
            return True
        is_new = self._scheduled.get(name) != value
        self._scheduled[name] = value
        return is_new
