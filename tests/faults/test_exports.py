"""What is exported says in plain transformers, in another process, what the student says; or no step is taken."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import training_processes
from helpers.tiny_architectures import SHAPE, make_family
from transformers import AutoModelForCausalLM, MixtralConfig, OlmoeConfig, Qwen3MoeConfig

from distill_lit import models
from distill_lit.config import LoraConfig, load_experiment
from distill_lit.experiment.execution import student as building
from distill_lit.experiment.execution.run import build_run
from distill_lit.experiment.plan import plan_runs
from distill_lit.models.lora import add_adapters, merge_adapters
from distill_lit.models.reload_check import (
    RELOAD_PROCESS,
    ReloadProcess,
    check_exports,
    check_reloads,
    logits_on,
    probe_input_ids,
)
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root

IDS = torch.arange(3, 27).reshape(2, 12)
LORA = LoraConfig(rank=2, alpha=8)
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MIXTURES = {
    "mixtral": lambda: MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": lambda: Qwen3MoeConfig(**SHAPE, **EXPERTS),
    "olmoe": lambda: OlmoeConfig(**{**SHAPE, "hidden_size": 48}, num_experts=4, num_experts_per_tok=2),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kind of student is known to be exported correctly."""
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))


def said_by(model: Any) -> torch.Tensor:
    return model(IDS).logits.detach()


def trained(model: Any) -> Any:
    """The same model with adapters that are no longer 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("name", MIXTURES)
def test_adapters_on_experts_are_merged(name: str, tmp_path: Path) -> None:
    """Several weights of one module: their adapters stand around each other."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MIXTURES[name]()).eval()
    names, before = list(model.state_dict()), said_by(model)
    model = trained(add_adapters(model, LORA))
    assert any("experts" in key and "lora_A" in key for key, _ in model.named_parameters())
    adapted = said_by(model)
    assert (adapted - before).abs().max() > 0.05
    merge_adapters(model).save_pretrained(tmp_path)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(said_by(model), adapted, rtol=0, atol=1e-4)
    torch.testing.assert_close(said_by(AutoModelForCausalLM.from_pretrained(tmp_path)), adapted, rtol=0, atol=1e-4)


def test_an_embedding_and_a_map_in_two_places_are_merged() -> None:
    model = make_family("gpt2")
    model.transformer.h[1].mlp = model.transformer.h[0].mlp
    model = trained(add_adapters(model, replace(LORA, target_modules=["wpe", "attn.c_attn"])))
    shared = torch.nn.ModuleList([model.transformer.wpe])
    model.transformer.again = shared  # another name of an adapted module
    adapted = said_by(model)
    merge_adapters(model)
    assert model.transformer.again[0] is model.transformer.wpe
    assert not any("lora" in key or "base_layer" in key for key in model.state_dict())
    torch.testing.assert_close(said_by(model), adapted, rtol=0, atol=1e-4)


def test_dropout_and_experts_are_refused_by_the_name_of_the_key() -> None:
    model = AutoModelForCausalLM.from_config(MIXTURES["mixtral"]())
    with pytest.raises(UserError, match=r"^lora\.dropout: must be 0"):
        add_adapters(model, replace(LORA, dropout=0.1))


def test_the_head_has_no_adapter_by_whatever_name() -> None:
    with pytest.raises(UserError, match=r"model\.embed_tokens cannot have an adapter"):
        add_adapters(make_family("llama"), replace(LORA, target_modules=["model.embed_tokens"]))


# ---------------------------------------------------------------- another process


def other_rope(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)
    model.model.rotary_emb.original_inv_freq.mul_(2)


def own_head(model: Any) -> None:
    """Its config says that it is tied, and it is not written."""
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 2)
    model._keys_to_ignore_on_save = ["lm_head.weight"]


def unmerged(model: Any) -> None:
    """Nobody knows any more that it has adapters."""
    del add_adapters(model, LORA).peft_config


def lost_key(model: Any) -> None:
    """The norm's constant is not what its config says."""
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon = 0.5


@pytest.mark.parametrize("damage", [other_rope, own_head, unmerged, lost_key], ids=lambda damage: damage.__name__)
def test_a_student_that_cannot_be_saved_is_refused(damage: Callable[[Any], None], tmp_path: Path, teacher: Path) -> None:
    model = models.load_model(teacher)
    damage(model)
    with pytest.raises(UserError, match="^export: ") as refused:
        check_exports(model, teacher, tmp_path / "export", {})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "export").exists()
    assert not list((cache_root() / "exports").glob("*"))


def test_a_kind_of_student_is_proven_once_and_left_as_it_was(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = add_adapters(models.load_model(teacher), LORA)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    check_exports(model, teacher, tmp_path / "export", {"lora": 2})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(RELOAD_PROCESS, "request", lambda **request: asked.append(request) or {"error": "asked"})
    check_exports(model, teacher, tmp_path / "export", {"lora": 2})
    assert not asked
    with pytest.raises(UserError, match="asked"):
        check_exports(models.load_model(teacher), teacher, tmp_path / "export", {})


def test_a_dead_reader_is_said_and_started_again(tmp_path: Path, teacher: Path) -> None:
    reader = ReloadProcess()
    reader.start()
    reader._process.kill()
    reader._process.wait()
    model = models.load_model(teacher)
    ids = probe_input_ids(model)
    told = reader.request(folder=str(tmp_path / "none"), logits="", code=False, threads=1)
    assert "OSError" in told["error"] or "none" in told["error"]
    reader.close()
    check_reloads(model, teacher, ids, logits_on(model, ids))


def run_of(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> Any:
    file = training_processes.write_experiment(tmp_path, teacher, tiny_corpus, tmp_path)
    return next(run for run in plan_runs(load_experiment(file)) if run.role == "distilled")


def test_no_step_is_taken_by_a_student_that_cannot_be_exported(
    tmp_path: Path, teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = building.initial_student

    def damaged(*arguments: Any) -> Any:
        model = cut(*arguments)
        other_rope(model)
        return model

    monkeypatch.setattr(building, "initial_student", damaged)
    with pytest.raises(UserError, match="export: .*says something else"):
        build_run(run_of(tmp_path, teacher, tiny_corpus), tmp_path / "run", lambda *_: None)
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert not list((tmp_path / "run").glob("*export*"))


def test_a_finished_student_that_is_another_when_opened_keeps_its_weights(
    tmp_path: Path, teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = building.train

    def spoilt(run: Any) -> Any:
        found = train(run)
        other_rope(run.distiller.student)
        return found

    monkeypatch.setattr(building, "train", spoilt)
    with pytest.raises(UserError, match="export: .*says something else"):
        build_run(run_of(tmp_path, teacher, tiny_corpus), tmp_path / "run", lambda *_: None)
    assert (tmp_path / "run/student/model.safetensors").is_file()
    assert not (tmp_path / "run/manifest.json").exists()


def test_a_teacher_in_int8_says_the_same_when_opened(tmp_path: Path, teacher: Path) -> None:
    pytest.importorskip("torchao")
    quantized = models.quantize_model(teacher, tmp_path / "int8", "int8")
    ids = probe_input_ids(quantized)
    said = logits_on(quantized, ids)
    check_reloads(quantized, tmp_path / "int8", ids, said)
    with pytest.raises(UserError, match="says something else"):
        check_reloads(quantized, tmp_path / "int8", ids, said.flip(1))
