"""The head and loss of a distillation step in every contender's way, each from the same hidden states, and their floor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from helpers import reference_libraries
from torch import Tensor
from torch.nn import functional as F

from distill_lit.config import TermConfig
from distill_lit.losses import build_objective, can_compile, fused_linear_loss
from distill_lit.losses.lm_head import LMHead
from distill_lit.losses.targets import DenseTarget

HIDDEN_SIZE = 576
OURS, OURS_CE_KL, PLAIN, PLAIN_CE_KL, TRL, TORCHTUNE, LIGER, FLOOR, COMPILED = (
    "ours", "ours, CE + KL", "plain", "plain, CE + KL", "trl", "torchtune", "liger", "floor", "ours, training.compile"
)  # fmt: skip
OURS_WITHOUT_KERNEL = "ours, without the kernel"
ONE_TERM = build_objective({"kl": TermConfig(kind="forward_kl")})
TWO_TERMS = build_objective({"kl": TermConfig(kind="forward_kl", weight=0.5), "ce": TermConfig(weight=0.5)})


class LossInputs(NamedTuple):
    """What every contender starts from: hidden states (N, D) and head weights (V, D) of both models, labels (N,)."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor

    @property
    def product_weight(self) -> Tensor:
        """The student's float32 head in the format of the products, as autocast has it."""
        return self.weight.to(self.hidden.dtype)


Loss = Callable[[LossInputs], Tensor]


def random_loss_inputs(
    count: int, vocabulary: int, dtype: torch.dtype, device: torch.device, width: int = HIDDEN_SIZE
) -> LossInputs:
    """Random states; logits with a standard deviation of about 3."""
    torch.manual_seed(0)
    scale = 3 / width**0.5
    hidden, teacher_hidden = (torch.randn(count, width, device=device).to(dtype) for _ in range(2))
    weight, teacher_weight = (torch.randn(vocabulary, width, device=device).mul_(scale) for _ in range(2))
    labels = torch.randint(0, vocabulary, (count,), device=device)
    return LossInputs(hidden.requires_grad_(), weight.requires_grad_(), teacher_hidden, teacher_weight.to(dtype), labels)


def fused_loss(tokens: LossInputs, objective: Any = ONE_TERM, kernel: bool = True) -> Tensor:
    """The fused head as a training has it: its chunk from the device's memory budget."""
    vocabulary = tokens.weight.shape[0]
    target = DenseTarget(tokens.teacher_hidden, LMHead(tokens.teacher_weight, None, 1.0, 0.0, vocabulary))
    return fused_linear_loss(
        objective,
        tokens.hidden,
        LMHead(tokens.weight, None, 1.0, 0.0, vocabulary),
        target,
        tokens.labels,
        denominator=torch.tensor(len(tokens.labels)),
        compiled=can_compile(tokens.hidden.device),
        kernel=kernel,
    ).total


def plain_pytorch_loss(tokens: LossInputs, with_labels: bool = False) -> Tensor:
    """Both logit tensors in full, softmax in float32."""
    logits = (tokens.hidden @ tokens.product_weight.t()).float()
    with torch.no_grad():
        log_p = (tokens.teacher_hidden @ tokens.teacher_weight.t()).float().log_softmax(-1)
    kl = F.kl_div(logits.log_softmax(-1), log_p, log_target=True, reduction="batchmean")
    return 0.5 * kl + 0.5 * F.cross_entropy(logits, tokens.labels) if with_labels else kl


def trl_loss(tokens: LossInputs) -> Tensor:
    """trl's chunked divergence at β = 0."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher = tokens.hidden.unsqueeze(0), tokens.teacher_hidden.unsqueeze(0)
    mask = torch.ones(student.shape[:2], device=student.device)
    return _chunked_divergence_loss(student, teacher, tokens.weight, tokens.teacher_weight, mask, beta=0.0)[0]


def torchtune_loss(tokens: LossInputs) -> Tensor:
    """torchtune's forward KL over eight chunks of logits, which is −Σ p log q."""
    chunks = tokens.hidden.unsqueeze(0).chunk(8, dim=1)
    student = [chunk @ tokens.product_weight.t() for chunk in chunks]
    with torch.no_grad():
        teacher = [chunk @ tokens.teacher_weight.t() for chunk in tokens.teacher_hidden.unsqueeze(0).chunk(8, dim=1)]
    loss = reference_libraries.torchtune_losses().ForwardKLWithChunkedOutputLoss(8)
    return loss(student, teacher, tokens.labels.unsqueeze(0))


