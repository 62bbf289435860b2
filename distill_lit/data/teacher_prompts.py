"""A teacher that reads another prompt (`teacher.prompt`): its documents, and which of their tokens are the student's.

A document of the teacher is the student's with another prompt: the chat with another system message or another turn of the
user, rendered by the same chat template, or plain text behind a prefix. What is supervised is the same text under both
prompts. It must be the same tokens too: every document is compared, token by token, and one that differs is refused.
(Prompt and context distillation: Askell et al. 2021, 2112.00861; Snell et al. 2022, 2209.15189.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from distill_lit.config import DataConfig, TeacherPromptConfig
from distill_lit.data.chat import render_chat
from distill_lit.data.column_values import Row
from distill_lit.data.corpora import Document, PromptRenderer, TeacherPrompt
from distill_lit.data.messages import is_supervised_response
from distill_lit.data.row_templates import compile_template, render_template
from distill_lit.data.span_tokenization import encode_continuation, encode_spans
from distill_lit.data.templates import Messages
from distill_lit.data.tokenization import TokenizedDocuments, join_documents, progress_bar
from distill_lit.utils.exceptions import UserError

PROMPT_KEY = "teacher.prompt"
CHAT_FIELDS = ("system", "user")
PLAIN_TEXT_FIELDS = ("prefix",)
NOT_IN_TEACHER = -1  # position of a token that is not supervised
MAX_SHOWN_CHARACTERS = 60  # of a response in an error


class TeacherDocument(NamedTuple):
    """A document of the teacher that is read for one row of a batch.

    input_ids: (n,) int64; row: of the batch; columns: (k,) places in the row of the tokens to predict; places: (k,) the
    same tokens in input_ids, each at least 1.
    """

    input_ids: np.ndarray
    row: int
    columns: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class TeacherDocuments:
    """The documents of packed rows as the teacher reads them, one after the other.

    tokens: (M,); offsets: (documents + 1,); train_positions, validation_positions: (rows, length) int64, where in `tokens`
    the token is that stands there in a packed row of the student, -1 where it is not supervised. sequence_length: tokens of
    the longest document allowed; fingerprint: identifies all of it.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    train_positions: np.ndarray
    validation_positions: np.ndarray
    sequence_length: int
    fingerprint: str

    def of_rows(self, rows: Sequence[int], loss_mask: np.ndarray) -> list[TeacherDocument]:
        """What the teacher reads for rows of a batch. rows: their numbers, held-out ones from len(train_positions), below
        0 for none. loss_mask: (B, T) bool, the tokens of each that are to be predicted."""
        found = []
        for i, (row, mask) in enumerate(zip(rows, loss_mask, strict=True)):
            if row >= 0:
                columns = np.flatnonzero(mask)
                positions = self._positions(row)[columns]
                owners = np.searchsorted(self.offsets, positions, side="right") - 1
                for owner in np.unique(owners):
                    here, (start, end) = owners == owner, self.offsets[owner : owner + 2]
                    ids = self.tokens[start:end].astype(np.int64)
                    found.append(TeacherDocument(ids, i, columns[here], positions[here] - start))
        return found

    def prompt_of(self, row: int, prompt_end: int) -> np.ndarray:
        """(n,) int64: what the teacher reads where the student reads a document up to column `prompt_end` of a packed row,
        and then writes."""
        positions = self._positions(row)
        here, following = (int(p) for p in (*positions[prompt_end : prompt_end + 2], NOT_IN_TEACHER)[:2])
        is_next = following != NOT_IN_TEACHER and (here == NOT_IN_TEACHER or self._owner(here) == self._owner(following))
        end = following if is_next else here + 1
        start = self.offsets[self._owner(end - 1)]
        return np.asarray(self.tokens[start:end].astype(np.int64))

    def _owner(self, position: int) -> int:
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def _positions(self, row: int) -> np.ndarray:
        held_out = row - len(self.train_positions)
        return np.asarray(self.train_positions[row] if held_out < 0 else self.validation_positions[held_out])


def check_teacher_prompt(prompt: TeacherPromptConfig, data: DataConfig) -> None:
    """Raises UserError for a template with a syntax error, and one that no corpus has a use for."""
    prompt_renderer(prompt)
    for fields, is_chat, kind in ((CHAT_FIELDS, True, "chats"), (PLAIN_TEXT_FIELDS, False, "plain text")):
        given = next((name for name in fields if getattr(prompt, name)), "")
        if given and not any(corpus.is_chat is is_chat for corpus in data.corpora.values()):
            instead = PLAIN_TEXT_FIELDS[0] if is_chat else " or ".join(CHAT_FIELDS)
            raise UserError(
                f"{PROMPT_KEY}.{given}: it is for {kind}, and no corpus is; give {PROMPT_KEY}.{instead} instead"
            )


