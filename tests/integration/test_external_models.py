"""The teacher in int8 and models off the shelf: runs of their own, rows of the table, never students."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import ROOT, tiny_models
from helpers.command_line import run

from distill_lit.analysis.results import load_results
from distill_lit.analysis.scores import compute_scores
from distill_lit.config import AnalysisConfig, load_experiment
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.requirements import required_assets
from distill_lit.models import load_model, model_fingerprint, quantize_model
from distill_lit.models.loading import weight_bytes
from distill_lit.utils.exceptions import UserError

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def write_experiment(folder: Path, teacher: Path, rival: Path, corpus: Path) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(f"""
name: tiny
teacher: {{model: "file:{teacher}", dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 1024, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}, compile: never}}
training: {{max_tokens: 1024, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 12}}
baselines: [teacher, teacher_int8]
external_models: {{other: "file:{rival}"}}
analysis: {{n_resamples: 200}}
""")
    return file


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_model(tmp_path_factory.mktemp("external"), num_layers=1, seed=5)


@needs_torchao
def test_int8_is_close_to_the_teacher_and_smaller(tiny_teacher: Path, tmp_path: Path) -> None:
    quantize_model(tiny_teacher, tmp_path / "int8", "int8")
    assert weight_bytes(tmp_path / "int8") < weight_bytes(tiny_teacher)
    assert model_fingerprint(tmp_path / "int8") != model_fingerprint(tiny_teacher)
    teacher, rounded = load_model(tiny_teacher), load_model(tmp_path / "int8")
    weight = teacher.model.layers[0].mlp.up_proj.weight
    kept = rounded.model.layers[0].mlp.up_proj.weight
    # by hand: 255 steps per output channel, and no weight further than half of one from where it was
    step = 2 * weight.detach().abs().amax(1, keepdim=True) / 255
    assert kept.qdata.dtype == torch.int8
    assert ((kept.qdata * step - weight).abs() <= 0.5001 * step).all()
    tokens = torch.arange(3, 40)[None]
    with torch.inference_mode():
        expected, found = teacher(tokens).logits.log_softmax(-1), rounded(tokens).logits.log_softmax(-1)
    assert 0 < float((expected.exp() * (expected - found)).sum(-1).mean()) < 0.05


@needs_torchao
def test_plan_has_them_once_with_identities_of_their_own(tmp_path: Path, tiny_teacher: Path, rival: Path,
                                                         tiny_corpus: Path) -> None:  # fmt: skip
    config = load_experiment(write_experiment(tmp_path, tiny_teacher, rival, tiny_corpus))
    check_experiment(config)
    runs = plan_runs(config)
    assert [(c.role, c.label) for c in runs] == [
        ("teacher", "teacher"), ("quantized", "teacher_int8"), ("external", "other"), ("distilled", "one")]  # fmt: skip
    assert len({c.fingerprint for c in runs}) == 4
    assert f"file:{rival}" in required_assets(runs)


def test_int8_without_torchao_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = load_experiment(ROOT / "experiments/quickstart.yaml", ["baselines=[teacher,teacher_int8]"])
    with pytest.raises(UserError, match=r"teacher_int8 needs torchao"):
        check_experiment(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("external_models.teacher=file:x", "external_models.teacher"),
        ("external_models.deep=file:x", "is not taken"),
        ("baselines=[teacher_int9]", "did you mean 'teacher_int8'"),
    ],
)
def test_bad_rivals_are_refused(change: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_experiment(ROOT / "experiments/quickstart.yaml", [change])


@pytest.mark.slow
@needs_torchao
def test_they_are_evaluated_and_drawn(tmp_path: Path, tiny_teacher: Path, rival: Path, tiny_corpus: Path) -> None:
    file = write_experiment(tmp_path, tiny_teacher, rival, tiny_corpus)
    result = run("run", str(file), "--root", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "results/tiny"
    runs = pd.read_csv(folder / "runs.csv").set_index("model")
    assert runs["role"].to_dict() == {
        "teacher": "teacher", "teacher_int8": "quantized", "other": "external", "one": "distilled"}  # fmt: skip
    assert (runs["bytes"] > 0).all()
    assert runs.loc["teacher_int8", "bytes"] < runs.loc["teacher", "bytes"]
    assert runs.loc["other", "parameters"] < runs.loc["teacher_int8", "parameters"] == runs.loc["teacher", "parameters"]
    scores = compute_scores(load_results(folder), AnalysisConfig(n_resamples=200))
    assert [g.label for g in scores.groups] == ["teacher", "teacher int8", "other external", "one distilled"]
    table = (folder / "table.md").read_text()
    assert "teacher int8" in table
    assert "other external" in table
    frontier = pd.read_csv(folder / "frontier.csv")
    if not frontier.empty:
        assert set(frontier["role"]) == {"teacher", "quantized", "external", "distilled"}
