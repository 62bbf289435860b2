"""Probes: held-out text, every passage of which is scored under a model and, where it is at hand, beside its teacher.

Bits per byte say how well a model predicts the passage; KL to the teacher, draft acceptance and agreement say how near it
is to the teacher's distribution there. Windows are lm-eval's own (`get_rolling_token_windows`), at most WINDOW_TOKENS long.
"""

import bisect
import math
import re
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill_lit.config import CorpusConfig, EvaluationConfig, non_default_fields
from distill_lit.data.corpora import corpora_fingerprint, read_documents
from distill_lit.evaluation.cache import (
    lock_cached_evaluation,
    model_content_hash,
    read_cached_evaluation,
    write_cached_evaluation,
)
from distill_lit.evaluation.evaluator import EvaluationResult
from distill_lit.evaluation.probe_corpora import PROBES_SECTION, WINDOW_TOKENS, probe_corpora
from distill_lit.evaluation.records import (
    DOCUMENT_COLUMNS,
    PROBE_COLUMNS,
    PROBE_OUTPUT_TYPE,
    RECORD_COLUMNS,
    RECORDS_FORMAT_VERSION,
    TOKEN_LOGPROBS,
    probe_row,
)
from distill_lit.evaluation.task_evaluation import Rows
from distill_lit.models import load_model, load_tokenizer
from distill_lit.models.vocabulary import check_ids, check_same_vocabulary
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint
from distill_lit.utils.progress import ProgressCallback

PROBE_VERSION = 1  # raise it when the same text gets other numbers
LOGIT_ROWS = 128  # positions whose softmax over the vocabulary is taken at a time
ZIPF_EDGES = (3.0, 4.0, 5.0, 6.0)  # log10 of occurrences per billion words: between the frequency bands, rarest first
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


class Window(NamedTuple):
    """Tokens that are read at once. num_scored: how many of the last are scored; passage: their number."""

    passage: int
    tokens: list[int]
    num_scored: int


class Passage(NamedTuple):
    """spans: (start, end) characters of its tokens, or none from a tokenizer that does not tell."""

    text: str
    tokens: list[int]
    spans: list[tuple[int, int]]


def evaluate_probes(
    folder: Path,
    settings: EvaluationConfig,
    dataset_source: str,
    *,
    teacher: Path | None = None,
    device: str = "cpu",
    progress_callback: ProgressCallback | None = None,
) -> EvaluationResult:
    """Scores the model in a transformers folder on all probes, one record per passage; from the store where it is there.

    teacher: folder of the model that it is compared with, token by token; None, or one with another tokenizer: KL, draft
    acceptance and agreement are NaN. Raises UserError for text or a model that cannot be read.
    """
    started = time.monotonic()
    comparison = None if teacher is None else model_content_hash(teacher)
    corpora, identity, cached, entries = probe_corpora(settings), model_content_hash(folder), [], {}
    pair: _ModelPair | None = None
    for name, corpus in corpora.items():
        key = _cache_key(name, corpus, identity, comparison, settings, dataset_source)
        with lock_cached_evaluation(key):
            columns = (*DOCUMENT_COLUMNS, *RECORD_COLUMNS, *PROBE_COLUMNS)
            if (entry := read_cached_evaluation(key, columns)) is None:
                pair = pair or _ModelPair(folder, teacher, settings, device)
                entry = _score_probe(pair, name, corpus, settings, dataset_source, progress_callback)
                write_cached_evaluation(key, *entry)
            else:
                cached.append(name)
        entries[name] = entry
    return _result(entries, cached, time.monotonic() - started)


def _cache_key(
    name: str, corpus: CorpusConfig, model: str, teacher: str | None, settings: EvaluationConfig, dataset_source: str
) -> str:
    return fingerprint({
        "kind": f"probe {PROBE_VERSION}", "format": RECORDS_FORMAT_VERSION, "name": name, "model": model,
        "teacher": teacher, "text": corpora_fingerprint({name: corpus}, dataset_source, PROBES_SECTION),
        "seed": settings.seed, "dtype": settings.dtype,
        **({"token_logprobs": True} if settings.token_logprobs else {}),
    })  # fmt: skip


def _result(entries: dict[str, tuple[Rows, dict[str, Any]]], cached: list[str], elapsed_s: float) -> EvaluationResult:
    import pandas as pd

    rows = [row for found, _ in entries.values() for row in found]
    kept = [column for column in (TOKEN_LOGPROBS,) if any(column in row for row in rows)]
    kept += [column for column in PROBE_COLUMNS if not all(_is_missing(row[column]) for row in rows)]
    documents, records = (
        pd.DataFrame([{column: row[column] for column in columns} for row in rows], columns=list(columns))
        for columns in (DOCUMENT_COLUMNS, (*RECORD_COLUMNS, *kept))
    )
    return EvaluationResult(documents, records, {name: meta for name, (_, meta) in entries.items()}, elapsed_s, cached)


