"""Names of any length, references without a kind, weights that are no numbers, hubs that are not asked; what is said."""

import importlib.util
import json
import math
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_models
from safetensors.torch import load_file, save_file

from distill_lit import assets
from distill_lit.config import load_experiment
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.tasks import load_task, resolve_tasks
from distill_lit.experiment.plan import plan_runs
from distill_lit.models import load_model_config
from distill_lit.models.loading import config_for_loading, load_model
from distill_lit.models.quantization import is_quantized, quantize_model
from distill_lit.training.checkpoint import load_checkpoint_weights_only
from distill_lit.utils.exceptions import UserError

# ---------------------------------------------------------------- names of files


@pytest.mark.parametrize("value", ["x" * 400, "漢" * 120, "a\nb", "a\x00b", "\ud800", "../" * 100, "💥" * 60])
def test_a_long_or_odd_value_is_a_name_that_fits(experiment: Path, tmp_path: Path, value: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(experiment.read_text() + f"variants: {{{json.dumps(value)}: {{seed: 1}}, b: {{seed: 2}}}}\n"
                    f"grid: {{variant: [{json.dumps(value)}, b]}}\n")  # fmt: skip
    first, second = [run for run in plan_runs(load_experiment(file)) if run.role == "distilled"]
    for name in (first.name, f".writing-{first.label}.parquet.lock"):
        (tmp_path / name).mkdir()
        assert len(name.encode()) <= 255 and "/" not in name
    assert first.label.startswith("one-") and "~" in first.label
    assert first.grid_values == {"variant": value}
    assert second.label == "one-b"


def test_two_long_values_and_two_that_differ_in_case_are_apart(experiment: Path, tmp_path: Path) -> None:
    names = ["x" * 300 + "a", "x" * 300 + "b", "Deep", "deep"]
    variants = ", ".join(f"{name}: {{seed: {n}}}" for n, name in enumerate(names))
    (tmp_path / "x.yaml").write_text(
        f"{experiment.read_text()}variants: {{{variants}}}\ngrid: {{variant: {json.dumps(names)}}}\n"
    )
    labels = [run.label for run in plan_runs(load_experiment(tmp_path / "x.yaml")) if run.is_model]
    assert len({label.casefold() for label in labels}) == len(labels) == 4
    assert "one-Deep" in labels


def test_a_generated_corpus_stays_in_its_folder(experiment: Path) -> None:
    config = load_experiment(experiment)
    from distill_lit.config import GeneratedConfig

    corpus = config.data.corpora["text"]
    corpus.generated, corpus.path = GeneratedConfig(), ""
    config.data.corpora = {"../../out": corpus}
    assert all("/" not in run.name for run in plan_runs(config))


# ---------------------------------------------------------------- references


def test_a_reference_without_a_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert assets.parse_reference("org/name").kind == "hf"
    assert assets.parse_reference("org/name@v1") == assets.parse_reference("hf:org/name@v1")
    (tmp_path / "org/name").mkdir(parents=True)
    assert assets.parse_reference("org/name") == assets.parse_reference("file:org/name")
    assert assets.parse_reference(str(tmp_path)).kind == "file"
    for reference in ("smollm", "", "./nowhere/x", "/no/where", "ollama:x/y", "a/b/c", "../x"):
        with pytest.raises(UserError, match="unknown kind .* as in hf:org/name or file:folder"):
            assets.parse_reference(reference)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, name: str, value: float) -> None:
    folder = tiny_models.make_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights[name][1, 2] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"the weights of {name} hold {value}"):
        load_model(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_an_attention_of_a_hub_is_not_asked_for(tmp_path: Path, key: str) -> None:
    folder = tiny_models.make_model(tmp_path / "model")
    known = json.loads((folder / "config.json").read_text())
    plain = load_model(folder)
    kernel = "kernels-community/flash-attn2"
    (folder / "config.json").write_text(json.dumps({**known, key: kernel, "experts_implementation": kernel}))
    model = load_model(folder)
    assert model.config._attn_implementation == plain.config._attn_implementation == "sdpa"
    assert load_model_config(folder)._attn_implementation != kernel
    ids = torch.arange(3, 11)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    if importlib.util.find_spec("torchao"):
        assert quantize_model(folder, tmp_path / "int8", "int8").config._attn_implementation == "sdpa"


KERNELS = {
    "use_kernels": True,
    "kernel_config": {"kernel_mapping": {"RMSNorm": "kernels-community/liger-kernels:LigerRMSNorm"}},
}


def ask_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection to anywhere, and transformers believes that it could fetch kernels."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError(f"a connection to {arguments[-1]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for module in ("quantizers.quantizer_mxfp4", "integrations.hub_kernels", "modeling_utils"):
        monkeypatch.setattr(f"transformers.{module}.is_kernels_available", lambda *_: True, raising=False)
    monkeypatch.setattr("transformers.quantizers.quantizer_mxfp4.is_triton_available", lambda *_: True, raising=False)


def test_kernels_of_a_config_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.make_model(tmp_path / "model")
    plain = load_model(folder)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **KERNELS}))
    ask_no_hub(monkeypatch)
    model = load_model(folder)
    ids = torch.arange(3, 11)[None]
    assert not model.use_kernels
    assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [({"quant_method": "gptq", "bits": 4}, "gptq"), ({"quant_method": "awq"}, "awq"), ({"quant_method": "../x"}, "../x"),
     ({"quant_method": "fp8", "load_in_4bit": True}, "bitsandbytes"), ({"quant_method": "higgs"}, "higgs"), ({}, None),
     ({"quant_method": ["fp8"]}, ["fp8"]), ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8")],
)  # fmt: skip
def test_quantised_weights_that_ask_for_a_package_are_refused(
    tmp_path: Path, asked: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_models.make_model(tmp_path / "model")
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, "quantization_config": asked}))
    ask_no_hub(monkeypatch)
    for read in (load_model, load_model_config):
        with pytest.raises(
            UserError, match=f"asks for quantized weights of kind {re.escape(repr(kind))}, which are not re"
        ):
            read(folder)


