"""Corpora → documents: rows rendered by a sandboxed template, drawn by a seed, empty and repeated ones left out."""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from jinja2 import Template

from distill_lit.config import CorpusConfig, DataConfig, non_default_fields
from distill_lit.data.column_values import Row
from distill_lit.data.messages import is_supervised_response, read_messages, read_tools
from distill_lit.data.row_templates import check_reads_row, compile_template, render_template
from distill_lit.data.sources import check_corpus_source, draw_rows, is_own_text, open_corpus_source
from distill_lit.data.spool import ItemSpool
from distill_lit.utils.exceptions import UserError

TRAINING_SECTION, VALIDATION_SECTION = "data.corpora", "data.validation"  # of the config
PAIR = ("prompt", "completion")
DOCUMENT_BYTES = 500  # of one in memory beside its text, about

Chat = tuple[dict[str, Any], ...]  # messages, or tools


class TeacherPrompt(NamedTuple):
    """What the teacher reads of a document instead of the student's prompt, rendered; None: what the student reads."""

    system: str | None = None
    user: str | None = None
    prefix: str = ""  # before plain text


@dataclass(frozen=True)
class Document:
    """One document. `text`: what is read; of a chat, the contents of its `messages` one below the other, which keep all
    their keys but those that are null. `prompt_length`: characters at the start of the text that are not supervised."""

    corpus: str
    text: str
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()  # what the assistant of a chat may call
    row: int = 0  # of the corpus, from 1
    section: str = TRAINING_SECTION  # of the config, that the corpus is in
    prompt_length: int = 0
    teacher_prompt: TeacherPrompt = TeacherPrompt()

    @property
    def key(self) -> str:
        """How errors name its corpus."""
        return f"{self.section}.{self.corpus}"


PromptRenderer = Callable[[Document, Row], TeacherPrompt]


@dataclass
class CorpusCounts:
    """What became of the rows of one corpus: rows = documents + duplicates + empty + in_validation."""

    rows: int = 0
    documents: int = 0
    duplicates: int = 0
    empty: int = 0
    in_validation: int = 0


@dataclass
class Documents:
    """All documents of some corpora, in memory or in a file, and per corpus what was left out. is_compared: with documents
    to validate on."""

    items: Sequence[Document] = field(default_factory=list)
    counts: dict[str, CorpusCounts] = field(default_factory=dict)
    is_compared: bool = False

    def statistics(self) -> dict[str, Any]:
        """{rows, documents, duplicates, empty[, in_validation], corpora: {name: the same}}."""
        names = [name for name in asdict(CorpusCounts()) if name != "in_validation" or self.is_compared]
        by_corpus = {corpus: {name: getattr(counts, name) for name in names} for corpus, counts in self.counts.items()}
        return {**{name: sum(counts[name] for counts in by_corpus.values()) for name in names}, "corpora": by_corpus}

    def digests(self) -> set[bytes]:
        """What tells each of its documents apart from others."""
        return {_digest(document) for document in self.items}


def check_corpora(corpora: Mapping[str, CorpusConfig], dataset_source: str) -> None:
    """Raises UserError when no corpus is named, one cannot be read, as far as that shows without fetching, or some have a
    weight and others none."""
    if not corpora:
        raise UserError("data.corpora names no corpus; add one, or a corpora/… file to `defaults`")
    for name, corpus in corpora.items():
        check_corpus(f"{TRAINING_SECTION}.{name}", corpus, dataset_source)
    check_corpus_weights(corpora)


def check_corpus_weights(corpora: Mapping[str, CorpusConfig]) -> None:
    """Raises UserError where some corpora have a weight and others none, or none has one above 0."""
    unweighted = [name for name, corpus in corpora.items() if corpus.weight is None]
    if unweighted and len(unweighted) < len(corpora):
        raise UserError(
            f"{TRAINING_SECTION}.{unweighted[0]}.weight: the other corpora have weights; give it one, 0 for none"
        )
    if not unweighted and not any(corpus.weight for corpus in corpora.values()):
        raise UserError(f"{TRAINING_SECTION}: no corpus has a weight above 0")


def check_validation_corpora(data: DataConfig, dataset_source: str) -> None:
    """Raises UserError for a corpus to validate on that cannot be read, is generated, or has a weight, and where there is
    nothing to validate on."""
    for name, corpus in data.validation.items():
        key = f"{VALIDATION_SECTION}.{name}"
        if corpus.generated is not None:
            raise UserError(f"{key}.generated: text to validate on is not written by a teacher; give dataset or path")
        if corpus.weight is not None:
            raise UserError(f"{key}.weight: text to validate on is read as it is; only data.corpora have weights")
        check_corpus(key, corpus, dataset_source)
    if not data.validation_sequences and not data.validation:
        raise UserError("data.validation_sequences: 0 means all of data.validation, which names no corpus")