def liger_loss(tokens: LossInputs) -> Tensor:
    """Liger's Triton kernel over chunks of its own choice, at β = 0."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    operands = (tokens.hidden, tokens.product_weight, tokens.teacher_hidden, tokens.teacher_weight)
    return LigerFusedLinearJSD(jsd_beta=0.0)(*operands, None)


def matmul_floor(tokens: LossInputs, chunk: int = 1024) -> Callable[[], None]:
    """The matrix products that no method can do without, forward and backward, and nothing else: what they write to is
    allocated before."""
    weight, states = tokens.product_weight.detach(), tokens.hidden.detach()
    products = states.new_empty(min(chunk, len(states)), len(weight))
    teacher_products, to_states, to_weight = torch.empty_like(products), torch.empty_like(states), torch.empty_like(weight)

    def run() -> None:
        for start in range(0, len(states), chunk):
            hidden = states[start : start + chunk]
            gradient = torch.mm(hidden, weight.t(), out=products[: len(hidden)])
            teacher_hidden = tokens.teacher_hidden[start : start + chunk]
            torch.mm(teacher_hidden, tokens.teacher_weight.t(), out=teacher_products[: len(hidden)])
            torch.mm(gradient, weight, out=to_states[start : start + chunk])
            torch.mm(gradient.t(), hidden, out=to_weight)

    return run


LOSSES: dict[str, Loss] = {
    OURS: fused_loss,
    OURS_CE_KL: lambda tokens: fused_loss(tokens, TWO_TERMS),
    PLAIN: plain_pytorch_loss,
    PLAIN_CE_KL: lambda tokens: plain_pytorch_loss(tokens, with_labels=True),
    TRL: trl_loss,
    TORCHTUNE: torchtune_loss,
    LIGER: liger_loss,
    OURS_WITHOUT_KERNEL: lambda tokens: fused_loss(tokens, kernel=False),
}
CUDA_ONLY = (LIGER, OURS_WITHOUT_KERNEL)  # kernels need a GPU


def losses_for_device(device: torch.device) -> dict[str, Loss]:
    """The contenders there."""
    return {name: loss for name, loss in LOSSES.items() if name not in CUDA_ONLY or device.type == "cuda"}


LOGITS_BYTES = {PLAIN: 26, PLAIN_CE_KL: 30, TORCHTUNE: 16}  # bytes per token and column that they need at least


def check_gradients_match(tokens: LossInputs, losses: dict[str, Loss]) -> None:
    """Raises AssertionError unless all contenders have plain PyTorch's gradient, of one term or two, on some of the
    tokens."""
    few = LossInputs(*(t[:256].detach() if len(t) == len(tokens.labels) else t.detach() for t in tokens))
    few = few._replace(hidden=few.hidden.requires_grad_(), weight=few.weight.requires_grad_())
    for with_labels, names in ((False, set(losses) - {OURS_CE_KL, PLAIN_CE_KL}), (True, {OURS_CE_KL} & set(losses))):
        wanted = torch.autograd.grad(plain_pytorch_loss(few, with_labels), (few.hidden, few.weight))
        for name in names:
            found = torch.autograd.grad(losses[name](few), (few.hidden, few.weight))
            for ours_, theirs in zip(found, wanted, strict=True):
                error = (ours_ - theirs).float().norm() / theirs.float().norm()
                limit = 0.02 if few.hidden.dtype == torch.bfloat16 else 1e-4
                assert error < limit, f"{name}: gradient off by {error:.3f}"
