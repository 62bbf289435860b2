"""The LightningModule: a trainable student, a frozen teacher signal beside it, and the objective between them."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from distill_lit.config import TrainingConfig
from distill_lit.losses import LossOutput, Objective, fused_linear_distillation_loss, label_logprobs_from_hidden
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.targets import IGNORE_INDEX, CrossTokenizerTarget
from distill_lit.models.activations import Activations, LayersByKind, capture_activations
from distill_lit.models.backbone import get_backbone
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.teachers import HiddenStateTeacher, Teacher
from distill_lit.training.feature_alignment import FeatureAlignment
from distill_lit.training.on_policy import OnPolicyGenerator
from distill_lit.training.timer import PausableTimer
from distill_lit.utils.exceptions import UserError

Batch = dict[str, Tensor]


class FusedLossSettings(NamedTuple):
    """How the fused head runs: tokens per pass, whether its element-wise part is compiled, format of its products."""

    chunk_size: int
    compiled: bool
    dtype: torch.dtype


class Distiller(L.LightningModule):
    """Trains `student` under `objective`.

    The signal is no nn.Module: the teacher is in no optimizer, no checkpoint, and no `.train()` reaches it. Every logged
    loss is in nats per supervised token of the whole optimizer step.
    """

    def __init__(
        self,
        student: Any,
        vocab_size: int,
        objective: Objective,
        teacher: Teacher | None,
        training_config: TrainingConfig,
        max_steps: int,
        sequence_length: int,
        fused_loss_settings: FusedLossSettings,
        feature_alignment: FeatureAlignment | None = None,
        on_policy_generator: OnPolicyGenerator | None = None,
    ) -> None:
        """`vocabulary`: real tokens shared with the teacher; `signal`: None for objectives without a teacher, which then
        has no fidelity metrics; `steps`: optimizer steps of the whole training;
        `length`: tokens per row; `matching`: what terms on inner states need, whose teacher is an `HiddenStateTeacher`;
        `student_text`: makes some batches text that the student writes."""
        super().__init__()
        if bool(objective.feature_terms) != (feature_alignment is not None):
            raise UserError("objective: terms on inner states need a matching of student and teacher, and only they do")
        if objective.needs_teacher and teacher is None:
            raise UserError("objective: a term compares with the teacher, and there is no teacher signal")
        if feature_alignment is not None and not isinstance(teacher, HiddenStateTeacher):
            raise UserError("objective: a term compares inner states, and this teacher signal has none")
        if training_config.gradient_checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        if training_config.compile:
            get_backbone(student).compile()
        self.student = student
        self.vocab_size = vocab_size
        self.objective = objective
        self.teacher = teacher
        self.feature_alignment = feature_alignment
        self.on_policy_generator = on_policy_generator
        self.training_config = training_config
        self.max_steps = max_steps
        self.sequence_length = sequence_length
        self.fused_loss_settings = fused_loss_settings
        self._train_metrics: dict[str, MeanMetric] = {}
        self._validation_metrics: dict[str, MeanMetric] = {}
        self._tokens_seen = 0
        self._teacher_device: torch.device | None = None
        self.timer = PausableTimer()  # of training: whoever does something else between two steps pauses it
        self.is_step_non_finite = False

    # ---------------------------------------------------------------- losses

    def compute_loss(self, batch: Batch, denominator: Tensor, measure: bool, with_teacher: bool) -> tuple[LossOutput, int]:
        """The objective on one batch, and its number of supervised tokens. Shift and mask happen here, once.

        `on_policy_mask` in the batch, (B, T) bool, marks tokens that the student wrote, for losses that ask.
        """
        targets = batch["labels"][:, 1:]
        chosen = targets != IGNORE_INDEX
        ours_wanted, theirs_wanted = (
            self.feature_alignment.captured_layers if self.feature_alignment is not None else ({}, {})
        )
        with capture_activations(self.student, ours_wanted) as ours:
            hidden = last_hidden_state(self.student, batch, ours)[:, :-1][chosen]
        with self._teacher_states(batch, theirs_wanted) as theirs:
            target = self.teacher.target(batch, chosen) if self.teacher is not None and with_teacher else None
        on_policy_mask = batch["on_policy_mask"][:, 1:][chosen] if "on_policy_mask" in batch else None
        if on_policy_mask is None and self.on_policy_generator is not None:
            on_policy_mask = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        chunk, compiled, dtype = self.fused_loss_settings
        with torch.autocast(hidden.device.type, enabled=False), self._head_gradient():
            if isinstance(target, CrossTokenizerTarget) and self.objective.reads_span_logprobs:
                head = get_lm_head(self.student, self.vocab_size)
                target = target.with_student_logprobs(
                    label_logprobs_from_hidden(hidden.to(dtype), head, targets[chosen], chunk)
                )
            losses = fused_linear_distillation_loss(
                self.objective,
                hidden.to(dtype),
                get_lm_head(self.student, self.vocab_size),
                target,
                targets[chosen],
                denominator=denominator,
                on_policy_mask=on_policy_mask,
                progress=self.global_step / self.max_steps,
                chunk_size=chunk,
                compiled=compiled,
                compute_metrics=measure,
            )
        if self.feature_alignment is not None:
            losses = self._add_feature_terms(losses, self.feature_alignment, ours, theirs, batch, denominator)
        return losses, int(chosen.sum())

    def _teacher_states(self, batch: Batch, wanted: LayersByKind) -> AbstractContextManager[Activations]:
        return (
            self.teacher.activations(batch, wanted)
            if isinstance(self.teacher, HiddenStateTeacher) and wanted
            else nullcontext({})
        )

    def _head_gradient(self) -> AbstractContextManager[None]:
        """No gradient is asked of the head when all terms are on inner states; it then only measures."""
        return nullcontext() if self.objective.logit_terms else torch.no_grad()

    def _add_feature_terms(
        self,
        losses: LossOutput,
        matching: FeatureAlignment,
        ours: Activations,
        theirs: Activations,
        batch: Batch,
        denominator: Tensor,
    ) -> LossOutput:
        """The same losses with the terms on inner states added: the same tokens, the same denominator."""
        chosen, done = batch["labels"][:, 1:] != IGNORE_INDEX, self.global_step / self.max_steps
        with torch.autocast(chosen.device.type, enabled=False):
            sums = matching(ours, theirs, batch["document_ids"], chosen)
        weights = sums.new_tensor([term.weight(done) for term in self.objective.feature_terms])
        total = losses.total + (weights * sums).sum() / denominator.clamp(min=1)
        return losses._replace(total=total, term_sums=torch.cat([losses.term_sums, sums.detach()]))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a micro-batch; summed over the window and the ranks it is the mean over the step's tokens."""
        compute_metrics = self.global_step % self.training_config.log_every_n_steps == 0
        batch, on_policy_metrics = self._maybe_generate_on_policy(batch, index)
        losses, tokens = self.compute_loss(batch, batch["step_tokens"], compute_metrics, self.objective.needs_teacher)
        self._update_metrics(self._train_metrics, losses, tokens)
        if self.on_policy_generator is not None:
            self.on_policy_generator.update_metrics(on_policy_metrics, self.device)
        self._tokens_seen += batch["input_ids"].numel()
        # Lightning divides by the accumulated batches and averages over ranks; the denominator has counted them all
        total: Tensor = losses.total * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return total

    def _maybe_generate_on_policy(self, batch: Batch, index: int) -> tuple[Batch, dict[str, float]]:
        """(the batch, or one that the student has written instead; what there is to log of the latter)."""
        if self.on_policy_generator is None:
            return batch, {}
        found = self.on_policy_generator.maybe_generate(batch, self.student, self.global_step, index)
        if found is None:
            return batch, {}
        written, facts = found
        # how many tokens the other batches of the step will have is not known yet: each counts for its share of the step
        share = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return {**written, "step_tokens": written["step_tokens"] * share}, facts

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collects losses and fidelity over held-out rows."""
        tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum()
        losses, count = self.compute_loss(batch, tokens, measure=True, with_teacher=True)
        self._update_metrics(self._validation_metrics, losses, count)

    def _update_metrics(self, metrics: dict[str, MeanMetric], losses: LossOutput, tokens: int) -> None:
        terms = zip(self.objective.term_names, losses.term_sums, strict=True)
        values: dict[str, tuple[Tensor, Any]] = {name: (total / max(tokens, 1), tokens) for name, total in terms}
        for name, (mean, count) in {**values, **{f"{n}_": v for n, v in losses.metric_means(tokens).items()}}.items():
            if name not in metrics:
                metrics[name] = MeanMetric().to(self.device)
            metrics[name].update(mean.detach(), weight=count)

    # ---------------------------------------------------------------- what is logged

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips by norm, refuses a step that is not finite, and logs the step."""
        limit = self.training_config.max_grad_norm or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        if not torch.isfinite(norm):
            self.mark_step_non_finite()
            raise FloatingPointError(f"gradient norm is {float(norm)} at step {self.global_step}; the step was not taken")
        if self.global_step % self.training_config.log_every_n_steps == 0:
            self._log_step(self._step_metrics(float(norm)))
        self._reset_metrics(self._train_metrics)

    def mark_step_non_finite(self) -> None:
        """Notes that all ranks, which see the same, do not take this step: they can still tell each other why."""
        self.is_step_non_finite = True

    def _log_step(self, values: dict[str, float]) -> None:
        """Writes a step's metrics at once: Lightning would after the checkpoint of this step, and a kill in between
        would lose them."""
        self.log_dict(values, logger=False)
        for logger in self.loggers:
            logger.log_metrics(values, self.global_step)

    def _step_metrics(self, norm: float) -> dict[str, float]:
        progress = self.global_step / self.max_steps
        values = self._means(self._train_metrics, "train")
        for term in self.objective.logit_terms:
            values[f"weight/{term.name}"], values[f"temperature/{term.name}"] = (
                term.weight(progress),
                term.temperature(progress),
            )
        for other in self.objective.feature_terms:
            values[f"weight/{other.name}"] = other.weight(progress)
        values["train/loss"] = self._weighted_loss(values, "train")
        seconds = self.timer.lap()
        if self.on_policy_generator is not None:
            on_policy_metrics = {
                **self.on_policy_generator.pop_metrics(seconds),
                "reverse_kl": values.pop("train/own_reverse_kl", math.nan),
            }
            values |= {f"on_policy/{name}": value for name, value in on_policy_metrics.items() if not math.isnan(value)}
        tokens_seen = self.trainer.strategy.reduce(
            torch.tensor(float(self._tokens_seen), device=self.device), reduce_op="sum"
        )
        values["train/tokens_per_second"] = float(tokens_seen) / max(seconds, 1e-9)
        self._tokens_seen = 0
        tokens = (self.global_step + 1) * self.tokens_per_step
        return {**values, "train/gradient_norm": norm, "train/tokens": float(tokens)}

    @property
    def tokens_per_step(self) -> int:
        """Positions that all ranks read in one optimizer step, padding included."""
        config = self.training_config
        return config.micro_batch_size * config.gradient_accumulation_steps * config.devices * self.sequence_length

    def on_validation_epoch_end(self) -> None:
        """Logs the means over all validation rows, and the objective at the present weights."""
        values = self._means(self._validation_metrics, "validation")
        values["validation/loss"] = self._weighted_loss(values, "validation")
        if self.on_policy_generator is not None:
            self.on_policy_generator.update_adaptive_fraction(values["validation/loss"])
        # the number of steps done, under which Lightning logs: its own count lags by one here
        self.log_dict({**values, "step": float(self.global_step)})
        self._reset_metrics(self._validation_metrics)

    def _means(self, metrics: dict[str, MeanMetric], stage: str) -> dict[str, float]:
        """{stage/name: mean}; a measure gives way to a term of the same name, and is left out where it is of no token."""
        means = {name: float(metric.compute()) for name, metric in metrics.items()}
        measured = {f"{stage}/{n.rstrip('_')}": v for n, v in means.items() if n.endswith("_") and not math.isnan(v)}
        return measured | {f"{stage}/{name}": value for name, value in means.items() if not name.endswith("_")}

    def _weighted_loss(self, values: dict[str, float], stage: str) -> float:
        """The objective of logged terms at the present weights."""
        weights = self.objective.weights(self.global_step / self.max_steps)
        return sum(weight * values[f"{stage}/{name}"] for name, weight in weights.items())

    def _reset_metrics(self, metrics: dict[str, MeanMetric]) -> None:
        for metric in metrics.values():
            metric.reset()

    # ---------------------------------------------------------------- Lightning

    def on_fit_start(self) -> None:
        """The teacher may not have been moved by a validation."""
        self._move_teacher()

    def on_train_start(self) -> None:
        """Training time begins: what is done before the first step, such as a validation, is over."""
        self._tokens_seen = 0
        self.timer.start()

    def on_validation_start(self) -> None:
        """A validation may come before any training, or instead of it. It does not count as training time."""
        self._move_teacher()
        self.timer.pause()

    def _move_teacher(self) -> None:
        """Brings the teacher to the student's device."""
        if self._teacher_device == self.device:
            return
        if self.teacher is not None:
            self.teacher.to(self.device)
        self._teacher_device = self.device

    def on_validation_end(self) -> None:
        """Training time goes on."""
        self.timer.resume()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen: under adapters, the adapters alone are saved. Adds the state of student text."""
        for name in self._frozen_weights():
            del checkpoint["state_dict"][name]
        if self.on_policy_generator is not None:
            checkpoint["student_text"] = self.on_policy_generator.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts back what was left out, as it is in the student just built, and the state of student text."""
        checkpoint["state_dict"].update(self._frozen_weights())
        if self.on_policy_generator is not None:
            self.on_policy_generator.load_state_dict(checkpoint["student_text"])

    def _frozen_weights(self) -> dict[str, Tensor]:
        parameters = self.named_parameters(remove_duplicate=False)
        return {name: parameter.detach() for name, parameter in parameters if not parameter.requires_grad}

    def configure_optimizers(self) -> Any:
        """AdamW with decay on matrices only; linear warm-up, then a cosine to the final share of the peak."""
        config = self.training_config
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _lr_multiplier(self, step: int) -> float:
        config, warm = self.training_config, max(1, round(self.training_config.warmup_fraction * self.max_steps))
        if step < warm:
            return (step + 1) / warm
        share = min(1.0, (step - warm) / max(1, self.max_steps - warm))
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * share))
