"""A live teacher with another tokenizer. It reads the student's text, never its token numbers.

Every document of a batch goes from the student's tokens to bytes, from these to the teacher's tokens, and what the teacher
says comes back on the spans of bytes that both cut alike. A BOS that only one of them has costs nothing: it has no bytes.
"""

import logging
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill_lit.losses.targets import Foreign, ForeignTarget
from distill_lit.models.packing_check import read_texts
from distill_lit.models.position_limits import position_limit
from distill_lit.models.vocabulary import check_ids
from distill_lit.teachers.online import LiveTeacher
from distill_lit.teachers.token_alignment import (
    Spans,
    align,
    begins_with_blank,
    check_alignable,
    sizes_in,
    token_bytes,
    unknown_token,
    whole_characters,
)
from distill_lit.utils.exceptions import UserError

log = logging.getLogger(__name__)
BATCH_TOKENS = 2048  # of the teacher, per forward pass
MANY = 32  # documents, after which it is known whether a teacher reads this text
CHUNK_TOKENS = 64  # whose whole distributions are in memory at a time


class Piece(NamedTuple):
    """A document of a row for the teacher. columns: the student's tokens in the row; ids: the teacher's."""

    row: int
    columns: np.ndarray
    ids: list[int]
    spans: Spans


class ForeignTeacher:
    """A frozen teacher beside a student with another tokenizer."""

    def __init__(self, model: Any, vocabulary: int, tokenizer: Any, student_tokenizer: Any) -> None:
        """`model`, `vocabulary`, `tokenizer`: the teacher's. Raises UserError for tokenizers that cannot be aligned."""
        self.live = LiveTeacher(model, vocabulary)
        self.tokenizer, self.end = tokenizer, student_tokenizer.eos_token_id
        self._read = self._changed = 0  # documents
        self._ours, self._theirs = read_tables(tokenizer, student_tokenizer)
        self._unknown = unknown_token(student_tokenizer)
        self._has_blank = begins_with_blank(student_tokenizer, self._ours)
        first = student_tokenizer("a")["input_ids"][0]
        self._start = first if first == student_tokenizer.bos_token_id else None  # the rest of a cut document has none
        self._rows = model.get_input_embeddings().weight.shape[0]
        self._most = position_limit(model.config) or sys.maxsize
        self._is_long = False  # a document had more tokens than that

    def to(self, device: torch.device) -> None:
        """Moves the teacher."""
        self.live.to(device)

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> ForeignTarget:
        """What it says of the chosen positions (B, T − 1) on the spans that both tokenizers cut alike."""
        self.live.check_frozen()
        ids, documents = batch["input_ids"].cpu().numpy(), batch["document_ids"].cpu().numpy()
        pieces = [
            piece
            for row in range(len(ids))
            for number in range(1, int(documents[row].max()) + 1)
            if (piece := self._piece(row, ids[row], np.flatnonzero(documents[row] == number))) is not None
        ]
        return self._collect(pieces, chosen)

    def _piece(self, row: int, ids: np.ndarray, columns: np.ndarray) -> Piece | None:
        """A document in both tokenizers; None where its bytes are no text, or one that the teacher's tokenizer changes, as
        those do that normalise characters."""
        mine = ids[columns]
        ended = bool(len(mine)) and int(mine[-1]) == self.end
        sizes = np.array([len(self._ours[i]) for i in mine])
        data = b"".join(self._ours[i] for i in mine)
        if self._has_blank and data.startswith(b" ") and self._start in (None, mine[0]):  # its tokenizer has put it there
            data = data[1:]
            sizes[np.flatnonzero(sizes)[0]] -= 1
        text, skipped = whole_characters(data)
        if not text:
            return None
        self._read += 1
        if self._unknown is not None and self._unknown in mine:
            self._note_change(text, "student", "has no tokens for parts of")
            return None
        length = len(text.encode())
        theirs = list(self.tokenizer(text, split_special_tokens=True)["input_ids"])
        check_ids(theirs, self.tokenizer, self._rows)
        their_sizes = sizes_in(text.encode(), [self._theirs[i] for i in theirs])
        if their_sizes is None:
            self._note_change(text, "teacher", "changes")
            return None
        ends = np.cumsum(sizes) - skipped
        spans = align(np.diff(np.clip(ends, 0, length), prepend=0), their_sizes)
        # a token that holds a part of a cut character says something the teacher was not shown
        whole = (ends - sizes >= 0) & (ends <= length)
        kept = [i for i, (first, last) in enumerate(spans.ours) if whole[first:last].all()]
        spans = Spans(spans.ours[kept], spans.theirs[kept])
        if ended and skipped + length == len(data) and self.tokenizer.eos_token_id is not None:
            theirs, spans = self._with_end(theirs, spans, len(mine))
        return Piece(row, columns, *self._within_positions(theirs, spans))

    def _within_positions(self, ids: list[int], spans: Spans) -> tuple[list[int], Spans]:
        """The teacher's tokens that it has positions for, and the spans of these."""
        if len(ids) <= self._most:
            return ids, spans
        if not self._is_long:
            self._is_long = True
            log.warning(
                "the teacher has %d positions and a document %d of its tokens; what is beyond is left out, see in_spans",
                self._most,
                len(ids),
            )
        kept = spans.theirs[:, 1] <= self._most
        return ids[: self._most], Spans(spans.ours[kept], spans.theirs[kept])

    def _note_change(self, text: str, whose: str, does: str) -> None:
        """Tells of the first document that is left out. Raises UserError where most are: little would be left to learn."""
        self._changed += 1
        if self._changed == 1:
            log.warning("the %s's tokenizer %s %r; such documents are left out, see in_spans", whose, does, text[:60])
        if self._read >= MANY and self._changed > self._read / 2:
            raise UserError(
                f"teacher.source: foreign, and the {whose}'s tokenizer {does} {self._changed} of {self._read} documents, "
                f"which cannot be aligned; choose a {whose} that reads this text as it is"
            )

    def _with_end(self, theirs: list[int], spans: Spans, count: int) -> tuple[list[int], Spans]:
        """Both say that the document ends, each with its own token: a span without bytes."""
        theirs = theirs if theirs[-1] == self.tokenizer.eos_token_id else [*theirs, self.tokenizer.eos_token_id]
        ours = np.concatenate([spans.ours, [[count - 1, count]]])
        return theirs, Spans(ours, np.concatenate([spans.theirs, [[len(theirs) - 1, len(theirs)]]]))

    def _collect(self, pieces: list[Piece], chosen: Tensor) -> ForeignTarget:
        count, device = int(chosen.sum()), chosen.device
        place = (chosen.flatten().cumsum(0) - 1).view(chosen.shape).cpu().numpy()
        marks = chosen.cpu().numpy()
        head = self.live.head
        hidden = torch.zeros(count, head.weight.shape[1], dtype=head.weight.dtype, device=device)
        same = torch.zeros(count, dtype=torch.bool, device=device)
        spans = torch.full((count,), -1, device=device)
        said: list[Tensor] = []
        for piece, states in zip(pieces, self._hidden([piece.ids for piece in pieces]), strict=True):
            log_probs = self._label_log_probs(states, piece.ids)
            for ours, theirs in zip(piece.spans.ours, piece.spans.theirs, strict=True):
                before = piece.columns[ours[0] : ours[1]] - 1  # a token is predicted from the place before it
                if before[0] < 0 or not marks[piece.row, before].all() or theirs[0] < 1:
                    continue
                numbers = torch.from_numpy(place[piece.row, before]).to(device)
                spans[numbers] = len(said)
                same[numbers[0]], hidden[numbers[0]] = True, states[theirs[0] - 1]
                said.append(log_probs[theirs[0] - 1 : theirs[1] - 1].sum())
        return _target(hidden, head, same, spans, torch.stack(said) if said else torch.zeros(0, device=device))

    @torch.inference_mode()
    def _hidden(self, texts: list[list[int]]) -> list[Tensor]:
        """Last hidden states (tokens, D) of every text, in batches of like length."""
        found: list[Tensor] = [torch.zeros(0)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        while order:
            most = max(1, BATCH_TOKENS // len(texts[order[-1]]))
            numbers, order = order[-most:], order[:-most]
            for i, states in zip(numbers, read_texts(self.live.model, [texts[i] for i in numbers]), strict=True):
                found[i] = states
        return found

    @torch.inference_mode()
    def _label_log_probs(self, states: Tensor, ids: list[int]) -> Tensor:
        """Log-probabilities (tokens − 1,) of every token but the first."""
        head, labels = self.live.head, torch.tensor(ids[1:], device=states.device)
        parts = []
        for start in range(0, len(labels), CHUNK_TOKENS):
            here = slice(start, start + CHUNK_TOKENS)
            log_p = head.finish(head.project(states[:-1][here])).log_softmax(-1)
            parts.append(log_p.gather(-1, labels[here, None])[:, 0])
        return torch.cat(parts) if parts else torch.zeros(0, device=states.device)


def read_tables(tokenizer: Any, student_tokenizer: Any) -> tuple[list[bytes], list[bytes]]:
    """The bytes of every token of the student and of the teacher (`tokenizer`). Raises UserError for a tokenizer whose
    bytes are not known, or that reads texts as others."""
    tables = token_bytes(student_tokenizer), token_bytes(tokenizer)
    check_alignable("teacher.source: foreign", "the student's", student_tokenizer, tables[0])
    check_alignable("teacher.source: foreign", "the teacher's", tokenizer, tables[1])
    return tables


def _target(hidden: Tensor, head: Any, same: Tensor, spans: Tensor, log_probs: Tensor) -> ForeignTarget:
    """Per token of the student what its span has."""
    inside = spans >= 0
    sizes = torch.bincount(spans[inside], minlength=len(log_probs))
    size, teacher = torch.zeros_like(spans), torch.zeros(len(spans), device=spans.device)
    size[inside], teacher[inside] = sizes[spans[inside]], log_probs.float()[spans[inside]]
    shared = teacher / size.clamp(min=1)
    return ForeignTarget(hidden, head, spans, Foreign(None, same, size, teacher, torch.zeros_like(teacher), shared))
