"""Scores while a student trains: the experiment's tasks, asked between two optimizer steps, as curves in TensorBoard."""

import copy
from typing import Any

import lightning as L

from distill_lit.config import EvaluationConfig
from distill_lit.evaluation.evaluator import evaluate_loaded, main_scores


class MidwayEvaluation(L.Callback):
    """Evaluates the student before the first step and every `evaluation.every` of the training, on at most
    `evaluation.every_limit` documents per task.

    The training is the same with and without it, to the bit: random states and modes are as before afterwards.
    """

    def __init__(self, tokenizer: Any, settings: EvaluationConfig, benchmarks: str, steps: int) -> None:
        """`tokenizer`: the student's, with the template it is trained on; `steps`: of the whole training."""
        self.settings = copy.deepcopy(settings)
        limits = [limit for limit in (settings.limit, settings.every_limit) if limit]
        self.settings.limit = min(limits, default=0)
        self.tokenizer, self.benchmarks = tokenizer, benchmarks
        self.every = max(1, round(settings.every * steps))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The student as it was made; in a resumed training that of the checkpoint, whose point was dropped."""
        if trainer.global_step % self.every == 0:
            self._evaluate(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """After an optimizer step that is due, not within a window of accumulation."""
        if trainer.global_step % self.every == 0 and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._evaluate(trainer, module)

    def _evaluate(self, trainer: L.Trainer, module: Any) -> None:
        with module.clock.paused():  # asking questions does not count as training
            if trainer.is_global_zero:
                self._log_scores(trainer, module)
            trainer.strategy.barrier()

    def _log_scores(self, trainer: L.Trainer, module: Any) -> None:
        tokenizer = copy.deepcopy(self.tokenizer)  # an evaluation may set its padding
        found = evaluate_loaded(module.student, tokenizer, self.settings, self.benchmarks)
        scores = {f"evaluation/{task}": value for task, value in main_scores(found.meta).items()}
        above = [
            (scores[f"evaluation/{task}"] - facts["chance"]) / (1 - facts["chance"])
            for task, facts in found.meta.items()
            if f"evaluation/{task}" in scores and facts["metric"].startswith("acc")
        ]
        if above:
            scores["evaluation/above_chance"] = sum(above) / len(above)
        for logger in trainer.loggers:
            logger.log_metrics(scores, trainer.global_step)
