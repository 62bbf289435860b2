"""The loss of a batch, and what it is divided by.

Step denominators
-----------------
One optimizer step reads many micro-batches: `accumulate_grad_batches` on each of `world_size` ranks. Their rows hold
different numbers of supervised tokens: prompts and padding have no loss, documents end early. There are two ways to make
one loss of it:

    mean of means        1/M · Σ_m (1/n_m · Σ_{t in m} ℓ_t)         M micro-batches of n_m tokens
    mean over tokens     1/Σ_m n_m · Σ_m Σ_{t in m} ℓ_t

In the first, a token in a micro-batch of few tokens counts more than one in a full micro-batch, and how much depends on
how the rows were cut: the same rows give another gradient with another micro-batch size, accumulation, or number of GPUs.
(It is the bug that transformers repaired in 2024 with `num_items_in_batch`.) In the second, every token of the step counts
equally, and none of the three changes the training.

So the denominator must be known before the first micro-batch of a step is computed: the loader counts the supervised
tokens of the whole step, over all its micro-batches and ranks, and writes the sum into each of them as `step_tokens`. A
micro-batch then contributes Σ ℓ_t / step_tokens, and the contributions are to be summed. Lightning does not sum them: it
divides by `accumulate_grad_batches`, and the strategy averages over the ranks. `Distiller.training_step` multiplies by
both numbers, so that they cancel:

    Σ_ranks Σ_micro-batches (W · A · Σ ℓ_t / step_tokens) / A / W  =  Σ ℓ_t / step_tokens  over all tokens of the step.

A batch without `step_tokens`, from a plain DataLoader, is divided by its own supervised tokens, as a model of transformers
does, and left to be averaged: a mean of means, and exact where all batches have equally many tokens. Text that the student
writes has no length before it is written; it counts for its micro-batch's share of the step (`OnPolicyGenerator`).
"""

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill_lit.losses import (
    LossOutput,
    as_objective,
    fused_linear_loss,
    label_logprobs_from_hidden,
)
from distill_lit.losses.fused_linear import product_dtype
from distill_lit.losses.lm_head import LMHead, get_lm_head
from distill_lit.losses.reduction import engine_gap_sums
from distill_lit.losses.targets import (
    IGNORE_INDEX,
    CrossTokenizerTarget,
    TeacherTarget,
    check_target,
    cut_vocabulary,
)
from distill_lit.models.activations import Activations, LayersByKind, capture_activations
from distill_lit.models.document_spans import document_ids_of
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.teachers import HiddenStateTeacher, OnlineTeacher, Teacher
from distill_lit.training.feature_alignment import FeatureAlignment, align_features, check_can_align_later
from distill_lit.training.input_checks import check_batch, check_teacher, lm_head_rows
from distill_lit.training.target_cache import TargetCache, TeacherAnswer
from distill_lit.utils.exceptions import UserError

Batch = Mapping[str, Tensor]


class FusedLossSettings(NamedTuple):
    """How the fused lm_head runs. chunk_size: tokens per pass, None: what fits the budget; compiled: whether its
    element-wise part is; dtype: of its products, None: autocast's, or that of the student; memory_budget: in MiB, 0 for
    `hardware.logits_budget`; kernel: whether the Triton kernel is used where there is one for it, on CUDA."""

    chunk_size: int | None = None
    compiled: bool = False
    dtype: torch.dtype | None = None
    memory_budget: float = 0.0
    kernel: bool = True


