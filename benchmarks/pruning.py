"""What does pruning cost before any training? `python benchmarks/pruning.py` (about 15 minutes on two cores; less where
layers have been chosen before, which are remembered).

Prunes SmolLM2-135M in depth by every method, in width, and in both, and compares each student with the teacher on
held-out rows of the training corpus. Everything measured is chosen on other rows. Writes results/pruning/table.md and
.csv. The order in which kl_greedy drops layers is found once, to the smallest depth, and serves the others.
"""

# ruff: noqa: E402
import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import pandas as pd
import torch

from distill_lit import data
from distill_lit.config import StudentConfig, WidthConfig, load_experiment
from distill_lit.data.loader import calibration_batches, make_batch
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.reduction import TokenLogits, apply_temperature, compute_metric_sums
from distill_lit.models import CalibrationData, initial_student, load_model, load_tokenizer, model_folder, size_of
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.models.pruning import LAYER_SELECTION_METHODS
from distill_lit.models.student import retained_layers
from distill_lit.utils import hardware
from distill_lit.utils.files import write_text

ROWS_AT_A_TIME = 2
PRUNING_TABLE_COLUMNS = ("student", "parameters", "non_embedding_parameters", "kl", "agreement", "perplexity")


def pruned_students(depths: list[int], teacher: Any) -> dict[str, StudentConfig]:
    """{what is pruned: student}: methods × depths, one width after the other, all widths, depth and width."""
    deepest = max(depths)
    rows = {
        f"depth {depth}, {method}": StudentConfig(num_layers=depth, layers=method)
        for depth in depths
        for method in LAYER_SELECTION_METHODS
    }
    for name, width in pruned_widths(teacher).items():
        rows[name] = StudentConfig(width=width)
    for method in ("uniform", "kl_greedy"):
        both = pruned_widths(teacher)["FFN ⅔"]
        rows[f"depth {deepest}, {method}, FFN ⅔"] = StudentConfig(num_layers=deepest, layers=method, width=both)
    every = pruned_widths(teacher)["hidden ⅔, FFN ⅔, heads and groups ⅔"]
    rows[f"depth {deepest}, kl_greedy, all widths ⅔"] = StudentConfig(num_layers=deepest, layers="kl_greedy", width=every)
    return rows


