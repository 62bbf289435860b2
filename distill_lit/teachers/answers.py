"""What an API says beside its text as a teacher: the most probable alternatives of each token that it wrote, on its own
answers.

Chat and completion APIs give a few alternatives (`data.corpora.NAME.generated.remote.top_logprobs`, 20 at OpenAI) of every
token of an answer, as text. Where the student's tokenizer cuts an answer as the writer's did, a token of the one is a token
of the other, and so is every alternative that is one token of the student's; what is no token of the student's counts to
the mass of all others. Elsewhere only the label is known, and is the target: at the end of the answer, where the two cut
differently, and in text that nobody wrote so. How many tokens have alternatives is logged once.
"""

import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill_lit.config import DataConfig, TeacherConfig
from distill_lit.generation.completions import Completion, read_completions
from distill_lit.generation.corpus import remote_completions_folder
from distill_lit.losses.targets import IGNORE_INDEX, TopKTarget
from distill_lit.models import load_tokenizer
from distill_lit.models.document_spans import document_ids_of, document_spans
from distill_lit.teachers.base import TeacherCapabilities, TeacherContext, TeacherSource
from distill_lit.teachers.registry import register_teacher
from distill_lit.teachers.server_api import filling
from distill_lit.teachers.token_alignment import token_bytes
from distill_lit.utils.exceptions import UserError

log = logging.getLogger(__name__)
CERTAIN_LOGPROB = -1e-4  # of a label of which nothing else is known
LOGGED_TOKENS = 1000  # after which the share of tokens with alternatives is logged


class _Answer(NamedTuple):
    """first, last: which tokens of an `_AnswerTokens` are its own."""

    prompt: str
    first: int
    last: int


