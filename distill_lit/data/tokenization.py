"""Documents → one long array of tokens, in the order drawn by the seed."""

import logging
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distill_lit.data.chat import check_has_chat_template, render_chat
from distill_lit.data.corpora import Document
from distill_lit.data.encoding_processes import map_in_processes
from distill_lit.data.span_tokenization import encode_completion, encode_spans
from distill_lit.data.spool import ArraySpool
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import sha256_of

log = logging.getLogger(__name__)
BATCH_DOCUMENTS = 512  # encoded together
TOKENIZER_FILE_PATTERNS = (
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
)


@dataclass(frozen=True)
class TokenizedDocuments:
    """Tokenized documents. `tokens`, `loss_mask` (bool): (N,); `offsets` (int64): (documents + 1,), document i is
    tokens[offsets[i]:offsets[i + 1]]; `corpus_ids`: (documents,), which of the corpora each is of, by name from 0, or None
    where nobody has noted it; `numbers`: (documents,), which each is of the documents that were given, one perhaps several
    times, or None once they are cut or stored."""

    tokens: np.ndarray
    offsets: np.ndarray
    loss_mask: np.ndarray
    corpus_ids: np.ndarray | None = None
    numbers: np.ndarray | None = None

    def corpora_as_tokens(self) -> "TokenizedDocuments":
        """The same documents with each token's corpus in its place: packed, these are `PackedDataset.corpus_ids`."""
        assert self.corpus_ids is not None, "nobody has noted the corpora"
        return replace(self, tokens=self.corpus_ids.repeat(np.diff(self.offsets)))


def hash_tokenizer(folder: Path) -> dict[str, str]:
    """{file name: sha256} of everything that decides how text becomes tokens."""
    names = sorted({p for pattern in TOKENIZER_FILE_PATTERNS for p in folder.glob(pattern) if p.is_file()})
    return {p.name: sha256_of(p) for p in names}


def tokenize(
    documents: Sequence[Document],
    tokenizer: Any,
    seed: int,
    validation_tokens: int,
    max_tokens: int,
    corpora: Sequence[str] | None = None,
    workers: int = 1,
) -> TokenizedDocuments:
    """Tokens of the documents in an order drawn by `seed`, until there are `max_tokens` tokens after the documents that
    hold the `validation_tokens` tokens (rest = 0: of all documents).

    Text ends with the end-of-sequence token, and begins with one of its own only if the tokenizer adds it; all of it is
    supervised. Of chats only the responses are, of a prompt with a completion the completion and the end. corpora: names by
    which the corpora are numbered; None: those of the documents, sorted. workers: processes that tokenize. Raises UserError
    for a tokenizer without the token or template needed.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    found = TokenSpool(tokenizer)
    total, after_first = 0, 0
    with progress_bar() as bar:
        task = bar.add_task("tokenizing", total=len(documents))
        encoded = encode_documents((documents[i] for i in order), tokenizer, workers)
        for ids, supervised in encoded:
            found.append(ids, supervised)
            after_first += len(ids) if total >= validation_tokens else 0
            total += len(ids)
            bar.advance(task)
            if max_tokens and after_first >= max_tokens:
                encoded.close()
                break
    names = sorted({document.corpus for document in documents}) if corpora is None else corpora
    read = order[: len(found.lengths)]
    return found.finished([names.index(documents[i].corpus) for i in read], read)


class TokenSpool:
    """Tokenized documents, one appended after the other; in a file where they outgrow memory."""

    def __init__(self, tokenizer: Any) -> None:
        self.lengths: list[int] = []
        self._tokens, self._loss_mask = ArraySpool(token_dtype(tokenizer)), ArraySpool(bool)

    def append(self, ids: Any, supervised: Any) -> None:
        """ids, supervised: of one document."""
        self.lengths.append(len(ids))
        self._tokens.append(ids)
        self._loss_mask.append(supervised)

    def finished(self, corpus_ids: Sequence[int] | None, numbers: np.ndarray | None) -> TokenizedDocuments:
        """All of them. corpus_ids, numbers: as of `TokenizedDocuments`."""
        ids = None if corpus_ids is None else np.array(corpus_ids, dtype=np.uint16)
        offsets = np.cumsum([0, *self.lengths], dtype=np.int64)
        return TokenizedDocuments(self._tokens.finished(), offsets, self._loss_mask.finished(), ids, numbers)


def token_dtype(tokenizer: Any) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds every token."""
    return np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32


def join_documents(
    tokens: Sequence[np.ndarray],
    loss_masks: Sequence[np.ndarray],
    corpus_ids: Sequence[int] | None = None,
    numbers: np.ndarray | None = None,
) -> TokenizedDocuments:
    """Documents, at least one, one after the other."""
    offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    ids = None if corpus_ids is None else np.array(corpus_ids, dtype=np.uint16)
    return TokenizedDocuments(np.concatenate(tokens), offsets, np.concatenate(loss_masks), ids, numbers)


