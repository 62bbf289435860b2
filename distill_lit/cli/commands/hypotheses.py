"""`distill-lit hypotheses`: what was declared, and what the results of one experiment or of several say of it."""

import argparse
from pathlib import Path

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command, find_results
from distill_lit.cli.exit_codes import DONE
from distill_lit.utils.exceptions import UserError

FORMATS = ("md", "csv", "tex")
EXAMPLE = """distill-lit hypotheses results/quantize
  distill-lit hypotheses results/two_teachers experiments/assistants.yaml --format md

A results folder has the hypotheses of its plan. An experiment file has those that it holds now, and results/ what its runs
have come to: claims that were written down after the run are said to be.
"""


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "hypotheses",
        "Compare the claims that experiments declare in `hypotheses:` with their results: agrees, contradicts, undecided. "
        "Loads no model.",
        EXAMPLE,
        run,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="results folders, or experiment files")
    parser.add_argument("--format", choices=FORMATS, help="Markdown, CSV or TeX instead of a table for the terminal")


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints one table of all."""
    configs = [find_results(path, []) for path in options.folders]
    for (_, config), path in zip(configs, options.folders, strict=True):
        if not config.hypotheses:
            raise UserError(f"{path}: it declares no hypotheses")
    from distill_lit.report.bundle import hypotheses_of
    from distill_lit.report.formats.latex_table import to_latex
    from distill_lit.report.formats.markdown_table import to_markdown
    from distill_lit.report.formats.table import table_frame, to_csv
    from distill_lit.report.formats.terminal import to_rich_table

    table = hypotheses_of(configs)
    if options.format is None:
        console.print(to_rich_table(table))
        for line in table.footnotes:
            console.print(line, highlight=False, markup=False)
        return DONE
    text = {
        "md": to_markdown,
        "tex": lambda found: to_latex(found, "hypotheses"),
        "csv": lambda found: to_csv(table_frame(found)),
    }
    console.print(text[options.format](table), highlight=False, soft_wrap=True, markup=False, end="")
    return DONE
