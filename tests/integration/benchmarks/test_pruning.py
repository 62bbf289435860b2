"""benchmarks/pruning.py on a tiny teacher."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from helpers import ROOT, tiny_models
from helpers.caches import new_cache


def test_the_table_of_pruned_students(tmp_path: Path) -> None:
    sizes = {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 4}
    teacher = tiny_models.make_model(tmp_path / "teacher", num_layers=4, intermediate_size=48, **sizes)
    corpus = tiny_models.make_corpus(tmp_path / "corpus.jsonl")
    (tmp_path / "tiny.yaml").write_text(f"""
name: tiny
teacher: {{model: "file:{teacher}"}}
students: {{one: {{num_layers: 1}}}}
data: {{sequence_length: 32, validation_sequences: 4, corpora: {{text: {{path: "file:{corpus}"}}}}}}
""")
    out = tmp_path / "out"
    command = [sys.executable, "benchmarks/pruning.py", "--depths", "3", "2", "--experiment", str(tmp_path / "tiny.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DISTILL_LIT_CACHE": str(new_cache(tmp_path / "cache"))}
    result = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    found = pd.read_csv(out / "table.csv").set_index("student")
    assert len(found) == 1 + 2 * 4 + 7 + 3
    assert found.loc["the teacher, unpruned", ["kl", "agreement"]].tolist() == [0, 1]
    assert (found["kl"].iloc[1:] > 0).all()
    whole = found.loc["the teacher, unpruned", "non_embedding_parameters"] - 36  # the final norm
    layer = whole // 4
    assert found.loc["depth 3, uniform", "non_embedding_parameters"] == 36 + 3 * layer
    assert found.loc["FFN ⅔", "non_embedding_parameters"] == 36 + 4 * (layer - 3 * 36 * 16)
    text = (out / "table.md").read_text()
    assert text.count("\n| depth ") == 11
    assert "--depths 3 2" in text
