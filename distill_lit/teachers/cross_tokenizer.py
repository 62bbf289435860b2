"""A teacher beside the student, with another tokenizer. It reads the student's text, never its token numbers.

Every document of a batch goes from the student's tokens to bytes, from these to the teacher's tokens, and what the teacher
says comes back on the spans of bytes that both cut alike. A BOS that only one of them has costs nothing: it has no bytes.
"""

import logging
import sys
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill_lit.config import TeacherConfig
from distill_lit.losses.targets import CrossTokenizerTarget, SpanTarget
from distill_lit.models import load_tokenizer
from distill_lit.models.document_spans import document_ids_of, document_spans
from distill_lit.models.packing_check import hidden_states_of_texts
from distill_lit.models.position_limits import position_limit
from distill_lit.models.vocabulary import check_ids
from distill_lit.teachers.base import TeacherCapabilities, TeacherContext, TeacherSource
from distill_lit.teachers.online import OnlineTeacher
from distill_lit.teachers.registry import register_teacher
from distill_lit.teachers.token_alignment import (
    AlignedSpans,
    adds_prefix_space,
    align_tokens,
    check_alignable,
    get_unk_token_id,
    token_byte_lengths,
    token_bytes,
    trim_partial_characters,
)
from distill_lit.utils.exceptions import UserError

log = logging.getLogger(__name__)
TEACHER_BATCH_TOKENS = 2048  # of the teacher, per forward pass
UNALIGNABLE_CHECK_DOCUMENTS = 32  # documents, after which it is known whether a teacher reads this text
LABEL_LOGPROB_CHUNK_TOKENS = 64  # whose whole distributions are in memory at a time


class AlignedDocument(NamedTuple):
    """A document of a row for the teacher. columns: the student's tokens in the row; teacher_ids: the teacher's."""

    row: int
    columns: np.ndarray
    teacher_ids: list[int]
    spans: AlignedSpans


