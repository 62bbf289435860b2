"""The LightningModule: a student that is trained, a frozen teacher beside it, and the loss between them."""

import functools
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distill_lit.losses import LossOutput, default_objective
from distill_lit.teachers import StudentFollowingTeacher
from distill_lit.training import optim
from distill_lit.training.callbacks.collapse import OnPolicyCollapseWarning
from distill_lit.training.callbacks.nonfinite_guard import TerminateOnNonFinite
from distill_lit.training.callbacks.step_logger import StepLogger, is_logging_step
from distill_lit.training.callbacks.teacher_update import TeacherUpdateCallback
from distill_lit.training.callbacks.throughput import TokenThroughput
from distill_lit.training.checkpoint import frozen_weights
from distill_lit.training.feature_alignment import FeatureAlignment, align_features
from distill_lit.training.input_checks import COMPILE, check_batch, check_models, check_policy_gradient, shared_vocab_size
from distill_lit.training.loss import DistillationLoss, FusedLossSettings
from distill_lit.training.metrics import TokenMeans
from distill_lit.training.on_policy import OnPolicyGenerator
from distill_lit.training.sharding import shard_for_training
from distill_lit.training.target_cache import TargetCache, is_frozen
from distill_lit.utils.exceptions import UserError

DDP_WITH_UNUSED_PARAMETERS = "ddp_find_unused_parameters_true"  # Lightning's name
MASTER_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")  # of a Trainer that expects float32 weights


