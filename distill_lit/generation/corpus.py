"""Sequence-level distillation (SeqKD): text that a teacher writes, as a corpus: prompts → answers on disk → filters → a
file that `distill_lit.data` reads.

generated/<key>/completions-00000.jsonl …    every answer, with its tokens and their log-probabilities
generated/<key>/corpus-<filters>.jsonl   what the filters left, as chats or plain text
generated/<key>/manifest.json            writer, sampling, source of the prompts
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from distill_lit.config import CorpusConfig, DataConfig, GeneratedConfig, RemoteConfig, non_default_fields
from distill_lit.config.generation import VLLM_BACKEND, GenerationBackendConfig
from distill_lit.config.server import SERVER_KEYS_NOT_IN_FINGERPRINT
from distill_lit.generation.completions import Completion, completions_folder, read_completions
from distill_lit.generation.filters import answer_comparison_metadata, check_filters, filter_completions
from distill_lit.generation.perplexity import mean_completion_logprobs
from distill_lit.generation.prompts import (
    Prompt,
    check_prompts,
    prompt_sampling_metadata,
    prompt_source_fingerprint,
    read_prompts,
)
from distill_lit.models import load_model, load_tokenizer, model_fingerprint, model_folder
from distill_lit.models.drawing import sampling_metadata
from distill_lit.models.generation_files import model_without_weights
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cached_file_sha256, fingerprint
from distill_lit.utils.progress import ProgressCallback
from distill_lit.utils.shards import Shards

CORPUS_FORMAT_VERSION = 3  # raise it when the same config means other answers
PLAIN_CORPUS_FORMAT_VERSION = 4  # the same for plain text of a local model, and for chats of what a server goes on with


@dataclasses.dataclass(frozen=True)
class EvaluationTexts:
    """What students will be asked: for filters.decontamination_ngram.

    fingerprint: JSON-like; texts: gives all documents' texts.
    """

    fingerprint: Any
    texts: Callable[[], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class GenerationContext:
    """Who writes when `generated.model` and `generated.remote` do not say otherwise: the experiment's teacher."""

    model: str  # reference
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    backend: GenerationBackendConfig = dataclasses.field(default_factory=GenerationBackendConfig)
    evaluation_texts: EvaluationTexts | None = None
    plugins: Sequence[str] = ()  # sha256 of the files that register custom filters


def check_generated_corpora(data: DataConfig, dataset_source: str) -> None:
    """Raises UserError for generated corpora that cannot work, as far as that shows before anything is loaded or asked."""
    for name, corpus in data.corpora.items():
        if corpus.generated is not None:
            _check(f"data.corpora.{name}.generated", corpus.generated, dataset_source)


def _check(key: str, generated: GeneratedConfig, origin: str) -> None:
    check_prompts(f"{key}.prompts", generated.prompts, origin)
    check_filters(f"{key}.filters", generated.filters, generated.num_samples, bool(generated.prompts.reference_answer))
    if generated.num_samples > 1 and generated.temperature == 0:
        raise UserError(f"{key}.num_samples: at temperature 0 all answers to a prompt are the same; set a temperature")
    if generated.prompts.system_prompt and not generated.chat:
        raise UserError(f"{key}.prompts.system_prompt: plain text has no system message; set chat to true")
    if generated.remote is not None:
        if generated.model:
            raise UserError(f"{key} has both model and remote; give one")
        from distill_lit.generation.remote import check_remote

        check_remote(f"{key}.remote", generated.remote, generated.prompts.system_prompt)
        if not generated.chat and generated.remote.protocol == "chat":
            raise UserError(
                f"{key}.remote.protocol: a chat server answers a prompt and does not go on with its text, so nobody knows "
                f"what stands between both in plain text; set it to completions, or {key}.chat to true"
            )


def check_api_keys(data: DataConfig) -> None:
    """Raises UserError when the environment lacks the key of a server that would be asked."""
    for name, corpus in data.corpora.items():
        if corpus.generated is not None and corpus.generated.remote is not None:
            from distill_lit.generation.api_connection import check_api_key

            check_api_key(f"data.corpora.{name}.generated.remote", corpus.generated.remote)


def generation_references(data: DataConfig) -> list[str]:
    """Models and files, beside the teacher, that generated corpora need."""
    generated_configs = [corpus.generated for corpus in data.corpora.values() if corpus.generated is not None]
    names = [
        name for g in generated_configs for name in (g.model, g.filters.perplexity_model, g.prompts.path) if ":" in name
    ]
    return list(dict.fromkeys(names))


