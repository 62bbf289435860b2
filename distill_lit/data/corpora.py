"""Corpora → documents: rows rendered by a sandboxed template, drawn by a seed, empty and repeated ones left out."""

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_lit.config import CorpusConfig, non_default_fields
from distill_lit.data.messages import is_supervised_response, read_messages, read_tools
from distill_lit.data.sources import Row, check_corpus_source, draw_rows, open_corpus_source
from distill_lit.utils.exceptions import UserError, one_line_message

MAX_ROW_CHARS_IN_ERROR = 80  # characters of a row in an error
CORPUS_WORD_PATTERN = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters, with apostrophes inside


@dataclass(frozen=True)
class Document:
    """One document. `text`: what is read; of a chat, the contents of its `messages` one below the other, which keep all
    their keys but those that are null."""

    corpus: str
    text: str
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()  # what the assistant of a chat may call
    row: int = 0  # of the corpus, from 1


@dataclass
class CorpusCounts:
    """What became of the rows of one corpus: read = documents + duplicates + empty."""

    rows: int = 0
    documents: int = 0
    duplicates: int = 0
    empty: int = 0


@dataclass
class Documents:
    """All documents of some corpora, and per corpus what was left out."""

    items: list[Document] = field(default_factory=list)
    counts: dict[str, CorpusCounts] = field(default_factory=dict)

    def statistics(self) -> dict[str, Any]:
        """{rows, documents, duplicates, empty, corpora: {name: the same}}."""
        total: Counter[str] = Counter()
        for counts in self.counts.values():
            total.update(asdict(counts))
        return {**total, "corpora": {name: asdict(counts) for name, counts in self.counts.items()}}


def template_sandbox() -> ImmutableSandboxedEnvironment:
    """Where templates are compiled: no access to attributes of Python, unknown columns and printed nulls raise, and
    lm-eval's filter `regex_replace`."""
    sandbox = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=_printable)
    sandbox.filters["regex_replace"] = lambda text, pattern, new="", count=0: re.sub(pattern, new, text, count=count)
    return sandbox


def _printable(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict)):
        raise ValueError(f"it prints a {type(value).__name__}, which is no text; name a field, or a filter such as join")
    if isinstance(value, bytes):
        return str(value)  # tells where it comes from
    if value != value:  # not a number
        raise ValueError("it prints nan, which is no text; say {{ column or '' }} after testing it, or leave the row out")
    if value is None:
        raise ValueError(
            "it prints a null, which would be trained as the word None; say {{ column or '' }} to leave it out"
        )
    return value


def compile_template(key: str, corpus: CorpusConfig) -> Template:
    """The template of a corpus. Raises UserError for a syntax error."""
    try:
        return template_sandbox().from_string(corpus.text)
    except TemplateSyntaxError as error:
        raise UserError(f"{key}.text: template line {error.lineno}: {error.message}") from error


def check_corpora(corpora: Mapping[str, CorpusConfig], dataset_source: str) -> None:
    """Raises UserError when no corpus is named or one cannot be read, as far as that shows without fetching."""
    if not corpora:
        raise UserError("data.corpora names no corpus; add one, or a corpora/… file to `defaults`")
    for name, corpus in corpora.items():
        if corpus.generated is None:
            check_corpus_source(_key(name), corpus, dataset_source)
        elif corpus.dataset or corpus.path:
            raise UserError(f"{_key(name)} has both generated and {'dataset' if corpus.dataset else 'path'}; give one")
        compile_template(_key(name), corpus)


def corpora_fingerprint(corpora: Mapping[str, CorpusConfig], dataset_source: str) -> dict[str, Any]:
    """JSON-like value that changes when a document can: the config and the hashes of the sources."""
    return {
        name: [non_default_fields(corpus), open_corpus_source(_key(name), corpus, dataset_source).fingerprint()]
        for name, corpus in sorted(corpora.items())
    }


def read_documents(
    corpora: Mapping[str, CorpusConfig], seed: int, dataset_source: str, on_row: Callable[[], Any] = lambda: None
) -> Documents:
    """Every document once, corpus by corpus in the order of their names; `on_row` is called for each row.

    Two documents are the same when they differ only in white space. Raises UserError for a row that cannot be
    rendered and when nothing is left.
    """
    loaded = Documents()
    seen: set[bytes] = set()
    for name, corpus in sorted(corpora.items()):
        counts = loaded.counts[name] = CorpusCounts()
        for document in _render_corpus(name, corpus, seed, dataset_source):
            on_row()
            counts.rows += 1
            digest = _digest(document)
            if not document.text:
                counts.empty += 1
            elif digest in seen:
                counts.duplicates += 1
            else:
                seen.add(digest)
                counts.documents += 1
                loaded.items.append(document)
    if not loaded.items:
        rows = sum(counts.rows for counts in loaded.counts.values())
        raise UserError(f"data.corpora: no document left of {rows} rows; all are empty")
    return loaded


def count_words(documents: list[Document]) -> Counter[str]:
    """How often each lower-case word occurs."""
    words: Counter[str] = Counter()
    for document in documents:
        words.update(CORPUS_WORD_PATTERN.findall(document.text.lower()))
    return words


def _key(name: str) -> str:
    return f"data.corpora.{name}"


def _digest(document: Document) -> bytes:
    chat = [document.messages, document.tools]
    text = json.dumps(chat, sort_keys=True, default=str) if document.messages else document.text
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _render_corpus(name: str, corpus: CorpusConfig, seed: int, dataset_source: str) -> Iterator[Document]:
    source = open_corpus_source(_key(name), corpus, dataset_source)
    template = compile_template(_key(name), corpus)
    for number, row in draw_rows(source, corpus.max_documents, [seed, zlib.crc32(name.encode())]):
        if corpus.messages:
            yield _chat(name, corpus.messages, row, number + 1)
        else:
            yield Document(name, _render(name, template, row), row=number + 1)


def _render(name: str, template: Template, row: Row) -> str:
    try:
        return template.render(row).strip().removeprefix("\ufeff").strip()  # a byte order mark
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, MemoryError) as error:
        raise render_error(f"{_key(name)}.text", error, row) from error


def render_error(key: str, error: Exception, row: Row) -> UserError:
    """The error of a row from which the template at `key` cannot make a text."""
    columns, begins = ", ".join(sorted(row)), repr(row)[:MAX_ROW_CHARS_IN_ERROR]
    return UserError(f"{key}: {one_line_message(error)}; the columns are {columns}; the row begins {begins}")


def _chat(name: str, column: str, row: Row, number: int) -> Document:
    """A chat document; one without a response from the assistant to learn counts as empty."""
    if column not in row:
        raise UserError(f"{_key(name)}.messages: no column {column!r}; the columns are {', '.join(sorted(row))}")
    try:
        messages, tools = read_messages(column, row[column]), read_tools(row.get("tools"))
        is_answered = any(is_supervised_response(message) for message in messages)
    except (UserError, ValueError) as error:
        raise UserError(f"{_key(name)}.messages: row {number}: {error}") from error
    text = "\n".join(message.get("content", "") for message in messages).strip()
    return Document(name, (text or json.dumps(messages, default=str)) if is_answered else "", messages, tools, number)
