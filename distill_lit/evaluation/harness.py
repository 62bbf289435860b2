"""lm-eval's HFLM with log-likelihoods computed on packed prefix trees: the same numbers, two to five times faster.

The context of a question is computed once and not once per choice, examples once and not once per question. It compares
itself with HFLM on a few requests before it is trusted, and steps aside where a model cannot be packed.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import _add_special_kwargs, has_bos_prefix
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_lit.errors import UserError
from distill_lit.evaluation.packing import Pack, ancestor_mask, batch_packs, pack_sequences
from distill_lit.models.loading import load_model, load_tokenizer
from distill_lit.models.quantise import is_quantised

log = logging.getLogger(__name__)

Request: TypeAlias = tuple[Any, list[int], list[int]]  # (context, continuation) or None, and the tokens of both
PLAIN_BATCH = 8  # sequences per forward of HFLM itself: a trial of sizes takes longer than the work on CPUs
CHECKED = 3  # requests compared with HFLM at first; one more whenever a longer one comes
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats per token
LOOSE_TOLERANCE = 0.25  # bfloat16 and float16: the order of their sums differs
ROW_TOKENS = 160  # nodes of a row, unless one context has more: measured, see benchmarks/harness.md
HEAD_ROWS = 16  # rows of logits normalised at a time: what the sums need then stays in the processor's cache


class PrefixTreeLM(HFLM):
    """A causal language model for lm-eval. `tokens_forwarded`: what it has computed; `token_counts`: tokens of each
    (context, continuation); `token_logprobs`: their log-probabilities, if kept; `fallback`: why HFLM's own way was used
    last, or empty; `truncated`: requests longer than the model's context, cut from the left."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pack_tokens: int = 512,
        row_tokens: int = ROW_TOKENS,
        keep_token_logprobs: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, backend="causal", softmax_dtype="float32", batch_size=PLAIN_BATCH
        )
        self.pack_tokens, self.row_tokens = pack_tokens, min(row_tokens, pack_tokens)
        self.token_logprobs: dict[tuple[str, str], list[float]] | None = {} if keep_token_logprobs else None
        self._distrust = ""  # why this model is never packed
        self._verified_tokens = 0
        self._warned = False
        self.start(progress)

    def start(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Sets all counts to zero, for the next task. `progress` is called with (requests done, requests in all)."""
        self.fallback = ""
        self.tokens_forwarded = self.truncated = self._done = self._total = 0
        self.token_counts: dict[tuple[str, str], int] = {}
        self._progress = progress

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
        return self._in_steps(requests, lambda part: super(PrefixTreeLM, self).loglikelihood_rolling(part, True), 1)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes, by HFLM."""
        return self._in_steps(requests, lambda part: super(PrefixTreeLM, self).generate_until(part, True), PLAIN_BATCH)

    def _in_steps(self, requests: list[Any], answer: Callable[[list[Any]], list[Any]], size: int) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(requests), size):
            answers += answer(requests[start : start + size])
            if self._progress:
                self._progress(len(answers), len(requests))
        return answers

    # ------------------------------------------------------------------ tokens

    def _encode_requests(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """The tokens that HFLM makes of each pair, but every string encoded once, and in batches."""
        moved = [_move_blanks(context, continuation) for context, continuation in pairs]
        tokens = self._encode_strings({s for c, t in moved if c for s in (c, c + t)})
        encoded: list[Request] = []
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
        return ([first], tokens) if tokens[0] != first else (tokens[:1], tokens[1:])

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
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not requests:
            return []
        for pair, context, continuation in requests:
            if not context or not continuation:
                raise UserError(f"a request has no tokens before or in its continuation: {pair!r:.200}")
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens cannot be scored by a model with "
                    f"{self.max_length} positions"
                )
            self.truncated += len(context) + len(continuation) > self.max_length + 1
        return self._score_packed(requests) if self._can_pack(requests) else self._score_plain(requests)

    def _can_pack(self, requests: list[Request]) -> bool:
        longest = max(self._read_tokens(request) for request in requests)
        self.fallback = self._distrust or refusal(self.model.config, longest)
        if not self.fallback and longest > self._verified_tokens:  # a longer one can still show that attention is local
            self.fallback = self._distrust = self._self_check(requests)
            self._verified_tokens = longest
        if self.fallback and not self._warned:
            log.warning("%s; log-likelihoods are computed by HFLM, which is slower", self.fallback)
            self._warned = True
        return not self.fallback

    def _self_check(self, requests: list[Request]) -> str:
        """Why packing cannot be trusted with this model, or nothing."""
        by_length = sorted(requests, key=self._read_tokens, reverse=True)
        step = max(1, len(by_length) // CHECKED)
        picked = by_length[::step][:CHECKED] if not self._verified_tokens else by_length[:1]
        sample: list[Request] = [(None, context, continuation) for _, context, continuation in picked]
        counts = self.tokens_forwarded, self._total
        self._total, self.batch_size_per_gpu = 0, 1  # in a batch the short ones would be padded to the longest
        try:
            expected = self._score_plain(sample)
            found = self._score_packed(sample)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"the model cannot be packed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        finally:
            (self.tokens_forwarded, self._total), self.batch_size_per_gpu = counts, PLAIN_BATCH
        worst = max(abs(a[0] - b[0]) / len(r[2]) for a, b, r in zip(expected, found, sample, strict=True))
        strict = not is_quantised(self.model)  # int8 activations round: a last bit can move a whole step
        allowed = TOLERANCE.get(self.model.dtype, LOOSE_TOLERANCE) if strict else LOOSE_TOLERANCE
        return "" if worst <= allowed else f"packed log-likelihoods differ by {worst:.2g} nats per token from HFLM's"

    def _score_plain(self, requests: list[Request]) -> list[tuple[float, bool]]:
        """HFLM's own way, in slices so that progress can be told."""
        order = sorted(range(len(requests)), key=lambda n: -self._read_tokens(requests[n]))
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in range(0, len(order), 8 * PLAIN_BATCH):
            part = order[start : start + 8 * PLAIN_BATCH]
            scores = super()._loglikelihood_tokens([requests[n] for n in part], disable_tqdm=True)
            for number, score in zip(part, scores, strict=True):
                answers[number] = score
                self.tokens_forwarded += self._read_tokens(requests[number])
            self._advance(len(part))
        return answers

    def score_tokens(self, sequences: list[list[int]]) -> list[list[float]] | None:
        """The log-probability of every token but the first of each sequence, in nats; None where this model cannot be
        packed. Sequences longer than the context are cut from the left."""
        cut = [tokens[-(self.max_length + 1) :] for tokens in sequences]
        requests: list[Request] = [(("", str(n)), tokens[:1], tokens[1:]) for n, tokens in enumerate(cut)]
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

    def _score_packed(self, requests: list[Request]) -> list[tuple[float, bool]]:
        kept = self.max_length + 1
        sequences = [((context + continuation)[-kept:], len(continuation)) for _, context, continuation in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        rows = pack_sequences(sequences, self.row_tokens, 4 * self.pack_tokens)
        for batch in batch_packs(rows, self.pack_tokens):
            every = [scored for pack in batch for scored in pack.scored]
            logprobs, greedy = self._score_batch(batch)
            start = 0
            for scored in every:
                part = slice(start, start := start + len(scored.targets))
                answers[scored.number] = (sum(logprobs[part]), all(greedy[part]))
                pair = requests[scored.number][0]
                if self.token_logprobs is not None and pair is not None:
                    self.token_logprobs[pair] = logprobs[part]
            self.tokens_forwarded += sum(len(pack.tokens) for pack in batch)
            self._advance(len(every))
        return answers

    @torch.inference_mode()
    def _score_batch(self, batch: list[Pack]) -> tuple[list[float], list[bool]]:
        """(log-probability, whether it is the most probable token) of every scored token, sequence after sequence."""
        width = len(batch[0].tokens)  # the longest is the first
        places = [(row * width + node, token) for row, pack in enumerate(batch) for scored in pack.scored
                  for node, token in zip(scored.nodes, scored.targets, strict=True)]  # fmt: skip
        nodes = sorted({node for node, _ in places})
        line_of = {node: line for line, node in enumerate(nodes)}
        lines = torch.tensor([line_of[node] for node, _ in places], device=self.device)
        targets = torch.tensor([token for _, token in places], device=self.device)
        with _head_only_at(self.model, torch.tensor(nodes, device=self.device)):
            logits = self.model(
                input_ids=self._padded([pack.tokens for pack in batch], width),
                attention_mask=self._attention_mask(batch, width),
                position_ids=self._padded([pack.depths for pack in batch], width),
                use_cache=False,
            ).logits[0]  # (nodes, V)
        totals, best = _normalise(logits)
        chosen = logits[lines, targets].to(totals.dtype)
        return (chosen - totals[lines]).tolist(), (best[lines] == targets).tolist()

    def _padded(self, rows: list[list[int]], width: int) -> torch.Tensor:
        return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=self.device)

    def _attention_mask(self, batch: list[Pack], width: int) -> torch.Tensor:
        """(rows, 1, N, N): booleans, or numbers to add where the attention is written out."""
        mask = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)  # padding sees itself, for no row is empty
        for row, pack in enumerate(batch):
            count = len(pack.parents)
            mask[row, :count, :count] = ancestor_mask(pack.parents)
        mask = mask[:, None].to(self.device)
        if self.model.config._attn_implementation == "eager":
            dtype = self.model.dtype
            return torch.zeros(mask.shape, dtype=dtype, device=self.device).masked_fill_(~mask, torch.finfo(dtype).min)
        return mask

    def _read_tokens(self, request: Request) -> int:
        """Tokens that the model reads for a request: all but the last one, or as many as it has positions."""
        return min(int(self.max_length), len(request[1]) + len(request[2]) - 1)

    def _advance(self, count: int) -> None:
        if self._progress and self._total:
            self._done += count
            self._progress(self._done, self._total)