def _is_missing(value: Any) -> bool:
    return not value if isinstance(value, list) else math.isnan(value)


class _ModelPair:
    """A model and, with the same tokens, its teacher; both loaded when they are needed."""

    def __init__(self, folder: Path, teacher: Path | None, settings: EvaluationConfig, device: str) -> None:
        dtype = getattr(torch, settings.dtype)
        self.model, self.tokenizer = load_model(folder, dtype).to(device).eval(), load_tokenizer(folder)
        self.teacher, self.vocab_size = None, 0
        if teacher is not None and (shared := _shared_tokens(teacher, self.tokenizer)):
            self.teacher, self.vocab_size = load_model(teacher, dtype).to(device).eval(), shared
        first = self.tokenizer.bos_token_id
        self.prefix_token = int(self.tokenizer.eos_token_id if first is None else first)
        known = [_positions(model) for model in (self.model, self.teacher) if model is not None]
        self.window = min([WINDOW_TOKENS, *(positions for positions in known if positions)])


def _shared_tokens(teacher: Path, tokenizer: Any) -> int:
    try:
        return check_same_vocabulary(load_tokenizer(teacher), tokenizer)
    except UserError:
        return 0


def _positions(model: Any) -> int:
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)


def _score_probe(
    pair: _ModelPair,
    name: str,
    corpus: CorpusConfig,
    settings: EvaluationConfig,
    dataset_source: str,
    progress_callback: ProgressCallback | None,
) -> tuple[Rows, dict[str, Any]]:
    """(rows, meta) of one probe, computed now."""
    started = time.monotonic()
    texts = [d.text for d in read_documents({name: corpus}, settings.seed, dataset_source, section=PROBES_SECTION).items]
    passages = [_tokenized(pair.tokenizer, text) for text in texts]
    check_ids(
        [max(p.tokens, default=0) for p in passages], pair.tokenizer, pair.model.get_input_embeddings().weight.shape[0]
    )
    found: list[list[Tensor]] = [[] for _ in passages]
    windows = [window for n, passage in enumerate(passages) for window in _windows(pair, n, passage.tokens)]
    done = 0
    for batch in _batches(windows, max(settings.pack_tokens, 1)):
        for window, scores in zip(batch, _score_windows(pair, batch), strict=True):
            found[window.passage].append(scores)
        done += len(batch)
        if progress_callback:
            progress_callback(f"probe {name}", done, len(windows), "passages")
    rows = []
    for number, (passage, parts) in enumerate(zip(passages, found, strict=True)):
        scores = torch.cat(parts).double()
        if not scores[:, 0].isfinite().all():
            raise UserError(
                f"{PROBES_SECTION}.{name}: log-likelihoods are not finite: damaged weights, or too large for dtype"
            )
        bands = _band_sums(passage, (-scores[:, 0]).tolist())
        rows.append(probe_row(name, number, passage.text, scores.tolist(), bands, settings.token_logprobs))
    meta = _meta(name, corpus, settings, dataset_source, rows)
    return rows, {**meta, "window_tokens": pair.window, "elapsed_s": round(time.monotonic() - started, 3)}


def _tokenized(tokenizer: Any, text: str) -> Passage:
    if not tokenizer.is_fast:
        return Passage(text, tokenizer(text, add_special_tokens=False)["input_ids"], [])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return Passage(text, encoded["input_ids"], [tuple(span) for span in encoded["offset_mapping"]])


def _windows(pair: _ModelPair, number: int, tokens: list[int]) -> Iterator[Window]:
    from lm_eval.utils import get_rolling_token_windows

    for read, predicted in get_rolling_token_windows(tokens, pair.prefix_token, pair.window, 1):
        yield Window(number, [*read, predicted[-1]], len(predicted))


