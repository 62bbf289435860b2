"""Tokens drawn by inverse transform: one number for each token of each sequence decides, by the sequence's own number.

So what is drawn depends neither on what is written beside it nor on who computes the logits, apart from rounding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_lit.config.generation import LOCAL_BACKEND

SAMPLING_VERSION = 2  # raise it when the same seed draws other tokens
NUCLEUS_TOKENS = 256  # most probable tokens among which a nucleus is looked for before all are sorted


def sampling_metadata(temperature: float, backend: str = LOCAL_BACKEND) -> dict[str, Any]:
    """What beside the settings decides a text: how a seed draws here, and nothing at temperature 0, where the most probable
    tokens are taken; or the name of another backend, which rounds and draws by itself."""
    if backend != LOCAL_BACKEND:
        return {"backend": backend}
    return {"sampling": SAMPLING_VERSION} if temperature else {}


def draw_tokens(logits: Tensor, numbers: Tensor) -> Tensor:
    """The token (n,) at which the cumulative probability of each row of logits (n, V) passes its number (n,) in [0, 1)."""
    cumulative = logits.float().softmax(-1).double().cumsum(-1)
    total = cumulative[:, -1:]
    # strictly below the whole, so that rounding never ends behind the last token that has a probability
    target = torch.minimum(numbers.double()[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def top_p_filter(logits: Tensor, top_p: float) -> Tensor:
    """Logits (n, V), −∞ outside the smallest set of most probable tokens that has `top_p` of the probability.

    Holtzman et al. 2019, 1904.09751 §3.1.
    """
    probabilities = logits.float().softmax(-1)
    size = min(NUCLEUS_TOKENS, logits.shape[-1])
    values, tokens = probabilities.topk(size)
    if size < logits.shape[-1] and bool((values.sum(-1) < top_p).any()):
        values, tokens = probabilities.sort(descending=True)
    is_outside = values.cumsum(-1) - values >= top_p
    is_outside[:, 0] = False
    kept = torch.full_like(logits, -torch.inf)
    return kept.scatter(-1, tokens, logits.gather(-1, tokens).masked_fill(is_outside, -torch.inf))


class UniformNumbers:
    """A number in [0, 1) for each token of each sequence, by seed, sequence and place."""

    def __init__(self, seed: int, count: int) -> None:
        """count: tokens of the longest sequence."""
        self._seed, self._count = seed, count
        self._by_sequence: dict[int, np.ndarray] = {}

    def __call__(self, places: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """(n,) float64 numbers of (sequence, place of its next token)."""
        for sequence, _ in places:
            if sequence not in self._by_sequence:
                self._by_sequence[sequence] = np.random.default_rng([self._seed, sequence]).random(self._count)
        found = [self._by_sequence[sequence][place] for sequence, place in places]
        return torch.tensor(found, dtype=torch.float64).to(device)