def load_harness(folder: Path, dtype: str, device: str, pack_tokens: int) -> PrefixTreeLM:
    """The model in a transformers folder, ready for lm-eval. Raises UserError when it or the device cannot be had."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"evaluation on {device!r}: no CUDA device is there; use cpu")
    model = load_model(folder, getattr(torch, dtype)).to(device)
    return PrefixTreeLM(model, load_tokenizer(folder), pack_tokens=pack_tokens)


def refusal(config: Any, longest: int) -> str:
    """Why a model cannot be packed with requests of `longest` tokens, or nothing."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    implementation = getattr(text, "_attn_implementation", "sdpa")
    if implementation not in ("sdpa", "eager"):
        return f"attention {implementation!r} takes no mask of ancestors"
    kinds = {*(getattr(text, "layer_types", None) or []), *(getattr(text, "attention_layers", None) or [])}
    if other := sorted(kinds - {"full_attention", "sliding_attention", "global"}):
        return f"{text.model_type} has layers with {other[0]!r} attention"
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    local = window and longest > window
    return f"{text.model_type} has a window of {window} tokens, shorter than a request" if local else ""


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    """Blanks at the end of the context go to the continuation, as HFLM does it, so that words keep their tokens."""
    blanks = len(context) - len(context.rstrip())
    return (context[:-blanks], context[-blanks:] + continuation) if blanks else (context, continuation)


@contextmanager
def _head_only_at(model: PreTrainedModel, nodes: torch.Tensor) -> Iterator[None]:
    """Inside: logits are (1, len(nodes), V), for these places of the flattened batch. `logits_to_keep` of transformers
    takes the same places in every row, and not every model knows it."""
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].flatten(0, -2)[nodes][None], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


def _normalise(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(log of the sum of exponentials, the most probable token) of each row; float32, because bfloat16 makes ties."""
    totals, best = [], []
    for part in logits.split(HEAD_ROWS):
        wide = part if part.dtype == torch.float64 else part.float()
        totals.append(torch.logsumexp(wide, -1))
        best.append(part.argmax(-1))
    return torch.cat(totals), torch.cat(best)
