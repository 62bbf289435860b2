"""What the commands do. Imported once their input is known to be right, since it brings Lightning and transformers."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill_lit import assets, report
from distill_lit.cli.main import EXIT_OK, EXIT_SOME_RUNS_FAILED
from distill_lit.cli.progress import RunDisplay
from distill_lit.cli.report_command import render_and_print_report
from distill_lit.config import ExperimentConfig
from distill_lit.config.roles import Role
from distill_lit.config.schema import EvaluationConfig
from distill_lit.evaluation.evaluator import evaluate_model
from distill_lit.experiment import status as state
from distill_lit.experiment.collect import collect_results
from distill_lit.experiment.costs import measure_experiment_costs
from distill_lit.experiment.estimate import Estimate, estimate_runs, require_disk_space, sum_estimates
from distill_lit.experiment.launcher import Terminated, launch_runs
from distill_lit.experiment.paths import runs_folder
from distill_lit.experiment.plan import Run, plan_runs
from distill_lit.experiment.precision import resolve_auto, resolve_dtype
from distill_lit.experiment.requirements import prepare_experiment_data, required_assets
from distill_lit.experiment.run import is_run_built, is_run_evaluated, read_manifest, tensorboard_hparams
from distill_lit.experiment.validation import check_against_teacher, check_evaluation_fits_models, check_models
from distill_lit.generation.corpus import check_api_keys
from distill_lit.models import add_results, load_model_config, model_folder
from distill_lit.report.tables.footnotes import task_line, truncation_notes
from distill_lit.training.tensorboard_summary import write_experiment_summary
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError


def run_experiment(config: ExperimentConfig, root: Path, console: Console, command: str) -> int:
    """Plan, run what is missing, collect, report. `command`: what was typed. Returns the exit code."""
    began = time.monotonic()
    config = _prepare(config, root)
    runs = plan_runs(config)
    try:
        failed = _run_cells(config, runs, root, console)
    except Terminated as stop:
        return stop.code
    folder = collect_results(config, runs, root, failed, command)
    if not (folder / "records" / "documents.parquet").is_file():
        console.print(f"no model was evaluated, so nothing is drawn; {folder / 'cells.csv'} says why", soft_wrap=True)
        return EXIT_SOME_RUNS_FAILED if failed else EXIT_OK
    problem: Exception | None = None
    if config.cost.measure and not failed:
        try:
            measure_experiment_costs(config, runs, root, console)
        except (UserError, RuntimeError, OSError) as error:  # what cannot be measured takes no score away
            problem = error
    _publish(folder, config, runs, root, console)
    if problem is not None:
        raise problem
    console.print(f"{folder} drawn after {(time.monotonic() - began) / 60:.1f} minutes", highlight=False)
    return EXIT_SOME_RUNS_FAILED if failed else EXIT_OK


def report_experiment(config: ExperimentConfig, root: Path, console: Console, command: str) -> int:
    """Collects and draws what is done by now, also while another process is at the rest. `command`: what runs the runs.
    Raises UserError where no model is evaluated yet."""
    config = resolve_auto(config)
    runs, runs_dir = plan_runs(config), runs_folder(root, config)
    states = {run.name: state.get_run_status(run, runs_dir / run.name) for run in runs}
    models = [states[run.name][0] for run in runs if run.is_model]
    if state.DONE not in models:
        raise UserError(f"{runs_dir}: no model of this experiment is evaluated yet; first: {command}")
    failed = {name: note for name, (word, note) in states.items() if word == state.FAILED}
    _publish(collect_results(config, runs, root, failed, command), config, runs, root, console)
    console.print(f"{models.count(state.DONE)} of {len(models)} models are done", highlight=False)
    return EXIT_OK


def _publish(folder: Path, config: ExperimentConfig, runs: list[Run], root: Path, console: Console) -> None:
    """Draws the report; what it says goes to TensorBoard and into the students' model cards too."""
    runs_dir = runs_folder(root, config)
    result = render_and_print_report(folder, config, console)
    _write_tensorboard(runs, runs_dir, folder, result.headline)
    for model, text in report.model_card_sections(result).items():
        add_results(_folder_of(model, runs, runs_dir), text)


