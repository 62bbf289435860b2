"""A local model writes answers: shorter prompts first, a shard at a time, so that a killed run loses one shard at most.

Sequence-level distillation, Kim & Rush 2016, 1606.07947 §3.2: students are trained on the teacher's own outputs.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_lit.config import GeneratedConfig
from distill_lit.data.templates import check_template, check_text, render
from distill_lit.generation.completions import CUT, FINISHED, TOO_LONG, answer_to, write_answers
from distill_lit.generation.prompts import Prompt
from distill_lit.generation.sampling import Sampling, end_tokens, write_batch
from distill_lit.models.vocabulary import check_ids, count_tokens
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.seeding import seed_of
from distill_lit.utils.shards import Shards

HALF = "\ufffd"  # what is decoded of a part of a character
SHARD_BATCHES = 4
Job = tuple[Prompt, int, list[int]]  # prompt, sample, token ids


def write_locally(
    folder: Path,
    model: Any,
    tokenizer: Any,
    prompts: list[Prompt],
    config: GeneratedConfig,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> None:
    """Writes `config.samples` answers to every prompt into shards of `folder`. What is there already is not done again.

    Raises UserError when a chat is asked for and the tokenizer has no template.
    """
    if config.chat:
        check_template(tokenizer)
    jobs = [
        (prompt, sample, ids)
        for prompt, ids in _by_length(tokenizer, prompts, config.chat)
        for sample in range(config.samples)
    ]
    check_ids([i for _, _, ids in jobs for i in ids], tokenizer, model.get_input_embeddings().weight.shape[0])
    ends = end_tokens(model, tokenizer, config.chat)
    size, done = config.batch * SHARD_BATCHES, 0

    def advance() -> None:
        nonlocal done
        done = min(done + size, len(jobs))
        progress(done, len(jobs))

    writers = {
        f"answers-{number:05d}.jsonl": functools.partial(
            _write_shard,
            model=model,
            tokenizer=tokenizer,
            jobs=jobs[start : start + size],
            ends=ends,
            config=config,
            number=number,
        )
        for number, start in enumerate(range(0, len(jobs), size))
    }
    Shards(folder).make_all(writers, advance)


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool) -> list[int]:
    """Token ids that an answer follows."""
    if not chat:
        return list(tokenizer(prompt.text)["input_ids"])
    try:
        check_text(prompt.messages)
        text = render(tokenizer, prompt.messages, prompt=True)
    except UserError as error:
        raise UserError(f"generated.prompts: row {prompt.row + 1}: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def text_after(tokenizer: Any, prompt: list[int], written: list[int], finished: bool = True) -> str:
    """What the tokens written after a prompt add to its text: alone they would lose the blank that SentencePiece begins
    with, or a character that they share with the prompt. Half a character at the end of an unfinished text is left out."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = (str(tokenizer.decode(ids, **options)) for ids in (prompt, [*prompt, *written]))
    before = before if whole.startswith(before) else before.rstrip(HALF)
    text = whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(written, **options))
    return text if finished else text.rstrip(HALF)


def _by_length(tokenizer: Any, prompts: list[Prompt], chat: bool) -> list[tuple[Prompt, list[int]]]:
    """Prompts of like length side by side, so that batches hold little padding."""
    encoded = [(prompt, encode_prompt(tokenizer, prompt, chat)) for prompt in prompts]
    return sorted(encoded, key=lambda pair: len(pair[1]))


def _write_shard(
    path: Path, *, model: Any, tokenizer: Any, jobs: list[Job], ends: list[int], config: GeneratedConfig, number: int
) -> None:
    sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    fitting = [job for job in jobs if len(job[2]) + config.max_new_tokens <= room]
    answers = [answer_to(job[0], job[1], "", TOO_LONG) for job in jobs if len(job[2]) + config.max_new_tokens > room]
    vocabulary = count_tokens(tokenizer, model.get_input_embeddings().weight.shape[0])
    for start in range(0, len(fitting), config.batch):
        batch = fitting[start : start + config.batch]
        # a seed of its own: the text of a batch depends on no other, so a resumed run writes the same
        seed = seed_of(config.seed, number * SHARD_BATCHES + start // config.batch)
        texts = write_batch(model, [job[2] for job in batch], ends, sampling, seed, vocabulary=vocabulary)
        for job, written in zip(batch, texts, strict=True):
            text = text_after(tokenizer, job[2], written.tokens, written.finished)
            text = text.strip() if config.chat else text  # plain text goes on where its prompt ends
            facts = {"tokens": written.tokens, "log_probabilities": written.log_probabilities}
            finish = FINISHED if written.finished else CUT
            answers.append(answer_to(job[0], job[1], text, finish, **facts))
    write_answers(path, answers)
