"""An offline teacher alone: it reads a corpus once, 12 sampled tokens per position are kept and read batch by batch."""

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

from distill_lit import OfflineTeacher, OnlineTeacher, TeacherCacheFormat, write_teacher_cache
from distill_lit.config import CorpusConfig, DataConfig
from distill_lit.data import prepare_datasets
from distill_lit.data.loader import make_batch


def main(teacher: Path, corpus: Path, sequence_length: int, out: Path) -> None:
    """Writes the cache below `out`, and compares a batch of it with the teacher itself."""
    corpora = {"text": CorpusConfig(path=f"file:{corpus}")}
    rows = prepare_datasets(DataConfig(corpora=corpora, sequence_length=sequence_length), teacher, "hub").train
    online = OnlineTeacher(AutoModelForCausalLM.from_pretrained(teacher, dtype="float32"))
    write_teacher_cache(out, online.model, rows, cache_format=TeacherCacheFormat("sampled", 12))
    offline = OfflineTeacher(out, rows, online.lm_head)
    batch = make_batch(rows, np.array([0, 1]), 1)
    loss_mask = batch["labels"][:, 1:] >= 0
    kept, whole = offline.target(batch, loss_mask), online.target(batch, loss_mask)
    logprobs = whole.lm_head.scale_and_cap(whole.lm_head.project(whole.hidden_states)).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs).sum(-1).mean()
    estimate = -(kept.weights * kept.logprobs).sum(-1).mean()
    print(f"entropy of the teacher: {entropy:.2f} nats, from 12 samples {estimate:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a transformers model with its tokenizer")
    parser.add_argument("--corpus", type=Path, required=True, help="JSON lines with a column `text`")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("teacher_cache"))
    options = parser.parse_args()
    main(options.teacher, options.corpus, options.sequence_length, options.out)