def _prepare(config: ExperimentConfig, root: Path) -> ExperimentConfig:
    """A checked experiment settled for this machine, with all its assets here. Raises UserError where a server is still to
    be asked and its key is not in the environment."""
    runs_dir = runs_folder(root, config)
    for run in plan_runs(config):
        if run.role == Role.GENERATED and not is_run_built(run, runs_dir / run.name):
            check_api_keys(run.config.data)
    for reference in required_assets(config):
        assets.fetch(reference)
    check_against_teacher(config)
    check_models(config)
    return resolve_auto(config)


def _run_cells(config: ExperimentConfig, runs: list[Run], root: Path, console: Console) -> dict[str, str]:
    """Shows the plan, runs what is not done; {run that failed: why}. Raises Terminated, having said so."""
    known = _print_plan(config, runs, console)
    if known is not None:
        require_disk_space(known, runs, runs_folder(root, config))
    try:
        with RunDisplay(console) as display:
            return launch_runs(config, runs, root.resolve(), display).failed
    except Terminated as stop:
        console.print(f"stopped; the same command goes on from here (exit code {stop.code})")
        raise


def write_teacher_outputs(config: ExperimentConfig, root: Path, console: Console, role: str) -> int:
    """Runs the runs of one role, `generated` or `signal`, and those they need; prints what they made."""
    config = _prepare(config, root)
    all_runs = plan_runs(config)
    selected = [run for run in all_runs if run.role == role]
    if not selected:
        what = "a corpus with `generated`" if role == "generated" else "teacher.source: offline"
        raise UserError(f"{config.name}: nothing to write; it has not {what}")
    names = {name for run in selected for name in (*run.depends_on, run.name)}
    runs = [run for run in all_runs if run.name in names]
    try:
        failed = _run_cells(config, runs, root, console)
    except Terminated as stop:
        return stop.code
    for run in runs:
        manifest = read_manifest(runs_folder(root, config) / run.name / "manifest.json")
        for fact in ("corpora", "teacher_cache", "bytes_per_token"):
            if fact in manifest:
                console.print(f"{run.label} {fact}: {manifest[fact]}", highlight=False, soft_wrap=True, markup=False)
    return EXIT_SOME_RUNS_FAILED if failed else EXIT_OK


def _write_tensorboard(runs: list[Run], runs_dir: Path, folder: Path, headline: str) -> None:
    """The experiment as a run of TensorBoard: columns to compare runs by, figures, the verdict."""
    done = [run for run in runs if run.is_model and is_run_evaluated(run, runs_dir / run.name)]
    sessions = [tensorboard_hparams(run, runs_dir / run.name) for run in done]
    figures = {path.stem: path for path in sorted(folder.glob("*.png"))}
    write_experiment_summary(runs_dir / "report", sessions, figures, {"verdict": headline})


def _folder_of(model: str, runs: list[Run], runs_dir: Path) -> Path:
    """The exported student that a row of runs.csv is about."""
    return next(runs_dir / run.name / "student" for run in runs if run.label == model)


def measure_and_report_costs(config: ExperimentConfig, root: Path, console: Console) -> int:
    """Measures what the models of an experiment cost to run, and draws its report again."""
    config = resolve_auto(config)
    folder = measure_experiment_costs(config, plan_runs(config), root, console)
    if (folder / "cells.csv").is_file():
        render_and_print_report(folder, config, console)
    return EXIT_OK


def show_plan(config: ExperimentConfig, console: Console) -> int:
    """Prints the plan."""
    if assets.is_fetched(config.teacher.model):
        check_against_teacher(config)
    config = resolve_auto(config)
    _print_plan(config, plan_runs(config), console)
    return EXIT_OK