class _AnswerTokens(NamedTuple):
    """The N tokens of all answers in flat arrays: an answer of lists takes a hundred bytes for each alternative.

    starts, ends: (N,) int32, the bytes that a token covers of its answer's text; offsets: (N + 1,) int64, where its M
    alternatives are; ids: (M,) int32 of the student's tokenizer; logprobs: (M,) float32.
    """

    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    logprobs: np.ndarray

    def find(self, answer: _Answer, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The numbers of the tokens that cover just these bytes of an answer, −1 for none."""
        if answer.first == answer.last:
            return np.full_like(ends, -1)
        own = slice(answer.first, answer.last)
        numbers = answer.first + np.minimum(np.searchsorted(self.ends[own], ends), answer.last - answer.first - 1)
        return np.where((self.starts[numbers] == starts) & (self.ends[numbers] == ends) & (ends > starts), numbers, -1)


class AnswersTeacher:
    """Looks the tokens of a batch up among answers and their alternatives; nothing is asked.

    Example:
        teacher = AnswersTeacher(read_completions(folder), tokenizer)
        target = teacher.target(batch, batch["labels"][:, 1:] >= 0)
    """

    def __init__(self, completions: Iterable[Completion], tokenizer: Any) -> None:
        """Raises UserError where no answer has alternatives, or the bytes of the student's tokens are not known."""
        self._bytes = token_bytes(tokenizer)
        self._ids = {data: token for token, data in reversed(list(enumerate(self._bytes))) if data}
        self._answers: dict[bytes, list[_Answer]] = {}
        self._tokens, most = self._collect(completions)
        if not self._answers:
            raise UserError(
                "teacher.source: answers, and no answer came with alternatives; does the server give top_logprobs?"
            )
        self.tokens_per_position = 1 + most
        self.vocab_size = len(self._bytes)
        self._num_tokens = self._num_known = 0

    def _collect(self, completions: Iterable[Completion]) -> tuple[_AnswerTokens, int]:
        """(the tokens of all answers, the most alternatives of one), while `_answers` says where each is."""
        starts, ends, offsets, ids, logprobs = array("i"), array("i"), array("q", [0]), array("i"), array("f")
        most = 0
        for completion in completions:
            first = len(starts)
            for start, end, alternatives in _tokens_by_place(completion):
                spelled = [(self._ids.get(text.encode("latin-1")), value) for text, value in alternatives]
                known = [(token, value) for token, value in spelled if token is not None]
                starts.append(start)
                ends.append(end)
                ids.extend(token for token, _ in known)
                logprobs.extend(value for _, value in known)
                offsets.append(len(ids))
            if completion.alternatives:
                answer = _Answer(completion.prompt.strip(), first, len(starts))
                self._answers.setdefault(completion.text.strip().encode(), []).append(answer)
                most = max(most, *(len(alternatives) for _, alternatives in completion.alternatives))
        arrays = (np.frombuffer(values, dtype=values.typecode) for values in (starts, ends, offsets, ids, logprobs))
        return _AnswerTokens(*arrays), most

    def to(self, device: torch.device) -> None:
        """Nothing of it is on a device."""

    def target(self, batch: Mapping[str, Tensor], loss_mask: Tensor) -> TopKTarget:
        """The alternatives at the N positions that `loss_mask` (B, T − 1) marks, or the labels alone."""
        ids, labels = batch["input_ids"].cpu().numpy(), batch["labels"].cpu().numpy()
        mask, rows = loss_mask.cpu().numpy(), []
        known: list[dict[int, int]] = [{} for _ in ids]
        for span in document_spans(document_ids_of(batch)):
            row = span.row
            known[row] |= self._known_tokens(ids[row], span.columns, labels[row] != IGNORE_INDEX)
        for row, found in enumerate(known):
            rows += [self._entry(int(ids[row, column]), found.get(int(column))) for column in np.flatnonzero(mask[row]) + 1]
            self._count(len(found), int(mask[row].sum()))
        best, logprobs = (
            torch.tensor([[pair[i] for pair in entry] for entry, _ in rows], dtype=dtype).view(-1, self.tokens_per_position)
            for i, dtype in enumerate((torch.int64, torch.float32))
        )
        target = TopKTarget(best, logprobs, torch.tensor([own for _, own in rows], dtype=torch.float32))
        return TopKTarget(*(part.to(loss_mask.device) for part in target))

    def _known_tokens(self, ids: np.ndarray, columns: np.ndarray, is_supervised: np.ndarray) -> dict[int, int]:
        """{column: its number in `_AnswerTokens`} of the tokens of a document that both tokenizers cut alike."""
        columns = columns[is_supervised[columns]]
        pieces = [self._bytes[token] for token in ids[columns]]
        text = b"".join(pieces)
        answers = self._answers.get(text.strip(), [])
        if not answers:
            return {}
        before = b"".join(self._bytes[token] for token in ids[: columns[0]]).decode(errors="replace")
        answer = next((one for one in answers if one.prompt in before), answers[0])
        skipped = len(text) - len(text.lstrip())
        sizes = np.array([len(piece) for piece in pieces])
        ends = sizes.cumsum() - skipped
        numbers = self._tokens.find(answer, ends - sizes, ends)
        return {int(column): int(number) for column, number in zip(columns, numbers, strict=True) if number >= 0}

    def _entry(self, label: int, number: int | None) -> tuple[list[tuple[int, float]], float]:
        """(tokens with their log-probabilities in falling order, that of the label). number: in `_AnswerTokens`."""
        known = {label: CERTAIN_LOGPROB}
        if number is not None:
            here = slice(*self._tokens.offsets[number : number + 2])
            known = dict(zip(self._tokens.ids[here].tolist(), self._tokens.logprobs[here].tolist(), strict=True))
            known[label] = known.pop(self._ids[self._bytes[label]])  # of several tokens with its bytes, it
        best = sorted(known.items(), key=lambda item: -item[1])
        return best + filling(best, self.tokens_per_position - len(best)), known[label]

    def _count(self, known: int, total: int) -> None:
        was_logged = self._num_tokens >= LOGGED_TOKENS
        self._num_known, self._num_tokens = self._num_known + known, self._num_tokens + total
        if not was_logged and self._num_tokens >= LOGGED_TOKENS:
            share = self._num_known / self._num_tokens
            log.log(
                logging.WARNING if share < 0.5 else logging.INFO,
                "%.0f%% of the tokens have alternatives of the server; of the others the label alone is learned",
                100 * share,
            )


def _tokens_by_place(answer: Completion) -> Iterator[tuple[int, int, list[tuple[str, float]]]]:
    """(start, end, alternatives as [(bytes as latin-1, log-probability)]) of the tokens of an answer with bytes, by their
    places in its text without blanks around it; none where they spell another."""
    pieces = [token.encode("latin-1") for token, _ in answer.alternatives]
    text = b"".join(pieces)
    if text.strip() != answer.text.strip().encode():
        return
    end = len(text.lstrip()) - len(text)
    for piece, (_, alternatives) in zip(pieces, answer.alternatives, strict=True):
        start, end = end, end + len(piece)
        if piece:
            yield start, end, alternatives


@register_teacher("answers")
class AnswersSource(TeacherSource):
    """The token alternatives that a server gave with the answers of generated corpora."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """A few tokens at each position, of no model that is here."""
        return TeacherCapabilities(target_form="top_k", needs_model=False)

    def check_data(self, config: TeacherConfig, data: DataConfig) -> None:
        """Raises UserError where no corpus comes with alternatives."""
        if not _corpora(data):
            raise UserError(
                "teacher.source: answers, and no corpus has generated.remote.top_logprobs above 0, which asks for "
                "alternatives"
            )

    def build(self, context: TeacherContext) -> AnswersTeacher:
        """Reads the answers of all corpora that have alternatives."""
        config = context.config
        folders = [
            remote_completions_folder(f"data.corpora.{name}.generated", generated, config.dataset_source)
            for name, generated in _corpora(config.data).items()
        ]
        answers = (answer for folder in folders for answer in read_completions(folder))
        return AnswersTeacher(answers, load_tokenizer(context.student_tokenizer_folder))


def _corpora(data: DataConfig) -> dict[str, Any]:
    """{name: how it is generated} of the corpora with alternatives."""
    generated = {name: corpus.generated for name, corpus in data.corpora.items()}
    return {name: one for name, one in generated.items() if one is not None and one.remote and one.remote.top_logprobs}
