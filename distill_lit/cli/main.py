"""The command line: `distill-lit run experiments/quickstart.yaml`."""

import argparse
import gc
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill_lit.cli.errors import PipeSafeConsole, error_summary, log_traceback, print_error, replace_unencodable_output
from distill_lit.cli.parser import Command, build_parser
from distill_lit.utils.distributed.cluster_environment import remove_cluster_variables
from distill_lit.utils.exceptions import FatalRunError, UserError
from distill_lit.utils.files import permission_error_message

if TYPE_CHECKING:
    from distill_lit.config import ExperimentConfig

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_SOME_RUNS_FAILED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: list[str] | None = None) -> None:
    """Parses, runs, and exits with the code that `--help` lists."""
    remove_cluster_variables()
    parser = build_parser(COMMAND_HANDLERS)
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no positional after an option, and `--root elsewhere key=value` is what people write
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    replace_unencodable_output()
    try:
        _check_working_directory()
        code = options.run(options, PipeSafeConsole())
    except UserError as error:
        code = print_error(str(error), EXIT_BAD_INPUT)
    except FatalRunError as error:
        code = print_error(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        if message := permission_error_message(error):
            code = print_error(message, EXIT_BAD_INPUT)
        else:
            code = print_error(f"{error_summary(error)} (traceback: {log_traceback()})", EXIT_FAILED)
    sys.exit(code)


def _check_working_directory() -> None:
    """Raises UserError where the folder that the command was typed in has been removed."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError("the current folder is not there any more; cd to one that is") from error


def _load_checked(options: argparse.Namespace) -> "ExperimentConfig":
    """The experiment of a command. Raises UserError for whatever can be wrong with it before torch's friends, a model or
    a data set are loaded."""
    from distill_lit.config import load_experiment

    config = load_experiment(options.experiment, options.overrides)
    _check_root(options.root, config.name)
    from distill_lit.evaluation.tasks import check_task_names

    check_task_names(config.evaluation, config.dataset_source)  # a name misspelt is told before torch is loaded
    gc.disable()  # nothing of what an import makes is garbage
    from distill_lit.experiment.validation import check_experiment

    gc.enable()
    check_experiment(config)
    return config


def _check_root(root: Path, name: str, writes: bool = True) -> None:
    """Raises UserError unless runs/name and results/name can be folders below `root`, and where something is written,
    folders that this user may write to. A link to a folder is one; a link to nothing is none."""
    for kind in ("runs", "results"):
        folder = root.absolute() / kind / name
        while not os.path.lexists(folder):
            folder = folder.parent
        if folder.is_symlink() and not folder.exists():
            raise UserError(
                f"--root {root}: {folder} is a link to {os.readlink(folder)}, which is not there; make it first"
            )
        if not folder.is_dir() or (writes and not os.access(folder, os.W_OK | os.X_OK)):
            raise UserError(f"--root {root}: {folder} is no folder that can be {'written to' if writes else 'read'}")


def _run(options: argparse.Namespace, console: Console) -> int:
    config = _load_checked(options)
    from distill_lit.cli.actions import run_experiment, show_plan

    if options.dry_run:
        return show_plan(config, console)
    return run_experiment(config, options.root, console, _run_command(options))


def _run_command(options: argparse.Namespace) -> str:
    return " ".join(["distill-lit run", str(options.experiment), *options.overrides])


def _plan(options: argparse.Namespace, console: Console) -> int:
    config = _load_checked(options)
    from distill_lit.cli.actions import show_plan

    return show_plan(config, console)


def _status(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.config import load_experiment

    config = load_experiment(options.experiment, options.overrides)
    _check_root(options.root, config.name, writes=False)
    from distill_lit.cli.actions import show_status

    return show_status(config, options.root, console)


def _generate(options: argparse.Namespace, console: Console) -> int:
    config = _load_checked(options)
    from distill_lit.cli.actions import write_teacher_outputs

    return write_teacher_outputs(config, options.root, console, "generated")


def _cache(options: argparse.Namespace, console: Console) -> int:
    config = _load_checked(options)
    from distill_lit.cli.actions import write_teacher_outputs

    return write_teacher_outputs(config, options.root, console, "teacher_cache")


def _cost(options: argparse.Namespace, console: Console) -> int:
    config = _load_checked(options)
    from distill_lit.cli.actions import measure_and_report_costs

    return measure_and_report_costs(config, options.root, console)


def _fetch(options: argparse.Namespace, console: Console) -> int:
    config = _load_checked(options)
    from distill_lit.cli.actions import fetch_assets

    return fetch_assets(config, console)


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.experiment.validation import load_evaluation_settings

    settings = load_evaluation_settings(options.model, options.overrides, options.benchmarks, options.accelerator)
    from distill_lit.cli.actions import evaluate_reference

    return evaluate_reference(options.model, settings, options.benchmarks, options.accelerator, console)


def _report(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.config import load_experiment

    folder = options.folder
    if folder.is_file():
        options.experiment = folder  # for the command that is shown
        config = load_experiment(folder, options.overrides)  # what the models were may be gone by now
        _check_root(options.root, config.name)
        from distill_lit.cli.actions import report_experiment

        return report_experiment(config, options.root, console, _run_command(options))
    if not (folder / "plan.yaml").is_file() or not (folder / "records").is_dir():
        raise UserError(f"{folder}: no plan.yaml and records/ in it, so it is no results folder")
    config = load_experiment(folder / "plan.yaml", options.overrides)
    from distill_lit.cli.report_command import render_and_print_report

    render_and_print_report(folder, config, console)
    return EXIT_OK


def _scaling(options: argparse.Namespace, console: Console) -> int:
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is no folder")
    from distill_lit.cli.report_command import render_and_print_scaling

    render_and_print_scaling(options.folders, options.out, console)
    return EXIT_OK


def _list(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.cli.listing import show_list

    return show_list(options.what, console)


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.cli.doctor import show_doctor

    return show_doctor(options.root.resolve(), console, deep=not options.quick)


def _tensorboard(options: argparse.Namespace, console: Console) -> int:
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder; event files are in runs/<experiment>")
    if not 0 < options.port < 1 << 16:
        raise UserError(f"--port {options.port}: a port is a number from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise UserError(f"--port {options.port}: {error.strerror}; choose another with --port") from error
    console.print(f"curves of {options.folder} on http://127.0.0.1:{options.port}")
    os.execvp(
        sys.executable,
        [
            sys.executable,
            "-m",
            "tensorboard.main",
            "--logdir",
            str(options.folder),
            "--host",
            "127.0.0.1",
            "--port",
            str(options.port),
        ],
    )


COMMAND_HANDLERS: dict[str, Command] = {
    "run": _run,
    "plan": _plan,
    "status": _status,
    "generate": _generate,
    "cache": _cache,
    "cost": _cost,
    "fetch": _fetch,
    "evaluate": _evaluate,
    "report": _report,
    "scaling": _scaling,
    "list": _list,
    "doctor": _doctor,
    "tensorboard": _tensorboard,
}

if __name__ == "__main__":
    main()
