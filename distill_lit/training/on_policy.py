"""Batches that the student writes: it continues prompts of the corpora, the live teacher judges every token.

Which losses are taken on them is the objective's business: any divergence (GKD, Agarwal et al. 2023, 2306.13649),
reverse_kl or policy_reverse_kl (MiniLLM, Gu et al. 2023, 2306.08543), contrastive (DistiLLM-2, 2503.07067). Whether the
student writes, and what it draws, depends on seed, step and rank alone, so a resumed run goes on with the same text.
"""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import LogitsProcessor

from distill_lit.config import OnPolicyConfig
from distill_lit.config.on_policy import ADAPTIVE
from distill_lit.generation.sampling import Sampling, Written, write_batch
from distill_lit.losses.targets import IGNORED
from distill_lit.utils.distributed.ranks import of_every_rank, rank_count, this_rank
from distill_lit.utils.seeding import seed_of

STEP_UP = 0.1  # of the adaptive share, each time validation gets worse
FACTS = ("length", "distinct_1", "distinct_2", "replayed")  # what is logged of student text, besides its time
Batch = dict[str, Tensor]


class StudentText:
    """Turns batches of the corpora into batches of student text. Its state is what a checkpoint must hold."""

    def __init__(
        self, config: OnPolicyConfig, ends: list[int], vocabulary: int, teacher: Any, seed: int, steps: int
    ) -> None:
        """`ends`: tokens that end a text; `vocabulary`: real tokens; `teacher`: the model, for `teacher_mix`; `steps`: of
        the whole training."""
        self.config, self.ends, self.vocabulary, self.teacher = config, ends, vocabulary, teacher
        self.seed, self.steps = seed, steps
        self.share = 0.0 if config.share == ADAPTIVE else float(config.share)
        self._best = float("inf")  # smallest validation loss so far
        self._kept: list[Batch] = []
        self._means: dict[str, MeanMetric] = {}
        self._seconds = 0.0

    def rewrite(self, batch: Batch, student: Any, step: int, part: int) -> tuple[Batch, dict[str, float]] | None:
        """(a batch of student text, what is logged of it), or None where the corpus is read as it is.

        step: optimizer steps done; part: micro-batches of this rank before this one, since the training began. The new
        batch marks the student's tokens in `by_student`, (B, T) bool; in rows that it has written they alone are
        supervised, rows without a prompt stay as they are. All ranks write at the same time, each a text of its own.
        """
        draw = np.random.default_rng([self.seed, step, part])
        if draw.random() >= self.share:
            return None
        # replay fades: at the end every text is new (Ko et al. 2024, 2402.03898 §3.2)
        if len(self._kept) == self.config.replay > 0 and draw.random() < 1 - step / self.steps:
            kept = self._kept[int(draw.integers(len(self._kept)))]
            return {name: value.to(batch["input_ids"].device) for name, value in kept.items()}, {"replayed": 1.0}
        start = time.perf_counter()
        prompts = _prompts(batch, self.config, draw)
        if not prompts:
            return None
        written = self._write(student, list(prompts.values()), seed_of(self.seed, step, part * rank_count() + this_rank()))
        fresh = _batch_of(prompts, written, batch)
        if self.config.replay:
            self._kept = [*self._kept, {name: value.to("cpu", copy=True) for name, value in fresh.items()}][
                -self.config.replay :
            ]
        return fresh, {**describe([w.tokens for w in written]), "seconds": time.perf_counter() - start, "replayed": 0.0}

    def note(self, facts: dict[str, float], device: torch.device) -> None:
        """Collects what `rewrite` has said of a batch, nothing of one of the corpora. All ranks call this for every batch:
        the means are over all of them, and one that has written nothing takes part without weight."""
        self._seconds += facts.get("seconds", 0.0)
        for name in FACTS:
            metric = self._means.setdefault(name, MeanMetric().to(device))
            metric.update(facts.get(name, 0.0), weight=float(name in facts))

    def noted(self, elapsed: float) -> dict[str, float]:
        """{what is logged: its mean since the last call, not a number where nothing was written}, this rank's time of
        writing as a share of the elapsed seconds of training, the present share of the batches."""
        means = {name: float(metric.compute()) for name, metric in self._means.items()}
        found = {**means, "time_share": self._seconds / max(elapsed, 1e-9), "share": self.share}
        self._means, self._seconds = {}, 0.0
        return found

    def note_validation(self, loss: float) -> None:
        """After each validation: an adaptive share grows when the loss got worse. Ko et al. 2024, 2402.03898 §3.2."""
        if self.config.share == ADAPTIVE and loss > self._best:
            self.share = min(1.0, round(self.share + STEP_UP, 6))
        self._best = min(self._best, loss)

    def state_dict(self) -> dict[str, Any]:
        """The adaptive share, the best validation loss, the texts that each rank keeps for replay: all ranks call this."""
        return {"share": self.share, "best": self._best, "kept": of_every_rank(self._kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.share, self._best = float(state["share"]), float(state["best"])
        self._kept = list(state["kept"][this_rank()])

    def _write(self, student: Any, prompts: list[list[int]], seed: int) -> list[Written]:
        config, was_training = self.config, student.training
        extra = [_TeacherMix(self.teacher, config.teacher_mix, self.vocabulary)] if config.teacher_mix else []
        student.eval()
        try:
            sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens)
            return write_batch(student, prompts, self.ends, sampling, seed, extra, self.vocabulary)
        finally:
            student.train(was_training)


def describe(texts: list[list[int]]) -> dict[str, float]:
    """{length: mean tokens; distinct_1, distinct_2: different tokens and pairs as a share of all}. Li et al. 2016,
    1510.03055."""
    pairs = [pair for text in texts for pair in zip(text, text[1:], strict=False)]
    tokens = [token for text in texts for token in text]
    return {
        "length": len(tokens) / len(texts),
        "distinct_1": len(set(tokens)) / max(1, len(tokens)),
        "distinct_2": len(set(pairs)) / max(1, len(pairs)),
    }


def _prompts(batch: Batch, config: OnPolicyConfig, draw: np.random.Generator) -> dict[int, list[int]]:
    """{row: its prompt, the beginning of one of its documents}, without rows whose document has no response, or one that
    begins too late to leave room for a text."""
    ids, documents, labels = (batch[name].cpu().numpy() for name in ("input_ids", "document_ids", "labels"))
    room = ids.shape[1] - config.max_new_tokens
    found = {}
    for row in range(len(ids)):
        number = int(draw.integers(1, max(1, int(documents[row].max())) + 1))
        columns = np.flatnonzero(documents[row] == number)
        answers = np.flatnonzero(labels[row, columns] != IGNORED)
        if len(answers) and answers[0] <= 1:  # plain text: only the first token of a document is never supervised
            count = max(1, min(round(config.prompt * len(columns)), room))
        elif len(answers) and answers[0] <= room:
            count = int(answers[0])
        else:
            continue
        found[row] = ids[row, columns][:count].tolist()
    return found


def _batch_of(prompts: dict[int, list[int]], written: list[Written], like: Batch) -> Batch:
    """The batch with rows of prompt and text in the place of those that had a prompt."""
    rows, device = list(prompts), like["input_ids"].device
    made = {name: value.to("cpu", copy=True) for name, value in like.items()}
    mine = torch.zeros_like(made["input_ids"], dtype=torch.bool)
    for name, empty in (("input_ids", 0), ("document_ids", 0), ("position_ids", 0), ("labels", IGNORED), ("rows", -1)):
        made[name][rows] = empty
    for row, text in zip(rows, written, strict=True):
        whole = torch.tensor([*prompts[row], *text.tokens][: mine.shape[1]])
        made["input_ids"][row, : len(whole)] = whole
        made["document_ids"][row, : len(whole)] = 1
        made["position_ids"][row, : len(whole)] = torch.arange(len(whole))
        mine[row, len(prompts[row]) : len(whole)] = True
    made["labels"][mine] = made["input_ids"][mine]
    made |= {"by_student": mine, "step_tokens": (made["labels"][:, 1:] != IGNORED).sum()}
    return {name: value.to(device) for name, value in made.items()}


class _TeacherMix(LogitsProcessor):  # type: ignore[misc]
    """Draws from α · teacher + (1 − α) · student, token by token. Gu et al. 2023, 2306.08543 §2.2.

    The teacher keeps a cache of its own."""

    def __init__(self, teacher: Any, share: float, vocabulary: int) -> None:
        self.teacher, self.share, self.vocabulary = teacher, share, vocabulary
        self.models = [teacher]
        self._past: Any = None
        self._mask: Tensor | None = None

    def start(self, mask: Tensor) -> None:
        """A new batch with this attention mask (B, T) of the prompts."""
        self._past, self._mask = None, mask

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert self._mask is not None
        new = input_ids if self._past is None else input_ids[:, -1:]
        if self._past is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(new), 1)], 1)
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        output = self.teacher(
            input_ids=new,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._past,
            use_cache=True,
            logits_to_keep=1,
        )
        self._past = output.past_key_values
        mixed = (1 - self.share) * scores.float().softmax(-1)
        mixed[:, : self.vocabulary] += self.share * output.logits[:, -1, : self.vocabulary].float().softmax(-1)
        return mixed.log().to(scores.dtype)