class CrossTokenizerTeacher:
    """A frozen teacher beside a student with another tokenizer.

    Example:
        model = AutoModelForCausalLM.from_pretrained("teacher")
        tokenizers = AutoTokenizer.from_pretrained("teacher"), AutoTokenizer.from_pretrained("student")
        teacher = CrossTokenizerTeacher(model, len(tokenizers[0]), *tokenizers)
        batch = {"input_ids": ids, "document_ids": torch.ones_like(ids)}  # (B, T) each, tokens of the student
        target = teacher.target(batch, loss_mask)  # loss_mask: (B, T - 1) bool; for the losses uld and alm
    """

    def __init__(self, model: Any, vocab_size: int, tokenizer: Any, student_tokenizer: Any) -> None:
        """`model`, `vocab_size`, `tokenizer`: the teacher's. Raises UserError for tokenizers that cannot be aligned."""
        self.online_teacher = OnlineTeacher(model, vocab_size)
        self.tokenizer, self.student_eos_token_id = tokenizer, student_tokenizer.eos_token_id
        self._num_documents = self._num_unalignable = 0  # documents
        self._student_token_bytes, self._teacher_token_bytes = load_token_byte_tables(tokenizer, student_tokenizer)
        self._unknown = get_unk_token_id(student_tokenizer)
        self._adds_prefix_space = adds_prefix_space(student_tokenizer, self._student_token_bytes)
        first = student_tokenizer("a")["input_ids"][0]
        self._bos_token_id = (
            first if first == student_tokenizer.bos_token_id else None
        )  # the rest of a cut document has none
        self._embedding_rows = model.get_input_embeddings().weight.shape[0]
        self._max_positions = position_limit(model.config) or sys.maxsize
        self._warned_too_long = False  # a document had more tokens than that

    def to(self, device: torch.device) -> None:
        """Moves the teacher."""
        self.online_teacher.to(device)

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> CrossTokenizerTarget:
        """What it says of the positions that `loss_mask` (B, T − 1) marks, on the spans that both tokenizers cut alike."""
        self.online_teacher.check_frozen()
        ids, spans = batch["input_ids"].cpu().numpy(), document_spans(document_ids_of(batch))
        aligned = (self._align_document(one.row, ids[one.row], one.columns) for one in spans)
        pieces = [piece for piece in aligned if piece is not None]
        return self._collect(pieces, loss_mask)

    def _align_document(self, row: int, ids: np.ndarray, columns: np.ndarray) -> AlignedDocument | None:
        """A document in both tokenizers; None where its bytes are no text, or one that the teacher's tokenizer changes, as
        those do that normalize characters."""
        student_ids = ids[columns]
        ended = bool(len(student_ids)) and int(student_ids[-1]) == self.student_eos_token_id
        sizes = np.array([len(self._student_token_bytes[i]) for i in student_ids])
        data = b"".join(self._student_token_bytes[i] for i in student_ids)
        if (
            self._adds_prefix_space and data.startswith(b" ") and self._bos_token_id in (None, student_ids[0])
        ):  # its tokenizer has put it there
            data = data[1:]
            sizes[np.flatnonzero(sizes)[0]] -= 1
        text, skipped = trim_partial_characters(data)
        if not text:
            return None
        self._num_documents += 1
        if self._unknown is not None and self._unknown in student_ids:
            self._count_unalignable(text, "student", "has no tokens for parts of")
            return None
        length = len(text.encode())
        teacher_ids = list(self.tokenizer(text, split_special_tokens=True)["input_ids"])
        check_ids(teacher_ids, self.tokenizer, self._embedding_rows)
        teacher_sizes = token_byte_lengths(text.encode(), [self._teacher_token_bytes[i] for i in teacher_ids])
        if teacher_sizes is None:
            self._count_unalignable(text, "teacher", "changes")
            return None
        ends = np.cumsum(sizes) - skipped
        spans = align_tokens(np.diff(np.clip(ends, 0, length), prepend=0), teacher_sizes)
        # a token that holds a part of a cut character says something the teacher was not shown
        whole = (ends - sizes >= 0) & (ends <= length)
        kept = [i for i, (first, last) in enumerate(spans.student) if whole[first:last].all()]
        spans = AlignedSpans(spans.student[kept], spans.teacher[kept])
        if ended and skipped + length == len(data) and self.tokenizer.eos_token_id is not None:
            teacher_ids, spans = self._append_eos(teacher_ids, spans, len(student_ids))
        return AlignedDocument(row, columns, *self._within_positions(teacher_ids, spans))

    def _within_positions(self, ids: list[int], spans: AlignedSpans) -> tuple[list[int], AlignedSpans]:
        """The teacher's tokens that it has positions for, and the spans of these."""
        if len(ids) <= self._max_positions:
            return ids, spans
        if not self._warned_too_long:
            self._warned_too_long = True
            log.warning(
                "the teacher has %d positions and a document %d of its tokens; what is beyond is left out, see in_spans",
                self._max_positions,
                len(ids),
            )
        within_limit = spans.teacher[:, 1] <= self._max_positions
        return ids[: self._max_positions], AlignedSpans(spans.student[within_limit], spans.teacher[within_limit])

    def _count_unalignable(self, text: str, whose: str, does: str) -> None:
        """Tells of the first document that is left out. Raises UserError where most are: little would be left to learn."""
        self._num_unalignable += 1
        if self._num_unalignable == 1:
            log.warning("the %s's tokenizer %s %r; such documents are left out, see in_spans", whose, does, text[:60])
        if self._num_documents >= UNALIGNABLE_CHECK_DOCUMENTS and self._num_unalignable > self._num_documents / 2:
            raise UserError(
                f"teacher.source: cross_tokenizer, and the {whose}'s tokenizer {does} {self._num_unalignable} of "
                f"{self._num_documents} documents, "
                f"which cannot be aligned; choose a {whose} that reads this text as it is"
            )

    def _append_eos(self, teacher_ids: list[int], spans: AlignedSpans, count: int) -> tuple[list[int], AlignedSpans]:
        """Both say that the document ends, each with its own token: a span without bytes."""
        teacher_ids = (
            teacher_ids if teacher_ids[-1] == self.tokenizer.eos_token_id else [*teacher_ids, self.tokenizer.eos_token_id]
        )
        student_spans = np.concatenate([spans.student, [[count - 1, count]]])
        return teacher_ids, AlignedSpans(
            student_spans, np.concatenate([spans.teacher, [[len(teacher_ids) - 1, len(teacher_ids)]]])
        )

    def _collect(self, pieces: list[AlignedDocument], loss_mask: Tensor) -> CrossTokenizerTarget:
        count, device = int(loss_mask.sum()), loss_mask.device
        target_index = (loss_mask.flatten().cumsum(0) - 1).view(loss_mask.shape).cpu().numpy()
        mask = loss_mask.cpu().numpy()
        head = self.online_teacher.lm_head
        hidden = torch.zeros(count, head.weight.shape[1], dtype=head.weight.dtype, device=device)
        same_prefix = torch.zeros(count, dtype=torch.bool, device=device)
        spans = torch.full((count,), -1, device=device)
        span_logprobs: list[Tensor] = []
        for piece, states in zip(pieces, self._hidden_states([piece.teacher_ids for piece in pieces]), strict=True):
            log_probs = self._label_logprobs(states, piece.teacher_ids)
            for ours, theirs in zip(piece.spans.student, piece.spans.teacher, strict=True):
                predicting_columns = piece.columns[ours[0] : ours[1]] - 1  # a token is predicted from the place before it
                if predicting_columns[0] < 0 or not mask[piece.row, predicting_columns].all() or theirs[0] < 1:
                    continue
                numbers = torch.from_numpy(target_index[piece.row, predicting_columns]).to(device)
                spans[numbers] = len(span_logprobs)
                same_prefix[numbers[0]], hidden[numbers[0]] = True, states[theirs[0] - 1]
                span_logprobs.append(log_probs[theirs[0] - 1 : theirs[1] - 1].sum())
        log_probs = torch.stack(span_logprobs) if span_logprobs else torch.zeros(0, dtype=torch.float32, device=device)
        return _build_target(hidden, head, same_prefix, spans, log_probs)

    @torch.inference_mode()
    def _hidden_states(self, texts: list[list[int]]) -> list[Tensor]:
        """Last hidden states (tokens, D) of every text, in batches of like length."""
        found: list[Tensor] = [torch.zeros(0, dtype=torch.float32)] * len(texts)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        while order:
            most = max(1, TEACHER_BATCH_TOKENS // len(texts[order[-1]]))
            numbers, order = order[-most:], order[:-most]
            for i, states in zip(
                numbers, hidden_states_of_texts(self.online_teacher.model, [texts[i] for i in numbers]), strict=True
            ):
                found[i] = states
        return found

    @torch.inference_mode()
    def _label_logprobs(self, states: Tensor, ids: list[int]) -> Tensor:
        """Log-probabilities (tokens − 1,) of every token but the first."""
        head, labels = self.online_teacher.lm_head, torch.tensor(ids[1:], device=states.device)
        parts = []
        for start in range(0, len(labels), LABEL_LOGPROB_CHUNK_TOKENS):
            here = slice(start, start + LABEL_LOGPROB_CHUNK_TOKENS)
            log_p = head.scale_and_cap(head.project(states[:-1][here])).log_softmax(-1)
            parts.append(log_p.gather(-1, labels[here, None])[:, 0])
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float32, device=states.device)