def check_corpus(key: str, corpus: CorpusConfig, dataset_source: str) -> None:
    """Raises UserError for a corpus that cannot be read, as far as that shows without fetching. key: its own in the
    config."""
    if corpus.generated is None:
        check_corpus_source(key, corpus, dataset_source)
    elif corpus.dataset or corpus.path:
        raise UserError(f"{key} has both generated and {'dataset' if corpus.dataset else 'path'}; give one")
    if corpus.streaming and not (corpus.dataset and dataset_source == "hub"):
        raise UserError(f"{key}.streaming: only a `dataset` of dataset_source=hub is streamed; files are never read whole")
    _check_forms(key, corpus)
    _compile_corpus(key, corpus)
    _check_learned_text(key, corpus)


def check_first_row(section: str, name: str, corpus: CorpusConfig) -> None:
    """Raises UserError where the first row of a file of one's own makes no document: a column that is not there, a line
    that is no row. Fetches nothing, and reads no further than that row; all of a .json file."""
    if is_own_text(f"{section}.{name}", corpus):
        next(_render_corpus(section, name, replace(corpus, max_documents=0), 0, ""), None)


def _check_learned_text(key: str, corpus: CorpusConfig) -> None:
    """Raises UserError where what a student would learn is the same text for every row, and for a prompt of one word, which
    is a column without its braces."""
    prompts: dict[str, str] = {}
    if isinstance(corpus.messages, list):
        texts = {f"{key}.messages[{i}]": (m.role, m.content) for i, m in enumerate(corpus.messages)}
        answers = {place: text for place, (role, text) in texts.items() if role == "assistant"}
        if not answers:
            raise UserError(f"{key}.messages: none is of the assistant, so there is no response to learn")
        prompts = {place: text for place, (role, text) in texts.items() if role == "user"}
        check_reads_row(list(answers)[-1], " ".join(answers.values()))
    elif corpus.completion:
        prompts = {f"{key}.prompt": corpus.prompt}
        check_reads_row(f"{key}.completion", corpus.completion)
    elif not corpus.messages:
        check_reads_row(f"{key}.text", corpus.text)
    for place, text in prompts.items():
        if text.strip().isidentifier():
            check_reads_row(place, text)


def _check_forms(key: str, corpus: CorpusConfig) -> None:
    """Raises UserError for a corpus that says twice what its documents are made of, and for half a pair."""
    forms = [*corpus.forms, *(["generated"] if corpus.generated is not None else [])]
    if len(forms) > 1:
        known = "text, messages, prompt and completion, or generated"
        raise UserError(f"{key} has {forms[0]}, and {forms[1]} too; give one of {known}")
    if bool(corpus.prompt) != bool(corpus.completion):
        given, lacking = ("prompt", "completion") if corpus.prompt else ("completion", "prompt")
        raise UserError(f"{key}.{given}: it goes with {key}.{lacking}, which is missing")


def corpora_fingerprint(
    corpora: Mapping[str, CorpusConfig], dataset_source: str, section: str = TRAINING_SECTION
) -> dict[str, Any]:
    """JSON-like value that changes when a document can: the config and the hashes of the sources."""
    return {
        name: [corpus_text_fields(corpus), open_corpus_source(f"{section}.{name}", corpus, dataset_source).fingerprint()]
        for name, corpus in sorted(corpora.items())
    }


def corpus_names(data: DataConfig) -> list[str]:
    """The names of all corpora in the order in which they are numbered: to train on, then those only to validate on."""
    return [*sorted(data.corpora), *sorted(set(data.validation) - set(data.corpora))]


def corpus_text_fields(corpus: CorpusConfig) -> dict[str, Any]:
    """The fields that decide its documents, those with defaults left out: which teacher scores them does not."""
    return {name: value for name, value in non_default_fields(corpus).items() if name != "teacher"}


