"""Compression of what a teacher says, for caches: a few numbers per token, and back to what losses read.

    hidden_states_int8   last hidden states in 8 bits with a scale for each token, Dettmers et al. 2022, 2208.07339 §2
    top_k     the k most probable tokens, their log-probabilities, and the mass of all others
    sampled   n tokens drawn with replacement: an unbiased estimate of the whole, Anshumann et al. 2025, 2503.16870 §4

Arrays have one row per supervised token: ids in 16 bits where the vocabulary allows, log-probabilities in float16.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_lit.losses.targets import SampledTarget, TopKTarget

CACHE_HIDDEN_STATES, CACHE_HIDDEN_STATES_INT8 = "hidden_states", "hidden_states_int8"
CACHE_TOP_K, CACHE_SAMPLED = "top_k", "sampled"
CACHE_KINDS = (CACHE_HIDDEN_STATES, CACHE_HIDDEN_STATES_INT8, CACHE_TOP_K, CACHE_SAMPLED)
INT8_SCALE = "scale"  # the array of that name in a shard: float16, one for each token
CompressedArrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TeacherCacheFormat:
    """What a teacher cache keeps.

    Args:
        kind: hidden_states, hidden_states_int8, top_k or sampled.
        tokens_per_position: k, or the number of samples; 0 for hidden states.
        sampling_temperature: of the proposal that samples are drawn from, p^(1 / temperature) normalized; their weights
            make up for it.
        hidden_layers: layers whose hidden states are kept beside the last one's (hidden_states only).
    """

    kind: str = CACHE_HIDDEN_STATES
    tokens_per_position: int = 0
    sampling_temperature: float = 1.0
    hidden_layers: tuple[int, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """What identifies it, as plain values."""
        return {**asdict(self), "hidden_layers": list(self.hidden_layers)}

    @staticmethod
    def from_metadata(metadata: Mapping[str, Any]) -> "TeacherCacheFormat":
        """The format that `metadata` was of. Raises KeyError, TypeError or ValueError for what is none."""
        if metadata["kind"] not in CACHE_KINDS:
            raise ValueError(metadata["kind"])
        return TeacherCacheFormat(**{**metadata, "hidden_layers": tuple(metadata["hidden_layers"])})

    @property
    def is_dense(self) -> bool:
        """Whether it keeps hidden states, of which a head makes the whole distribution."""
        return self.kind in (CACHE_HIDDEN_STATES, CACHE_HIDDEN_STATES_INT8)

    def bytes_per_token(self, vocab_size: int) -> int:
        """On disk, for one supervised token of a sparse cache."""
        per_entry = 2 + (2 if vocab_size <= 1 << 16 else 4)
        extra = 2 if self.kind == CACHE_TOP_K else 4 if self.sampling_temperature != 1.0 else 0
        return self.tokens_per_position * per_entry + 2 + extra


def compress_logprobs(
    logprobs: Tensor, labels: Tensor, cache_format: TeacherCacheFormat, generator: torch.Generator
) -> CompressedArrays:
    """Arrays of N rows for the teacher's log-probabilities (N, V) at temperature 1, float32, and labels (N,).

    generator: of the device of `logprobs`; only samples use it.
    """
    label_logprobs = logprobs.gather(-1, labels[:, None])[:, 0]
    if cache_format.kind == CACHE_TOP_K:
        values, ids = logprobs.topk(cache_format.tokens_per_position, dim=-1)
        return top_k_arrays(ids, values, label_logprobs, logprobs.shape[-1])
    temperature = cache_format.sampling_temperature
    proposal = logprobs if temperature == 1.0 else logprobs / temperature
    ids = torch.multinomial(proposal.softmax(-1), cache_format.tokens_per_position, replacement=True, generator=generator)
    arrays = {"ids": ids, "logprobs": logprobs.gather(-1, ids)}
    if temperature != 1.0:
        arrays["log_normalizer"] = proposal.logsumexp(-1)
    return _narrowed({**arrays, "label_logprobs": label_logprobs}, logprobs.shape[-1])


def top_k_arrays(ids: Tensor, logprobs: Tensor, label_logprobs: Tensor, vocab_size: int) -> CompressedArrays:
    """Arrays of N rows for the k most probable tokens: ids and log-probabilities (N, k), the labels' own (N,)."""
    tail_mass = (1 - logprobs.double().exp().sum(-1)).clamp(min=0)
    arrays = {"ids": ids, "logprobs": logprobs, "tail_logprob": tail_mass.log().float()}
    return _narrowed({**arrays, "label_logprobs": label_logprobs}, vocab_size)


def _narrowed(arrays: Mapping[str, Tensor], vocab_size: int) -> CompressedArrays:
    """As they are stored."""
    dtypes = {"ids": np.uint16 if vocab_size <= 1 << 16 else np.uint32, "log_normalizer": np.float32}
    return {
        name: np.ascontiguousarray(array.cpu().numpy().astype(dtypes.get(name, np.float16)))
        for name, array in arrays.items()
    }


def round_to_int8(states: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 (…, D), float16 scale (…)) of hidden states (…, D): the largest channel of each token is ±127 scales."""
    values = states.float()
    smallest = torch.finfo(torch.float16).tiny
    scale = (values.abs().amax(-1) / 127).clamp(smallest, torch.finfo(torch.float16).max).half()
    return (values / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8), scale


def from_int8(rounded: Tensor, scale: Tensor) -> Tensor:
    """The hidden states (…, D), float32, that `round_to_int8` rounded."""
    return rounded.float() * scale.float()[..., None]


def decompress_target(arrays: CompressedArrays, cache_format: TeacherCacheFormat) -> TopKTarget | SampledTarget:
    """What `compress_logprobs` kept, as a target: ids int64, the rest float32."""
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    logprobs = torch.from_numpy(arrays["logprobs"].astype(np.float32))
    label_logprobs = torch.from_numpy(arrays["label_logprobs"].astype(np.float32))
    if cache_format.kind == CACHE_TOP_K:
        # float16 has rounded every probability; their sum is known better from the mass of all others
        tail_mass = torch.from_numpy(arrays["tail_logprob"].astype(np.float32)).exp()
        top_k_log_mass = torch.log1p(-tail_mass.clamp(max=1 - 1e-6))
        return TopKTarget(ids, logprobs + (top_k_log_mass - logprobs.logsumexp(-1))[:, None], label_logprobs)
    weights = _importance_weights(logprobs, arrays.get("log_normalizer"), cache_format)
    return SampledTarget(ids, logprobs, weights, label_logprobs)


def _importance_weights(logprobs: Tensor, log_normalizer: np.ndarray | None, cache_format: TeacherCacheFormat) -> Tensor:
    """p / (n · proposal) of every sample: 1/n where the teacher itself was drawn from. Unbiased for any proposal that is
    nowhere 0."""
    if log_normalizer is None:
        return torch.full_like(logprobs, 1 / cache_format.tokens_per_position)
    proposal = logprobs / cache_format.sampling_temperature - torch.from_numpy(log_normalizer.astype(np.float32))[:, None]
    return (logprobs - proposal).exp() / cache_format.tokens_per_position