def load_token_byte_tables(tokenizer: Any, student_tokenizer: Any) -> tuple[list[bytes], list[bytes]]:
    """The bytes of every token of the student and of the teacher (`tokenizer`). Raises UserError for a tokenizer whose
    bytes are not known, or that reads texts as others."""
    tables = token_bytes(student_tokenizer), token_bytes(tokenizer)
    check_alignable("teacher.source: cross_tokenizer", "the student's", student_tokenizer, tables[0])
    check_alignable("teacher.source: cross_tokenizer", "the teacher's", tokenizer, tables[1])
    return tables


def _build_target(hidden: Tensor, head: Any, same: Tensor, spans: Tensor, log_probs: Tensor) -> CrossTokenizerTarget:
    """Per token of the student what its span has."""
    inside = spans >= 0
    sizes = torch.bincount(spans[inside], minlength=len(log_probs))
    size, teacher = torch.zeros_like(spans), torch.zeros_like(spans, dtype=torch.float32)
    size[inside], teacher[inside] = sizes[spans[inside]], log_probs.float()[spans[inside]]
    shared = teacher / size.clamp(min=1)
    return CrossTokenizerTarget(
        hidden, head, spans, SpanTarget(None, same, size, teacher, torch.zeros_like(teacher), shared)
    )


@register_teacher("cross_tokenizer")
class CrossTokenizerSource(TeacherSource):
    """A model with another tokenizer reads the text of every batch, cut into tokens of its own."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """Targets on spans that both tokenizers cut alike; inner states belong to other tokens."""
        return TeacherCapabilities(target_form="cross_tokenizer", shares_tokenizer=False)

    def check_tokenizers(self, tokenizer: Any, student_tokenizer: Any) -> None:
        """Raises UserError where the bytes of a tokenizer's tokens are not known, or it reads texts as others."""
        load_token_byte_tables(tokenizer, student_tokenizer)

    def build(self, context: TeacherContext) -> CrossTokenizerTeacher:
        """Loads the model and both tokenizers."""
        tokenizers = load_tokenizer(context.model_folder), load_tokenizer(context.student_tokenizer_folder)
        return CrossTokenizerTeacher(context.load_model(), context.vocab_size, *tokenizers)