def read_documents(
    corpora: Mapping[str, CorpusConfig],
    seed: int,
    dataset_source: str,
    on_row: Callable[[], Any] = lambda: None,
    *,
    section: str = TRAINING_SECTION,
    validation: Documents | None = None,
    render_prompt: PromptRenderer | None = None,
) -> Documents:
    """Every document once, corpus by corpus in the order of their names, less those of `validation`; `on_row` is called for
    each row, `render_prompt` for the teacher's prompt of each document.

    Two documents are the same when they differ only in white space; two chats when only in the number of blanks. Raises
    UserError for a row that cannot be rendered and when nothing is left.
    """
    loaded = Documents(is_compared=validation is not None)
    items: ItemSpool[Document] = ItemSpool()
    excluded = validation.digests() if validation else set()
    seen: set[bytes] = set()
    for name, corpus in sorted(corpora.items()):
        counts = loaded.counts[name] = CorpusCounts()
        for document, row in _render_corpus(section, name, corpus, seed, dataset_source):
            on_row()
            counts.rows += 1
            digest = _digest(document)
            if not document.text:
                counts.empty += 1
            elif digest in excluded:
                counts.in_validation += 1
            elif digest in seen:
                counts.duplicates += 1
            else:
                seen.add(digest)
                counts.documents += 1
                if render_prompt is not None:
                    document = replace(document, teacher_prompt=render_prompt(document, row))
                items.append(document, DOCUMENT_BYTES + len(document.text) * (2 if document.messages else 1))
    loaded.items = items.finished()
    if not loaded.items:
        rows = sum(counts.rows for counts in loaded.counts.values())
        reason = "empty or in data.validation" if excluded else "empty"
        raise UserError(f"{section}: no document left of {rows} rows; all are {reason}")
    return loaded


def _digest(document: Document) -> bytes:
    chat = [document.messages, document.tools]
    text = json.dumps(chat, sort_keys=True, default=str) if document.messages else document.text
    if at := document.prompt_length:
        text = f"{text[:at]} \0 {text[at:]}"
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _compile_corpus(key: str, corpus: CorpusConfig) -> list[Template]:
    """The template of the text, or those of the messages, or of prompt and completion; none for a column of messages."""
    if isinstance(corpus.messages, list):
        return [compile_template(f"{key}.messages[{i}]", m.content) for i, m in enumerate(corpus.messages)]
    if corpus.completion:
        return [compile_template(f"{key}.{name}", getattr(corpus, name)) for name in PAIR]
    text = compile_template(f"{key}.text", corpus.text)
    return [] if corpus.messages else [text]


def _render_corpus(
    section: str, name: str, corpus: CorpusConfig, seed: int, dataset_source: str
) -> Iterator[tuple[Document, Row]]:
    key = f"{section}.{name}"
    source = open_corpus_source(key, corpus, dataset_source)
    templates = _compile_corpus(key, corpus)
    for number, row in draw_rows(source, corpus.max_documents, [seed, zlib.crc32(name.encode())]):
        if corpus.messages:
            text, messages, tools = _chat(key, _messages(key, corpus, templates, row), row, number + 1)
            yield Document(name, text, messages, tools, number + 1, section), row
        elif corpus.completion:
            prompt, completion = _prompt_and_completion(key, templates, row)
            text = prompt + completion if completion.strip() else ""
            yield Document(name, text, row=number + 1, section=section, prompt_length=len(prompt)), row
        else:
            text = _render(f"{key}.text", templates[0], row)
            yield Document(name, text, row=number + 1, section=section), row


def _messages(key: str, corpus: CorpusConfig, templates: list[Template], row: Row) -> tuple[str, Any]:
    """(what errors call them, the messages of a row): those of a column, or made by templates."""
    if isinstance(corpus.messages, list):
        texts = [_render(f"{key}.messages[{i}]", template, row) for i, template in enumerate(templates)]
        return "messages", [{"role": m.role, "content": text} for m, text in zip(corpus.messages, texts, strict=True)]
    if corpus.messages not in row:
        raise UserError(f"{key}.messages: no column {corpus.messages!r}; the columns are {', '.join(sorted(row))}")
    return corpus.messages, row[corpus.messages]


def _render(key: str, template: Template, row: Row) -> str:
    return render_template(key, template, row).strip().removeprefix("\ufeff").strip()  # a byte order mark


def _prompt_and_completion(key: str, templates: list[Template], row: Row) -> tuple[str, str]:
    """Both texts of a row. White space stays where they meet."""
    prompt, completion = (
        render_template(f"{key}.{name}", template, row) for name, template in zip(PAIR, templates, strict=True)
    )
    return prompt.lstrip().removeprefix("\ufeff").lstrip(), completion.rstrip()


def _chat(key: str, named_messages: tuple[str, Any], row: Row, number: int) -> tuple[str, Chat, Chat]:
    """(text, messages, tools) of a chat; the text of one without a response from the assistant to learn is empty."""
    try:
        messages, tools = read_messages(*named_messages), read_tools(row.get("tools"))
        is_answered = any(is_supervised_response(message) for message in messages)
    except (UserError, ValueError) as error:
        raise UserError(f"{key}.messages: row {number}: {error}") from error
    text = "\n".join(message.get("content", "") for message in messages).strip()
    return (text or json.dumps(messages, default=str)) if is_answered else "", messages, tools