def encode_documents(
    documents: Iterable[Document], tokenizer: Any, workers: int = 1
) -> Generator[tuple[Any, Any], None, None]:
    """(ids, whether each is supervised) of each document, encoded some hundred at a time, by so many processes."""
    iterator, notes = iter(documents), _ChatWarnings()
    batches = iter(lambda: list(islice(iterator, BATCH_DOCUMENTS)), [])
    if workers == 1:
        encoded: Iterable[_EncodedBatch] = (_encode_batch(batch, tokenizer) for batch in batches)
    else:
        encoded = map_in_processes(_encode_batch, batches, tokenizer, workers)
    try:
        with closing(cast(Generator[_EncodedBatch, None, None], encoded)):
            for found, own_notes in encoded:
                notes.update(own_notes)
                yield from found
    finally:  # also where whoever asks has enough before the last document
        notes.log_warnings()


class _ChatWarnings:
    """What of the chats of every corpus was not as it may be expected: {corpus: number}."""

    def __init__(self) -> None:
        self.responses, self.left_out, self.forgets_tools = Counter[str](), Counter[str](), Counter[str]()

    def update(self, other: "_ChatWarnings") -> None:
        self.responses.update(other.responses)
        self.left_out.update(other.left_out)
        self.forgets_tools.update(other.forgets_tools)

    def log_warnings(self) -> None:
        for name, count in self.left_out.items():
            log.warning(
                "%s: %d of %d responses are not supervised, since the chat template writes them otherwise "
                "once a later turn follows; to train on them, give data.chat_template, a file with {%% generation %%}",
                name, count, self.responses[name],
            )  # fmt: skip
        for name, count in self.forgets_tools.items():
            log.warning("%s: the chat template writes nothing of the tools of %d chats", name, count)


_EncodedBatch = tuple[list[tuple[Any, Any]], _ChatWarnings]


def _encode_batch(batch: list[Document], tokenizer: Any) -> _EncodedBatch:
    """([(ids, whether each is supervised)], what is to be said of the chats among them)."""
    if any(document.messages for document in batch):
        check_has_chat_template(tokenizer)
    found: list[tuple[Any, Any]] = []
    notes, dtype = _ChatWarnings(), token_dtype(tokenizer)
    texts = iter(_encode_texts([document.text for document in batch if not document.messages], tokenizer))
    for document in batch:
        if document.messages:
            ids, supervised = _encode_document(document, tokenizer, notes)
        else:
            ids = next(texts)
            supervised = [True] * len(ids)
            if document.prompt_length:
                ids, supervised = _encode_pair(document, tokenizer, ids)
        found.append((np.array(ids, dtype=dtype), np.array(supervised, dtype=bool)))
    return found, notes


def _encode_document(document: Document, tokenizer: Any, notes: _ChatWarnings) -> tuple[list[int], list[bool]]:
    try:
        chat = render_chat(tokenizer, document.messages, document.tools)
        encoded = encode_spans(tokenizer, chat.text, chat.spans)
    except UserError as error:
        raise UserError(f"{document.key}.messages: row {document.row}: {error}") from error
    notes.responses[document.key] += len(chat.spans) + chat.num_unsupervised_responses
    notes.left_out.update({document.key: chat.num_unsupervised_responses} if chat.num_unsupervised_responses else {})
    notes.forgets_tools.update({document.key: 1} if chat.template_ignores_tools else {})
    return encoded


def _encode_pair(document: Document, tokenizer: Any, joined: list[int]) -> tuple[list[int], list[bool]]:
    try:
        return encode_completion(tokenizer, document.text, document.prompt_length, joined)
    except UserError as error:
        raise UserError(f"{document.key}.completion: row {document.row}: {error}") from error


def _encode_texts(texts: list[str], tokenizer: Any) -> list[list[int]]:
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("the tokenizer has no end-of-sequence token, which ends every document")
    try:
        encoded = tokenizer(texts, verbose=False)["input_ids"] if texts else []
    except TypeError as error:  # what tokenizers says of half a surrogate pair
        broken = next((text for text in texts if not _is_text(text)), "")
        raise UserError(f"a document holds half a surrogate pair, which is no text: {ascii(broken)[:80]}") from error
    return [ids if ids and ids[-1] == end else [*ids, end] for ids in encoded]


def _is_text(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def progress_bar() -> Progress:
    """A bar on the error stream, so that tables on the output stay clean; nothing where nobody watches."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def tokenization_metadata(tokens: TokenizedDocuments, documents: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of tokenized documents: what became of the corpora, and how much of them was tokenized."""
    return {
        "corpus": dict(documents),
        "tokenized": {
            "documents": len(tokens.offsets) - 1,
            "tokens": len(tokens.tokens),
            "supervised": int(tokens.loss_mask.sum()),
        },
    }
