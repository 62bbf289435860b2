"""`distill-lit export`: a model as one file for other programs."""

import argparse
from pathlib import Path

from rich.console import Console

from distill_lit.cli.arguments import CommandParsers, add_command, check_new_file
from distill_lit.cli.exit_codes import DONE
from distill_lit.cli.stage_bar import stage_bar
from distill_lit.utils.path_variables import expand_path


def add_parser(commands: CommandParsers) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "export",
        "Write a student or any other model as a GGUF file, for llama.cpp and what is built on it.",
        "distill-lit export file:runs/quickstart/…/student --quantization q8_0 --out student.gguf",
        run,
    )
    parser.add_argument(
        "model",
        help="the folder of a run, or a reference: file:folder, hf:org/name; without a kind a path that exists",
    )
    parser.add_argument("--format", choices=("gguf",), default="gguf", help="of the file (default: gguf, the only one yet)")
    parser.add_argument(
        "--quantization",
        choices=("f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"),
        default="f16",
        help="of matrices, rounded per 32 inputs; q4_1 keeps an int4 model as it is (default: f16)",
    )
    parser.add_argument("--out", type=Path, help="the file (default: <name of the folder>-<quantization>.gguf, here)")


def run(options: argparse.Namespace, console: Console) -> int:
    """Writes the file, has it opened again, and says how far it is from the model."""
    from distill_lit import assets

    reference = _reference(options.model)
    assets.check_reference(reference)
    target = options.out or Path(f"{_short_name(options.model)}-{options.quantization}.gguf")
    check_new_file(target)
    from distill_lit.models import model_folder
    from distill_lit.models.gguf_export import check_gguf_export, export_gguf

    folder = model_folder(reference)
    check_gguf_export(folder)
    with stage_bar(console, "export") as progress:
        effect = export_gguf(folder, target, options.quantization, progress)
    size = target.stat().st_size
    console.print(f"{target}  {size / 1e6:,.1f} MB", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"opened by transformers it says what was written; by rounding it is {effect.kl:.2g} nats a token from the model "
        f"(KL on random tokens), and no logit moved by more than {effect.logits:.2g}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return DONE


def _reference(model: str) -> str:
    """Of the folder of a run, the student in it."""
    student = expand_path(model.removeprefix("file:"), "model") / "student"
    return f"file:{student}" if (student / "config.json").is_file() else model


def _short_name(model: str) -> str:
    name = model.rstrip("/").split("/")[-1].split(":")[-1].split("@")[0] or "model"
    return name.removesuffix(".gguf").removesuffix("+code")