def _print_plan(config: ExperimentConfig, runs: list[Run], console: Console) -> dict[str, Estimate | None] | None:
    """Prints the plan; returns its estimates."""
    if config.question:
        console.print(f"[bold]{config.name}[/bold]: {config.question}", highlight=False)
    known = estimate_runs(runs)
    missing = [
        (reference, assets.download_megabytes(reference))
        for reference in required_assets(config)
        if not assets.is_fetched(reference)
    ]
    for reference, size in missing:
        console.print(f"to download: {reference}" + (f", {size} MB" if size else ""), highlight=False)
    table = Table("cell", "role", "tokens", "PFLOPs", "disk MB", "minutes", title=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for run in runs:
        table.add_row(run.label, run.role, *_numbers(known[run.name] if known else None))
    if known:
        table.add_section()
        table.add_row(f"{len(runs)} runs", "", *_numbers(sum_estimates([e for e in known.values() if e is not None])))
    console.print(table)
    if any("~" in run.label for run in runs):
        console.print("a name that ends in ~ and a hash would be too long for a file, or another one's in other letters")
    if known and None in known.values():
        console.print(
            "the sums leave out what is not known: the text to cache is counted once it is here: distill-lit fetch"
        )
    if not known:
        console.print("minutes and disk are known once the teacher is here: distill-lit fetch")
    return known


def _numbers(estimate: Estimate | None) -> tuple[str, ...]:
    if estimate is None:
        return ("–",) * 4
    return (
        f"{estimate.tokens:,}",
        f"{estimate.flops / 1e15:.2f}",
        f"{estimate.disk_bytes / 1e6:,.0f}",
        f"{estimate.minutes:.1f}",
    )


def show_status(config: ExperimentConfig, root: Path, console: Console) -> int:
    """Prints the state of every run, as it is on disk."""
    config = resolve_auto(config)
    runs_dir = runs_folder(root, config)
    table = Table("cell", "state", "note")
    counts: Counter[str] = Counter()
    for run in plan_runs(config):
        word, note = state.get_run_status(run, runs_dir / run.name)
        counts[word] += 1
        table.add_row(Text(run.label), word, Text(note))
    console.print(table)
    console.print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return EXIT_OK


def fetch_assets(config: ExperimentConfig, console: Console) -> int:
    """Downloads and prepares all that the experiment needs from elsewhere."""
    for reference in required_assets(config):
        console.print(f"{reference} → {assets.fetch(reference)}", highlight=False, soft_wrap=True)
    prepare_experiment_data(config)
    console.print("everything is here; HF_HUB_OFFLINE=1 works from now on")
    return EXIT_OK


def evaluate_reference(
    reference: str, settings: EvaluationConfig, dataset_source: str, accelerator: str, console: Console
) -> int:
    """Evaluates one model and prints its scores, and below them how they were had."""
    settings.dtype = resolve_dtype(settings.dtype, accelerator)
    folder = model_folder(reference)
    check_evaluation_fits_models(settings, dataset_source, {reference: (folder, load_model_config(folder))})
    device = str(hardware.device_for(accelerator))
    with _request_bar(console) as progress:
        result = evaluate_model(folder, settings, dataset_source, progress_callback=progress, device=device)
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
    return EXIT_OK


def _standard_error(records: pd.DataFrame, task: str, metric: str, score: float) -> str:
    """ " ± " and the standard error over documents, of a metric that is their mean; else empty."""
    values = pd.to_numeric(records.loc[records["task"] == task, "metrics"].map(json.loads).str.get(metric), errors="coerce")
    is_mean = len(values) > 1 and abs(values.mean() - score) < 1e-6
    return f" ± {values.sem():.3f}" if is_mean else ""


@contextmanager
def _request_bar(console: Console) -> Iterator[Any]:
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("evaluate", total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)
