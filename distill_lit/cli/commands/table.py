"""`distill-lit table`: a table for a paper, of one experiment or of several."""

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command, find_results
from distill_lit.cli.exit_codes import DONE
from distill_lit.report.paper.quantities import FIGURE_FORMATS, FORMATS, UNCERTAINTIES, describe_quantities
from distill_lit.utils.exceptions import UserError, suggest

if TYPE_CHECKING:
    from distill_lit.config import ReportConfig
    from distill_lit.report.paper.request import TableRequest

EXAMPLE = """distill-lit table results/divergences --rows kind --where role=distilled --columns tasks,above_chance,val_kl \\
      --rename kind=Divergence reverse_kl="Reverse KL" arc_easy=ARC-e --sort above_chance --out divergences.tex
  distill-lit table results/on_policy results/sequence_level --where role=distilled,ce_only --out both.tex both.csv
  distill-lit table results/mine --pivot temperature,weight --values above_chance --out mine.tex mine.png

rows: `model`, or keys: student, role, experiment, and keys of the grid by their shortest name. A row is a combination of
their values; seeds are averaged.
columns: `tasks` for every task, the name of a task, or one of
"""


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "table",
        "Make a table for a paper from the records of results folders: chosen rows, columns, labels and order, as TeX "
        "(booktabs), Markdown, CSV, or as a heat map. Models of several experiments are compared on the same documents; "
        "what cannot be compared is refused. Loads no model.",
        EXAMPLE + _quantity_help(),
        run,
    )
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="results folders, or experiment files, whose `report:` section then counts as it is now; "
        "report.KEY=VALUE and analysis.KEY=VALUE too",
    )
    parser.set_defaults(overrides=[])  # those behind options are added to it
    _add_shape(parser.add_argument_group("what stands where"))
    _add_look(parser.add_argument_group("how it looks"))
    out = parser.add_argument_group("where it goes")
    out.add_argument("--format", choices=FORMATS, help="of what is printed, or of --out whatever its name")
    out.add_argument(
        "--out",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help=f"files to write, by their endings ({', '.join(FORMATS)}); hashes and versions behind their numbers are "
        "written beside each",
    )


def _add_shape(group: argparse._ArgumentGroup) -> None:
    texts = {
        "rows": ("KEY,…", "what a row is (default: model)"),
        "columns": ("NAME,…", "tasks, quantities, keys whose values become columns"),
        "values": ("NAME,…", "what stands below tasks (default: score) or values of keys (default: above_chance)"),
        "pivot": ("KEY,KEY", "a key of the grid down, one across, for distilled students; others that vary first"),
    }
    for name, (metavar, words) in texts.items():
        group.add_argument(f"--{name}", default="", metavar=metavar, help=words)
    words = "rows with one of these values, or patterns such as d1*; KEY!=VALUE: all others; task=…: only these"
    _add_pairs(group, "where", "KEY=VALUE,…", words)


def _add_look(group: argparse._ArgumentGroup) -> None:
    _add_pairs(group, "rename", "NAME=LABEL", "of students, tasks, keys, values, columns, as report.labels in YAML")
    group.add_argument("--order", default="", metavar="NAME,…", help="order of rows and columns, as report.order")
    group.add_argument("--sort", default="", metavar="COLUMN", help="largest first, by a task or quantity")
    group.add_argument("--ascending", action="store_true", help="smallest first, with --sort")
    _add_pairs(group, "decimals", "COLUMN=N", "digits after the point, as report.decimals")
    group.add_argument(
        "--uncertainty",
        choices=UNCERTAINTIES,
        default="auto",
        help="std: ± over seeds; auto: that for tasks, intervals for averages and differences",
    )
    group.add_argument("--caption", default="", help="default: name and question of the experiment")
    group.add_argument("--label", default="", help="of TeX's \\ref, after `tab:`")


def _add_pairs(group: argparse._ArgumentGroup, name: str, metavar: str, words: str) -> None:
    group.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar=metavar, help=words)


def _quantity_help() -> str:
    lines = [f"  {name:26}{about}" for name, about in describe_quantities().items()]
    return "\n".join([*lines, "and any other numeric column of table.csv or runs.csv."])


