"""A causal language model in two parts: the body, which gives hidden states, and the head, which gives logits."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill_lit.utils.exceptions import UserError

# what architectures call the numbers between lm_head and logits
LOGIT_MULTIPLIER_KEYS, LOGIT_DIVISOR_KEYS = (
    ("logit_scale", "lm_head_multiplier"),
    ("logits_scaling", "logits_mup_width_multiplier"),
)
LOGIT_SOFTCAP_KEYS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


class LMHead(NamedTuple):
    """logits = softcap · tanh(scale · (hidden @ weightᵀ + bias) / softcap), over the first `vocab_size` columns.

    weight: (rows, width); bias: (rows,) or None; scale and softcap: numbers, softcap 0 for none; vocab_size: real tokens.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float
    vocab_size: int

    def cast(self, dtype: torch.dtype) -> "LMHead":
        """This head in another number format, without its padded rows."""
        bias = None if self.bias is None else self.bias[: self.vocab_size].to(dtype)
        return self._replace(weight=self.weight[: self.vocab_size].to(dtype), bias=bias)

    def to(self, device: torch.device) -> "LMHead":
        """This head on another device."""
        return self._replace(weight=self.weight.to(device), bias=None if self.bias is None else self.bias.to(device))

    def copy(self) -> "LMHead":
        """This head in memory of its own. Weights that were loaded are pages of a file, which is kept in memory as a whole
        while one of them is in use."""
        return self._replace(
            weight=self.weight.detach().clone(), bias=None if self.bias is None else self.bias.detach().clone()
        )

    def project(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Raw products (N, vocabulary) of hidden (N, width), before scale and cap; into `out` without a gradient."""
        weight, bias = self.weight[: self.vocab_size], None if self.bias is None else self.bias[: self.vocab_size]
        if out is None:
            return nn.functional.linear(hidden, weight, bias)
        if bias is None:
            return torch.mm(hidden, weight.t(), out=out)
        return torch.addmm(bias, hidden, weight.t(), out=out)

    def scale_and_cap(self, products: Tensor) -> Tensor:
        """Logits in float32 (float64 stays) of raw products: bfloat16 log-softmax loses the tail."""
        logits = products if products.dtype == torch.float64 else products.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def get_lm_head(model: Any, vocab_size: int | None = None) -> LMHead:
    """The head of a causal language model, cut to its `vocab_size` real tokens; None: all rows.

    Raises UserError for a model without one, and for one with an adapter, of which its weight does not know."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if output is None:
        raise UserError(f"{type(model).__name__} has no output embeddings, so it is not a causal language model")
    if hasattr(output, "base_layer"):  # of peft
        raise UserError(
            f"{type(model).__name__}: its lm_head cannot have an adapter, the fused loss reads its weight; name it in "
            "modules_to_save of peft instead, or leave it out"
        )
    config = model.config.get_text_config()
    scale = 1.0
    for name in LOGIT_MULTIPLIER_KEYS:
        scale *= getattr(config, name, None) or 1
    for name in LOGIT_DIVISOR_KEYS:
        scale /= getattr(config, name, None) or 1
    softcap = next((getattr(config, name) for name in LOGIT_SOFTCAP_KEYS if getattr(config, name, None)), 0.0)
    return LMHead(
        output.weight, getattr(output, "bias", None), float(scale), float(softcap), vocab_size or output.weight.shape[0]
    )
