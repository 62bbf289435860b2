"""Text that a teacher writes, as a corpus: prompts → answers on disk → filters → a file that `distill_lit.data` reads.

generated/<key>/answers-00000.jsonl …    every answer, with its tokens and their log-probabilities
generated/<key>/corpus-<filters>.jsonl   what the filters left, as chats or plain text
generated/<key>/manifest.json            writer, sampling, source of the prompts
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from distill_lit.config import CorpusConfig, DataConfig, GeneratedConfig, RemoteConfig, decisive
from distill_lit.generation.completions import Answer, answers_folder, read_answers
from distill_lit.generation.filters import check_filters, comparison_facts, filter_answers
from distill_lit.generation.perplexity import judge_answers
from distill_lit.generation.prompts import Prompt, check_prompts, drawing_facts, identify_prompts, read_prompts
from distill_lit.models import load_model, load_tokenizer, model_fingerprint, model_folder
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint, sha256_once
from distill_lit.utils.shards import Shards

FORMAT = 1  # raise it when the same config means other answers
PLAIN_FORMAT = 2  # the same for plain text of a local model, and for chats of what a server goes on with
# knobs of a server that cannot change what it answers
REMOTE_WITHOUT_EFFECT = ("key_variable", "concurrency", "requests_per_minute", "retries", "timeout", "price", "budget")
Progress = Callable[[str, int, int], Any]  # stage, done, total


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What students will be asked: for filters.contamination. identity: JSON-like; texts: gives all documents' texts."""

    identity: Any
    texts: Callable[[], Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Writer:
    """Who writes when `generated.model` and `generated.remote` do not say otherwise: the experiment's teacher."""

    model: str  # reference
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    evaluation: Evaluation | None = None


def check_generated(data: DataConfig, origin: str) -> None:
    """Raises UserError for generated corpora that cannot work, as far as that shows before anything is loaded or asked."""
    for name, corpus in data.corpora.items():
        if corpus.generated is not None:
            _check(f"data.corpora.{name}.generated", corpus.generated, origin)


def _check(key: str, generated: GeneratedConfig, origin: str) -> None:
    check_prompts(f"{key}.prompts", generated.prompts, origin)
    check_filters(f"{key}.filters", generated.filters, generated.samples, bool(generated.prompts.answer))
    if generated.samples > 1 and generated.temperature == 0:
        raise UserError(f"{key}.samples: at temperature 0 all answers to a prompt are the same; set a temperature")
    if generated.prompts.system and not generated.chat:
        raise UserError(f"{key}.prompts.system: plain text has no system message; set chat to true")
    if generated.remote is not None:
        if generated.model:
            raise UserError(f"{key} has both model and remote; give one")
        from distill_lit.generation.remote import check_remote

        check_remote(f"{key}.remote", generated.remote, generated.prompts.system)
        if not generated.chat and generated.remote.protocol == "chat":
            raise UserError(
                f"{key}.remote.protocol: a chat server answers a prompt and does not go on with its text, so nobody knows "
                f"what stands between both in plain text; set it to completions, or {key}.chat to true"
            )


def check_keys(data: DataConfig) -> None:
    """Raises UserError when the environment lacks the key of a server that would be asked."""
    for name, corpus in data.corpora.items():
        if corpus.generated is not None and corpus.generated.remote is not None:
            from distill_lit.generation.remote import check_key

            check_key(f"data.corpora.{name}.generated.remote", corpus.generated.remote)


def references(data: DataConfig) -> list[str]:
    """Models and files, beside the teacher, that generated corpora need."""
    every = [corpus.generated for corpus in data.corpora.values() if corpus.generated is not None]
    found = [name for g in every for name in (g.model, g.filters.judge, g.prompts.path) if ":" in name]
    return list(dict.fromkeys(found))


def resolve_corpora(data: DataConfig, writer: Writer, origin: str) -> DataConfig:
    """The same data with every generated corpus replaced by its file. Raises UserError for one that is not written yet."""
    corpora = {}
    for name, corpus in data.corpora.items():
        corpora[name] = corpus
        if corpus.generated is not None:
            path = corpus_path(f"data.corpora.{name}.generated", corpus.generated, writer, origin)
            if not is_written(path):
                raise UserError(f"data.corpora.{name}.generated: not written yet, or damaged; run `distill-lit generate`")
            corpora[name] = _file_corpus(corpus, path)
    return dataclasses.replace(data, corpora=corpora)


def is_written(path: Path) -> bool:
    """Whether a corpus file is there and has its hash."""
    return Shards(path.parent).is_intact(path.name)


def corpus_path(key: str, generated: GeneratedConfig, writer: Writer, origin: str) -> Path:
    """The file that a generated corpus becomes, beside its answers. All that decides them is in its path."""
    filters = {**decisive(generated.filters), **comparison_facts(generated.filters)}
    if generated.filters.judge:
        filters["judge"] = [model_fingerprint(model_folder(generated.filters.judge)), str(writer.dtype)]
    else:
        filters.pop("judge_log_probability", None)
    if generated.filters.contamination and writer.evaluation is not None:
        filters["evaluation"] = writer.evaluation.identity
    return answers_folder(_decisive(key, generated, writer, origin)) / f"corpus-{fingerprint(filters)}.jsonl"


def _decisive(key: str, generated: GeneratedConfig, writer: Writer, origin: str) -> dict[str, Any]:
    facts = {name: value for name, value in decisive(generated).items() if name not in ("filters", "model", "remote")}
    if generated.remote is None:
        folder = model_folder(generated.model or writer.model)
        facts["writer"] = {"files": {**model_fingerprint(folder), **_generation(folder)}, "dtype": str(writer.dtype)}
    else:
        facts["server"] = decisive_remote(generated.remote)
        facts.pop("batch", None)
    facts["source"] = identify_prompts(f"{key}.prompts", generated.prompts, origin)
    return {
        **facts,
        **drawing_facts(generated.prompts),
        "format": FORMAT if _is_first_format(generated) else PLAIN_FORMAT,
    }


def _is_first_format(generated: GeneratedConfig) -> bool:
    if generated.remote is None:
        return generated.chat
    return not generated.chat or generated.remote.protocol == "chat"


def _generation(folder: Path) -> dict[str, str]:
    """{file: sha256} of what a model brings to decide how it writes: tokens that end a text, or are never written."""
    return {path.name: sha256_once(path) for path in folder.glob("generation_config.json")}


def decisive_remote(remote: RemoteConfig) -> dict[str, Any]:
    """The knobs of a server that decide what it answers."""
    plain = dataclasses.replace(remote, base_url=remote.base_url.rstrip("/"))
    return {name: value for name, value in decisive(plain).items() if name not in REMOTE_WITHOUT_EFFECT}


def _file_corpus(corpus: CorpusConfig, path: Path) -> CorpusConfig:
    assert corpus.generated is not None
    messages = "messages" if corpus.generated.chat else ""
    return CorpusConfig(path=str(path), documents=corpus.documents, messages=messages)


def write_corpus(name: str, generated: GeneratedConfig, writer: Writer, origin: str, progress: Progress) -> dict[str, Any]:
    """Writes what is missing of a generated corpus. Returns {corpus, prompts, answers, tokens, kept, dropped, …}.

    Raises UserError when no prompt or no answer is left.
    """
    key = f"data.corpora.{name}.generated"
    path = corpus_path(key, generated, writer, origin)
    shards = Shards(path.parent)
    prompts = read_prompts(f"{key}.prompts", generated.prompts, generated.seed, origin)
    if not shards.manifest().get("complete"):
        facts = {"config": asdict(generated), **_decisive(key, generated, writer, origin), "prompts_asked": len(prompts)}
        shards.folder.mkdir(parents=True, exist_ok=True)
        shards.write_manifest({**facts, "complete": False})
    cost: dict[str, Any] = {}
    if not _all_there(shards, len(prompts) * generated.samples):
        cost = _have_written(shards.folder, prompts, generated, writer, progress)
    shards.write_manifest({**shards.manifest(), "complete": True})
    answers = list(read_answers(shards.folder))
    kept, dropped = _keep(generated, answers, writer)
    if not kept:
        refusal = f"; the server said: {cost['refusal']}" if "refusal" in cost else ""
        raise UserError(f"{key}: none of {len(answers)} answers is left; {_said(dropped)}{refusal}")
    shards.make_all({path.name: functools.partial(_write_lines, rows=_rows(kept, generated, writer))})
    tokens = sum(answer.length for answer in answers)
    counts = {"prompts": len(prompts), "answers": len(answers), "tokens": tokens, "kept": len(kept), "dropped": dropped}
    return {"corpus": str(path), **counts, **cost}


def _have_written(
    folder: Path, prompts: list[Prompt], generated: GeneratedConfig, writer: Writer, progress: Progress
) -> dict[str, Any]:
    """Lets the teacher or the server write what is missing; what the latter cost."""
    if generated.remote is not None:
        from distill_lit.generation.remote import write_remotely

        return write_remotely(folder, generated, prompts, functools.partial(progress, "ask"))
    from distill_lit.generation.local import write_locally

    teacher = model_folder(generated.model or writer.model)
    model = load_model(teacher, writer.dtype).to(writer.device)
    write_locally(folder, model, load_tokenizer(teacher), prompts, generated, functools.partial(progress, "write"))
    return {}


def _all_there(shards: Shards, answers: int) -> bool:
    """Whether all answers are on disk and intact, so that no model need be loaded and no server asked."""
    names = [name for name in shards.hashes() if name.startswith("answers-")]
    return shards.are_intact(names) and sum(1 for _ in read_answers(shards.folder)) == answers


def _keep(generated: GeneratedConfig, answers: list[Answer], writer: Writer) -> tuple[list[Answer], dict[str, int]]:
    judge = None
    if generated.filters.judge:
        folder = model_folder(generated.filters.judge)

        def judge(some: Any) -> list[float]:
            return judge_answers(
                load_model(folder, writer.dtype).to(writer.device), load_tokenizer(folder), some, generated.chat
            )

    texts = tuple if writer.evaluation is None else writer.evaluation.texts
    return filter_answers(answers, generated.filters, judge, texts)


def _said(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items())


def _rows(kept: Iterable[Answer], generated: GeneratedConfig, writer: Writer) -> Iterator[dict[str, Any]]:
    """Documents with their provenance: who wrote them, to which prompt, from which row and template."""
    who = generated.remote.model if generated.remote is not None else generated.model or writer.model
    for answer in kept:
        text: dict[str, Any] = {"messages": answer.messages} if generated.chat else {"text": answer.prompt + answer.text}
        asked = {"prompt": answer.prompt, "row": answer.row, "template": answer.template, "sample": answer.sample}
        yield {**text, "writer": who, **asked, "finish": answer.finish}


def _write_lines(path: Path, *, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