def prompt_renderer(prompt: TeacherPromptConfig) -> PromptRenderer:
    """Renders the teacher's prompt of a document from its row. Raises UserError for a template with a syntax error."""
    templates = {
        name: compile_template(f"{PROMPT_KEY}.{name}", getattr(prompt, name))
        for name in (*CHAT_FIELDS, *PLAIN_TEXT_FIELDS)
        if getattr(prompt, name)
    }

    def render(document: Document, row: Row) -> TeacherPrompt:
        fields, names = (
            (CHAT_FIELDS, {"student": _student_texts(document)}) if document.messages else (PLAIN_TEXT_FIELDS, {})
        )
        texts = {
            name: render_template(f"{PROMPT_KEY}.{name}", templates[name], row, **names)
            for name in fields
            if name in templates
        }
        # a message is its text; a prefix is what it is to the last blank, since the document follows at once
        return TeacherPrompt(**{name: text if name in PLAIN_TEXT_FIELDS else text.strip() for name, text in texts.items()})

    return render


def _student_texts(document: Document) -> dict[str, str]:
    """The texts of a chat that a template may take up again."""
    messages, (turn, response) = document.messages, _last_exchange(document.messages)
    return {
        "system": _content(messages[0]) if messages[0]["role"] == "system" else "",
        "user": _content(messages[turn]) if turn is not None else "",
        "response": _content(messages[response]) if response is not None else "",
    }


def _content(message: Any) -> str:
    return str(message.get("content") or "")


def _last_exchange(messages: Messages) -> tuple[int | None, int | None]:
    """Numbers of the user's turn before the last response that is supervised, and of this response."""
    response = next((i for i in reversed(range(len(messages))) if is_supervised_response(messages[i])), None)
    turn = next((i for i in reversed(range(response or 0)) if messages[i]["role"] == "user"), None)
    return turn, response


def teacher_messages(messages: Messages, prompt: TeacherPrompt) -> list[dict[str, Any]]:
    """A chat as the teacher reads it. An empty system message is none. Raises UserError where it has no turn to replace."""
    changed = [dict(message) for message in messages]
    if prompt.user is not None:
        turn, _ = _last_exchange(messages)
        if turn is None:
            raise UserError(f"{PROMPT_KEY}.user: no turn of the user stands before the last response")
        changed[turn]["content"] = prompt.user
    if prompt.system is not None:
        without = changed[1:] if changed and changed[0]["role"] == "system" else changed
        changed = [*([{"role": "system", "content": prompt.system}] if prompt.system else []), *without]
    return changed


def tokenize_teacher_documents(
    documents: Sequence[Document], tokenizer: Any, student: TokenizedDocuments, sequence_length: int, most_tokens: int
) -> TokenizedDocuments:
    """The documents as the teacher reads them, in their order; supervised are the tokens that are in `student`.

    Plain text is cut where the student's rows of `sequence_length` tokens cut it, each piece with the prefix. Raises
    UserError, naming the row, where a response becomes other tokens, where the chat template writes nothing of the prompt,
    and where more than `most_tokens` are to be read.
    """
    pieces: list[np.ndarray] = []
    marks: list[np.ndarray] = []
    owners: list[Document] = []
    with progress_bar() as bar:
        task = bar.add_task("tokenizing the teacher's prompts", total=len(student.offsets) - 1)
        for document, start, end in zip(documents, student.offsets, student.offsets[1:], strict=False):
            ids, mask = student.tokens[start:end].tolist(), student.loss_mask[start:end].tolist()
            found = (
                [_encode_chat(document, tokenizer, ids, mask)]
                if document.messages
                else _encode_plain(document.teacher_prompt.prefix, tokenizer, ids, mask, sequence_length)
            )
            pieces += [np.array(read, dtype=student.tokens.dtype) for read, _ in found]
            marks += [np.array(supervised, dtype=bool) for _, supervised in found]
            owners += [document] * len(found)
            bar.advance(task)
    _check_lengths([len(piece) for piece in pieces], owners, most_tokens)
    return join_documents(pieces, marks)


def make_teacher_documents(
    parts: Sequence[tuple[TokenizedDocuments, Sequence[Document]]], tokenizer: Any, sequence_length: int, most_tokens: int
) -> tuple[dict[str, np.ndarray], list[TokenizedDocuments], dict[str, Any]]:
    """({tokens, offsets} of all parts; the student's documents of each part with, in the place of each token, where it is
    among these tokens, -1 where it is not supervised; counts). parts: (the student's tokens, their documents).

    Raises UserError like `tokenize_teacher_documents`.
    """
    teacher = [
        tokenize_teacher_documents(documents, tokenizer, student, sequence_length, most_tokens)
        for student, documents in parts
    ]
    found, start = [], 0
    for (student, _), own in zip(parts, teacher, strict=True):
        found.append(match_positions(student, own, start))
        start += len(own.tokens)
    lengths = np.concatenate([np.diff(own.offsets) for own in teacher])
    counts = {
        "teacher_tokens": start,
        "teacher_tokens_per_token": start / sum(len(student.tokens) for student, _ in parts),
        "longest_teacher_document": int(lengths.max()),
    }
    tokens = np.concatenate([own.tokens for own in teacher])
    return {"tokens": tokens, "offsets": np.cumsum([0, *lengths], dtype=np.int64)}, found, counts


