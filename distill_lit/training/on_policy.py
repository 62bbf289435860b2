"""Batches that the student writes: it continues prompts of the corpora, the online teacher judges every token. It is then
trained on what it will read of its own when it writes, which is what exposure bias is about.

Which losses are taken on them is the objective's business: any divergence (GKD, Agarwal et al. 2023, 2306.13649),
reverse_kl or `policy_gradient_reverse_kl` (MiniLLM, Gu et al. 2023, 2306.08543), contrastive (DistiLLM-2, 2503.07067).
Whether the student writes, and what it draws, depends on seed, step and rank alone, so a resumed run goes on with the same
text.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import LogitsProcessor

from distill_lit.config import OnPolicyConfig
from distill_lit.config.on_policy import ADAPTIVE
from distill_lit.generation.sampling import GeneratedSequence, SamplingParams, generate_batch
from distill_lit.generation.vllm_engine import VLLMEngine
from distill_lit.models.packed_forward import PackedBatch
from distill_lit.training.on_policy_batches import (
    ENGINE_LOGPROBS,
    as_packed,
    build_batch,
    sample_prompts,
    unknown_logprobs,
)
from distill_lit.utils.distributed.ranks import all_gather_object, get_rank, get_world_size
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.seeding import derive_seed
from distill_lit.utils.text_statistics import TextSums, add_sums, sum_texts

ADAPTIVE_FRACTION_STEP = 0.1  # of the adaptive share, at each validation above the lowest
# what is logged of student text, besides its time
ON_POLICY_METRICS = ("length", "finished", "distinct_1", "distinct_2", "repetition", "replayed")


class OnPolicyGenerator:
    """Turns batches of the corpora into batches of student text. Its state is what a checkpoint must hold.

    Example:
        >>> config = OnPolicyConfig(fraction=0.5, max_new_tokens=64)
        >>> generator = OnPolicyGenerator(config, [tokenizer.eos_token_id], len(tokenizer))
        >>> Distiller(student, teacher, loss=losses.ReverseKL(), on_policy_generator=generator)
    """

    def __init__(
        self,
        config: OnPolicyConfig,
        eos_token_ids: list[int],
        vocab_size: int,
        teacher_model: Any = None,
        seed: int = 0,
        max_steps: int = 0,
        engine: VLLMEngine | None = None,
    ) -> None:
        """`eos_token_ids`: tokens that end a text; `vocab_size`: real tokens; `teacher_model`: the model, for
        `teacher_mix_fraction`; `max_steps`: of the whole training, for a replay buffer; `engine`: what writes in the
        student's place. Raises UserError where the config needs one of these that is missing."""
        if config.teacher_mix_fraction and teacher_model is None:
            raise UserError("on_policy.teacher_mix_fraction: the teacher takes part in writing; give teacher_model=")
        if config.replay_buffer_size and max_steps < 1:
            raise UserError("on_policy.replay_buffer_size: replay grows over the training; give max_steps=, its steps")
        self.config, self.eos_token_ids, self.vocab_size, self.teacher_model = (
            config,
            eos_token_ids,
            vocab_size,
            teacher_model,
        )
        self.seed, self.max_steps, self.engine = seed, max_steps, engine
        self.fraction = 0.0 if config.fraction == ADAPTIVE else float(config.fraction)
        self._best_validation_loss = float("inf")  # smallest validation loss so far
        self._replay_buffer: list[PackedBatch] = []
        self._mean_metrics: dict[str, MeanMetric] = {}
        self._generation_seconds = 0.0
        self._text_sums = TextSums()  # of this rank, since they were asked for

    def next_batch(
        self, batch: Mapping[str, Tensor], student: Any, step: int, part: int, micro_batches: int
    ) -> PackedBatch:
        """The batch, or one that the student has written in its place, with the student's tokens in `on_policy_mask`.

        batch: packed rows, or any batch of transformers; of these a written one comes as packed rows of one document each,
        `max_new_tokens` longer.

        micro_batches: of the whole optimizer step, over all ranks. How many tokens the others will have is not known yet,
        so text of the student counts for its share of the step. For `step` and `part` see `maybe_generate`.
        """
        generated = self.maybe_generate(dict(batch), student, step, part)
        new_batch, metrics = generated or (self.mark_corpus_text(batch), {})
        if generated is not None:
            new_batch["step_tokens"] = new_batch["step_tokens"] * micro_batches
        new_batch.setdefault(ENGINE_LOGPROBS, unknown_logprobs(new_batch))  # all ranks measure the same
        self.update_metrics(metrics, new_batch["input_ids"].device)
        return new_batch

    def mark_corpus_text(self, batch: Mapping[str, Tensor]) -> PackedBatch:
        """The batch with an `on_policy_mask` that says that the student wrote none of it."""
        return {**batch, "on_policy_mask": torch.zeros_like(batch["labels"], dtype=torch.bool)}

    def maybe_generate(
        self, batch: PackedBatch, student: Any, step: int, part: int
    ) -> tuple[PackedBatch, dict[str, float]] | None:
        """(a batch of student text, what is logged of it), or None where the corpus is read as it is.

        step: optimizer steps done; part: micro-batches of this rank before this one, since the training began. The new
        batch marks the student's tokens in `on_policy_mask`, (B, T) bool; in rows that it has written they alone are
        supervised, rows without a prompt stay as they are. All ranks write at the same time, each a text of its own.
        """
        draw = np.random.default_rng([self.seed, step, part])
        if draw.random() >= self.fraction:
            return None
        # new texts become rare, as in the code of Ko et al. 2024 (DistiLLM), 2402.03898: early the student changes fast
        if len(self._replay_buffer) == self.config.replay_buffer_size > 0 and draw.random() < step / self.max_steps:
            kept = self._replay_buffer[int(draw.integers(len(self._replay_buffer)))]
            # what wrote it had other weights than the student has now
            names = [name for name in kept if name != ENGINE_LOGPROBS]
            return {name: kept[name].to(batch["input_ids"].device) for name in names}, {"replayed": 1.0}
        start, batch = time.perf_counter(), as_packed(batch, self.config.max_new_tokens)
        prompts = sample_prompts(batch, self.config, draw)
        if not prompts:
            return None
        written = self._write(
            student,
            [prompt.token_ids for prompt in prompts.values()],
            derive_seed(self.seed, step, part * get_world_size() + get_rank()),
            step,
            batch["input_ids"].shape[1],
        )
        fresh = build_batch(prompts, written, batch)
        if self.config.replay_buffer_size:
            self._replay_buffer = [
                *self._replay_buffer,
                {name: value.to("cpu", copy=True) for name, value in fresh.items()},
            ][-self.config.replay_buffer_size :]
        sums = sum_texts([w.token_ids for w in written], sum(w.is_finished for w in written))
        self._text_sums = add_sums([self._text_sums, sums])
        return fresh, {
            **sums.means(),
            "seconds": time.perf_counter() - start,
            "replayed": 0.0,
        }

    def update_metrics(self, facts: dict[str, float], device: torch.device) -> None:
        """Collects what `maybe_generate` reports of a batch, nothing of one of the corpora. All ranks call this for every
        batch: the means are over all of them, and one that has written nothing takes part without weight."""
        self._generation_seconds += facts.get("seconds", 0.0)
        for name in ON_POLICY_METRICS:
            metric = self._mean_metrics.setdefault(name, MeanMetric().to(device))
            metric.set_dtype(torch.float32)  # not the default format that Lightning sets for bf16-true
            metric.update(facts.get(name, 0.0), weight=float(name in facts))

    def pop_metrics(self, elapsed: float) -> dict[str, float]:
        """{what is logged: its mean since the last call, not a number where nothing was written}, this rank's time of
        writing as a share of the elapsed seconds of training, the present share of the batches."""
        means = {name: float(metric.compute()) for name, metric in self._mean_metrics.items()}
        found = {**means, "time_share": self._generation_seconds / max(elapsed, 1e-9), "fraction": self.fraction}
        self._mean_metrics, self._generation_seconds = {}, 0.0
        return found

    def pop_text_sums(self) -> TextSums:
        """Of the texts that this rank has written since the last call; those that are replayed do not count."""
        sums, self._text_sums = self._text_sums, TextSums()
        return sums

    def update_adaptive_fraction(self, loss: float) -> None:
        """After each validation: an adaptive share grows where the loss is above the lowest so far. Ko et al. 2024,
        2402.03898 §3.2."""
        if self.config.fraction == ADAPTIVE and loss > self._best_validation_loss:
            self.fraction = min(1.0, round(self.fraction + ADAPTIVE_FRACTION_STEP, 6))
        self._best_validation_loss = min(self._best_validation_loss, loss)

    def close(self) -> None:
        """Ends the engine, where there is one."""
        if self.engine is not None:
            self.engine.close()

    def state_dict(self) -> dict[str, Any]:
        """The adaptive share, the best validation loss, the texts that each rank keeps for replay: all ranks call this."""
        return {
            "fraction": self.fraction,
            "best": self._best_validation_loss,
            "replay_buffer": all_gather_object(self._replay_buffer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.fraction, self._best_validation_loss = float(state["fraction"]), float(state["best"])
        buffers = state["replay_buffer"]  # of each rank; those of another number of ranks had batches of another size
        self._replay_buffer = list(buffers[get_rank()]) if len(buffers) == get_world_size() else []

    def _write(
        self, student: Any, prompts: list[list[int]], seed: int, step: int, max_length: int
    ) -> list[GeneratedSequence]:
        """Continuations by the weights after `step` optimizer steps; max_length: tokens of the longest row."""
        config, was_training = self.config, student.training
        sampling = SamplingParams(config.temperature, config.top_p, config.max_new_tokens)
        if self.engine is not None:
            self.engine.use_weights(student, step, max_length)
            return self.engine.generate(prompts, self.eos_token_ids, sampling, seed, self.vocab_size)
        extra = (
            [_TeacherMix(self.teacher_model, config.teacher_mix_fraction, self.vocab_size)]
            if config.teacher_mix_fraction
            else []
        )
        student.eval()
        try:
            return generate_batch(student, prompts, self.eos_token_ids, sampling, seed, extra, self.vocab_size)
        finally:
            student.train(was_training)


class _TeacherMix(LogitsProcessor):  # type: ignore[misc]
    """Teacher-mixed sampling: draws from α · teacher + (1 − α) · student, token by token. MiniLLM, 2306.08543 §2.2.

    The teacher keeps a cache of its own, where both models write alike with one."""

    def __init__(self, teacher_model: Any, share: float, vocab_size: int) -> None:
        self.teacher, self.share, self.vocabulary = teacher_model, share, vocab_size
        self.models = [teacher_model]
        self._past: Any = None
        self._mask: Tensor | None = None
        self._use_cache = True

    def start(self, mask: Tensor, use_cache: bool = True) -> None:
        """A new batch with this attention mask (B, T) of the prompts; without a cache none of them is padded."""
        self._past, self._mask, self._use_cache = None, mask, use_cache

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logits = self._logits(input_ids)[:, : self.vocabulary]
        mixed = (1 - self.share) * scores.float().softmax(-1)
        mixed[:, : self.vocabulary] += self.share * logits.float().softmax(-1)
        return mixed.log().to(scores.dtype)

    def _logits(self, input_ids: Tensor) -> Tensor:
        """The teacher's (B, V) of what follows texts (B, T)."""
        if not self._use_cache:
            whole: Tensor = self.teacher(input_ids=input_ids, use_cache=False).logits
            return whole[:, -1]
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
        last: Tensor = output.logits[:, -1]
        return last
