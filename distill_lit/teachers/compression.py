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

from distill_lit.losses.targets import SampledTarget, TopKTarget

CACHE_HIDDEN_STATES, CACHE_TOP_K, CACHE_SAMPLED = "hidden_states", "top_k", "sampled"
CompressedArrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TeacherCacheFormat:
    """What a cache keeps. kind: hidden, top_k or sampled; width: k, or draws; temperature: of the proposal that is drawn
    from, p^(1/temperature) normalised; the weights make up for it; layers: whose states are kept beside the last hidden."""

    kind: str = CACHE_HIDDEN_STATES
    tokens_per_position: int = 0
    sampling_temperature: float = 1.0
    hidden_layers: tuple[int, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """What identifies it; nothing for last hidden states alone, which are all there is."""
        if self.kind == CACHE_HIDDEN_STATES:
            return {"layers": list(self.hidden_layers)} if self.hidden_layers else {}
        proposal = {"temperature": self.sampling_temperature} if self.kind == CACHE_SAMPLED else {}
        return {"kind": self.kind, "width": self.tokens_per_position, **proposal}

    def bytes_per_token(self, vocabulary: int) -> int:
        """On disk, for one supervised token of a sparse cache."""
        number = 2 + (2 if vocabulary <= 1 << 16 else 4)
        extra = 2 if self.kind == CACHE_TOP_K else 4 if self.sampling_temperature != 1.0 else 0
        return self.tokens_per_position * number + 2 + extra


def compress_logprobs(
    log_p: Tensor, labels: Tensor, cache_format: TeacherCacheFormat, generator: torch.Generator
) -> CompressedArrays:
    """log_p: the teacher's log-probabilities (N, V) at temperature 1, float32; labels: (N,). Arrays of N rows.

    generator: of log_p's device; only draws use it.
    """
    label = log_p.gather(-1, labels[:, None])[:, 0]
    if cache_format.kind == CACHE_TOP_K:
        values, ids = log_p.topk(cache_format.tokens_per_position, dim=-1)
        tail_logprobs = (1 - values.double().exp().sum(-1)).clamp(min=0)
        arrays = {"ids": ids, "log_probs": values, "rest": tail_logprobs.log().float()}
    else:
        proposal = log_p if cache_format.sampling_temperature == 1.0 else log_p / cache_format.sampling_temperature
        ids = torch.multinomial(
            proposal.softmax(-1), cache_format.tokens_per_position, replacement=True, generator=generator
        )
        arrays = {"ids": ids, "log_probs": log_p.gather(-1, ids)}
        if cache_format.sampling_temperature != 1.0:
            arrays["normaliser"] = proposal.logsumexp(-1)
    small = {"ids": np.uint16 if log_p.shape[-1] <= 1 << 16 else np.uint32, "normaliser": np.float32}
    return {
        name: np.ascontiguousarray(array.cpu().numpy().astype(small.get(name, np.float16)))
        for name, array in {**arrays, "label_log_probs": label}.items()
    }


def decompress_target(arrays: CompressedArrays, cache_format: TeacherCacheFormat) -> TopKTarget | SampledTarget:
    """What `compress_logprobs` kept, as a target: ids int64, the rest float32."""
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    log_probs = torch.from_numpy(arrays["log_probs"].astype(np.float32))
    label = torch.from_numpy(arrays["label_log_probs"].astype(np.float32))
    if cache_format.kind == CACHE_TOP_K:
        # float16 has rounded every probability; their sum is known better from the mass of all others
        tail_mass = torch.from_numpy(arrays["rest"].astype(np.float32)).exp()
        top_k_log_mass = torch.log1p(-tail_mass.clamp(max=1 - 1e-6))
        return TopKTarget(ids, log_probs + (top_k_log_mass - log_probs.logsumexp(-1))[:, None], label)
    return SampledTarget(ids, log_probs, _importance_weights(log_probs, arrays.get("normaliser"), cache_format), label)


def _importance_weights(logprobs: Tensor, log_normalizer: np.ndarray | None, form: TeacherCacheFormat) -> Tensor:
    """p / (n · proposal) of every draw: 1/n where the teacher itself was drawn from. Unbiased for any proposal that is
    nowhere 0."""
    if log_normalizer is None:
        return torch.full_like(logprobs, 1 / form.tokens_per_position)
    proposal = logprobs / form.sampling_temperature - torch.from_numpy(log_normalizer.astype(np.float32))[:, None]
    return (logprobs - proposal).exp() / form.tokens_per_position