class DistillationLoss(nn.Module):
    """The objective of a batch between a student and its teacher. It needs no Trainer.

    The teacher is no submodule: no optimizer, no checkpoint and no `.train()` reaches it. Its parameters are those of the
    projectors of hidden-state terms, where there are any.

    Example:
        >>> criterion = DistillationLoss(losses.ForwardKL(temperature=2.0), teacher)
        >>> criterion(student, {"input_ids": ids, "labels": ids}).total.backward()
    """

    def __init__(
        self,
        loss: Any,
        teacher: Any = None,
        vocab_size: int | None = None,
        feature_alignment: FeatureAlignment | None = None,
        settings: FusedLossSettings | None = None,
    ) -> None:
        """Raises UserError where the loss needs a teacher, or more of it than it gives.

        Args:
            loss: of `distill_lit.losses`, or a weighted sum of them.
            teacher: a causal language model, or a `Teacher`; None for losses on labels alone.
            vocab_size: real tokens, which both share; None: all rows of the teacher's lm_head, or of the student's.
            feature_alignment: for hidden-state terms, from `align_features`; None: made at the first batch, where nothing
                of it is trained or measured.
            settings: chunk size and number format of the fused lm_head.
        """
        super().__init__()
        check_teacher(teacher)
        self.objective = as_objective(loss)
        if isinstance(teacher, nn.Module):
            vocab_size = vocab_size or lm_head_rows(teacher)
            teacher = OnlineTeacher(teacher, vocab_size)
        self.teacher: Teacher | None = teacher
        self.vocab_size = vocab_size or getattr(teacher, "vocab_size", None)
        self.settings = settings or FusedLossSettings()
        self.feature_alignment = feature_alignment
        self._teacher_device: torch.device | None = None
        for term in self.objective.terms:
            if teacher is None and term.needs_teacher:
                raise UserError(f"{term.key}: it compares with a teacher, and there is none; give teacher=")
        for feature_term in self.objective.feature_terms:
            if not isinstance(teacher, HiddenStateTeacher):
                raise UserError(f"{feature_term.key}: it compares hidden states, which this teacher does not give")
        if feature_alignment is None:
            check_can_align_later(self.objective, teacher)
        if feature_alignment is not None and not self.objective.feature_terms:
            raise UserError("feature_alignment: no term of the loss compares hidden states")

    def forward(
        self,
        student: Any,
        batch: Batch,
        progress: float = 0.0,
        *,
        denominator: Tensor | float | None = None,
        compute_metrics: bool = False,
        with_teacher: bool = True,
        target_cache: TargetCache | None = None,
    ) -> LossOutput:
        """The loss of a batch. Shift and mask happen here, once.

        Args:
            student: a causal language model.
            batch: `input_ids`, `labels` (not shifted, −100 where nothing is predicted) and perhaps `attention_mask`, each
                (B, T); or packed rows with `position_ids` and `document_ids`. `on_policy_mask`, (B, T) bool, marks tokens
                that the student wrote, for losses that ask; `engine_logprobs`, (B, T), what has written them said of them,
                NaN elsewhere.
            progress: share of the training that is done, for scheduled weights and temperatures.
            denominator: supervised tokens of the optimizer step, as `num_items_in_batch` of transformers; None:
                `step_tokens` of the batch where it has them, else the supervised tokens of this batch.
            compute_metrics: whether entropies, agreement and the like are measured too.
            with_teacher: False: it is not asked, for an objective that does not need it.
            target_cache: what the teacher has said of batches that are read again; None: it is asked.

        Raises UserError for a batch without labels or of a wrong shape.
        """
        check_batch(batch)
        targets = batch["labels"][:, 1:]
        loss_mask = targets != IGNORE_INDEX
        if denominator is None:
            denominator = batch["step_tokens"] if "step_tokens" in batch else loss_mask.sum()
        denominator = torch.as_tensor(denominator, device=loss_mask.device)
        if self.feature_alignment is None:
            self.feature_alignment = align_features(self.objective, student, self.teacher)
        student_layers, teacher_layers = self._captured_layers()
        with capture_activations(student, student_layers) as student_states:
            hidden = last_hidden_state(student, dict(batch), student_states)[:, :-1][loss_mask]
        self._place_teacher(hidden.device)
        target: TeacherTarget | None = None
        teacher_states: Activations = {}
        if self.teacher is not None and with_teacher:
            ask = functools.partial(self._ask_teacher, self.teacher, batch, loss_mask, teacher_layers)
            target, teacher_states = ask() if target_cache is None else target_cache.get(dict(batch), ask)
        labels = targets[loss_mask]
        lm_head = get_lm_head(student, self._vocab_size_of(student))
        settings = self.settings
        dtype = settings.dtype or product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False), self._lm_head_gradient():
            if isinstance(target, CrossTokenizerTarget) and self.objective.reads_span_logprobs:
                logprobs = label_logprobs_from_hidden(hidden.to(dtype), lm_head, labels, settings.chunk_size)
                target = target.with_student_logprobs(logprobs)
            losses = fused_linear_loss(
                self.objective,
                hidden.to(dtype),
                lm_head,
                None if target is None else cut_vocabulary(target, lm_head.vocab_size),
                labels,
                denominator=denominator,
                on_policy_mask=batch["on_policy_mask"][:, 1:][loss_mask] if "on_policy_mask" in batch else None,
                progress=progress,
                chunk_size=settings.chunk_size,
                memory_budget=settings.memory_budget,
                compiled=settings.compiled,
                kernel=settings.kernel,
                compute_metrics=compute_metrics,
            )
            if compute_metrics and "engine_logprobs" in batch:
                engine_logprobs = batch["engine_logprobs"][:, 1:][loss_mask]
                sums = _engine_gap(hidden.to(dtype), lm_head, labels, engine_logprobs, settings.chunk_size)
                losses = losses._replace(metric_sums=losses.metric_sums | sums)
        if self.feature_alignment is not None:
            with torch.autocast(hidden.device.type, enabled=False):
                sums = self.feature_alignment(student_states, teacher_states, document_ids_of(batch), loss_mask)
            losses = self._add_feature_terms(losses, sums, denominator, progress)
        return losses

    def _captured_layers(self) -> tuple[LayersByKind, LayersByKind]:
        return self.feature_alignment.captured_layers if self.feature_alignment is not None else ({}, {})

    def _place_teacher(self, device: torch.device) -> None:
        """Brings the teacher to the student's device."""
        if self.teacher is not None and self._teacher_device != device:
            with torch.inference_mode(False):  # its weights are read in training too
                self.teacher.to(device)
        self._teacher_device = device

    def _ask_teacher(self, teacher: Teacher, batch: Batch, loss_mask: Tensor, layers: LayersByKind) -> TeacherAnswer:
        watched: AbstractContextManager[Activations] = nullcontext({})
        if isinstance(teacher, HiddenStateTeacher) and layers:
            watched = teacher.activations(dict(batch), layers)
        with watched as states:
            target = teacher.target(dict(batch), loss_mask)
        check_target(target, int(loss_mask.sum()))
        return target, states

    def _vocab_size_of(self, student: Any) -> int:
        rows = lm_head_rows(student)
        if self.vocab_size is not None and rows < self.vocab_size:
            raise UserError(
                f"vocab_size: {self.vocab_size} tokens are compared, and the student's lm_head has {rows} rows; both "
                "models need the same tokenizer"
            )
        return self.vocab_size or rows

    def _lm_head_gradient(self) -> AbstractContextManager[None]:
        """No gradient is asked of the lm_head where all terms are on hidden states; it then only measures."""
        return nullcontext() if self.objective.logit_terms else torch.no_grad()

    def _add_feature_terms(self, losses: LossOutput, sums: Tensor, denominator: Tensor, progress: float) -> LossOutput:
        """The same losses with the hidden-state terms added: the same tokens, the same denominator."""
        weights = sums.new_tensor([term.weight(progress) for term in self.objective.feature_terms])
        total = losses.total + (weights * sums).sum() / denominator.clamp(min=1)
        return losses._replace(total=total, term_sums=torch.cat([losses.term_sums, sums.detach()]))


@torch.no_grad()
def _engine_gap(
    hidden: Tensor, lm_head: LMHead, labels: Tensor, engine_logprobs: Tensor, chunk_size: int | None
) -> dict[str, Tensor]:
    """`engine_gap_sums` of N tokens; of those that no engine wrote nothing is computed."""
    written = ~engine_logprobs.isnan()
    logprobs = label_logprobs_from_hidden(hidden[written], lm_head, labels[written], chunk_size)
    return engine_gap_sums(logprobs, engine_logprobs[written])