class Distiller(L.LightningModule):
    """Trains `student` to follow `teacher`, under any Trainer and on any batches with `input_ids` and `labels`.

    The student is trained as it is, but in train mode. The teacher is frozen: in no optimizer, in no checkpoint. Logged
    are `train/…` every `log_every_n_steps`, and `validation/…`, `validation/loss` among them.

    Example:
        >>> module = Distiller(student, teacher, loss=0.5 * losses.CrossEntropy() + 0.5 * losses.ForwardKL(temperature=2.0))
        >>> L.Trainer(max_steps=1000, gradient_clip_val=1.0).fit(module, train_loader, val_loader)
        >>> student.save_pretrained("student")
    """

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        loss: Any = None,
        *,
        lr: float = 5e-4,
        optimizer: optim.OptimizerFactory | None = None,
        lr_scheduler: optim.SchedulerFactory | None = None,
        vocab_size: int | None = None,
        feature_alignment: FeatureAlignment | None = None,
        on_policy_generator: OnPolicyGenerator | None = None,
        fused_loss_settings: FusedLossSettings | None = None,
    ) -> None:
        """Raises UserError where the loss does not fit the models.

        Args:
            student: a causal language model of transformers.
            teacher: another one with the same tokenizer, or a `Teacher`; None for losses on labels alone.
            loss: of `distill_lit.losses`, or a weighted sum; None: ½ cross-entropy + ½ forward KL at T = 2.
            lr: peak learning rate of AdamW, which warms up and falls along a cosine; unused with `optimizer`.
            optimizer: makes another from the parameters, as `partial(torch.optim.SGD, lr=0.1)`, at a constant rate.
            lr_scheduler: makes a schedule from (optimizer, optimizer steps of the training), stepped after each, as
                `training.optim.warmup_linear`.
            vocab_size: real tokens, which both models share; None: rows of the smaller lm_head.
            feature_alignment: of hidden-state terms, from `align_features`; None: made here, from the options of the terms.
            on_policy_generator: an `OnPolicyGenerator`, which makes some batches text that the student writes.
            fused_loss_settings: chunk size and number format of the fused lm_head.
        """
        super().__init__()
        check_models(student, teacher)
        loss = default_objective() if loss is None else loss
        vocab_size = vocab_size or shared_vocab_size(student, teacher)
        self.student = student
        alignment = feature_alignment or align_features(loss, student, teacher)
        self.loss = DistillationLoss(loss, teacher, vocab_size, alignment, fused_loss_settings)
        self.on_policy_generator = on_policy_generator
        if on_policy_generator is not None:
            check_policy_gradient(self.loss.objective, on_policy_generator.config)
        self.train_metrics, self.validation_metrics = TokenMeans(), TokenMeans()
        self._held_out_targets = TargetCache()
        self._is_sharded = False
        self.gradient_norm: Tensor | None = None  # of the step that is being made, before clipping
        self._stepped: set[nn.Parameter] = set()  # what an optimizer step has changed
        self._loaded: set[str] = set()  # names of what a checkpoint held
        self._total_steps, self._optimizer_factories = float("inf"), (optimizer, lr_scheduler)
        self.save_hyperparameters({"loss": self.loss.objective.facts(), "lr": lr, "vocab_size": vocab_size})

    @property
    def total_steps(self) -> float:
        """Optimizer steps of the training; infinite where they are not known, as of a Trainer without end."""
        if self.trainer.state.fn == "fit":
            steps = self.trainer.estimated_stepping_batches
            self._total_steps = steps if steps >= 0 else float("inf")  # −1: epochs of a loader without a length
        elif (max_steps := self.trainer.max_steps) > 0:
            self._total_steps = max_steps
        return self._total_steps

    @property
    def progress(self) -> float:
        """Share of the optimizer steps that is done, which schedules are functions of."""
        return float(min(1.0, self.global_step / max(1, self.total_steps)))

    def configure_model(self) -> None:
        """Shards student and teacher over the ranks where the Trainer's strategy is Lightning's ModelParallelStrategy."""
        strategy = getattr(self._trainer, "strategy", None)  # `load_from_checkpoint` has no Trainer
        if isinstance(strategy, ModelParallelStrategy) and not self._is_sharded:
            self._is_sharded = True  # validate, then fit: Lightning asks each time
            shards = getattr(strategy, "teacher_shards", 0)
            shard_for_training(self, self.device_mesh["data_parallel"], strategy.root_device, shards)

    def setup(self, stage: str) -> None:
        """Puts the student into train mode: `from_pretrained` gives it without dropout. Raises UserError for a module that
        torch.compile was given whole."""
        if self._compiler_ctx is not None:
            raise UserError(
                f"torch.compile: the steps of a Distiller cannot be compiled; give the module itself, {COMPILE}"
            )
        if stage == "fit":
            self.student.train()
            if self.trainer.precision in MASTER_PRECISIONS and self.trainer.is_global_zero:
                optim.warn_of_rounding(self.parameters())

    def on_fit_start(self) -> None:
        """Raises UserError for scheduled weights and temperatures in a training whose steps are not known, and for DDP that
        would wait for gradients of layers behind those that are compared."""
        if self.loss.objective.is_scheduled:
            optim.check_steps_are_known("loss", self.total_steps)
        wrapped = self.trainer.strategy.model
        is_waiting = isinstance(wrapped, DistributedDataParallel) and not wrapped.find_unused_parameters
        if is_waiting and not self.loss.objective.logit_terms:
            raise UserError(
                "strategy: a loss on hidden states alone leaves parameters without a gradient; give the Trainer "
                f"strategy={DDP_WITH_UNUSED_PARAMETERS!r}"
            )

    def training_step(self, batch: Any, index: int) -> Tensor:
        """The loss of a micro-batch; `training.loss` says what it is divided by, and why it is multiplied here."""
        micro_batches = self.trainer.accumulate_grad_batches * self.trainer.world_size
        if self.on_policy_generator is not None:
            check_batch(batch)
            batch = self.on_policy_generator.next_batch(batch, self.student, self.global_step, index, micro_batches)
        needs_teacher, is_logged = self.loss.objective.needs_teacher, is_logging_step(self.trainer)
        losses: LossOutput = self.loss(
            self.student, batch, self.progress, compute_metrics=is_logged, with_teacher=needs_teacher
        )
        self.train_metrics.update(self.loss.objective, losses)
        return losses.total * micro_batches if "step_tokens" in batch else losses.total

    def validation_step(self, batch: Any, index: int, dataloader_idx: int = 0) -> None:
        """Collects losses and fidelity over held-out rows."""
        if self.on_policy_generator is not None:
            check_batch(batch)
            batch = self.on_policy_generator.mark_corpus_text(batch)
        # ranks that share a teacher ask it together, and what they keep may differ
        is_kept = not self._is_sharded and is_frozen(self.loss.teacher)
        cache = self._held_out_targets if is_kept else None
        losses = self.loss(self.student, batch, self.progress, compute_metrics=True, target_cache=cache)
        self.validation_metrics.update(self.loss.objective, losses)

    def configure_callbacks(self) -> list[L.Callback]:
        """What counts, guards and logs the steps; a Trainer that has one of a kind, or a subclass, keeps its own."""
        present = self.trainer.callbacks
        needed: list[type[L.Callback]] = [TokenThroughput, TerminateOnNonFinite, StepLogger]
        needed += [OnPolicyCollapseWarning] if self.on_policy_generator is not None else []
        made = [kind() for kind in needed if not any(isinstance(callback, kind) for callback in present)]
        teacher = self.loss.teacher
        is_told = any(isinstance(callback, TeacherUpdateCallback) for callback in present)
        if isinstance(teacher, StudentFollowingTeacher) and not is_told:
            made.append(TeacherUpdateCallback(teacher))
        return made

    def configure_optimizers(self) -> Any:
        """The optimizer and schedule that were given, or AdamW with warm-up and cosine; of all parameters to be trained."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        make_optimizer, make_lr_scheduler = self._optimizer_factories
        if make_optimizer is None:  # a fused AdamW would unscale float16's gradients itself, after clipping
            has_scaler = getattr(self.trainer.precision_plugin, "scaler", None) is not None
            make_optimizer = functools.partial(optim.adamw, lr=self.hparams["lr"], fused=not has_scaler)
            make_lr_scheduler = make_lr_scheduler or optim.warmup_cosine
        total_steps = self.total_steps if make_lr_scheduler is not None else 0
        return optim.optimizer_and_schedule(parameters, make_optimizer, make_lr_scheduler, total_steps)

    def on_train_start(self) -> None:
        """Allocates what stays in memory before what comes and goes."""
        for optimizer in self.trainer.optimizers:
            optim.allocate_moments(optimizer)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Takes the step and frees the gradients, which would otherwise stay for all of the next forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()
        self.gradient_norm = None
        self._stepped.update(p for group in optimizer.param_groups for p in group["params"] if p.requires_grad)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """As the Trainer asks; by norm with the norm of all gradients, which is known already."""
        if gradient_clip_val and self.gradient_norm is not None and (gradient_clip_algorithm or "norm") == "norm":
            nn.utils.clip_grads_with_norm_(self.parameters(), gradient_clip_val, self.gradient_norm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves out what is frozen and was never trained: under adapters, the adapters alone are saved. Adds the state of
        on-policy text."""
        stepped = {name for name, p in self.named_parameters(remove_duplicate=False) if p in self._stepped}
        for name in frozen_weights(self).keys() - stepped - self._loaded:
            checkpoint["state_dict"].pop(name, None)  # only the first rank has a whole one
        if self.on_policy_generator is not None:
            checkpoint["on_policy"] = self.on_policy_generator.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts back what was left out, as it is in the student just built, and the state of on-policy text."""
        self._loaded.update(checkpoint["state_dict"])
        checkpoint["state_dict"] = {**frozen_weights(self), **checkpoint["state_dict"]}
        if self.on_policy_generator is not None:
            self.on_policy_generator.load_state_dict(checkpoint["on_policy"])
