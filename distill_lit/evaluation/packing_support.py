"""Which models cannot be packed: by their configuration, by what they raise, and by a self-check against plain passes."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from distill_lit.evaluation.prefix_tree import find_longest_shared_prefix
from distill_lit.evaluation.prefix_tree_scorer import PrefixTreeScorer, TargetSequence
from distill_lit.evaluation.scoring import score_sequence
from distill_lit.models.quantization import is_quantized
from distill_lit.utils.exceptions import UserError

LOGPROB_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats per token
LOW_PRECISION_LOGPROB_TOLERANCE = 0.25  # bfloat16 and float16: the order of their sums differs
# shared by two requests of the self-check, if any two share so much: enough to show in numbers
SELF_CHECK_SHARED_TOKENS = 16

PACKING_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
)  # what a model raises that knows no packs


class PackingSelfCheck:
    """Compares packed log-likelihoods with plain forward passes before they are trusted: at the first sequences of a
    model, and again where longer ones come or two share more. `supports_kv_prefix`: whether the model can read a shared
    context once; None where that is not known yet."""

    def __init__(self, scorer: PrefixTreeScorer) -> None:
        self.supports_kv_prefix: bool | None = None
        self._scorer, self._model = scorer, scorer.model
        self._disabled_reason = ""  # why this model is never packed
        self._verified_tokens = self._verified_branch = 0  # length, and what two sequences shared, compared so far

    def unsupported_reason(self, sequences: Sequence[TargetSequence]) -> str:
        """Why these cannot be packed, or nothing. Raises UserError where the model's log-likelihoods are not finite."""
        longest = max(len(tokens) for tokens, _ in sequences) - 1
        if reason := self._disabled_reason or packing_unsupported_reason(self._model.config, longest):
            return reason
        # a longer one can still show that attention is local, a deeper branch that it is not that of ancestors
        if longest > self._verified_tokens or self._branches_deeper(sequences):
            self._disabled_reason = self.compare_with_plain(sequences)
            self._verified_tokens = max(longest, self._verified_tokens)
        is_unknown = not self._disabled_reason and self.supports_kv_prefix is None
        if is_unknown and (groups := self._scorer.shared_prefix_groups(sequences)):
            self._disabled_reason = self.compare_with_plain([sequences[n] for n in groups[0][1]])
        return self._disabled_reason

    def _branches_deeper(self, sequences: Sequence[TargetSequence]) -> bool:
        """Whether two of these share more than any two that were compared, up to SELF_CHECK_SHARED_TOKENS."""
        if self._verified_branch == SELF_CHECK_SHARED_TOKENS:
            return False
        read = (tuple(tokens[:-1]) for tokens, _ in sequences)
        return find_longest_shared_prefix(read, SELF_CHECK_SHARED_TOKENS, ())[0] > self._verified_branch

    def compare_with_plain(self, sequences: Sequence[TargetSequence]) -> str:
        """Why packing cannot be trusted with this model, or nothing: the longest sequence in a row with two that share a
        prefix and then branch, it among them if it shares enough."""
        read = {tuple(tokens[:-1]): n for n, (tokens, _) in enumerate(sequences)}
        longest = max(read, key=len)
        shared, branch = find_longest_shared_prefix(read, SELF_CHECK_SHARED_TOKENS, longest)
        # what comes later in a row can see what it must not, so the later of the branches is compared, and the longest
        compared = dict.fromkeys([longest, *branch[1:]])
        sample = [sequences[read[tokens]] for tokens in compared | dict.fromkeys(branch)]
        self._verified_branch = max(self._verified_branch, shared)
        try:
            expected = [score_sequence(self._model, *sequence) for sequence in sample[: len(compared)]]
        except PACKING_ERRORS as error:
            return packing_error_reason(error)
        if not all(map(math.isfinite, expected)):
            raise UserError("its log-likelihoods are not finite: damaged weights, or too large for this dtype")
        problem = self._difference(sample, expected, [])
        is_wanted = self.supports_kv_prefix is None and self._scorer.shared_prefix_groups(sequences)
        if not problem and (is_wanted or self.supports_kv_prefix):
            groups = self._scorer.shared_prefix_groups(sample, min_suffix_nodes=1)
            if groups:
                self.supports_kv_prefix = not self._difference(sample, expected, groups)
        return problem

    def _difference(
        self, sample: list[TargetSequence], expected: list[float], prefix_groups: list[tuple[list[int], list[int]]]
    ) -> str:
        """How these sequences, packed into one row, fail to give the first of them their log-probabilities, or nothing."""
        row_tokens = sum(len(tokens) - 1 for tokens, _ in sample)
        try:
            scores = self._scorer.score(sample, prefix_groups, lambda *_: None, row_tokens)
        except PACKING_ERRORS as error:
            return packing_error_reason(error)
        differences = [
            abs(plain - sum(found.logprobs)) / count
            for plain, found, (_, count) in zip(expected, scores, sample, strict=False)
        ]
        # int8 activations round: a last bit can move a whole step
        allowed = (
            LOW_PRECISION_LOGPROB_TOLERANCE
            if is_quantized(self._model)
            else LOGPROB_TOLERANCE.get(self._model.dtype, LOW_PRECISION_LOGPROB_TOLERANCE)
        )
        wrong = [difference for difference in differences if not difference <= allowed]  # NaN is no agreement
        return f"packed log-likelihoods differ by {max(wrong):.2g} nats per token from plain ones" if wrong else ""


def packing_unsupported_reason(config: Any, max_request_tokens: int) -> str:
    """Why a model cannot be packed with requests of `max_request_tokens` tokens, or nothing."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    implementation = getattr(text, "_attn_implementation", "sdpa")
    if implementation not in ("sdpa", "eager"):
        return f"attention {implementation!r} takes no mask of ancestors"
    if text.model_type == "rwkv" or getattr(text, "alibi", False) or _option(getattr(text, "attn_config", None), "alibi"):
        return f"{text.model_type} tells places by their order in the row, not by a number"
    kinds = {*(getattr(text, "layer_types", None) or []), *(getattr(text, "attention_layers", None) or [])}
    if other := sorted(kinds - {"full_attention", "sliding_attention", "global"}):
        return f"{text.model_type} has layers with {other[0]!r} attention"
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    local = window and max_request_tokens > window
    return f"{text.model_type} has a window of {window} tokens, shorter than a request" if local else ""


def _option(settings: Any, name: str) -> Any:
    """A setting of a configuration within a configuration, which may be a mapping."""
    return settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)


def packing_error_reason(error: Exception) -> str:
    """Why a model cannot be packed that raised this."""
    return f"the model cannot be packed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
