"""lm-eval's HFLM with log-likelihoods computed on packed prefix trees: the same numbers, up to six times as fast.

The context of a question is computed once and not once per choice, examples once and not once per question. It compares
itself with plain forward passes on two or three requests before it is trusted, and steps aside where a model cannot be
packed. Measured in benchmarks/prefix_tree_lm.md.

lm-eval finds it as `prefix_tree` once this module is imported:

    lm_eval.simple_evaluate("prefix_tree", model_args="pretrained=HuggingFaceTB/SmolLM2-135M", tasks=["piqa"])

and from the command line, with all of lm-eval's own arguments:

    python -m distill_lit.evaluation --model prefix_tree --model_args pretrained=… --tasks piqa
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix, normalize_gen_kwargs
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_lit.config.schema import EvaluationConfig
from distill_lit.evaluation.packing_support import PACKING_ERRORS, packing_error_reason, packing_unsupported_reason
from distill_lit.evaluation.prefix_tree import (
    batch_packs,
    find_longest_shared_prefix,
    group_shared_prefixes,
    pack_prefix_trees,
)
from distill_lit.evaluation.scoring import compute_kv_prefix, logits_are_head_output, score_batch, score_sequence
from distill_lit.models.generation_check import supported_generation_mode
from distill_lit.models.loading import load_model, load_tokenizer
from distill_lit.models.quantization import is_quantized
from distill_lit.models.vocabulary import check_ids, check_special_tokens
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.template_limits import check_rendered_length, handle_template_errors

log = logging.getLogger(__name__)

EncodedRequest: TypeAlias = tuple[Any, list[int], list[int]]  # (context, continuation) or None, and the tokens of both
HFLM_BATCH_SIZE = 8  # sequences per forward of HFLM itself: a trial of sizes takes longer than the work on CPUs
LOGPROB_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats per token
LOW_PRECISION_LOGPROB_TOLERANCE = 0.25  # bfloat16 and float16: the order of their sums differs
ROW_TOKENS = 160  # nodes of a row, unless one context has more: measured, see benchmarks/prefix_tree_lm.md
# shared by two requests of the self-check, if any two share so much: enough to show in numbers
SELF_CHECK_SHARED_TOKENS = 16
MIN_KV_PREFIX_TOKENS = 256  # tokens of a context from which it is read once, if what follows it fills several packs


@register_model("prefix_tree")
class PrefixTreeLM(HFLM):
    """A causal language model for lm-eval. `tokens_forwarded`: what it has computed; `token_counts`: tokens of each
    (context, continuation); `token_logprobs`: their log-probabilities, if kept; `fallback_reason`: why HFLM's own way was
    used last, or empty; `num_truncated`: requests longer than the model's context, cut from the left.

    Args:
        pretrained: a transformers model, or the name or folder of one, which HFLM loads.
        tokenizer: its tokenizer; needed beside a model that is loaded already.
        pack_tokens: nodes of a forward pass.
        row_tokens: nodes of one of its rows, unless one context has more.
        keep_token_logprobs: keep the log-probability of every scored token.
        options: of HFLM, such as `dtype`, `device`, `revision`, `batch_size`.

    Example:
        >>> lm = PrefixTreeLM(model, tokenizer)
        >>> lm_eval.simple_evaluate(lm, tasks=["piqa"], limit=100)["results"]["piqa"]["acc,none"]
    """

    def __init__(
        self,
        pretrained: PreTrainedModel | str,
        tokenizer: PreTrainedTokenizerBase | str | None = None,
        *,
        pack_tokens: int = 512,
        row_tokens: int = ROW_TOKENS,
        keep_token_logprobs: bool = False,
        progress_callback: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> None:
        options = {"backend": "causal", "softmax_dtype": "float32", **options}
        options["batch_size"] = options.get("batch_size") or HFLM_BATCH_SIZE
        super().__init__(pretrained=pretrained, tokenizer=tokenizer, **options)
        self.pack_tokens, self.row_tokens = pack_tokens, min(row_tokens, pack_tokens)
        self.token_logprobs: dict[tuple[str, str], list[float]] | None = {} if keep_token_logprobs else None
        self._packing_disabled_reason = ""  # why this model is never packed
        self._verified_tokens = self._verified_branch = 0  # length, and what two requests shared, in a self-check so far
        self._warned = False
        self._supports_kv_prefix: bool | None = None  # not known yet
        self._rows = self.model.get_input_embeddings().weight.shape[0]
        # a GPU wants large products
        self._logits_are_head_output = self.model.device.type == "cpu" and logits_are_head_output(self.model)
        self.reset_counts(progress_callback)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        # HFLM's fills a cache that nobody reads, and a cut may leave a model without the layers that can count it
        with torch.no_grad():
            logits: Tensor = self.model(inps, use_cache=False).logits
        return logits

    def reset_counts(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Sets all counts to zero, for the next task. `progress` is called with (requests done, requests in all)."""
        self.fallback_reason = ""
        self.tokens_forwarded = self.num_truncated = self._done = self._total = 0
        self.token_counts: dict[tuple[str, str], int] = {}
        self.token_logprobs = None if self.token_logprobs is None else {}
        self._progress_callback = progress

    # ------------------------------------------------------------------ what lm-eval calls

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether greedy decoding writes it) of each request."""
        pairs = [request.args for request in requests]
        encoded = self._encode_requests(pairs)
        self._done, self._total = 0, len(requests)
        self.token_counts.update({pair: len(continuation) for pair, _, continuation in encoded})
        return self._loglikelihood_tokens(encoded)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text in nats."""
        self._total = 0  # windows are counted here, not texts
        return self._in_batches(requests, lambda part: super(PrefixTreeLM, self).loglikelihood_rolling(part, True), 1)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes, by HFLM. Raises UserError where an answer leaves no position for its question, or the
        question holds a token that the model has not."""
        longest = 1
        for context, options in (request.args for request in requests):
            room = self.max_length - normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if room < 1:
                raise UserError(
                    f"a task asks for {self.max_length - room} tokens of a model with {self.max_length} positions"
                )
            tokens = self.tok_encode(context)
            check_ids(tokens, self.tokenizer, self._rows)
            self.num_truncated += len(tokens) > room
            longest = max(longest, len(tokens))
        size = HFLM_BATCH_SIZE if supported_generation_mode(self.model, min(longest, self.max_length)).padded else 1
        return self._in_batches(requests, lambda part: super(PrefixTreeLM, self).generate_until(part, True), size)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, by HFLM, within `utils.template_limits`. Raises UserError where the template refuses it."""
        with handle_template_errors():
            return check_rendered_length(str(super().apply_chat_template(chat_history, add_generation_prompt)))

    def _in_batches(self, requests: list[Any], answer: Callable[[list[Any]], list[Any]], size: int) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(requests), size):
            answers += answer(requests[start : start + size])
            if self._progress_callback:
                self._progress_callback(len(answers), len(requests))
        return answers

    # ------------------------------------------------------------------ tokens

    def _encode_requests(self, pairs: Sequence[tuple[str, str]]) -> list[EncodedRequest]:
        """The tokens that HFLM makes of each pair, but every string encoded once, and in batches."""
        moved = [_move_trailing_whitespace(context, continuation) for context, continuation in pairs]
        tokens = self._encode_strings({s for c, t in moved if c for s in (c, c + t)})
        encoded: list[EncodedRequest] = []
        for pair, (context, continuation) in zip(pairs, moved, strict=True):
            if pair[0] == "":
                encoded.append((pair, *self._encode_alone(pair[1])))
            elif context == "":  # blanks only: HFLM's own way
                encoded.append((pair, *self._encode_pair(*pair)))
            else:
                count = len(tokens[context])
                encoded.append((pair, tokens[context], tokens[context + continuation][count:]))
        return encoded

    def _encode_alone(self, continuation: str) -> tuple[list[int], list[int]]:
        tokens = self.tok_encode(continuation, add_special_tokens=False)
        first = self.prefix_token_id
        return (tokens[:1], tokens[1:]) if tokens[:1] == [first] else ([first], tokens)

    def _encode_strings(self, strings: Iterable[str]) -> dict[str, list[int]]:
        start = self.tokenizer.decode(self.prefix_token_id)
        options = {False: _add_special_kwargs(None, self.add_bos_token), True: {"add_special_tokens": False}}
        found: dict[str, list[int]] = {}
        for has_start, option in options.items():
            part = [s for s in strings if has_bos_prefix(s, start) == has_start]
            if part:
                found.update(
                    zip(part, self.tokenizer(part, return_attention_mask=False, **option)["input_ids"], strict=True)
                )
        return found

    # ------------------------------------------------------------------ scores

    def _loglikelihood_tokens(
        self, requests: list[EncodedRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not requests:
            return []
        for pair, context, continuation in requests:
            if not context or not continuation:
                raise UserError(f"a request has no tokens before or in its continuation: {pair!r:.200}")
            check_ids([*context, *continuation], self.tokenizer, self._rows)
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens cannot be scored by a model with "
                    f"{self.max_length} positions"
                )
            self.num_truncated += len(context) + len(continuation) > self.max_length + 1
        return self._score_packed(requests) if self._can_pack(requests) else self._score_with_hflm(requests)

    def _can_pack(self, requests: list[EncodedRequest]) -> bool:
        longest = max(self._read_tokens(request) for request in requests)
        self.fallback_reason = self._packing_disabled_reason or packing_unsupported_reason(self.model.config, longest)
        # a longer one can still show that attention is local, a deeper branch that it is not that of ancestors
        if not self.fallback_reason and (longest > self._verified_tokens or self._branches_deeper(requests)):
            self._disable_packing(self._self_check(requests))
            self._verified_tokens = max(longest, self._verified_tokens)
        return not self._warn()

    def _branches_deeper(self, requests: list[EncodedRequest]) -> bool:
        """Whether two of these share more than any two that were compared, up to BRANCH_TOKENS."""
        if self._verified_branch == SELF_CHECK_SHARED_TOKENS:
            return False
        read = (tuple(tokens[:-1]) for tokens, _ in self._sequences(requests))
        return find_longest_shared_prefix(read, SELF_CHECK_SHARED_TOKENS, ())[0] > self._verified_branch

    def _disable_packing(self, problem: str) -> None:
        """Unless `problem` is empty, this model is not packed any more."""
        self.fallback_reason = self._packing_disabled_reason = problem

    def _warn(self) -> str:
        """Why requests are not packed, said once; empty if they are."""
        if self.fallback_reason and not self._warned:
            log.warning("%s; log-likelihoods are computed by HFLM, which is slower", self.fallback_reason)
            self._warned = True
        return self.fallback_reason

    def _self_check(self, requests: list[EncodedRequest]) -> str:
        """Why packing cannot be trusted with this model, or nothing: the longest request in a row with two that share a
        prefix and then branch, it among them if it shares enough."""
        sequences = self._sequences(requests)
        read = {tuple(tokens[:-1]): n for n, (tokens, _) in enumerate(sequences)}
        longest = max(read, key=len)
        shared, branch = find_longest_shared_prefix(read, SELF_CHECK_SHARED_TOKENS, longest)
        # what comes later in a row can see what it must not, so the later of the branches is compared, and the longest
        compared = dict.fromkeys([longest, *branch[1:]])
        sample = [(None, *requests[read[tokens]][1:]) for tokens in compared | dict.fromkeys(branch)]
        self._verified_branch = max(self._verified_branch, shared)
        counts = self.tokens_forwarded, self._total
        self._total = 0
        try:
            return self._check(sample, len(compared), bool(self._shared_prefix_groups(sequences)))
        finally:
            self.tokens_forwarded, self._total = counts

    def _check(self, sample: list[EncodedRequest], num_compared: int, has_shared_prefixes: bool) -> str:
        """Why these requests cannot be packed into one row, or nothing. `num_compared`: how many of the first are compared.
        `has_shared_prefixes`: find out as well whether the model can read a long context once, if they share one."""
        known_support, self._supports_kv_prefix = self._supports_kv_prefix, False
        try:
            expected = [score_sequence(self.model, *sequence) for sequence in self._sequences(sample[:num_compared])]
            if not all(map(math.isfinite, expected)):
                raise UserError("its log-likelihoods are not finite: damaged weights, or too large for this dtype")
            problem = self._compare(sample, expected)
            if (
                not problem
                and known_support is not False
                and (has_shared_prefixes or known_support)
                and self._shared_prefix_groups(self._sequences(sample), worth=1)
            ):
                self._supports_kv_prefix = True
                known_support = not self._compare(sample, expected)
            return problem
        except PACKING_ERRORS as error:
            return packing_error_reason(error)
        finally:
            self._supports_kv_prefix = known_support

    def _compare(self, sample: list[EncodedRequest], expected: list[float]) -> str:
        """How a pack of these requests fails to give the first of them their log-probabilities, or nothing."""
        try:
            packed_scores = self._score_packed(sample, min_suffix_nodes=1, row_tokens=sum(map(self._read_tokens, sample)))
        except PACKING_ERRORS as error:
            return packing_error_reason(error)
        differences = [abs(a - b[0]) / len(r[2]) for a, b, r in zip(expected, packed_scores, sample, strict=False)]
        # int8 activations round: a last bit can move a whole step
        allowed = (
            LOW_PRECISION_LOGPROB_TOLERANCE
            if is_quantized(self.model)
            else LOGPROB_TOLERANCE.get(self.model.dtype, LOW_PRECISION_LOGPROB_TOLERANCE)
        )
        wrong = [difference for difference in differences if not difference <= allowed]  # NaN is no agreement
        return f"packed log-likelihoods differ by {max(wrong):.2g} nats per token from plain ones" if wrong else ""

    def _score_with_hflm(self, requests: list[EncodedRequest]) -> list[tuple[float, bool]]:
        """HFLM's own way, in slices so that progress can be told."""
        order = sorted(range(len(requests)), key=lambda n: -self._read_tokens(requests[n]))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), 8 * HFLM_BATCH_SIZE):
            part = order[start : start + 8 * HFLM_BATCH_SIZE]
            scores = super()._loglikelihood_tokens([requests[n] for n in part], disable_tqdm=True)
            for number, score in zip(part, scores, strict=True):
                answers[number] = score
                self.tokens_forwarded += self._read_tokens(requests[number])
            self._advance(len(part))
        return answers

    def score_token_logprobs(self, sequences: list[list[int]]) -> list[list[float]] | None:
        """The log-probability of every token but the first of each sequence, in nats; None where this model cannot be
        packed. Sequences longer than the context are cut from the left."""
        cut = [tokens[-(self.max_length + 1) :] for tokens in sequences]
        requests: list[EncodedRequest] = [(("", str(n)), tokens[:1], tokens[1:]) for n, tokens in enumerate(cut)]
        scored = [request for request in requests if request[2]]
        if scored and not self._can_pack(scored):
            return None
        self._done, self._total = 0, len(scored)
        before, self.token_logprobs = self.token_logprobs, {}
        try:
            self._score_packed(scored)
            return [self.token_logprobs.get(request[0], []) for request in requests]
        finally:
            self.token_logprobs = before

    def _sequences(self, requests: list[EncodedRequest]) -> list[tuple[list[int], int]]:
        max_tokens = self.max_length + 1
        return [((context + continuation)[-max_tokens:], len(continuation)) for _, context, continuation in requests]

    def _shared_prefix_groups(
        self, sequences: list[tuple[list[int], int]], worth: int = 0
    ) -> list[tuple[list[int], list[int]]]:
        """What shares a long context, as `group_shared_prefixes`."""
        return group_shared_prefixes(sequences, MIN_KV_PREFIX_TOKENS, worth or 2 * self.pack_tokens)

    def _score_packed(
        self, requests: list[EncodedRequest], min_suffix_nodes: int = 0, row_tokens: int = 0
    ) -> list[tuple[float, bool]]:
        """`min_suffix_nodes`: nodes after a shared context from which it is read once; 0: as many as fill two packs.
        `row_tokens`: as in the constructor, if not 0."""
        sequences = self._sequences(requests)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        groups = self._shared_prefix_groups(sequences, min_suffix_nodes)
        if groups and self._supports_kv_prefix is None:
            self._disable_packing(self._self_check([requests[n] for n in groups[0][1]]))
            if self._warn():
                return self._score_with_hflm(requests)
        groups = groups if self._supports_kv_prefix else []
        alone = sorted(set(range(len(requests))) - {number for _, numbers in groups for number in numbers})
        for prefix, numbers in [*groups, ([], alone)]:
            for number, logprobs, greedy in self._score_group(sequences, prefix, numbers, row_tokens or self.row_tokens):
                answers[number] = (sum(logprobs), all(greedy))
                pair = requests[number][0]
                if self.token_logprobs is not None and pair is not None:
                    self.token_logprobs[pair] = logprobs
        return answers

    def _score_group(
        self, sequences: list[tuple[list[int], int]], prefix: list[int], numbers: list[int], row_tokens: int
    ) -> Iterator[tuple[int, list[float], list[bool]]]:
        """(number, log-probabilities, greedy flags) of each sequence of a run; `prefix`, which may be empty, is how all
        of them begin."""
        rest = [(sequences[n][0][len(prefix) :], sequences[n][1]) for n in numbers]
        past = compute_kv_prefix(self.model, prefix) if prefix else None
        self.tokens_forwarded += len(prefix)
        packs = pack_prefix_trees(rest, self.pack_tokens if prefix else row_tokens, 4 * self.pack_tokens)
        for batch in ([pack] for pack in packs) if prefix else batch_packs(packs, self.pack_tokens):
            logprobs, greedy = score_batch(self.model, batch, past, in_vocab_blocks=self._logits_are_head_output)
            start = 0
            for scored in (scored for pack in batch for scored in pack.scored):
                part = slice(start, start := start + len(scored.targets))
                yield numbers[scored.index], logprobs[part], greedy[part]
            self.tokens_forwarded += sum(len(pack.tokens) for pack in batch)
            self._advance(sum(len(pack.scored) for pack in batch))

    def _read_tokens(self, request: EncodedRequest) -> int:
        """Tokens that the model reads for a request: all but the last one, or as many as it has positions."""
        return min(int(self.max_length), len(request[1]) + len(request[2]) - 1)

    def _advance(self, count: int) -> None:
        if self._progress_callback and self._total:
            self._done += count
            self._progress_callback(self._done, self._total)


def load_prefix_tree_lm(folder: Path, settings: EvaluationConfig, device: str) -> PrefixTreeLM:
    """The model in a transformers folder, ready for lm-eval. Raises UserError when it or the device cannot be had."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"evaluation on {device!r}: no CUDA device is there; use cpu")
    model = load_model(folder, getattr(torch, settings.dtype)).to(device)
    tokenizer = load_tokenizer(folder)
    check_special_tokens(tokenizer, model.get_input_embeddings().weight.shape[0], folder)
    return PrefixTreeLM(model, tokenizer, pack_tokens=settings.pack_tokens, keep_token_logprobs=settings.token_logprobs)


def _move_trailing_whitespace(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of the context go to the continuation, as HFLM does it, so that words keep their tokens."""
    blanks = len(context) - len(context.rstrip())
    return (context[:-blanks], context[-blanks:] + continuation) if blanks else (context, continuation)