def resolve_generated_corpora(data: DataConfig, context: GenerationContext, dataset_source: str) -> DataConfig:
    """The same data with every generated corpus replaced by its file. Raises UserError for one that is not written yet."""
    corpora = {}
    for name, corpus in data.corpora.items():
        corpora[name] = corpus
        if corpus.generated is not None:
            path = generated_corpus_path(f"data.corpora.{name}.generated", corpus.generated, context, dataset_source)
            if not is_corpus_complete(path):
                raise UserError(f"data.corpora.{name}.generated: not written yet, or damaged; run `distill-lit generate`")
            corpora[name] = _file_corpus(corpus, path)
    return dataclasses.replace(data, corpora=corpora)


def is_corpus_complete(path: Path) -> bool:
    """Whether a corpus file is there and has its hash."""
    return Shards(path.parent).is_intact(path.name)


def generated_corpus_path(key: str, generated: GeneratedConfig, context: GenerationContext, dataset_source: str) -> Path:
    """The file that a generated corpus becomes, beside its answers. All that decides them is in its path."""
    filters = {**non_default_fields(generated.filters), **answer_comparison_metadata(generated.filters)}
    if generated.filters.perplexity_model:
        filters["perplexity_model"] = [
            model_fingerprint(model_folder(generated.filters.perplexity_model)),
            str(context.dtype),
        ]
    else:
        filters.pop("min_mean_logprob", None)
    if generated.filters.decontamination_ngram and context.evaluation_texts is not None:
        filters["evaluation"] = context.evaluation_texts.fingerprint
    if generated.filters.custom and context.plugins:
        filters["plugins"] = list(context.plugins)
    return (
        completions_folder(_fingerprint_fields(key, generated, context, dataset_source))
        / f"corpus-{fingerprint(filters)}.jsonl"
    )


def remote_completions_folder(key: str, generated: GeneratedConfig, dataset_source: str) -> Path:
    """Where the answers of a corpus are that a server writes."""
    nobody = GenerationContext("", torch.float32)  # the server is who writes
    return completions_folder(_fingerprint_fields(key, generated, nobody, dataset_source))


def _fingerprint_fields(key: str, generated: GeneratedConfig, writer: GenerationContext, origin: str) -> dict[str, Any]:
    facts = {
        name: value for name, value in non_default_fields(generated).items() if name not in ("filters", "model", "remote")
    }
    if generated.remote is None:
        folder = model_folder(generated.model or writer.model)
        facts["writer"] = {
            "files": {**model_fingerprint(folder), **_generation_config_hashes(folder)},
            "dtype": str(writer.dtype),
            **sampling_metadata(generated.temperature, writer.backend.backend),
        }
    else:
        facts["server"] = remote_fingerprint_fields(generated.remote)
        facts.pop("batch_size", None)
    facts["source"] = prompt_source_fingerprint(f"{key}.prompts", generated.prompts, origin)
    return {
        **facts,
        **prompt_sampling_metadata(generated.prompts),
        "format": CORPUS_FORMAT_VERSION if _is_first_format(generated) else PLAIN_CORPUS_FORMAT_VERSION,
    }


def _is_first_format(generated: GeneratedConfig) -> bool:
    if generated.remote is None:
        return generated.chat
    return not generated.chat or generated.remote.protocol == "chat"


def _generation_config_hashes(folder: Path) -> dict[str, str]:
    """{file: sha256} of what a model brings to decide how it writes: tokens that end a text, or are never written."""
    return {path.name: cached_file_sha256(path) for path in folder.glob("generation_config.json")}


def remote_fingerprint_fields(remote: RemoteConfig) -> dict[str, Any]:
    """The fields of a server that decide what it answers."""
    plain = dataclasses.replace(remote, base_url=remote.base_url.rstrip("/"))
    return {name: value for name, value in non_default_fields(plain).items() if name not in SERVER_KEYS_NOT_IN_FINGERPRINT}


def _file_corpus(corpus: CorpusConfig, path: Path) -> CorpusConfig:
    assert corpus.generated is not None
    messages = "messages" if corpus.generated.chat else ""
    return CorpusConfig(
        path=str(path),
        max_documents=corpus.max_documents,
        messages=messages,
        weight=corpus.weight,
        teacher=corpus.teacher,
    )


