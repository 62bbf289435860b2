"""How fast and how small are whole trainers? `python benchmarks/trainers.py` (2 cores: half an hour; `--quick`: minutes).

distill-lit, plain Lightning, trl's GKDTrainer and DistillationTrainer and, with `--distillkit CHECKOUT`, Arcee's DistillKit
train the same student from the same teacher on the same rows, each in a process of its own, in turn. All students are
asked for their loss on held-out rows: who computes the same must have learned the same. Writes benchmarks/trainers.md and
trainers.csv anew after each training; a trainer that fails is left out from then on, and the exit code is 1.
"""

# ruff: noqa: E402
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))

import numpy as np
import pandas as pd
import torch
from helpers import reference_libraries

from benchmarks.arguments import existing_folder, positive
from benchmarks.kd_step import TEACHER
from benchmarks.trainer_contenders import CONTENDERS, FLOOR
from distill_lit.config import StudentConfig
from distill_lit.data.mirror import file_of
from distill_lit.models import CalibrationData, initial_student, load_model, load_tokenizer, model_folder
from distill_lit.utils import hardware

HELD_OUT_ROWS = 8
WARM_UP_STEPS = 2  # not counted: the first compiles, and both fill caches
OURS = "distill-lit"  # the first of CONTENDERS


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Teacher, student and rows, as files that every trainer reads."""
    teacher = model_folder(options.teacher or TEACHER)
    tokenizer = load_tokenizer(teacher)
    student = initial_student(
        StudentConfig(num_layers=options.layers, layers="uniform"), teacher, CalibrationData([], ""), 0
    )
    for name, model in {"teacher": load_model(teacher, torch.float32), "student": student}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    passages = pd.read_parquet(file_of("aps/super_glue", "boolq", "validation"))["passage"].drop_duplicates()
    ids = [token for text in passages for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    count = HELD_OUT_ROWS + options.steps * options.batch
    rows = np.array(ids[: count * options.length], dtype=np.int64).reshape(count, options.length)
    np.save(folder / "held_out.npy", rows[:HELD_OUT_ROWS])
    np.save(folder / "rows.npy", rows[HELD_OUT_ROWS:])
    (folder / "settings.json").write_text(json.dumps({"batch": options.batch, "dtype": options.dtype}))


def train(name: str, folder: Path, distillkit: str) -> dict[str, Any]:
    """What a trainer took, in a process of its own."""
    paths = [str(reference_libraries.install()), distillkit, os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),  # of its own: a compiled step pays for its compiling once
    }  # fmt: skip
    script = Path(__file__).with_name("trainer_contenders.py")
    shutil.rmtree(folder / name, ignore_errors=True)
    subprocess.run([sys.executable, str(script), name, str(folder)], check=True, env=environment)
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


@torch.inference_mode()
def held_out_kl(folder: Path, name: str) -> float:
    """KL(teacher || student) in nats per token of the held-out rows."""
    rows = torch.from_numpy(np.load(folder / "held_out.npy"))
    teacher, student = (load_model(folder / part, torch.float32) for part in ("teacher", name))
    total = 0.0
    for row in rows.split(1):
        p, q = (model(row).logits[0, :-1].log_softmax(-1) for model in (teacher, student))
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(rows)


def result_rows(measured: dict[str, list[dict[str, Any]]], loss: dict[str, float], tokens: int) -> pd.DataFrame:
    """One row per trainer: medians over all counted steps of all rounds, their range, ratios to ours, which has run."""
    rows = []
    for name, rounds in measured.items():
        seconds = np.concatenate([one["seconds"][WARM_UP_STEPS:] for one in rounds])
        rows.append({
            "trainer": name, "seconds": float(np.median(seconds)), "least": seconds.min(), "most": seconds.max(),
            "tokens_per_second": tokens / float(np.median(seconds)),
            "first_step": rounds[0]["seconds"][0],  # of others the compiled code is there already
            "peak_gib": max(one["peak"] for one in rounds) / 2**30, "held_out_kl": loss[name],
        })  # fmt: skip
    table = pd.DataFrame(rows).set_index("trainer")
    time, memory = table["seconds"], table["peak_gib"]
    ratios = {"time_ratio": time / time[OURS], "memory_ratio": memory / memory[OURS]}
    return table.assign(**ratios, floor_ratio=time / time.get(FLOOR, np.nan)).reset_index()


def render_page(
    table: pd.DataFrame, options: argparse.Namespace, untrained: float, failed: dict[str, int], rounds: int
) -> str:
    """The table, and what it was measured on. failed: {trainer: in which round}; rounds: that were begun."""
    machine = hardware.describe_hardware()
    columns = ("trainer", "tokens per second", "seconds per step", "time / ours", "time / floor", "first step s",
               "peak GiB", "memory / ours", "held-out KL, nats")  # fmt: skip
    lines = [
        "# Whole trainers side by side",
        "",
        f"`{' '.join(['python benchmarks/trainers.py', *sys.argv[1:]])}`: {options.teacher or 'SmolLM2-135M'} teaches "
        f"{options.layers} of its layers by the forward KL; {options.steps} steps of {options.batch} × {options.length} "
        f"tokens of Wikipedia, {options.dtype}, {rounds} of {options.rounds} interleaved rounds on {machine['processor']}, "
        f"{machine['cores']} cores, torch {machine['torch']}; {reference_libraries.PINNED[0]}. "
        "Seconds: median [least, most] of the steps after the "
        f"{WARM_UP_STEPS} first. First step: of the first round, with what is imported and made before it, compiling "
        f"included. Floor: the {FLOOR}, in the same turns. Peak: resident memory of the whole process, models and "
        "libraries included, the most of all rounds. "
        f"Held-out KL: to the teacher, after training; {untrained:.3f} before. What the others lack is made up for in "
        "their favour: rows are ready-made, trl's gradient checkpointing is off, no model keeps keys and values. "
        "DistillKit computes the cross-entropy of the labels too, and its KL has the last position of each row. "
        "torchtune's recipe is not in the table: it trains adapters alone, and refuses CPUs; its loss is in "
        "[kd_step.md](kd_step.md).",
        "",
        f"| {' | '.join(columns)} |",
        f"|---|{'---:|' * (len(columns) - 1)}",
    ]
    for row in table.itertuples(index=False):
        cells = [
            row.trainer, f"{row.tokens_per_second:.0f}", f"{row.seconds:.2f} [{row.least:.2f}, {row.most:.2f}]",
            f"{row.time_ratio:.2f}", f"{row.floor_ratio:.2f}" if row.floor_ratio > 0 else "",
        ]  # fmt: skip
        trained = [f"{row.first_step:.1f}", f"{row.peak_gib:.2f}", f"{row.memory_ratio:.2f}", f"{row.held_out_kl:.4f}"]
        cells += trained if row.trainer != FLOOR else [""] * len(trained)
        lines.append(f"| {' | '.join(cells)} |")
    if failed:
        lines += ["", "Failed: " + ", ".join(f"{name} in round {number}" for name, number in failed.items()) + "."]
    return "\n".join([*lines, ""])


def measure(names: list[str], folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """Trains in turn, ours first, and writes what there is after each training. Returns {trainer that failed: in which
    round}."""
    measured: dict[str, list[dict[str, Any]]] = {}
    losses: dict[str, float] = {}
    failed: dict[str, int] = {}
    untrained = held_out_kl(folder, "student")
    for number in range(1, options.rounds + 1):
        for name in names:
            if name in failed:
                continue
            try:
                found = train(name, folder, options.distillkit)
            except subprocess.CalledProcessError:
                if not measured:
                    sys.exit(f"{name} failed: there is nothing to compare with")
                failed[name] = number
            else:
                measured.setdefault(name, []).append(found)
                losses[name] = held_out_kl(folder, name)
            table = result_rows(measured, losses, options.batch * options.length)
            table.to_csv(options.out / "trainers.csv", index=False, float_format="%.6g")
            page = render_page(table, options, untrained, failed, number)
            (options.out / "trainers.md").write_text(page, encoding="utf-8")
    return failed


def parse_options() -> argparse.Namespace:
    """Ends with a line and code 2 for options that cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers, few small steps: to see that it runs")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument(
        "--steps", type=positive, default=8, help=f"of each training, the {WARM_UP_STEPS} first not counted"
    )
    parser.add_argument("--batch", type=positive, default=8, help="rows per step")
    parser.add_argument("--length", type=positive, default=256, help="tokens per row")
    parser.add_argument("--layers", type=positive, default=6, help="of the student")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the products")
    parser.add_argument("--teacher", default="", help="reference of another teacher than SmolLM2-135M")
    parser.add_argument(
        "--distillkit", default="", metavar="CHECKOUT", help="folder of https://github.com/arcee-ai/DistillKit"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], choices=list(CONTENDERS), help="trainers; ours, which the ratios are to, always"
    )
    parser.add_argument("--out", type=existing_folder, default=Path(__file__).parent, help="folder of the tables")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps, options.batch, options.length, options.layers = 1, 4, 2, 64, 2
    if options.steps <= WARM_UP_STEPS:
        parser.error(f"--steps: the {WARM_UP_STEPS} first are not counted; give more")
    if options.distillkit and not (Path(options.distillkit) / "distillkit" / "trainer.py").is_file():
        parser.error(f"--distillkit: {options.distillkit} is no checkout of DistillKit")
    if "DistillKit" in options.only and not options.distillkit:
        parser.error("--only DistillKit: give --distillkit CHECKOUT too")
    return options


def main() -> None:
    """Measures, prints and writes; see the module's docstring."""
    options = parse_options()
    wanted = {OURS, *options.only} if options.only else set(CONTENDERS)
    names = [name for name in CONTENDERS if name in wanted and (name != "DistillKit" or options.distillkit)]
    reference_libraries.install()
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary), options)
        failed = measure(names, Path(temporary), options)
    print((options.out / "trainers.md").read_text(encoding="utf-8"))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
