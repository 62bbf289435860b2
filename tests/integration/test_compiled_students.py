"""`training.compile: auto` from an experiment to its students: decided once, kept beside the runs, close to eager code."""

from pathlib import Path

import pytest
import torch
from helpers import tiny_tasks
from safetensors.torch import load_file

from distill_lit.experiment.estimates import compilation
from distill_lit.experiment.experiment import Experiment
from distill_lit.losses import can_compile
from distill_lit.profiling.compilation import CompilationCost
from distill_lit.utils.files import read_json

EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", source: online, dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 32, validation_sequences: 3, max_tokens: 2048, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{compile: never, terms: {{kl: {{kind: forward_kl}}}}}}
training: {{max_tokens: 512, micro_batch_size: 2, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [colours], include_path: "{tasks}", limit: 4}}
grid: {{seed: [0, 1]}}
baselines: []
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler here")
def test_runs_that_are_long_enough_are_compiled(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus, tasks=tasks))
    monkeypatch.setattr(compilation, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(compilation, "compilation_cost", lambda *_: CompilationCost(0.0, 0.0, 0.0, 0.0, 2.0, 2.0))
    students = {}
    for choice in ("auto", "never"):
        experiment = Experiment.from_yaml(file, [f"training.compile={choice}"], tmp_path / choice)
        experiment.prepare()
        assert experiment.launch() == {}
        folders = [experiment.folder_of(run) for run in experiment.models]
        is_compiled = choice == "auto"
        assert [read_json(folder / "manifest.json").get("compiled", False) for folder in folders] == [is_compiled] * 2
        assert (experiment.runs_folder / compilation.CHOICES_FILE).is_file() == is_compiled
        students[choice] = [load_file(folder / "student" / "model.safetensors") for folder in folders]
    for compiled, plain in zip(students["auto"], students["never"], strict=True):
        for name, weight in plain.items():
            torch.testing.assert_close(compiled[name], weight, rtol=1e-3, atol=1e-5)
