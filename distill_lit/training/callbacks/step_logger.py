"""What is logged of optimizer steps and validations: losses per token, weights, fidelity, speed."""

import math
from typing import Any

import lightning as L

from distill_lit.losses import Objective
from distill_lit.training.callbacks.nonfinite_guard import gradient_norm
from distill_lit.training.callbacks.throughput import TokenThroughput

# {what it is called of text that the student wrote: what the loss calls it}
OWN_TEXT_METRICS = {"reverse_kl": "own_reverse_kl", "engine_gap": "engine_gap", "importance_ratio": "importance_ratio"}


def is_logging_step(trainer: L.Trainer) -> bool:
    """Whether the optimizer step that is being made is logged: every `log_every_n_steps`, from the first on."""
    return bool(trainer.log_every_n_steps) and trainer.global_step % trainer.log_every_n_steps == 0


class StepLogger(L.Callback):
    """Writes every loss in nats per supervised token of the whole optimizer step, of all micro-batches and ranks."""

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        """Logs the step that is about to be taken, under the number of steps before it."""
        if is_logging_step(trainer):
            values = self._step_metrics(trainer, module)
            module.log_dict(values, logger=False)
            # at once: Lightning would after the checkpoint of this step, and a kill in between would lose them
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)
        module.train_metrics.reset()

    def _step_metrics(self, trainer: L.Trainer, module: Any) -> dict[str, float]:
        objective, progress = module.loss.objective, module.progress
        values = module.train_metrics.compute("train")
        for term in objective.logit_terms:
            values[f"weight/{term.name}"] = term.weight(progress)
            values[f"temperature/{term.name}"] = term.temperature(progress)
        for feature_term in objective.feature_terms:
            values[f"weight/{feature_term.name}"] = feature_term.weight(progress)
        values |= _weighted_loss(objective, values, "train", progress)
        throughput = next(callback for callback in trainer.callbacks if isinstance(callback, TokenThroughput))
        speed, seconds = throughput.measure(trainer, module.device)
        if module.on_policy_generator is not None:
            found = module.on_policy_generator.pop_metrics(seconds)
            for name, measured in OWN_TEXT_METRICS.items():
                found[name] = values.pop(f"train/{measured}", math.nan)
            values.pop("train/engine_tokens", None)
            values |= {f"on_policy/{name}": value for name, value in found.items() if not math.isnan(value)}
        # not measured yet where this callback stands before the guard, as one that a Trainer was given
        norm = gradient_norm(module) if module.gradient_norm is None else module.gradient_norm
        return {**values, **speed, "train/gradient_norm": float(norm)}

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Logs the means over all validation rows, and the objective at the present weights; nothing where a module's own
        `validation_step` has measured none of them."""
        values = module.validation_metrics.compute("validation")
        values |= _weighted_loss(module.loss.objective, values, "validation", module.progress)
        if "validation/loss" not in values:
            return
        if module.on_policy_generator is not None and not trainer.sanity_checking:
            module.on_policy_generator.update_adaptive_fraction(values["validation/loss"])
        # the number of steps done, under which Lightning logs: its own count lags by one here
        module.log_dict({**values, "step": float(trainer.global_step)})
        module.validation_metrics.reset()


def _weighted_loss(objective: Objective, values: dict[str, float], stage: str, progress: float) -> dict[str, float]:
    """{stage/loss: the objective of logged terms at the present weights}; {} where a module's own step measures none."""
    weights = {f"{stage}/{name}": weight for name, weight in objective.weights(progress).items()}
    if not weights.keys() <= values.keys():
        return {}
    return {f"{stage}/loss": sum(weight * values[name] for name, weight in weights.items())}
