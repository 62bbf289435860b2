"""How many tokens `cache_format: top_p` keeps: `python benchmarks/nucleus_sizes.py` (about four minutes on one core).

SmolLM2-135M reads rows of the commonsense corpus, those of experiments/rate_distortion.yaml, drawn by seed 0. Of each
supervised token the smallest set of most probable tokens with a mass of p is counted. Writes
results/rate_distortion/nucleus_sizes.csv, a line for each p: how many tokens were counted, the median of the set, its mean
under limits (`teacher.top_k`), and what `distill-lit plan` assumes for these.
"""

# ruff: noqa: E402
import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch

from distill_lit import data
from distill_lit.config import load_experiment
from distill_lit.data.loader import make_batch
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import load_model, model_folder
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.teachers.compression import CACHE_TOP_P, TeacherCacheFormat, keep_nucleus
from distill_lit.utils.files import write_text

MASSES, LIMITS = (0.5, 0.8, 0.9, 0.95, 0.99), (50, 255, 1000)
TABLE = ROOT / "results/rate_distortion/nucleus_sizes.csv"


@torch.inference_mode()
def count_nuclei(num_rows: int) -> dict[float, np.ndarray]:
    """{p: tokens of the nucleus of each supervised token}."""
    config = load_experiment(ROOT / "experiments/rate_distortion.yaml")
    folder = model_folder(config.teacher.model)
    rows = data.prepare_datasets(config.data, folder, config.dataset_source).train
    model = load_model(folder, torch.bfloat16).requires_grad_(False)
    lm_head = get_lm_head(model, load_unpadded_vocab_size(folder))
    counts: dict[float, list[np.ndarray]] = {top_p: [] for top_p in MASSES}
    for number in np.sort(np.random.default_rng(0).choice(len(rows), num_rows, replace=False)):
        batch = make_batch(rows, np.array([number]), 1)
        hidden = last_hidden_state(model, batch)[:, :-1][batch["labels"][:, 1:] >= 0]
        logprobs = lm_head.scale_and_cap(lm_head.project(hidden)).log_softmax(-1).sort(descending=True).values
        for top_p in MASSES:
            counts[top_p].append((keep_nucleus(logprobs, top_p) > -torch.inf).sum(-1).numpy())
    return {top_p: np.concatenate(found) for top_p, found in counts.items()}


def summarize(counts: dict[float, np.ndarray]) -> pd.DataFrame:
    """A line for each p."""
    lines = []
    for top_p, sizes in counts.items():
        kept = {f"kept_{limit}": np.minimum(sizes, limit).mean() for limit in LIMITS}
        formats = {limit: TeacherCacheFormat(CACHE_TOP_P, limit, top_p=top_p) for limit in LIMITS}
        assumed = {f"assumed_{limit}": form.expected_tokens for limit, form in formats.items()}
        lines.append({"top_p": top_p, "tokens": len(sizes), "median": np.median(sizes), **kept, **assumed})
    return pd.DataFrame(lines)


def main() -> None:
    """Counts and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10, help="rows of 256 tokens")
    table = summarize(count_nuclei(parser.parse_args().rows))
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    write_text(TABLE, table.to_csv(index=False, float_format="%.4g"))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