def test_weights_in_8_bits_are_widened_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.make_model(tmp_path / "model")
    known, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    narrow = {}
    for name, weight in weights.items():  # one block for each matrix, of scale 1/4
        if "proj" in name:
            narrow[name] = (weight * 4).to(torch.float8_e4m3fn)
            narrow[f"{name}_scale_inv"] = torch.full((1, 1), 0.25)
            weights[name] = narrow[name].float() / 4
        else:
            narrow[name] = weight
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    plain = load_model(folder)
    save_file(narrow, folder / "model.safetensors", {"format": "pt"})
    # where there is a GPU, transformers would keep them and fetch kernels for them
    asked = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps({**known, "quantization_config": asked}))
    ask_no_hub(monkeypatch)
    assert config_for_loading(folder).quantization_config["dequantize"]
    model = load_model(folder)
    assert not is_quantized(model)
    assert getattr(load_model_config(folder), "quantization_config", None) is None
    ids = torch.arange(3, 11)[None]
    assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-2)
    assert {type(module) for name, module in model.named_modules() if name.endswith("_proj")} == {torch.nn.Linear}


# ---------------------------------------------------------------- words


class Built:
    """What a crafted checkpoint would build."""


def test_a_refused_checkpoint_gives_no_advice_to_trust_it(tmp_path: Path) -> None:
    torch.save({"x": Built()}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"is refused: it would build objects \(.*Built\)") as told:
        load_checkpoint_weights_only(tmp_path / "x.ckpt")
    assert "weights_only" not in str(told.value)


@pytest.mark.parametrize(
    "change",
    ["grid={objective.terms.nonsuch.weight: [1, 2]}", "variants={a: {objective.terms.nonsuch.weight: 1}}",
     "objective.terms.nonsuch.weight=2"],
)  # fmt: skip
def test_a_term_that_is_not_there(experiment: Path, change: str) -> None:
    more = ["grid={variant: [a]}"] if change.startswith("variants") else []
    with pytest.raises(UserError, match=r"objective\.terms\.nonsuch: there is no such term"):
        plan_runs(load_experiment(experiment, [change, *more]))


def test_a_task_without_documents(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    files = {"data_files": {"test": str(tmp_path / "none.jsonl")}}
    task = {"task": "none", "dataset_path": "json", "dataset_kwargs": files, "test_split": "test", "doc_to_target": 0,
            "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}"}  # fmt: skip
    (tmp_path / "none.yaml").write_text(json.dumps(task))
    settings = EvaluationConfig(tasks=["none"], include_path=str(tmp_path))
    (spec,) = resolve_tasks(settings, "pypi")
    with pytest.raises(UserError, match="task 'none': split 'test' of its data has no document"):
        load_task(spec)
