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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix, normalize_gen_kwargs
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.generation_lm import GeneratedAnswer, generate_answers, mixed_precision
from distill_lit.evaluation.packing_support import PackingSelfCheck
from distill_lit.evaluation.prefix_tree_scorer import PrefixTreeScorer, TargetSequence, TokenScores
from distill_lit.models.loading import load_model, load_tokenizer
from distill_lit.models.vocabulary import check_ids, check_special_tokens
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.template_limits import check_rendered_length, handle_template_errors

log = logging.getLogger(__name__)

EncodedRequest: TypeAlias = tuple[Any, list[int], list[int]]  # (context, continuation) or None, and the tokens of both
HFLM_BATCH_SIZE = 8  # sequences per forward of HFLM itself: a trial of sizes takes longer than the work on CPUs
ROW_TOKENS = 160  # nodes of a row, unless one context has more: measured, see benchmarks/prefix_tree_lm.md


@register_model("prefix_tree")
class PrefixTreeLM(HFLM):
    """A causal language model for lm-eval. `tokens_forwarded`: what it has computed; `token_counts`: tokens of each
    (context, continuation); `token_logprobs`: their log-probabilities, if kept; `fallback_reason`: why HFLM's own way was
    used last, or empty; `num_truncated`: requests longer than the model's context, cut from the left; `answers`: what was
    written to the last generative requests; `sampling_seed`: draws them, None: torch's own seed.

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
        self.token_logprobs: dict[tuple[str, str], list[float]] | None = {} if keep_token_logprobs else None
        self.pack_tokens = pack_tokens
        self._scorer = PrefixTreeScorer(self.model, pack_tokens, row_tokens)
        self._self_check = PackingSelfCheck(self._scorer)
        self._warned = False
        self.sampling_seed: int | None = None
        self._rows = self.model.get_input_embeddings().weight.shape[0]
        self.reset_counts(progress_callback)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        # HFLM's fills a cache that nobody reads, and a cut may leave a model without the layers that can count it
        with torch.no_grad(), mixed_precision(self):
            logits: Tensor = self.model(inps, use_cache=False).logits
        return logits

    def reset_counts(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Sets all counts to zero, for the next task. `progress` is called with (requests done, requests in all)."""
        self.fallback_reason = ""
        self.tokens_forwarded = self.num_truncated = self._done = self._total = 0
        self.token_counts: dict[tuple[str, str], int] = {}
        self.token_logprobs = None if self.token_logprobs is None else {}
        self.answers: list[GeneratedAnswer] = []
        self._progress_callback = progress

    # ------------------------------------------------------------------ what lm-eval calls

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether greedy decoding writes it) of each request."""
        if self.enable_thinking:
            raise UserError("enable_thinking: log-likelihoods are of answers that no thought precedes; leave it out")
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
        """What the model writes, as HFLM would one request at a time (`generation_lm`). Raises UserError where an answer
        leaves no position for its question, or the question holds a token that the model has not."""
        for context, options in (request.args for request in requests):
            room = self.max_length - normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if room < 1:
                raise UserError(
                    f"a task asks for {self.max_length - room} tokens of a model with {self.max_length} positions"
                )
            tokens = self.tok_encode(context)
            check_ids(tokens, self.tokenizer, self._rows)
            self.num_truncated += len(tokens) > room
        seed = torch.initial_seed() % 2**32 if self.sampling_seed is None else self.sampling_seed
        self.answers = generate_answers(self, requests, seed, self._progress_callback)
        return [answer.text for answer in self.answers]

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
        sequences = self._sequences(requests)
        if not self._can_pack(sequences):
            return self._score_with_hflm(requests)
        scores = self._score_packed(sequences)
        if self.token_logprobs is not None:
            self.token_logprobs.update({pair: s.logprobs for (pair, *_), s in zip(requests, scores, strict=True) if pair})
        return [(sum(logprobs), all(greedy)) for logprobs, greedy in scores]

    def _can_pack(self, sequences: list[TargetSequence]) -> bool:
        """Whether the self-check lets these be packed; why not is said once."""
        self.fallback_reason = (
            "mixed precision is HFLM's" if self.mixed_precision_dtype else self._self_check.unsupported_reason(sequences)
        )
        if self.fallback_reason and not self._warned:
            log.warning("%s; log-likelihoods are computed by HFLM, which is slower", self.fallback_reason)
            self._warned = True
        return not self.fallback_reason

    def _score_packed(self, sequences: list[TargetSequence]) -> list[TokenScores]:
        groups = self._scorer.shared_prefix_groups(sequences) if self._self_check.supports_kv_prefix else []
        return self._scorer.score(sequences, groups, self._advance)

    def _score_with_hflm(self, requests: list[EncodedRequest]) -> list[tuple[float, bool]]:
        """HFLM's own way, in slices so that progress can be told."""
        read = [len(tokens) - 1 for tokens, _ in self._sequences(requests)]
        order = sorted(range(len(requests)), key=lambda n: -read[n])
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), 8 * HFLM_BATCH_SIZE):
            part = order[start : start + 8 * HFLM_BATCH_SIZE]
            scores = super()._loglikelihood_tokens([requests[n] for n in part], disable_tqdm=True)
            for number, score in zip(part, scores, strict=True):
                answers[number] = score
            self._advance(len(part), sum(read[number] for number in part))
        return answers

    def score_token_logprobs(self, sequences: list[list[int]]) -> list[list[float]] | None:
        """The log-probability of every token but the first of each sequence, in nats; None where this model cannot be
        packed. Sequences longer than the context are cut from the left."""
        cut = [(tokens[-(self.max_length + 1) :], min(len(tokens) - 1, self.max_length)) for tokens in sequences]
        scored = [(tokens, count) for tokens, count in cut if count > 0]
        if scored and not self._can_pack(scored):
            return None
        self._done, self._total = 0, len(scored)
        scores = iter(self._score_packed(scored))
        return [next(scores).logprobs if count > 0 else [] for _, count in cut]

    def _sequences(self, requests: list[EncodedRequest]) -> list[TargetSequence]:
        max_tokens = self.max_length + 1
        return [((context + continuation)[-max_tokens:], len(continuation)) for _, context, continuation in requests]

    def _advance(self, num_sequences: int, num_tokens: int) -> None:
        self.tokens_forwarded += num_tokens
        if self._progress_callback and self._total and num_sequences:
            self._done += num_sequences
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