def generate_corpus(
    name: str,
    generated: GeneratedConfig,
    context: GenerationContext,
    dataset_source: str,
    progress_callback: ProgressCallback,
) -> dict[str, Any]:
    """Writes what is missing of a generated corpus. Returns {corpus, prompts, answers, tokens, kept, dropped, …}.

    Raises UserError when no prompt or no answer is left.
    """
    key = f"data.corpora.{name}.generated"
    path = generated_corpus_path(key, generated, context, dataset_source)
    shards = Shards(path.parent)
    prompts = read_prompts(f"{key}.prompts", generated.prompts, generated.seed, dataset_source)
    if not shards.manifest().get("complete"):
        facts = {
            "config": asdict(generated),
            **_fingerprint_fields(key, generated, context, dataset_source),
            "prompts_asked": len(prompts),
        }
        shards.folder.mkdir(parents=True, exist_ok=True)
        shards.write_manifest({**facts, "complete": False})
    cost: dict[str, Any] = {}
    if not _are_completions_complete(shards, len(prompts) * generated.num_samples):
        cost = _generate_missing(shards.folder, prompts, generated, context, progress_callback)
    shards.write_manifest({**shards.manifest(), "complete": True})
    completions = list(read_completions(shards.folder))
    retained, dropped = _filter(generated, completions, context)
    if not retained:
        refusal = f"; the server said: {cost['refusal']}" if "refusal" in cost else ""
        raise UserError(f"{key}: none of {len(completions)} answers is left; {_format_dropped(dropped)}{refusal}")
    shards.write_missing({path.name: functools.partial(_write_lines, rows=_corpus_rows(retained, generated, context))})
    tokens = sum(answer.num_tokens for answer in completions)
    counts = {
        "prompts": len(prompts),
        "answers": len(completions),
        "tokens": tokens,
        "kept": len(retained),
        "dropped": dropped,
    }
    return {"corpus": str(path), **counts, **cost}


def _generate_missing(
    folder: Path, prompts: list[Prompt], generated: GeneratedConfig, writer: GenerationContext, progress: ProgressCallback
) -> dict[str, Any]:
    """Lets the teacher or the server write what is missing; what the latter cost."""
    if generated.remote is not None:
        from distill_lit.generation.remote import generate_remotely

        return generate_remotely(folder, generated, prompts, lambda done, total: progress("ask", done, total, "answers"))
    from distill_lit.generation.local import generate_locally

    teacher = model_folder(generated.model or writer.model)
    facts = (load_tokenizer(teacher), prompts, generated, lambda done, total: progress("write", done, total, "answers"))
    if writer.backend.backend != VLLM_BACKEND:
        generate_locally(folder, load_model(teacher, writer.dtype).to(writer.device), *facts)
        return {}
    from distill_lit.generation.vllm_engine import VLLMEngine

    with VLLMEngine(writer.backend, writer.dtype, folder / "vllm.log") as engine:
        generate_locally(
            folder, model_without_weights(teacher), *facts, functools.partial(engine.load, teacher, writer.device)
        )
    return {}


def _are_completions_complete(shards: Shards, answers: int) -> bool:
    """Whether all answers are on disk and intact, so that no model need be loaded and no server asked."""
    names = [name for name in shards.hashes() if name.startswith("completions-")]
    return shards.are_intact(names) and sum(1 for _ in read_completions(shards.folder)) == answers


def _filter(
    generated: GeneratedConfig, answers: list[Completion], writer: GenerationContext
) -> tuple[list[Completion], dict[str, int]]:
    logprob_scorer = None
    if generated.filters.perplexity_model:
        folder = model_folder(generated.filters.perplexity_model)

        def logprob_scorer(some: Any) -> list[float]:
            return mean_completion_logprobs(
                load_model(folder, writer.dtype).to(writer.device), load_tokenizer(folder), some, generated.chat
            )

    texts = tuple if writer.evaluation_texts is None else writer.evaluation_texts.texts
    return filter_completions(answers, generated.filters, logprob_scorer, texts)


def _format_dropped(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items())


def _corpus_rows(
    kept: Iterable[Completion], generated: GeneratedConfig, writer: GenerationContext
) -> Iterator[dict[str, Any]]:
    """Documents with their provenance: who wrote them, to which prompt, from which row and template."""
    model_name = generated.remote.model if generated.remote is not None else generated.model or writer.model
    for answer in kept:
        text: dict[str, Any] = {"messages": answer.messages} if generated.chat else {"text": answer.prompt + answer.text}
        prompt_fields = {
            "prompt": answer.prompt,
            "row": answer.row_index,
            "template": answer.template_index,
            "sample": answer.sample_index,
        }
        yield {**text, "writer": model_name, **prompt_fields, "finish": answer.finish_reason}


def _write_lines(path: Path, *, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
