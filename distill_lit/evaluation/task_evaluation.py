"""One task on one model: which documents, lm-eval's own evaluation of them, and the facts that are stored with the rows."""

import hashlib
import logging
import time
from typing import TYPE_CHECKING, Any

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.cache import effective_seed
from distill_lit.evaluation.float32_check import COMPARABLE, Float32Check
from distill_lit.evaluation.generative_metrics import answer_columns
from distill_lit.evaluation.gold_answers import check_choices, check_gold
from distill_lit.evaluation.lm_eval_patches import isolated_random_state
from distill_lit.evaluation.records import CHANCE, has_gold, make_rows, of_first_filter
from distill_lit.evaluation.task_index import lm_eval_version
from distill_lit.evaluation.task_metrics import primary_metric
from distill_lit.evaluation.tasks import TaskSpec, load_task
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.progress import ProgressCallback
from distill_lit.utils.template_limits import check_rendered_length, handle_template_errors

if TYPE_CHECKING:  # importing them takes seconds
    from transformers import PreTrainedTokenizerBase

    from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]


def evaluate_task(
    lm: "PrefixTreeLM",
    spec: TaskSpec,
    settings: EvaluationConfig,
    progress_callback: ProgressCallback | None = None,
    float32_check: Float32Check | None = None,
) -> tuple[Rows, dict[str, Any]]:
    """(rows, meta) of one task, computed now; meta has what `float32_check` found, if it is given."""
    require_chat_template(settings, lm.tokenizer, "this model")
    started = time.monotonic()
    with isolated_random_state():
        task = _configured_task(spec, settings)
        documents = task.eval_docs  # made anew each time that a task with process_docs is asked for them
        total = len(documents)
        doc_indices = sample_documents(total, settings.limit, settings.seed, spec.name)
        check_choices(spec, task, doc_indices)
        lm.reset_counts(
            (lambda done, of: progress_callback(f"evaluate {spec.name}", done, of, "requests"))
            if progress_callback
            else None
        )
        lm.sampling_seed = settings.seed
        results = _ask(lm, task, spec, settings, doc_indices if len(doc_indices) < total else None)
        samples = results["samples"][spec.name]
        rows = make_rows(task, samples, lm.token_counts, lm.token_logprobs)
        compared = {}
        if float32_check and rows and task.OUTPUT_TYPE in COMPARABLE:
            compared = float32_check.compare(lm.model, of_first_filter(samples), rows)
        if spec.generation:
            rows = [row | facts for row, facts in zip(rows, answer_columns(task, lm.answers), strict=True)]
    hidden = sum(not has_gold(task, documents[number]) for number in doc_indices)
    if hidden:
        log.warning("task %s: %d of %d documents without a known right answer count as wrong", spec.name, hidden, len(rows))
    counts = {"n_total": total, "n": len(rows), "elapsed_s": round(time.monotonic() - started, 3)}
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    scores = {"filter": filters[0], "filters": filters, "lm_eval_results": _scores(results["results"][spec.name])}
    asked = {**_settings(spec, settings, rows), "metric": primary_metric(task)}
    facts = {**asked, **counts, **scores, **compared, **_compute_meta(lm, task)}
    return rows, {**facts, "higher_is_better": bool(task.higher_is_better().get(facts["metric"], True))}


def _configured_task(spec: TaskSpec, settings: EvaluationConfig) -> Any:
    """The task as it is to be asked. Raises UserError where its right answers cannot be read."""
    task = load_task(spec)
    task.set_config("num_fewshot", spec.num_fewshot)
    task.set_fewshot_seed(settings.seed)
    if spec.generation:
        task.set_config("repeats", spec.generation.repeats)
        task.set_config("generation_kwargs", spec.generation.generation_kwargs, update=True)
    check_gold(spec, task)
    return task


