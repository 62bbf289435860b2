"""The fused loss alone, on plain tensors: for a Hugging Face `Trainer`, or any loop of one's own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill_lit.losses.fused_linear import fused_linear_loss, product_dtype
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.objective import FeatureTerm, Objective, Term, as_objective
from distill_lit.losses.targets import IGNORE_INDEX, DenseTarget
from distill_lit.losses.terms import CrossEntropy, ForwardKL
from distill_lit.utils.exceptions import UserError

AnyLoss = Objective | Term | FeatureTerm | Mapping[str, Any]


def default_objective() -> Objective:
    """½ cross-entropy + ½ T² · KL(teacher ‖ student) at T = 2. Hinton et al. 2015, 1503.02531 §2.1."""
    objective: Objective = 0.5 * CrossEntropy() + 0.5 * ForwardKL(temperature=2.0)
    return objective


def fused_linear_distillation_loss(
    hidden: Tensor,
    lm_head_weight: Tensor | LMHead,
    teacher_hidden: Tensor | None,
    teacher_lm_head_weight: Tensor | LMHead | None,
    labels: Tensor,
    *,
    loss: AnyLoss | None = None,
    lm_head_bias: Tensor | None = None,
    teacher_lm_head_bias: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    vocab_size: int | None = None,
    progress: float = 0.0,
    chunk_size: int | None = None,
    compiled: bool = False,
    kernel: bool = True,
) -> Tensor:
    """The distillation loss from last hidden states, without the logits of more than some tokens at a time.

    Args:
        hidden: the student's last hidden states, (B, T, D), or (N, D) of tokens that are chosen and shifted already.
        lm_head_weight: (V, D) of the student, whose logits are hidden @ weightᵀ + bias; or `get_lm_head(student)`, for any
            model: some scale or cap their logits (Gemma 2, Granite, Cohere). Its gradient is formed in the same pass.
        teacher_hidden: (B, T, D') or (N, D') of the teacher for the same tokens; None for losses on labels alone.
        teacher_lm_head_weight: (V', D') of the teacher, or `get_lm_head(teacher)`.
        labels: (B, T) as a batch of transformers has them, not shifted, −100 where nothing is predicted; or (N,) of the
            tokens that the N hidden states predict.
        lm_head_bias: (V,) beside the weight.
        teacher_lm_head_bias: (V',) beside the teacher's.
        loss: of `distill_lit.losses`, a weighted sum of them, or None: ½ cross-entropy + ½ forward KL at T = 2.
        num_items_in_batch: supervised tokens of the whole optimizer step, as `Trainer.compute_loss` gets them: the sum over
            the micro-batches is then the exact mean. None: the mean over the tokens of this batch.
        vocab_size: real tokens, where the heads have more rows; None: the smaller of the two heads.
        progress: share of the training that is done, for scheduled weights and temperatures.
        chunk_size: tokens per pass; None: what fits 512 MiB, on CUDA 1 GiB in the kernel and else a tenth of the memory.
        compiled: whether the element-wise part is compiled.
        kernel: whether it runs in a Triton kernel where there is one for it: on CUDA, for most losses.

    Products with the heads are in autocast's number format where it is on; else those of the student in that of `hidden`,
    those of the teacher in that of its head. Returns the loss, a scalar. Raises UserError for tensors that do not fit each
    other and for a loss that needs more.

    Example:
        >>> hidden = student.get_decoder()(input_ids, attention_mask).last_hidden_state
        >>> with torch.no_grad():
        ...     teacher_hidden = teacher.get_decoder()(input_ids, attention_mask).last_hidden_state
        >>> lm_head, teacher_lm_head = get_lm_head(student), get_lm_head(teacher)
        >>> fused_linear_distillation_loss(hidden, lm_head, teacher_hidden, teacher_lm_head, labels).backward()
    """
    objective = default_objective() if loss is None else as_objective(loss)
    if objective.feature_terms:
        raise UserError(f"{objective.feature_terms[0].key}: it compares layers, which this function does not see")
    hidden, targets, mask = _predictions("hidden", hidden, labels)
    head = _as_head("lm_head", lm_head_weight, lm_head_bias, vocab_size)
    target = None
    if teacher_hidden is not None and teacher_lm_head_weight is not None:
        chosen, _, _ = _predictions("teacher_hidden", teacher_hidden, labels)
        teacher_head = _as_head("teacher_lm_head", teacher_lm_head_weight, teacher_lm_head_bias, vocab_size)
        vocab_size = vocab_size or min(head.vocab_size, teacher_head.vocab_size)
        dtype = product_dtype(teacher_head.weight)
        with torch.no_grad():
            target = DenseTarget(chosen.to(dtype), teacher_head._replace(vocab_size=vocab_size).cast(dtype))
    count = mask.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=hidden.device)
    hidden = hidden.to(product_dtype(hidden))
    with torch.autocast(hidden.device.type, enabled=False):
        return fused_linear_loss(
            objective,
            hidden,
            head._replace(vocab_size=vocab_size or head.vocab_size),
            target,
            targets,
            denominator=count,
            progress=progress,
            chunk_size=chunk_size,
            compiled=compiled,
            kernel=kernel,
        ).total


def _as_head(name: str, weight: Tensor | LMHead, bias: Tensor | None, vocab_size: int | None) -> LMHead:
    """The head of an argument. Raises UserError for a bias beside a head with its own, and for fewer rows than tokens."""
    if isinstance(weight, LMHead) and bias is not None:
        raise UserError(f"{name}_bias: {name}_weight is a whole head, as of get_lm_head, with its own bias; leave one out")
    head = weight if isinstance(weight, LMHead) else LMHead(weight, bias, 1.0, 0.0, weight.shape[0])
    if vocab_size is not None and vocab_size > head.vocab_size:
        raise UserError(f"vocab_size: {vocab_size} tokens are compared, and {name}_weight has {head.vocab_size} rows")
    return head


def _predictions(name: str, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden states (N, D), labels (N,) of the supervised tokens, which of all they are)."""
    if hidden.ndim != labels.ndim + 1 or hidden.shape[:-1] != labels.shape:
        raise UserError(
            f"{name}: {tuple(hidden.shape)} does not fit labels {tuple(labels.shape)}; give (B, T, D) and (B, T), "
            "or (N, D) and (N,)"
        )
    if labels.ndim == 2:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    mask = labels != IGNORE_INDEX
    return hidden[mask], labels[mask], mask


class FusedLinearDistillationLoss(nn.Module):
    """`fused_linear_distillation_loss` as a module, which remembers its loss.

    Example:
        >>> criterion = FusedLinearDistillationLoss(losses.JensenShannon(beta=0.5), chunk_size=512)
        >>> criterion(hidden, student.lm_head.weight, teacher_hidden, teacher.lm_head.weight, labels).backward()
    """

    def __init__(
        self,
        loss: AnyLoss | None = None,
        *,
        chunk_size: int | None = None,
        compiled: bool = False,
        kernel: bool = True,
    ) -> None:
        super().__init__()
        self.objective = default_objective() if loss is None else as_objective(loss)
        self.chunk_size, self.compiled, self.kernel = chunk_size, compiled, kernel

    def forward(
        self,
        hidden: Tensor,
        lm_head_weight: Tensor | LMHead,
        teacher_hidden: Tensor | None,
        teacher_lm_head_weight: Tensor | LMHead | None,
        labels: Tensor,
        **options: Any,
    ) -> Tensor:
        """The loss; `options` as of the function: biases, num_items_in_batch, vocab_size, progress."""
        return fused_linear_distillation_loss(
            hidden,
            lm_head_weight,
            teacher_hidden,
            teacher_lm_head_weight,
            labels,
            loss=self.objective,
            chunk_size=self.chunk_size,
            compiled=self.compiled,
            kernel=self.kernel,
            **options,
        )
