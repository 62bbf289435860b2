"""`distill-lit report`: draws tables, figures and pages again, of results folders without torch."""

import argparse
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command, check_root
from distill_lit.cli.exit_codes import DONE
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from distill_lit.config import ExperimentConfig
    from distill_lit.report.bundle import ReportBundle


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "report",
        "Draw tables, figures and pages again from the records of a results folder; loads no model. Given an experiment "
        "file, first collect the models that are done by now; works while the experiment runs.",
        "distill-lit report results/quickstart",
        run,
    )
    parser.add_argument("folder", type=Path, help="results folder, `results` for all that are in it, or experiment file")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides of `analysis`, as analysis.n_resamples=2000; of any key where an experiment file is given",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="where runs/ and results/ of an experiment file are")
    parser.add_argument("--all", action="store_true", help="figures as PDF and tables as TeX too")


def run(options: argparse.Namespace, console: Console) -> int:
    """Draws the report of a folder, of each in it, or of what an experiment has done by now."""
    if options.folder.is_file():
        return _report_experiment(options, console)
    if _is_results_folder(options.folder):
        return _report_folders([options.folder], options, console)
    folders = sorted(filter(_is_results_folder, options.folder.iterdir())) if options.folder.is_dir() else []
    if not folders:
        raise UserError(
            f"{options.folder}: no plan.yaml and records.parquet in it or in a folder in it, so it is no results folder"
        )
    return _report_folders(folders, options, console)


def _is_results_folder(folder: Path) -> bool:
    return (folder / "plan.yaml").is_file() and (folder / "records.parquet").is_file()


def _report_folders(folders: list[Path], options: argparse.Namespace, console: Console) -> int:
    """Draws the reports, all of them checked before the first is drawn; prints the table of a single one."""
    from distill_lit.config import load_experiment
    from distill_lit.config.primary_endpoint import check_primary_endpoint

    configs = {folder: load_experiment(folder / "plan.yaml", options.overrides, must_test=False) for folder in folders}
    for folder, config in configs.items():
        check_primary_endpoint(folder, config.analysis)
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written to; copy it to a folder that can be, and draw its report there")
    if len(folders) == 1:
        from distill_lit.cli.report_output import print_report

        bundle, paths = _draw(folders[0], configs[folders[0]], options.all)
        print_report(bundle, folders[0], console, paths)
        return DONE
    for folder, seconds in zip(folders, _draw_each(configs, options.all), strict=True):
        console.print(f"{folder / 'report.html'}  {seconds:.0f} s", highlight=False, soft_wrap=True)
    return DONE


def _draw_each(configs: "dict[Path, ExperimentConfig]", pdf_and_tex: bool) -> Iterator[float]:
    """Draws the reports in one process for each core that may be used; yields the seconds each took, in their order."""
    from distill_lit.report.web.index_page import write_index_page
    from distill_lit.utils.cores import usable_cores

    pool = ProcessPoolExecutor(  # spawned, since forked threads of NumPy and Arrow can hang
        min(usable_cores(), len(configs)), get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    )
    try:
        yield from pool.map(_draw_timed, configs, configs.values(), [pdf_and_tex] * len(configs))
    finally:  # after Ctrl-C, or a report that cannot be drawn, no other is begun
        pool.shutdown(cancel_futures=True)
        write_index_page(next(iter(configs)).parent)  # of two processes, each can have read it without the other's report


def _draw_timed(folder: Path, config: "ExperimentConfig", pdf_and_tex: bool) -> float:
    begun = time.perf_counter()
    _draw(folder, config, pdf_and_tex)
    return time.perf_counter() - begun


def _draw(folder: Path, config: "ExperimentConfig", pdf_and_tex: bool) -> "tuple[ReportBundle, list[Path]]":
    from distill_lit.report import build_report_bundle, render_report
    from distill_lit.report.paper.known_names import check_report_sections

    bundle = build_report_bundle(folder, config.analysis, config.name, config.question, config.report, config.hypotheses)
    check_report_sections(bundle.scores, bundle.score_frame, [config])
    return bundle, render_report(folder, bundle, pdf_and_tex)


def _report_experiment(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.cli.report_output import print_report
    from distill_lit.config import load_experiment

    config = load_experiment(options.folder, options.overrides)  # what the models were may be gone by now
    check_root(options.root, config.name)
    from distill_lit.experiment.experiment import Experiment
    from distill_lit.experiment.state.run_state import DONE as RUN_DONE

    command = " ".join(["distill-lit run", str(options.folder), *options.overrides])
    experiment = Experiment(config, options.root, command)
    print_report(experiment.report(options.all), experiment.results_folder, console)
    statuses = experiment.statuses()
    done = sum(statuses[model.name][0] == RUN_DONE for model in experiment.models)
    console.print(f"{done} of {len(experiment.models)} models are done", highlight=False)
    return DONE
