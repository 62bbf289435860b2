"""Evaluations in bfloat16 ask a few documents again in float32, and step aside where the model is another one there."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import tiny_tasks
from helpers.caches import new_cache
from safetensors.torch import load_file, save_file

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation import float32_check
from distill_lit.evaluation.evaluator import EvaluationResult, evaluate_model
from distill_lit.evaluation.task_index import built_in_index

ASKED = slice(None, None, 3)  # 8 of 24 documents
NAMES = ("float32_documents", "float32_other_answers", "float32_difference")


@pytest.fixture
def model(tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    built_in_index()  # from the shared cache, before ours takes its place
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    tiny_tasks.make_tasks(tmp_path / "tasks", "first", "second")
    return Path(shutil.copytree(tiny_teacher, tmp_path / "model"))


def evaluate(model: Path, dtype: str) -> EvaluationResult:
    settings = EvaluationConfig(tasks=["first", "second"], include_path=str(model.parent / "tasks"), dtype=dtype)  # type: ignore[arg-type]
    return evaluate_model(model, settings, "pypi")


def test_what_is_asked_again_is_what_float32_says(model: Path) -> None:
    low, full = evaluate(model, "bfloat16"), evaluate(model, "float32")
    for task, meta in low.meta.items():
        ours, theirs = (
            result.records[result.records["task"] == task].iloc[ASKED].reset_index(drop=True) for result in (low, full)
        )
        others = (ours["pred"] != theirs["pred"]) | (ours["pred_norm"] != theirs["pred_norm"])
        differences = [
            abs(a - b) / count
            for mine, plain, counts in zip(ours["ll"], theirs["ll"], ours["tokens"], strict=True)
            for a, b, count in zip(mine, plain, counts, strict=True)
        ]
        assert (meta["float32_documents"], meta["float32_other_answers"]) == (8, others.sum())
        assert meta["float32_difference"] == pytest.approx(sum(differences) / len(differences), abs=1e-4)
        assert 0 < meta["float32_difference"] < 0.25
        assert meta["dtype"] == "bfloat16"
    assert not any(name in meta for meta in full.meta.values() for name in NAMES)


def test_a_model_that_bfloat16_does_not_keep_is_evaluated_in_float32(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 100.0)  # logits of hundreds
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    low, full = evaluate(model, "bfloat16"), evaluate(model, "float32")
    pd.testing.assert_frame_equal(low.records, full.records)
    assert [meta["dtype"] for meta in low.meta.values()] == ["float32", "float32"]
    assert "it is evaluated in float32" in caplog.text


def test_a_single_log_likelihood_that_is_rounded_far_off_changes_nothing() -> None:
    assert not float32_check.differs_too_much({"float32_difference": 0.06})  # of which one was 0.35
    assert float32_check.differs_too_much({"float32_difference": float("nan")})
    assert not float32_check.differs_too_much({})


def test_nothing_is_compared_where_float32_does_not_fit(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_check, "free_memory", lambda _: 1000)
    meta = evaluate(model, "bfloat16").meta["first"]
    assert meta["dtype"] == "bfloat16"
    assert not any(name in meta for name in NAMES)
