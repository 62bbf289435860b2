"""Compression of what a teacher says, for caches: a few numbers per token, and back to what losses read.

    hidden_states_int8   last hidden states in 8 bits with a scale for each token, Dettmers et al. 2022, 2208.07339 §2
    top_k     the k most probable tokens, their log-probabilities, and the mass of all others
    top_p     the same, and of each position only as many as have a mass of p: its nucleus, Holtzman et al. 2020,
              1904.09751 §3.1
    sampled   n tokens drawn with replacement: an unbiased estimate of the whole, Anshumann et al. 2025, 2503.16870 §4

Arrays have one row per supervised token: ids in 16 bits where the vocabulary allows, log-probabilities in float16. Those
of top_p are ragged: ids and logprobs of all positions one after the other, and counts, how many are of each.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from distill_lit.losses.targets import SampledTarget, TopKTarget

CACHE_HIDDEN_STATES, CACHE_HIDDEN_STATES_INT8 = "hidden_states", "hidden_states_int8"
CACHE_TOP_K, CACHE_TOP_P, CACHE_SAMPLED = "top_k", "top_p", "sampled"
CACHE_KINDS = (CACHE_HIDDEN_STATES, CACHE_HIDDEN_STATES_INT8, CACHE_TOP_K, CACHE_TOP_P, CACHE_SAMPLED)
INT8_SCALE = "scale"  # the array of that name in a shard: float16, one for each token
COUNTS = "counts"  # of a ragged shard: how many of its `RAGGED_ARRAYS` are of each token
RAGGED_ARRAYS = ("ids", "logprobs")
MASS_ROUNDING = 1e-6  # by which the sum of probabilities that were rounded to float32 may miss its value
CompressedArrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TeacherCacheFormat:
    """What a teacher cache keeps.

    Args:
        kind: hidden_states, hidden_states_int8, top_k, top_p or sampled.
        tokens_per_position: k, of top_p the most tokens, or the number of samples; 0 for hidden states.
        sampling_temperature: of the proposal that samples are drawn from, p^(1 / temperature) normalized; their weights
            make up for it.
        hidden_layers: layers whose hidden states are kept beside the last one's (hidden_states only).
        top_p: mass of the tokens kept of a position, at least, unless they are too many (top_p only).
    """

    kind: str = CACHE_HIDDEN_STATES
    tokens_per_position: int = 0
    sampling_temperature: float = 1.0
    hidden_layers: tuple[int, ...] = ()
    top_p: float = 1.0

    def metadata(self) -> dict[str, Any]:
        """What identifies it, as plain values."""
        found = {**asdict(self), "hidden_layers": list(self.hidden_layers)}
        if self.kind != CACHE_TOP_P:
            del found["top_p"]  # caches of other kinds stay where they were before there was this one
        return found

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

    @property
    def is_ragged(self) -> bool:
        """Whether it keeps more tokens of one position than of another."""
        return self.kind == CACHE_TOP_P

    @property
    def target_form(self) -> str:
        """Of what it keeps, a word of `LossSpec.target_forms`."""
        return "dense" if self.is_dense else CACHE_TOP_K if self.is_ragged else self.kind

    @property
    def expected_tokens(self) -> float:
        """Kept of a position, on average. Of top_p an assumption: a nucleus has more than n tokens at a share of
        1 / (1 + n / m) of the positions, with a median m = 3 (p / (1 − p))^1.3. That is within a fifth of what SmolLM2-135M
        needs on the commonsense corpus, p from 0.8 to 0.99; a teacher that is surer of its text needs fewer."""
        if not self.is_ragged or self.top_p == 1:
            return self.tokens_per_position
        median: float = 3 * (self.top_p / (1 - self.top_p)) ** 1.3
        return max(1.0, median * math.log1p(self.tokens_per_position / median))

    @property
    def label(self) -> str:
        """Such as top_k_50, top_p_0.95_255 or sampled_12."""
        if self.is_dense:
            return self.kind
        mass = f"_{self.top_p:g}" if self.is_ragged else ""
        return f"{self.kind}{mass}_{self.tokens_per_position}"

    def bytes_per_token(self, vocab_size: int) -> int:
        """On disk, for one supervised token of a sparse cache; of a ragged one on average, for `expected_tokens`."""
        per_entry = 2 + (2 if vocab_size <= 1 << 16 else 4)
        extra = 2 if self.target_form == CACHE_TOP_K else 4 if self.sampling_temperature != 1.0 else 0
        extra += self.count_dtype.itemsize if self.is_ragged else 0
        return round(self.expected_tokens * per_entry) + 2 + extra

    @property
    def count_dtype(self) -> np.dtype[Any]:
        """The smallest that holds how many tokens are kept of a position."""
        return np.min_scalar_type(self.tokens_per_position)


def compress_logprobs(
    logprobs: Tensor, labels: Tensor, cache_format: TeacherCacheFormat, generator: torch.Generator
) -> CompressedArrays:
    """Arrays of N rows for the teacher's log-probabilities (N, V) at temperature 1, float32, and labels (N,).

    generator: of the device of `logprobs`; only samples use it.
    """
    label_logprobs = logprobs.gather(-1, labels[:, None])[:, 0]
    if cache_format.target_form == CACHE_TOP_K:
        # a padded head has more rows than there are tokens, and a config counts the rows
        values, ids = logprobs.topk(min(cache_format.tokens_per_position, logprobs.shape[-1]), dim=-1)
        if not cache_format.is_ragged:
            return top_k_arrays(ids, values, label_logprobs, logprobs.shape[-1])
        nucleus = keep_nucleus(values, cache_format.top_p)
        return _without_padding(top_k_arrays(ids, nucleus, label_logprobs, logprobs.shape[-1]), cache_format.count_dtype)
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


def keep_nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    """Log-probabilities (N, k) in falling order, −inf behind the fewest of each row whose probabilities sum to `top_p`,
    within `MASS_ROUNDING`. The first is always kept. Holtzman et al. 2020, 1904.09751 §3.1."""
    mass_before = pad(logprobs.double().exp().cumsum(-1)[:, :-1], (1, 0), value=-1.0)
    return logprobs.masked_fill(mass_before >= top_p - MASS_ROUNDING, -torch.inf)


def _without_padding(arrays: CompressedArrays, count_dtype: np.dtype[Any]) -> CompressedArrays:
    """Arrays of `top_k_arrays` without the entries of −inf, which are at the end of rows, as ragged ones."""
    is_kept = np.isfinite(arrays["logprobs"])
    ragged = {name: arrays[name][is_kept] for name in RAGGED_ARRAYS}
    return {**arrays, **ragged, COUNTS: is_kept.sum(-1).astype(count_dtype)}


def _with_padding(arrays: CompressedArrays) -> CompressedArrays:
    """Ragged arrays as those of `top_k_arrays`, as wide as the longest row."""
    counts = arrays[COUNTS]
    is_kept = np.arange(int(counts.max(initial=1))) < counts[:, None]
    padded = {"ids": np.zeros(is_kept.shape, arrays["ids"].dtype), "logprobs": np.full(is_kept.shape, -np.inf, np.float32)}
    for name in RAGGED_ARRAYS:
        padded[name][is_kept] = arrays[name]
    return {**arrays, **padded}


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
    if cache_format.is_ragged:
        arrays = _with_padding(arrays)
    ids = torch.from_numpy(arrays["ids"].astype(np.int64))
    logprobs = torch.from_numpy(arrays["logprobs"].astype(np.float32))
    label_logprobs = torch.from_numpy(arrays["label_logprobs"].astype(np.float32))
    if cache_format.target_form == CACHE_TOP_K:
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