def match_positions(student: TokenizedDocuments, teacher: TokenizedDocuments, start: int = 0) -> TokenizedDocuments:
    """The student's documents with, in the place of each token, where it is among the teacher's, counted from `start`; -1
    for those that are not supervised."""
    positions = np.full(len(student.tokens), NOT_IN_TEACHER, dtype=np.int64)
    positions[student.loss_mask] = start + np.flatnonzero(teacher.loss_mask)
    return TokenizedDocuments(positions, student.offsets, student.loss_mask)


def _encode_plain(
    prefix: str, tokenizer: Any, ids: list[int], mask: list[bool], length: int
) -> list[tuple[list[int], list[bool]]]:
    """A document in pieces of at most `length` tokens, each behind the prefix; a token that begins texts stays first."""
    bos = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
    before = encode_continuation(tokenizer, "", prefix) if prefix else []
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)]
    encoded = []
    for i, piece in enumerate(pieces):
        own_bos = len(bos) if i == 0 else 0
        marks = mask[i * length :][: len(piece)]
        before_text = [marks[0]] * own_bos or [False] * len(bos)
        read = [*bos, *before, *piece[own_bos:]]
        encoded.append((read, [*before_text, *[False] * len(before), *marks[own_bos:]]))
    return encoded


def _encode_chat(document: Document, tokenizer: Any, ids: list[int], mask: list[bool]) -> tuple[list[int], list[bool]]:
    """(token ids, supervised) of a chat under the teacher's prompt. ids, mask: the same under the student's."""
    where = f"{document.key}.messages: row {document.row}: with {PROMPT_KEY}"
    try:
        messages = teacher_messages(document.messages, document.teacher_prompt)
        chat = render_chat(tokenizer, messages, document.tools)
        encoded = encode_spans(tokenizer, chat.text, chat.spans)
        _check_prompt_is_written(document, tokenizer, chat.text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    theirs, ours = _responses(*encoded), _responses(ids, mask)
    if theirs != ours:
        raise UserError(f"{where}: {_difference(tokenizer, theirs, ours)}; both must read the same tokens")
    if encoded[1][0] and not mask[0]:
        raise UserError(f"{where}: nothing stands before the response")
    return encoded


def _responses(ids: Sequence[int], mask: Sequence[bool]) -> list[list[int]]:
    """The stretches of supervised tokens."""
    runs = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run] for is_supervised, run in runs if is_supervised]


def _difference(tokenizer: Any, theirs: list[list[int]], ours: list[list[int]]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} responses are supervised instead of {len(ours)}"
    pair = next((a, b) for a, b in zip(theirs, ours, strict=True) if a != b)
    texts = [tokenizer.decode(ids) for ids in pair]
    if texts[0] == texts[1]:
        return f"the response {texts[1][:MAX_SHOWN_CHARACTERS]!r} is cut into other tokens"
    shown = [repr(text[:MAX_SHOWN_CHARACTERS]) for text in texts]
    return f"the chat template writes the response {shown[1]} as {shown[0]}"


def _check_prompt_is_written(document: Document, tokenizer: Any, text: str) -> None:
    """Raises UserError where the chat template writes nothing of a part of the prompt. text: the chat under it."""
    messages, prompt = document.messages, document.teacher_prompt
    for name, others in (("system", prompt._replace(system=None)), ("user", prompt._replace(user=None))):
        given = getattr(prompt, name)
        if given and given not in text:  # written otherwise, or not at all
            without = teacher_messages(messages, others)
            if (
                without != teacher_messages(messages, prompt)
                and render_chat(tokenizer, without, document.tools).text == text
            ):
                raise UserError(f"the chat template writes nothing of {PROMPT_KEY}.{name}")


def _check_lengths(lengths: list[int], documents: list[Document], most_tokens: int) -> None:
    longer = [i for i, length in enumerate(lengths) if length > most_tokens]
    if longer:
        length, document, longest = lengths[longer[0]], documents[longer[0]], max(lengths)
        raise UserError(
            f"{document.key}: row {document.row}: {length} tokens with {PROMPT_KEY}, above the "
            f"{most_tokens} that the teacher reads, as {len(longer)} of {len(lengths)} documents are; set "
            f"{PROMPT_KEY}.sequence_length to {longest}, or shorten the prompt"
        )
