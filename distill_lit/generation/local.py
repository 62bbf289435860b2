"""A local model writes answers: shorter prompts first, a shard at a time, so that a killed run loses one shard at most.

Sequence-level distillation, Kim & Rush 2016, 1606.07947 §3.2: students are trained on the teacher's own outputs.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_lit.config import GeneratedConfig
from distill_lit.data.templates import apply_chat_template, check_has_chat_template, check_no_lone_surrogates
from distill_lit.generation.completions import (
    FINISH_LENGTH,
    FINISH_PROMPT_TOO_LONG,
    FINISH_STOP,
    build_completion,
    write_completions,
)
from distill_lit.generation.prompts import Prompt
from distill_lit.generation.sampling import GeneratedSequence, SamplingParams, generate_batch, get_eos_token_ids
from distill_lit.generation.vllm_engine import VLLMEngine
from distill_lit.models.position_limits import max_context
from distill_lit.models.vocabulary import check_ids, unpadded_vocab_size
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.seeding import derive_seed
from distill_lit.utils.shards import Shards

REPLACEMENT_CHARACTER = "\ufffd"  # what is decoded of a part of a character
BATCHES_PER_SHARD = 4
LocalJob = tuple[Prompt, int, list[int]]  # prompt, sample, token ids
Writer = Callable[..., list[GeneratedSequence]]  # `generate_batch` of a model, or an engine's `generate`


def generate_locally(
    folder: Path,
    model: Any,
    tokenizer: Any,
    prompts: list[Prompt],
    config: GeneratedConfig,
    progress_callback: Callable[[int, int], Any] = lambda done, total: None,
    start_engine: Callable[[int], VLLMEngine] | None = None,
) -> None:
    """Writes `config.num_samples` answers to every prompt into shards of `folder`. What is there already is not done again.

    start_engine: given the tokens of the longest text, what writes in the model's place, of which only shapes and
    generation config are read then. Raises UserError when a chat is asked for and the tokenizer has no template.
    """
    if config.chat:
        check_has_chat_template(tokenizer)
    encoded = _encode_sorted_by_length(tokenizer, prompts, config.chat)
    largest = [max(ids, default=0) for _, ids in encoded]
    check_ids(largest, tokenizer, model.get_input_embeddings().weight.shape[0])
    jobs = [(prompt, sample, ids) for prompt, ids in encoded for sample in range(config.num_samples)]
    eos_token_ids = get_eos_token_ids(model, tokenizer, config.chat)
    write: Writer = functools.partial(generate_batch, model, num_slots=config.batch_size)
    lengths = [len(ids) + config.max_new_tokens for _, ids in encoded]
    longest = max((length for length in lengths if length <= max_context(model.config)), default=0)
    if start_engine is not None and longest:
        write = start_engine(longest).generate
    size, done = config.batch_size * BATCHES_PER_SHARD, 0

    def advance() -> None:
        nonlocal done
        done = min(done + size, len(jobs))
        progress_callback(done, len(jobs))

    writers = {
        f"completions-{number:05d}.jsonl": functools.partial(
            _write_shard,
            model=model,
            tokenizer=tokenizer,
            jobs=jobs[start : start + size],
            ends=eos_token_ids,
            config=config,
            number=number,
            write=write,
        )
        for number, start in enumerate(range(0, len(jobs), size))
    }
    Shards(folder).write_missing(writers, advance)


def encode_prompt(tokenizer: Any, prompt: Prompt, chat: bool) -> list[int]:
    """Token ids that an answer follows."""
    if not chat:
        return list(tokenizer(prompt.text)["input_ids"])
    try:
        check_no_lone_surrogates(prompt.messages)
        text = apply_chat_template(tokenizer, prompt.messages, add_generation_prompt=True)
    except UserError as error:
        raise UserError(f"generated.prompts: row {prompt.row_index + 1}: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decode_continuation(
    tokenizer: Any, prompt_ids: list[int], continuation_ids: list[int], is_finished: bool = True
) -> str:
    """What the tokens written after a prompt add to its text: alone they would lose the blank that SentencePiece begins
    with, or a character that they share with the prompt. Half a character at the end of an unfinished text is left out."""
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    before, whole = (str(tokenizer.decode(ids, **options)) for ids in (prompt_ids, [*prompt_ids, *continuation_ids]))
    before = before if whole.startswith(before) else before.rstrip(REPLACEMENT_CHARACTER)
    text = whole[len(before) :] if whole.startswith(before) else str(tokenizer.decode(continuation_ids, **options))
    return text if is_finished else text.rstrip(REPLACEMENT_CHARACTER)


def _encode_sorted_by_length(tokenizer: Any, prompts: list[Prompt], chat: bool) -> list[tuple[Prompt, list[int]]]:
    """Prompts of like length side by side, so that batches hold little padding."""
    encoded = [(prompt, encode_prompt(tokenizer, prompt, chat)) for prompt in prompts]
    return sorted(encoded, key=lambda pair: len(pair[1]))


def _write_shard(
    path: Path,
    *,
    model: Any,
    tokenizer: Any,
    jobs: list[LocalJob],
    ends: list[int],
    config: GeneratedConfig,
    number: int,
    write: Writer,
) -> None:
    sampling = SamplingParams(config.temperature, config.top_p, config.max_new_tokens)
    max_positions = max_context(model.config)
    jobs_in_context = [job for job in jobs if len(job[2]) + config.max_new_tokens <= max_positions]
    completions = [
        build_completion(job[0], job[1], "", FINISH_PROMPT_TOO_LONG)
        for job in jobs
        if len(job[2]) + config.max_new_tokens > max_positions
    ]
    vocabulary = unpadded_vocab_size(tokenizer, model.get_input_embeddings().weight.shape[0])
    # a seed of its own: the text of a shard depends on no other, so a resumed run writes the same
    seed = derive_seed(config.seed, number)
    prompt_ids = [ids for _, _, ids in jobs_in_context]
    texts = write(prompt_ids, ends, sampling, seed, vocab_size=vocabulary)
    for (prompt, sample, ids), written in zip(jobs_in_context, texts, strict=True):
        text = decode_continuation(tokenizer, ids, written.token_ids, written.is_finished)
        text = text.strip() if config.chat else text  # plain text goes on where its prompt ends
        facts = {"token_ids": written.token_ids, "logprobs": written.logprobs}
        finish = FINISH_STOP if written.is_finished else FINISH_LENGTH
        completions.append(build_completion(prompt, sample, text, finish, **facts))
    write_completions(path, completions)
