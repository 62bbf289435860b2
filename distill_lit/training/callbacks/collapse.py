"""On-policy collapse: a student that learns from its own text may stop to end it, repeat itself, or write nothing.

Its loss looks well meanwhile, because the text that it is taken on has become easy. Collapse is noticed from the text, said
once, and the run goes on.
"""

import logging
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from distill_lit.training.loggers import position_on_curves
from distill_lit.utils.progress import ProgressCallback, send_note
from distill_lit.utils.text_statistics import TextSums, add_sums

log = logging.getLogger(__name__)

# texts of the start, and of the moving average that is compared with it: a share of 128 is known within 0.045 (one
# standard error), so that a fall by half from MIN_START_FINISHED is more than three of them
WINDOW_TEXTS = 128
# language models that decode greedily, who are known for it, repeat 0.4 to 0.5, people less than 0.01 (Welleck et al. 2020,
# 1908.04319); text that is drawn at random is near people
MAX_REPETITION = 0.5
MIN_START_FINISHED = 0.4  # of texts that are cut off anyway, as plain text mostly is, none can stop to end
FINISHED_LEFT = 0.5  # of the share of the start
MIN_LENGTH = 1.5  # tokens: more than half of the texts are nothing but their end
# of distinct_2 at the start; it also falls a little where texts get longer, and rises where they get shorter, so that only
# texts of at least half the length count
DISTINCT_2_LEFT = 0.5


def find_collapse(start: TextSums, recent: TextSums) -> dict[str, str]:
    """{kind of collapse: what is said of it} of the latest texts, compared with those of the start."""
    then, now = start.means(), recent.means()
    found = {}
    if now["repetition"] >= MAX_REPETITION:
        found["repetition"] = (
            f"the student repeats itself: {now['repetition']:.0%} of the 4-grams of its texts had occurred before in the "
            f"same text, {then['repetition']:.0%} at the start"
        )
    if then["finished"] >= MIN_START_FINISHED and now["finished"] <= FINISHED_LEFT * then["finished"]:
        found["length"] = (
            f"the student no longer ends its texts: {now['finished']:.0%} end by themselves, {then['finished']:.0%} at the "
            f"start; their mean length is {now['length']:.0f} tokens, {then['length']:.0f} at the start"
        )
    if now["length"] <= MIN_LENGTH:
        found["empty"] = (
            f"the student writes next to nothing: the mean length of its texts is {now['length']:.1f} tokens with the end, "
            f"{then['length']:.1f} at the start"
        )
    is_long = now["length"] >= then["length"] / 2
    if is_long and now["distinct_2"] <= DISTINCT_2_LEFT * then["distinct_2"]:
        found["distinct_2"] = (
            f"the student's texts become alike: distinct_2 of a batch is {now['distinct_2']:.2f}, "
            f"{then['distinct_2']:.2f} at the start"
        )
    return found


class OnPolicyCollapseWarning(L.Callback):
    """Compares the last texts of the student with its first ones after every step, over all ranks, and says each kind of
    collapse once: in the log, on the terminal, as text in TensorBoard, and in `lines`. The same texts give the same lines,
    in a resumed run too."""

    def __init__(self, progress_callback: ProgressCallback | None = None) -> None:
        """`progress_callback`: by which a note reaches the terminal."""
        self.progress_callback = progress_callback
        self._start: list[TextSums] = []  # of steps, until there are WINDOW_TEXTS
        self._recent: list[TextSums] = []  # of the fewest last steps with so many
        self._lines: dict[str, str] = {}

    @property
    def lines(self) -> list[str]:
        """What has been said."""
        return list(self._lines.values())

    @property
    def state_key(self) -> str:
        """Under which it stands in a checkpoint; Lightning would take the name of the class."""
        return "on_policy_collapse"

    def state_dict(self) -> dict[str, Any]:
        """Both windows, and what has been said."""
        return {"start": [*map(list, self._start)], "recent": [*map(list, self._recent)], "lines": dict(self._lines)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self._start, self._recent = ([TextSums(*sums) for sums in state[name]] for name in ("start", "recent"))
        self._lines = dict(state["lines"])

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        """After the last text of a step, and before its checkpoint."""
        if module.on_policy_generator is None:
            return
        sums = torch.tensor(module.on_policy_generator.pop_text_sums(), dtype=torch.float64, device="cpu")
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(module.device, torch.float32), reduce_op="sum")
        self._add(TextSums(*sums.tolist()))
        if _count(self._recent) < WINDOW_TEXTS:
            return
        for kind, line in find_collapse(add_sums(self._start), add_sums(self._recent)).items():
            if kind not in self._lines:
                self._lines[kind] = f"on_policy: {line} (step {trainer.global_step}); the run goes on"
                self._say(trainer, self._lines[kind])

    def _add(self, sums: TextSums) -> None:
        if not sums.texts:
            return
        if _count(self._start) < WINDOW_TEXTS:
            self._start.append(sums)
        self._recent.append(sums)
        while _count(self._recent[1:]) >= WINDOW_TEXTS:
            del self._recent[0]

    def _say(self, trainer: L.Trainer, line: str) -> None:
        if not trainer.is_global_zero:
            return
        log.warning(line)
        if self.progress_callback is not None:
            send_note(self.progress_callback, line)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                step = position_on_curves(logger, trainer.global_step)
                logger.experiment.add_text("on_policy/collapse", line, step)


def _count(steps: list[TextSums]) -> float:
    return sum(sums.texts for sums in steps)