def _ask(
    lm: "PrefixTreeLM", task: Any, spec: TaskSpec, settings: EvaluationConfig, doc_indices: list[int] | None
) -> dict[str, Any]:
    """lm-eval's results and samples. doc_indices: of the documents; None: all."""
    from lm_eval.evaluator import evaluate

    results: dict[str, Any] = evaluate(
        lm,
        {"tasks": {spec.name: task}},
        samples=None if doc_indices is None else {spec.name: doc_indices},
        bootstrap_iters=0,  # intervals are ours; 100,000 draws of a perplexity take minutes
        system_instruction=settings.system_instruction or None,
        apply_chat_template=settings.apply_chat_template,
        confirm_run_unsafe_code=spec.unsafe_code,
        fewshot_as_multiturn=settings.apply_chat_template,
    )
    return results


def require_chat_template(settings: EvaluationConfig, tokenizer: "PreTrainedTokenizerBase", model: str) -> None:
    """Raises UserError where the settings want a chat template and the tokenizer of `model` has none, or one that cannot
    ask a question."""
    if not settings.apply_chat_template:
        return
    if not tokenizer.chat_template:
        raise UserError(f"evaluation.apply_chat_template: the tokenizer of {model} has no chat template")
    try:
        question = [{"role": "user", "content": "Why?"}]
        if settings.system_instruction:
            question.insert(0, {"role": "system", "content": settings.system_instruction})
        with handle_template_errors():
            check_rendered_length(str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)))
    except UserError as error:
        raise UserError(f"evaluation.apply_chat_template: of {model}: {error}") from error


def sample_documents(total: int, limit: int, seed: int, task: str) -> list[int]:
    """Which of `total` documents a limit takes: sorted numbers, drawn at random, the same for every model and on every
    machine; a smaller limit takes some of those that a larger one takes."""
    if not limit or limit >= total:
        return list(range(total))
    order = sorted(range(total), key=lambda n: hashlib.sha256(f"{seed}/{task}/{n}".encode()).digest())
    return sorted(order[:limit])


def _settings(spec: TaskSpec, settings: EvaluationConfig, rows: Rows) -> dict[str, Any]:
    config, source = spec.entry.config, spec.data_source
    chances = [row.get(CHANCE, 1 / row["n_choices"] if row["n_choices"] > 1 else 0.0) for row in rows if row["n_choices"]]
    return {
        "task": spec.name,
        "version": {**config["metadata"], **(spec.overrides.get("metadata") or {})}.get("version"),
        "lm_eval_version": lm_eval_version(),
        "task_hash": spec.digest,
        "output_type": config["output_type"],
        "metrics": config["metrics"],
        "num_fewshot": spec.num_fewshot,
        "fewshot_split": source.fewshot_split,
        "limit": settings.limit,
        "seed": effective_seed(spec, settings),
        "apply_chat_template": settings.apply_chat_template,
        **({"system_instruction": settings.system_instruction} if settings.system_instruction else {}),
        **({"generation": spec.generation.to_dict()} if spec.generation else {}),
        "dtype": settings.dtype,
        "eval_split": source.eval_split,
        "official_split": source.official_split,
        "dropped_splits": source.dropped_splits,
        "dataset": config["dataset_path"],
        "dataset_name": config["dataset_name"],
        "data": source.fingerprint,
        "chance": sum(chances) / len(chances) if chances else 0.0,
    }


def _compute_meta(lm: "PrefixTreeLM", task: Any) -> dict[str, Any]:
    packed = task.OUTPUT_TYPE != "generate_until" and not lm.fallback_reason
    return {
        "harness": "prefix_tree" if packed else "hflm",
        "fallback": lm.fallback_reason,
        "truncated": lm.num_truncated,
        "tokens_forwarded": lm.tokens_forwarded,
        "pack_tokens": lm.pack_tokens,
    }


def _scores(results: dict[str, Any]) -> dict[str, float]:
    """lm-eval's own aggregates, by its own names."""
    return {name: float(value) for name, value in results.items() if isinstance(value, (int, float))}
