"""`distill-lit scaling`: cross-entropy against size and tokens over several experiments."""

import argparse
from pathlib import Path

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command
from distill_lit.cli.exit_codes import DONE
from distill_lit.utils.exceptions import UserError


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "scaling",
        "Draw cross-entropy against size and tokens over several experiments, one for each teacher, and fit the law of "
        "2502.08606 where there are enough runs for it.",
        "distill-lit scaling results/scaling results/scaling_assistant --out results/scaling_law",
        run,
    )
    parser.add_argument("folders", type=Path, nargs="+", help="results folders")
    parser.add_argument("--out", type=Path, required=True, help="folder to draw into")
    parser.add_argument("--all", action="store_true", help="the figure as PDF too")


def run(options: argparse.Namespace, console: Console) -> int:
    """Draws how the students of several experiments scale."""
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out}: is no folder")
    from distill_lit.report import render_scaling_report

    lines, paths = render_scaling_report(options.folders, options.out, options.all)
    for line in lines:
        console.print(line, highlight=False, markup=False)
    for path in paths:
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    return DONE