def _batches(windows: Sequence[Window], most_tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, at most so many tokens with their padding; the windows of a passage in their
    order."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda one: -len(one.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > most_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


@torch.inference_mode()
def _score_windows(pair: _ModelPair, batch: list[Window]) -> list[Tensor]:
    """Of each window (scored tokens, 4): log-probability of the token, KL(teacher ‖ model), Σ min(p, q), and whether the
    two have the same most probable token; NaN without a teacher."""
    width, device = len(batch[0].tokens) - 1, pair.model.device
    lengths = [len(window.tokens) - 1 for window in batch]
    ids = torch.tensor([window.tokens[:-1] + [0] * (width - n) for window, n in zip(batch, lengths, strict=True)])
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.long().to(device), "use_cache": False}
    logits = pair.model(**inputs).logits
    teacher = None if pair.teacher is None else pair.teacher(**inputs).logits
    found = []
    for row, (window, n) in enumerate(zip(batch, lengths, strict=True)):
        scored = slice(n - window.num_scored, n)
        labels = torch.tensor(window.tokens[-window.num_scored :], device=device)
        theirs = None if teacher is None else teacher[row, scored]
        found.append(_token_scores(logits[row, scored], theirs, labels, pair.vocab_size))
    return found


def _token_scores(logits: Tensor, teacher: Tensor | None, labels: Tensor, vocab_size: int) -> Tensor:
    """logits: (N, V) of the model, teacher: (N, V') or None; (N, 4) as `_score_windows`, on the CPU."""
    parts = []
    for start in range(0, len(labels), LOGIT_ROWS):
        rows = slice(start, start + LOGIT_ROWS)
        wide = logits[rows].float()
        own = wide.log_softmax(-1).gather(-1, labels[rows, None])[:, 0]
        compared = torch.full((3, len(own)), torch.nan, dtype=torch.float32, device=own.device)
        if teacher is not None:
            log_q, log_p = wide[:, :vocab_size].log_softmax(-1), teacher[rows, :vocab_size].float().log_softmax(-1)
            compared[0] = (log_p.exp() * (log_p - log_q)).sum(-1)
            compared[1] = torch.minimum(log_p, log_q).exp().sum(-1)
            compared[2] = (log_p.argmax(-1) == log_q.argmax(-1)).float()
        parts.append(torch.stack([own, *compared], dim=-1).cpu())
    return torch.cat(parts)


def _band_sums(passage: Passage, nats: list[float]) -> tuple[list[float], list[int]]:
    """(nats, bytes) of the words of each frequency band, rarest first: ZIPF_EDGES are between them. A token is of the word
    in which it begins; blanks before it do not count. Empty where the tokenizer does not say where tokens are."""
    if not passage.spans:
        return [], []
    sums, sizes = [0.0] * (len(ZIPF_EDGES) + 1), [0] * (len(ZIPF_EDGES) + 1)
    words = list(WORD.finditer(passage.text))
    bands = [bisect.bisect_right(ZIPF_EDGES, _zipf(word.group().lower())) for word in words]
    for word, band in zip(words, bands, strict=True):
        sizes[band] += len(word.group().encode())
    starts = [word.start() for word in words]
    for (start, end), value in zip(passage.spans, nats, strict=True):
        while start < end and passage.text[start].isspace():
            start += 1
        number = bisect.bisect_right(starts, start) - 1
        if number >= 0 and start < words[number].end():
            sums[bands[number]] += value
    return sums, sizes


@cache
def _zipf(word: str) -> float:
    from wordfreq import zipf_frequency

    return float(zipf_frequency(word, "en"))


def _meta(name: str, corpus: CorpusConfig, settings: EvaluationConfig, dataset_source: str, rows: Rows) -> dict[str, Any]:
    bits = -sum(row["ll"][0] for row in rows) / math.log(2)
    size = sum(row["len_bytes"][0] for row in rows)
    return {
        "task": name,
        "output_type": PROBE_OUTPUT_TYPE,
        "version": PROBE_VERSION,
        "task_hash": fingerprint(non_default_fields(corpus)),
        "data": fingerprint(corpora_fingerprint({name: corpus}, dataset_source, PROBES_SECTION)),
        "dataset": corpus.dataset or corpus.path,
        "dataset_name": corpus.name,
        "eval_split": corpus.split,
        "metric": "bits_per_byte",
        "higher_is_better": False,
        "metrics": ["bits_per_byte"],
        "filter": "none",
        "lm_eval_results": {"bits_per_byte,none": bits / size if size else math.nan},
        "num_fewshot": 0,
        "limit": corpus.max_documents,
        "seed": settings.seed,
        "apply_chat_template": False,
        "dtype": settings.dtype,
        "chance": 0.0,
        "harness": "windows",
        "fallback": "",
        "n": len(rows),
        "tokens": sum(row["tokens"][0] for row in rows),
        "bytes": size,
        "zipf_edges": list(ZIPF_EDGES),
        "compared_with_teacher": any(not math.isnan(row["kl"]) for row in rows),
    }
