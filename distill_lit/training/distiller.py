"""The LightningModule: a trainable student, a frozen teacher signal beside it, and the objective between them."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from distill_lit.config import TrainingConfig
from distill_lit.losses import Losses, Objective, fused_losses, label_log_probs
from distill_lit.losses.lm_head import head_of
from distill_lit.losses.targets import IGNORED, ForeignTarget
from distill_lit.models.activations import States, Wanted, watching
from distill_lit.models.backbone import body_of
from distill_lit.models.packing_check import last_hidden
from distill_lit.teachers import InnerSignal, TeacherSignal
from distill_lit.training.feature_alignment import Matching
from distill_lit.training.on_policy import StudentText
from distill_lit.training.timer import Clock
from distill_lit.utils.exceptions import UserError

Batch = dict[str, Tensor]


class HeadSettings(NamedTuple):
    """How the fused head runs: tokens per pass, whether its element-wise part is compiled, format of its products."""

    chunk: int
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
        vocabulary: int,
        objective: Objective,
        signal: TeacherSignal | None,
        training: TrainingConfig,
        steps: int,
        length: int,
        head: HeadSettings,
        matching: Matching | None = None,
        student_text: StudentText | None = None,
    ) -> None:
        """`vocabulary`: real tokens shared with the teacher; `signal`: None for objectives without a teacher, which then
        has no fidelity metrics; `steps`: optimizer steps of the whole training;
        `length`: tokens per row; `matching`: what terms on inner states need, whose teacher is an `InnerSignal`;
        `student_text`: makes some batches text that the student writes."""
        super().__init__()
        if bool(objective.representations) != (matching is not None):
            raise UserError("objective: terms on inner states need a matching of student and teacher, and only they do")
        if objective.needs_teacher and signal is None:
            raise UserError("objective: a term compares with the teacher, and there is no teacher signal")
        if matching is not None and not isinstance(signal, InnerSignal):
            raise UserError("objective: a term compares inner states, and this teacher signal has none")
        if training.gradient_checkpointing:
            student.gradient_checkpointing_enable({"use_reentrant": False})
        if training.compile:
            body_of(student).compile()
        self.student = student
        self.vocabulary = vocabulary
        self.objective = objective
        self.signal = signal
        self.matching = matching
        self.student_text = student_text
        self.training_config = training
        self.steps = steps
        self.length = length
        self.head_settings = head
        self._window: dict[str, MeanMetric] = {}
        self._validation: dict[str, MeanMetric] = {}
        self._tokens_seen = 0
        self._ready_on: torch.device | None = None
        self.clock = Clock()  # of training: whoever does something else between two steps pauses it
        self.is_step_refused = False

    # ---------------------------------------------------------------- losses

    def losses(self, batch: Batch, denominator: Tensor, measure: bool, with_teacher: bool) -> tuple[Losses, int]:
        """The objective on one batch, and its number of supervised tokens. Shift and mask happen here, once.

        `by_student` in the batch, (B, T) bool, marks tokens that the student wrote, for losses that ask.
        """
        targets = batch["labels"][:, 1:]
        chosen = targets != IGNORED
        ours_wanted, theirs_wanted = self.matching.wanted if self.matching is not None else ({}, {})
        with watching(self.student, ours_wanted) as ours:
            hidden = last_hidden(self.student, batch, ours)[:, :-1][chosen]
        with self._teacher_states(batch, theirs_wanted) as theirs:
            target = self.signal.target(batch, chosen) if self.signal is not None and with_teacher else None
        by_student = batch["by_student"][:, 1:][chosen] if "by_student" in batch else None
        if by_student is None and self.student_text is not None:
            by_student = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        chunk, compiled, dtype = self.head_settings
        with torch.autocast(hidden.device.type, enabled=False), self._head_gradient():
            if isinstance(target, ForeignTarget) and self.objective.reads_spans:
                head = head_of(self.student, self.vocabulary)
                target = target.with_student(label_log_probs(hidden.to(dtype), head, targets[chosen], chunk))
            losses = fused_losses(
                self.objective,
                hidden.to(dtype),
                head_of(self.student, self.vocabulary),
                target,
                targets[chosen],
                denominator=denominator,
                by_student=by_student,
                done=self.global_step / self.steps,
                chunk=chunk,
                compiled=compiled,
                measure=measure,
            )
        if self.matching is not None:
            losses = self._with_representations(losses, self.matching, ours, theirs, batch, denominator)
        return losses, int(chosen.sum())

    def _teacher_states(self, batch: Batch, wanted: Wanted) -> AbstractContextManager[States]:
        return (
            self.signal.inner_states(batch, wanted) if isinstance(self.signal, InnerSignal) and wanted else nullcontext({})
        )

    def _head_gradient(self) -> AbstractContextManager[None]:
        """No gradient is asked of the head when all terms are on inner states; it then only measures."""
        return nullcontext() if self.objective.terms else torch.no_grad()

    def _with_representations(
        self, losses: Losses, matching: Matching, ours: States, theirs: States, batch: Batch, denominator: Tensor
    ) -> Losses:
        """The same losses with the terms on inner states added: the same tokens, the same denominator."""
        chosen, done = batch["labels"][:, 1:] != IGNORED, self.global_step / self.steps
        with torch.autocast(chosen.device.type, enabled=False):
            sums = matching(ours, theirs, batch["document_ids"], chosen)
        weights = sums.new_tensor([term.weight(done) for term in self.objective.representations])
        total = losses.total + (weights * sums).sum() / denominator.clamp(min=1)
        return losses._replace(total=total, terms=torch.cat([losses.terms, sums.detach()]))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a micro-batch; summed over the window and the ranks it is the mean over the step's tokens."""
        measure = self.global_step % self.training_config.log_every == 0
        batch, facts = self._written_by_student(batch, index)
        losses, tokens = self.losses(batch, batch["step_tokens"], measure, self.objective.needs_teacher)
        self._collect(self._window, losses, tokens)
        if self.student_text is not None:
            self.student_text.note(facts, self.device)
        self._tokens_seen += batch["input_ids"].numel()
        # Lightning divides by the accumulated batches and averages over ranks; the denominator has counted them all
        total: Tensor = losses.total * self.trainer.accumulate_grad_batches * self.trainer.world_size
        return total

    def _written_by_student(self, batch: Batch, index: int) -> tuple[Batch, dict[str, float]]:
        """(the batch, or one that the student has written instead; what there is to log of the latter)."""
        if self.student_text is None:
            return batch, {}
        found = self.student_text.rewrite(batch, self.student, self.global_step, index)
        if found is None:
            return batch, {}
        written, facts = found
        # how many tokens the other batches of the step will have is not known yet: each counts for its share of the step
        share = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return {**written, "step_tokens": written["step_tokens"] * share}, facts

    def validation_step(self, batch: Batch, index: int) -> None:
        """Collects losses and fidelity over held-out rows."""
        tokens = (batch["labels"][:, 1:] != IGNORED).sum()
        losses, count = self.losses(batch, tokens, measure=True, with_teacher=True)
        self._collect(self._validation, losses, count)

    def _collect(self, metrics: dict[str, MeanMetric], losses: Losses, tokens: int) -> None:
        terms = zip(self.objective.names, losses.terms, strict=True)
        values: dict[str, tuple[Tensor, Any]] = {name: (total / max(tokens, 1), tokens) for name, total in terms}
        for name, (mean, count) in {**values, **{f"{n}_": v for n, v in losses.means(tokens).items()}}.items():
            if name not in metrics:
                metrics[name] = MeanMetric().to(self.device)
            metrics[name].update(mean.detach(), weight=count)

    # ---------------------------------------------------------------- what is logged

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips by norm, refuses a step that is not finite, and logs the step."""
        limit = self.training_config.clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        if not torch.isfinite(norm):
            self.refuse_step()
            raise FloatingPointError(f"gradient norm is {float(norm)} at step {self.global_step}; the step was not taken")
        if self.global_step % self.training_config.log_every == 0:
            self._log_step(self._step_metrics(float(norm)))
        self._reset(self._window)

    def refuse_step(self) -> None:
        """Notes that all ranks, which see the same, do not take this step: they can still tell each other why."""
        self.is_step_refused = True

    def _log_step(self, values: dict[str, float]) -> None:
        """Writes a step's metrics at once: Lightning would after the checkpoint of this step, and a kill in between
        would lose them."""
        self.log_dict(values, logger=False)
        for logger in self.loggers:
            logger.log_metrics(values, self.global_step)

    def _step_metrics(self, norm: float) -> dict[str, float]:
        done = self.global_step / self.steps
        values = self._means(self._window, "train")
        for term in self.objective.terms:
            values[f"weight/{term.name}"], values[f"temperature/{term.name}"] = term.weight(done), term.temperature(done)
        for other in self.objective.representations:
            values[f"weight/{other.name}"] = other.weight(done)
        values["train/loss"] = self._weighted(values, "train")
        seconds = self.clock.lap()
        if self.student_text is not None:
            written = {**self.student_text.noted(seconds), "reverse_kl": values.pop("train/own_reverse_kl", math.nan)}
            values |= {f"on_policy/{name}": value for name, value in written.items() if not math.isnan(value)}
        seen = self.trainer.strategy.reduce(torch.tensor(float(self._tokens_seen), device=self.device), reduce_op="sum")
        values["train/tokens_per_second"] = float(seen) / max(seconds, 1e-9)
        self._tokens_seen = 0
        tokens = (self.global_step + 1) * self.tokens_per_step
        return {**values, "train/gradient_norm": norm, "train/tokens": float(tokens)}

    @property
    def tokens_per_step(self) -> int:
        """Positions that all ranks read in one optimizer step, padding included."""
        config = self.training_config
        return config.batch * config.accumulate * config.devices * self.length

    def on_validation_epoch_end(self) -> None:
        """Logs the means over all validation rows, and the objective at the present weights."""
        values = self._means(self._validation, "validation")
        values["validation/loss"] = self._weighted(values, "validation")
        if self.student_text is not None:
            self.student_text.note_validation(values["validation/loss"])
        # the number of steps done, under which Lightning logs: its own count lags by one here
        self.log_dict({**values, "step": float(self.global_step)})
        self._reset(self._validation)

    def _means(self, metrics: dict[str, MeanMetric], stage: str) -> dict[str, float]:
        """{stage/name: mean}; a measure gives way to a term of the same name, and is left out where it is of no token."""
        means = {name: float(metric.compute()) for name, metric in metrics.items()}
        measured = {f"{stage}/{n.rstrip('_')}": v for n, v in means.items() if n.endswith("_") and not math.isnan(v)}
        return measured | {f"{stage}/{name}": value for name, value in means.items() if not name.endswith("_")}

    def _weighted(self, values: dict[str, float], stage: str) -> float:
        """The objective of logged terms at the present weights."""
        weights = self.objective.weights(self.global_step / self.steps)
        return sum(weight * values[f"{stage}/{name}"] for name, weight in weights.items())

    def _reset(self, metrics: dict[str, MeanMetric]) -> None:
        for metric in metrics.values():
            metric.reset()

    # ---------------------------------------------------------------- Lightning

    def on_fit_start(self) -> None:
        """The teacher may not have been moved by a validation."""
        self._make_ready()

    def on_train_start(self) -> None:
        """Training time begins: what is done before the first step, such as a validation, is over."""
        self._tokens_seen = 0
        self.clock.start()

    def on_validation_start(self) -> None:
        """A validation may come before any training, or instead of it. It does not count as training time."""
        self._make_ready()
        self.clock.pause()

    def _make_ready(self) -> None:
        """Brings the teacher to the student's device."""
        if self._ready_on == self.device:
            return
        if self.signal is not None:
            self.signal.to(self.device)
        self._ready_on = self.device

    def on_validation_end(self) -> None:
        """Training time goes on."""
        self.clock.resume()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen: under adapters, the adapters alone are saved. Adds the state of student text."""
        for name in self._frozen_weights():
            del checkpoint["state_dict"][name]
        if self.student_text is not None:
            checkpoint["student_text"] = self.student_text.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts back what was left out, as it is in the student just built, and the state of student text."""
        checkpoint["state_dict"].update(self._frozen_weights())
        if self.student_text is not None:
            self.student_text.load_state_dict(checkpoint["student_text"])

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
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _learning_rate_share(self, step: int) -> float:
        config, warm = self.training_config, max(1, round(self.training_config.warmup * self.steps))
        if step < warm:
            return (step + 1) / warm
        share = min(1.0, (step - warm) / max(1, self.steps - warm))
        return config.final_learning_rate + (1 - config.final_learning_rate) * 0.5 * (1 + math.cos(math.pi * share))
