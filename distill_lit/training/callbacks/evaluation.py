"""Scores while a student trains: the experiment's tasks, asked between two optimizer steps, as curves in TensorBoard."""

import copy
from typing import Any

import lightning as L

from distill_lit.config import EvaluationConfig
from distill_lit.evaluation.evaluator import evaluate_loaded
from distill_lit.evaluation.task_scores import mean_above_chance, primary_scores
from distill_lit.training.callbacks.throughput import pause_throughput


class EvaluationCallback(L.Callback):
    """Evaluates the student before the first step and every `evaluation.interval` of the training, on at most
    `evaluation.interval_limit` documents per task.

    The training is the same with and without it, to the bit: random states and modes are as before afterwards.
    """

    def __init__(self, tokenizer: Any, evaluation_config: EvaluationConfig, dataset_source: str, max_steps: int) -> None:
        """`tokenizer`: the student's, with the template it is trained on; `max_steps`: of the whole training."""
        self.evaluation_config = copy.deepcopy(evaluation_config)
        limits = [limit for limit in (evaluation_config.limit, evaluation_config.interval_limit) if limit]
        self.evaluation_config.limit = min(limits, default=0)
        self.tokenizer, self.dataset_source = tokenizer, dataset_source
        self.interval_steps = max(1, round(evaluation_config.interval * max_steps))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The student as it was made; in a resumed training that of the checkpoint, whose point was dropped."""
        if trainer.global_step % self.interval_steps == 0:
            self._evaluate(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """After an optimizer step that is due, not within a window of accumulation."""
        if trainer.global_step % self.interval_steps == 0 and not trainer.fit_loop.epoch_loop._should_accumulate():
            self._evaluate(trainer, module)

    def _evaluate(self, trainer: L.Trainer, module: Any) -> None:
        with pause_throughput(trainer):  # asking questions does not count as training
            if trainer.is_global_zero:
                self._log_scores(trainer, module)
            trainer.strategy.barrier()

    def _log_scores(self, trainer: L.Trainer, module: Any) -> None:
        tokenizer = copy.deepcopy(self.tokenizer)  # an evaluation may set its padding
        evaluation = evaluate_loaded(module.student, tokenizer, self.evaluation_config, self.dataset_source)
        scores = {f"evaluation/{task}": value for task, value in primary_scores(evaluation.meta).items()}
        above = mean_above_chance(evaluation.meta)
        if above is not None:
            scores["evaluation/above_chance"] = above
        for logger in trainer.loggers:
            logger.log_metrics(scores, trainer.global_step)