def pruned_widths(teacher: Any) -> dict[str, WidthConfig]:
    """Named widths of a teacher with this config: thirds, so that heads and groups divide."""

    def third(value: int, parts: int = 2) -> int:
        return value * parts // 3

    hidden, inner = teacher.hidden_size, teacher.intermediate_size
    heads, groups = teacher.num_attention_heads, teacher.num_key_value_heads
    fewer = WidthConfig(num_attention_heads=third(heads), num_key_value_heads=third(groups))
    everything = dataclasses.replace(fewer, hidden_size=third(hidden), intermediate_size=third(inner))
    return {
        "FFN ⅔": WidthConfig(intermediate_size=third(inner)),
        "FFN ⅓": WidthConfig(intermediate_size=third(inner, 1)),
        "heads ⅔, all groups": WidthConfig(num_attention_heads=third(heads), num_key_value_heads=groups),
        "heads and groups ⅔": fewer,
        # transformers wants the hidden size to be a multiple of the heads, whatever their width
        "hidden ⅞": WidthConfig(hidden_size=hidden * 7 // 8 // heads * heads),
        "hidden ¾": WidthConfig(hidden_size=hidden * 3 // 4 // heads * heads),
        "hidden ⅔, FFN ⅔, heads and groups ⅔": everything,
    }


@torch.inference_mode()
def measure_fidelity(student: Any, teacher: Any, rows: data.PackedDataset, vocab_size: int) -> dict[str, float]:
    """kl: KL(teacher ‖ student), nats per token; agreement: share of equal top tokens; perplexity of the labels."""
    sums: dict[str, float] = {}
    lm_heads, count = [get_lm_head(model, vocab_size) for model in (student, teacher)], 0
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        numbers = torch.arange(start, min(start + ROWS_AT_A_TIME, len(rows))).numpy()
        batch = make_batch(rows, numbers, 1)
        loss_mask = batch["labels"][:, 1:] >= 0
        q, p = (
            lm_head.scale_and_cap(lm_head.project(last_hidden_state(model, batch)[:, :-1][loss_mask]))
            for model, lm_head in zip((student, teacher), lm_heads, strict=True)
        )
        for name, value in compute_metric_sums(
            apply_temperature(TokenLogits(q, p, batch["labels"][:, 1:][loss_mask]), None)
        ).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        count += int(loss_mask.sum())
    perplexity = float(torch.tensor(sums["student_nll"] / count).exp())
    return {"kl": sums["teacher_kl"] / count, "agreement": sums["agreement"] / count, "perplexity": perplexity}


def pruning_table(depths: list[int], experiment: Path, held_out: int, overrides: list[str]) -> pd.DataFrame:
    """A row per student, the teacher first."""
    config = load_experiment(experiment, overrides)
    folder = model_folder(config.teacher.model)
    prepared = data.prepare_datasets(config.data, folder, config.dataset_source)
    vocab_size = max(load_tokenizer(folder).get_vocab().values()) + 1
    rows = prepared.validation.take(torch.arange(min(held_out, len(prepared.validation))).numpy())
    dtype = getattr(torch, hardware.fastest_dtype(hardware.device_for("cpu")))
    calibration = CalibrationData(calibration_batches(prepared.train), prepared.fingerprint, dtype, _progress)
    teacher = load_model(folder, dtype)
    retained_layers(StudentConfig(num_layers=min(depths), layers="kl_greedy"), folder, calibration)
    found = [_row("the teacher, unpruned", teacher, measure_fidelity(teacher, teacher, rows, vocab_size))]
    for name, student in pruned_students(depths, teacher.config).items():
        model = initial_student(student, folder, calibration, seed=0).to(dtype)
        found.append(_row(name, model, measure_fidelity(model, teacher, rows, vocab_size)))
        print(found[-1], flush=True)
    return pd.DataFrame(found, columns=list(PRUNING_TABLE_COLUMNS))


def _row(name: str, model: Any, measured: dict[str, float]) -> dict[str, Any]:
    size = size_of(model)
    return {"student": name, "parameters": size.parameters, "non_embedding_parameters": size.non_embedding, **measured}


def _progress(stage: str, done: float, total: float, unit: str = "", *_: object) -> None:
    print(f"\r{stage}: {done} of {total} {unit}", end="" if done < total else "\n", flush=True)


def as_markdown(found: pd.DataFrame, command: str, rows: int) -> str:
    """The table with what it says and how it was made."""
    lines = [
        "# What pruning costs before training",
        "",
        f"`{command}`: students pruned from SmolLM2-135M-Instruct, compared with the teacher on {rows} held-out rows of",
        "the training corpus. KL(teacher ‖ student) in nats per token; agreement: same top token.",
        "",
        "| student | parameters, M | non-embedding, M | KL | agreement | perplexity |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in found.to_dict("records"):
        lines.append(
            f"| {row['student']} | {row['parameters'] / 1e6:.1f} | {row['non_embedding_parameters'] / 1e6:.1f} "
            f"| {row['kl']:.3f} | {row['agreement']:.1%} | {row['perplexity']:,.1f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Makes the table, prints it, writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[24, 18, 15])
    parser.add_argument("--rows", type=int, default=16, help="held-out rows")
    parser.add_argument("--experiment", type=Path, default=ROOT / "experiments/quickstart.yaml", help="teacher and data")
    parser.add_argument("--out", type=Path, default=ROOT / "results/pruning")
    parser.add_argument("overrides", nargs="*", help="key=value for the experiment")
    arguments = parser.parse_args()
    found = pruning_table(arguments.depths, arguments.experiment, arguments.rows, arguments.overrides)
    command = f"python benchmarks/pruning.py --depths {' '.join(map(str, arguments.depths))} --rows {arguments.rows}"
    text = as_markdown(found, command, arguments.rows)
    write_text(arguments.out / "table.md", text)
    write_text(arguments.out / "table.csv", found.round(6).to_csv(index=False))
    print(text)


if __name__ == "__main__":
    main()