def run(options: argparse.Namespace, console: Console) -> int:
    """Prints or writes the table."""
    formats = _formats(options)
    paths = [path for path in options.folders if "=" not in str(path) or os.path.exists(path)]
    overrides = [*(str(path) for path in options.folders if path not in paths), *options.overrides]
    configs = {folder: config for path in paths for folder, config in [find_results(path, overrides)]}
    if len(configs) < len(paths) or not paths:
        raise UserError("name one results folder or several different ones")
    request, display = _request(options), _display(options)
    from distill_lit.report.formats.terminal import table_width, to_rich_table
    from distill_lit.report.paper.output import load_paper_source, make_paper_output

    source = load_paper_source(configs, display, request)
    output = make_paper_output(source, request, options.caption, options.label, _command(options))
    if options.out:
        written = [path for pair in zip(options.out, formats, strict=True) for path in output.write(*pair)]
        for path in dict.fromkeys(written):
            console.print(f"  {path}", highlight=False, soft_wrap=True, markup=False)
    elif options.format or table_width(output.table) > console.width:
        console.print(output.text(options.format or "md"), highlight=False, soft_wrap=True, markup=False, end="")
    else:
        console.print(to_rich_table(output.table))
        for line in (*output.table.header_notes, *output.table.footnotes):
            console.print(line, highlight=False, markup=False)
    return DONE


def _formats(options: argparse.Namespace) -> list[str]:
    """The format of each file. Raises UserError for an ending that is none, and for a picture that has no file."""
    if not options.out and options.format in FIGURE_FORMATS:
        raise UserError(f"--format {options.format}: a picture needs --out FILE")
    found = [options.format or path.suffix.removeprefix(".") for path in options.out]
    for path, kind in zip(options.out, found, strict=True):
        if kind not in FORMATS:
            raise UserError(f"--out {path}: unknown format {kind!r}{suggest(kind, FORMATS)}")
        if path.is_dir():
            raise UserError(f"--out {path}: is a folder; name a file in it")
        if kind in FIGURE_FORMATS and not (options.pivot or options.columns):
            raise UserError(f"--out {path}: a heat map needs --pivot ROWS,COLUMNS")
    return found


def _request(options: argparse.Namespace) -> "TableRequest":
    from distill_lit.report.paper.request import Condition, TableRequest, split_list

    return TableRequest(
        rows=split_list(options.rows),
        columns=split_list(options.columns),
        values=split_list(options.values),
        where=[Condition.parse(text) for text in options.where],
        pivot=split_list(options.pivot),
        sort=options.sort,
        is_ascending=options.ascending,
        uncertainty=options.uncertainty,
    )


def _display(options: argparse.Namespace) -> "ReportConfig":
    """What the flags say of labels, order and decimals."""
    from distill_lit.config import ReportConfig
    from distill_lit.report.paper.request import split_list

    labels = dict(_pair("--rename", text) for text in options.rename)
    decimals = dict(_pair("--decimals", text) for text in options.decimals)
    for name, digits in decimals.items():
        if not (digits.isdecimal() and int(digits) <= 6):
            raise UserError(f"--decimals {name}={digits}: a whole number from 0 to 6")
    return ReportConfig(
        labels=labels, order=split_list(options.order), decimals={name: int(digits) for name, digits in decimals.items()}
    )


def _pair(option: str, text: str) -> tuple[str, str]:
    name, sign, value = text.rpartition("=")
    if not sign or not name:
        raise UserError(f"{option} {text!r}: not NAME=VALUE")
    return name, value


def _command(options: argparse.Namespace) -> str:
    """What was typed, for the provenance."""
    words = ["distill-lit", "table", *map(str, options.folders)]
    for name in ("rows", "columns", "values", "pivot", "where", "rename", "order", "sort", "decimals"):
        value = getattr(options, name)
        words += [f"--{name}", *([value] if isinstance(value, str) else value)] if value else []
    words += ["--ascending"] if options.ascending else []
    words += ["--uncertainty", options.uncertainty] if options.uncertainty != "auto" else []
    return shlex.join(words)
