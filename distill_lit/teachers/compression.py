"""A teacher's distribution cut down to a few numbers per token, and back to what losses read.

    top_k     the k most probable tokens, their log-probabilities, and the mass of all others
    sampled   n tokens drawn with replacement: an unbiased estimate of the whole, Anshumann et al. 2025, 2503.16870 §4

Arrays have one row per supervised token: ids in 16 bits where the vocabulary allows, log-probabilities in float16.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_lit.losses.targets import Draws, TopK

HIDDEN, TOP_K, SAMPLED = "hidden", "top_k", "sampled"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """What a cache keeps. kind: hidden, top_k or sampled; width: k, or draws; temperature: of the proposal that is drawn
    from, p^(1/temperature) normalised; the weights make up for it; layers: whose states are kept beside the last hidden."""

    kind: str = HIDDEN
    width: int = 0
    temperature: float = 1.0
    layers: tuple[int, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What identifies it; nothing for last hidden states alone, which are all there is."""
        if self.kind == HIDDEN:
            return {"layers": list(self.layers)} if self.layers else {}
        proposal = {"temperature": self.temperature} if self.kind == SAMPLED else {}
        return {"kind": self.kind, "width": self.width, **proposal}

    def bytes_per_token(self, vocabulary: int) -> int:
        """On disk, for one supervised token of a sparse cache."""
        number = 2 + (2 if vocabulary <= 1 << 16 else 4)
        extra = 2 if self.kind == TOP_K else 4 if self.temperature != 1.0 else 0
        return self.width * number + 2 + extra


def compress(log_p: Tensor, labels: Tensor, form: Form, generator: torch.Generator) -> Arrays:
    """log_p: the teacher's log-probabilities (N, V) at temperature 1, float32; labels: (N,). Arrays of N rows.

    generator: of log_p's device; only draws use it.
    """
    label = log_p.gather(-1, labels[:, None])[:, 0]
    if form.kind == TOP_K:
        values, ids = log_p.topk(form.width, dim=-1)
        rest = (1 - values.double().exp().sum(-1)).clamp(min=0)
        arrays = {"ids": ids, "log_probs": values, "rest": rest.log().float()}
    else:
        proposal = log_p if form.temperature == 1.0 else log_p / form.temperature
        ids = torch.multinomial(proposal.softmax(-1), form.width, replacement=True, generator=generator)
        arrays = {"ids": ids, "log_probs": log_p.gather(-1, ids)}
        if form.temperature != 1.0:
            arrays["normaliser"] = proposal.logsumexp(-1)
    small = {"ids": np.uint16 if log_p.shape[-1] <= 1 << 16 else np.uint32, "normaliser": np.float32}
    return {
        name: np.ascontiguousarray(array.cpu().numpy().astype(small.get(name, np.float16)))
        for name, array in {**arrays, "label_log_probs": label}.items()
    }


def expand(arrays: Arrays, form: Form) -> TopK | Draws:
    """What `compress` kept, as a target: ids int64, the rest float32."""
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    log_probs = torch.from_numpy(arrays["log_probs"].astype(np.float32))
    label = torch.from_numpy(arrays["label_log_probs"].astype(np.float32))
    if form.kind == TOP_K:
        # float16 has rounded every probability; their sum is known better from the mass of all others
        rest = torch.from_numpy(arrays["rest"].astype(np.float32)).exp()
        exact = torch.log1p(-rest.clamp(max=1 - 1e-6))
        return TopK(ids, log_probs + (exact - log_probs.logsumexp(-1))[:, None], label)
    return Draws(ids, log_probs, _weights(log_probs, arrays.get("normaliser"), form), label)


def _weights(log_probs: Tensor, normaliser: np.ndarray | None, form: Form) -> Tensor:
    """p / (n · proposal) of every draw: 1/n where the teacher itself was drawn from. Unbiased for any proposal that is
    nowhere 0."""
    if normaliser is None:
        return torch.full_like(log_probs, 1 / form.width)
    proposal = log_probs / form.temperature - torch.from_numpy(normaliser.astype(np.float32))[:, None]
    return (log_probs - proposal).exp() / form.width
