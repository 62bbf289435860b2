"""What begins at once: help, and the plan and the states of an experiment whose models have been looked at before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, tiny_models, warm_processes
from helpers.caches import new_cache

from distill_lit.config import load_experiment
from distill_lit.experiment.checks import remembered_checks
from distill_lit.experiment.checks.remembered_checks import remembered_notes
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning import architectures
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.models import load_model, size_of

EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", source: offline, dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 32, max_tokens: 64, validation_sequences: 3, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{ce: {{weight: 1}}, kl: {{kind: forward_kl, weight: 1}}}}}}
training: {{max_tokens: 64, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: [ce_only]
"""
# takes a second or more each; what a plan or a state does need of models is remembered
HEAVY = ("transformers", "tokenizers", "lightning", "lm_eval", "datasets", "pandas", "pyarrow", "accelerate", "peft",
         "torchao", "matplotlib", "scipy.stats", "torch.distributed.tensor")  # fmt: skip
HEAVY_FOR_HELP = (*HEAVY, "torch", "numpy", "pydantic", "yaml", "scipy", "huggingface_hub", "http.client", "jinja2")


@pytest.fixture
def file(tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with a teacher and a cache of its own."""
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    teacher = tiny_models.make_model(tmp_path / "teacher")
    (tmp_path / "tiny.yaml").write_text(EXPERIMENT.format(teacher=teacher, corpus=tiny_corpus))
    return tmp_path / "tiny.yaml"


def imported_by(*arguments: object) -> set[str]:
    """The modules that a command has imported when it ends."""
    code = (
        "import json, sys; from distill_lit.cli import main as cli\n"
        f"try: cli.main({list(map(str, arguments))!r})\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    with warm_processes.cold():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_imports_nothing_heavy() -> None:
    assert imported_by("--help") & set(HEAVY_FOR_HELP) == set()


@pytest.mark.parametrize("command", ["plan", "status"])
def test_a_second_plan_and_a_status_import_nothing_of_models(file: Path, command: str) -> None:
    runs = plan_runs(load_experiment(file))
    remembered_notes(runs)
    for run in runs:
        made = Architectures(runs).student(run) if run.student else Architectures(runs).teacher(run)
        assert made.size.layers == (1 if run.student else 2)
    assert imported_by(command, file, "--root", file.parent) & set(HEAVY) == set()


def test_sizes_are_those_of_the_built_model_and_built_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = plan_runs(load_experiment(file))
    run = next(run for run in runs if run.student)
    size = Architectures(runs).teacher(run).size
    assert size == size_of(load_model(file.parent / "teacher"))
    assert Architectures(runs).student(run).size.layers == 1
    monkeypatch.setattr(architectures, "size_from_config", lambda _: pytest.fail("built again"))
    again = Architectures(runs)
    assert again.teacher(run).size == size
    assert again.student(run).size.parameters < size.parameters


def test_another_config_is_another_size(file: Path) -> None:
    runs = plan_runs(load_experiment(file))
    size = Architectures(runs).teacher(runs[0]).size
    config = file.parent / "teacher/config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"num_hidden_layers": 3}))
    assert Architectures(runs).teacher(runs[0]).size.layers == 3 != size.layers


def test_models_are_looked_at_again_where_something_has_changed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes are remembered with the files, the config and the code that they are of; what is refused is not."""
    asked: list[int] = []
    monkeypatch.setattr(remembered_checks, "check_against_teacher", lambda runs: asked.append(len(runs)) or ["a note"])
    runs = plan_runs(load_experiment(file))
    for _ in range(3):
        assert remembered_notes(runs) == ["a note"]
    assert len(asked) == 1
    remembered_notes(plan_runs(load_experiment(file, ["data.sequence_length=16"])))
    assert len(asked) == 2
    tokenizer = file.parent / "teacher/tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    remembered_notes(runs)
    assert len(asked) == 3
    monkeypatch.setattr(remembered_checks, "folder_stamp", lambda *_: ["other code"])
    remembered_notes(runs)
    assert len(asked) == 4
