"""Pruning alone: a shallower and a narrower model from a teacher, chosen on calibration text."""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from distill_lit import prune_depth, prune_width
from distill_lit.config import WidthConfig
from distill_lit.models.pruning import calibration_inputs, choose_layers, select_width


def main(teacher: str, texts: list[str], num_layers: int, intermediate_size: int, out: Path) -> None:
    """Writes the pruned student to `out`."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype="float32")
    batches = calibration_inputs(tokenizer, texts)
    layers = choose_layers(model, num_layers, "block_influence", batches)
    student = prune_depth(model, layers)
    student = prune_width(student, select_width(student, WidthConfig(intermediate_size=intermediate_size), batches))
    student.save_pretrained(out)
    tokenizer.save_pretrained(out)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, student))
    print(f"layers {layers}: {before:,} parameters → {after:,}, in {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="HuggingFaceTB/SmolLM2-135M", help="name or folder of a transformers model")
    parser.add_argument("--texts", type=Path, required=True, help="calibration text, a document a line")
    parser.add_argument("--num-layers", type=int, default=18)
    parser.add_argument("--intermediate-size", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("student"))
    options = parser.parse_args()
    lines = options.texts.read_text(encoding="utf-8").splitlines()
    main(options.teacher, lines, options.num_layers, options.intermediate_size, options.out)
