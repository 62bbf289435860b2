"""Narrower models: what is kept is kept exactly, what does nothing can go, and the rest follows hand arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_architectures import FAMILIES, LAYERS, SHAPE, VOCABULARY, make_family, text_batches
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    LlamaConfig,
    NemotronConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
)

from distill_lit.config import WidthConfig
from distill_lit.models.pruning import (
    WidthSelection,
    measure_importance,
    narrow_config,
    norm_corrections,
    prune_depth,
    prune_width,
    select_width,
    target_widths,
)
from distill_lit.models.pruning.architecture import (
    ATTENTION_OUTPUTS,
    FFN_OUTPUTS,
    is_transposed,
    residual_norms,
    submodules,
    subtracts_mean,
    weight_offset,
    weighted_modules,
)
from distill_lit.utils.exceptions import UserError

BATCHES = text_batches()
IDS = BATCHES[0]["input_ids"]
NARROW = WidthConfig(hidden_size=24, intermediate_size=16, num_attention_heads=4, num_key_value_heads=2)
NARROW_GPT2 = WidthConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2)
ROTARY = [name for name in FAMILIES if name != "gpt2"]


def whole(model: torch.nn.Module) -> WidthSelection:
    """The cut that keeps everything."""
    config = model.config
    heads, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    return WidthSelection(
        list(range(config.hidden_size)),
        [list(range(40))] * LAYERS,
        [list(range(groups))] * LAYERS,
        [list(range(heads))] * LAYERS,
        {},
    )


def without(cut: WidthSelection, **less: object) -> WidthSelection:
    return WidthSelection(**{**vars(cut), **less})


def read_columns(module: torch.nn.Module) -> torch.Tensor:
    """The weight of a linear layer or a Conv1D as (outputs, inputs)."""
    return module.weight.T if is_transposed(module) else module.weight


def assert_same(student: torch.nn.Module, model: torch.nn.Module, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(student(IDS).logits, model(IDS).logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cut_that_keeps_everything_changes_no_logit(name: str) -> None:
    model = make_family(name)
    student = prune_width(model, select_width(model, WidthConfig(), BATCHES))
    assert torch.equal(student(IDS).logits, model(IDS).logits)
    assert select_width(model, WidthConfig(), BATCHES) == whole(model)


@pytest.mark.parametrize("name", ROTARY)
def test_heads_that_write_nothing_can_go(name: str) -> None:
    """Another one in each layer: query heads 0 and 3, 1 and 4, …, one of each key-value group."""
    model, cut = make_family(name), whole(make_family(name))
    heads = []
    for layer, module in enumerate(submodules(model, ATTENTION_OUTPUTS)):
        gone = (layer % 3, 3 + layer % 3)
        for head in gone:
            module.weight.data[:, head * 8 : head * 8 + 8] = 0
        heads.append([i for i in range(6) if i not in gone])
    student = prune_width(model, without(cut, heads=heads))
    assert student.config.num_attention_heads == 4
    assert student.config.head_dim == 8
    assert_same(student, model)


@pytest.mark.parametrize("name", ROTARY)
def test_key_value_groups_that_write_nothing_can_go(name: str) -> None:
    model, cut = make_family(name), whole(make_family(name))
    groups, heads = [], []
    for layer, module in enumerate(submodules(model, ATTENTION_OUTPUTS)):
        gone = layer % 2
        module.weight.data[:, gone * 24 : gone * 24 + 24] = 0
        groups.append([1 - gone])
        heads.append([i + 3 * (1 - gone) for i in range(3)])
    student = prune_width(model, without(cut, key_value_heads=groups, heads=heads))
    assert (student.config.num_attention_heads, student.config.num_key_value_heads) == (3, 1)
    assert_same(student, model)


@pytest.mark.parametrize("name", FAMILIES)
def test_neurons_that_write_nothing_can_go(name: str) -> None:
    model, cut = make_family(name), whole(make_family(name))
    neurons = []
    for layer, module in enumerate(submodules(model, FFN_OUTPUTS)):
        gone = list(range(layer, 40, 3))
        read_columns(module).data[:, gone] = 0
        neurons.append([i for i in range(40) if i not in gone][:26])
        read_columns(module).data[:, [i for i in range(40) if i not in neurons[-1]]] = 0
    assert_same(prune_width(model, without(cut, neurons=neurons)), model)


@pytest.mark.parametrize("name", ROTARY)
def test_hidden_channels_that_carry_nothing_can_go(name: str) -> None:
    """Norms then divide by √(36/24) less, and Gemma scales its embeddings by √24 instead of √36: both are made good."""
    model, gone = make_family(name), list(range(1, 36, 3))
    with torch.no_grad():
        model.get_input_embeddings().weight[:, gone] = 0
        for module in (*submodules(model, ATTENTION_OUTPUTS), *submodules(model, FFN_OUTPUTS)):
            for parameter in module.parameters():
                parameter[gone] = 0
        for norm in residual_norms(model).values():
            if "gemma" in name:
                norm.weight[gone] = -1  # what Gemma's norms write into the stream: nothing either
    kept = [i for i in range(36) if i not in gone]
    corrections = norm_corrections(model, BATCHES, kept)
    student = prune_width(model, without(whole(model), hidden=kept, norm_corrections=corrections))
    assert student.config.hidden_size == 24
    assert_same(student, model, 1e-3)
    careless = prune_width(model, without(whole(model), hidden=kept))
    assert (careless(IDS).logits - model(IDS).logits).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_a_corrected_norm_says_what_it_said_before(name: str) -> None:
    """The first norm, which sees the same embeddings in both models, when the channels that are gone were large."""
    model, kept = make_family(name), list(range(24))
    model.get_input_embeddings().weight.data[:, 24:] += 2.0
    first = next(iter(residual_norms(model)))

    def output(student: torch.nn.Module) -> torch.Tensor:
        seen = []
        handle = student.get_submodule(first).register_forward_hook(lambda _, inputs, output: seen.append(output))
        student(IDS)
        handle.remove()
        return seen[0][BATCHES[0]["valid"]].detach()

    target, cut = output(model)[:, kept], without(whole(model), hidden=kept)
    if name == "gpt2":
        cut = without(cut, heads=[[0, 1, 2]] * LAYERS, key_value_heads=[[0, 1, 2]] * LAYERS)
    plain = output(prune_width(model, cut)) - target
    norms = norm_corrections(model, BATCHES, kept)
    corrected = output(prune_width(model, without(cut, norm_corrections=norms))) - target
    assert corrected.square().mean() < 0.1 * plain.square().mean()


@pytest.mark.parametrize(
    ("kind", "offset", "is_centred"), [(NemotronConfig, 1.0, True), (CohereConfig, 0.0, True), (LlamaConfig, 0.0, False)]
)
def test_norms_are_told_by_what_they_say(kind: Any, offset: float, is_centred: bool) -> None:
    """Nemotron's is a LayerNorm that multiplies by 1 + weight, Cohere's one without a bias and of another class."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(**SHAPE)).eval()
    first, norm = next(iter(residual_norms(model).items()))
    x = torch.randn(200, 36)
    x[:, 24:] = 3 * x[:, 24:] + 2
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        model.get_input_embeddings().weight[: len(x)] = x[:VOCABULARY]
    assert (weight_offset(norm), subtracts_mean(norm)) == (offset, is_centred)
    kept = list(range(24))
    cut = without(whole(model), hidden=kept, norm_corrections=norm_corrections(model, BATCHES, kept))
    student, seen = prune_width(model, cut), model.get_input_embeddings()(IDS[BATCHES[0]["valid"]])
    corrected = student.get_submodule(first)(seen[:, :24])
    careless = prune_width(model, without(whole(model), hidden=kept)).get_submodule(first)(seen[:, :24])
    target = norm(seen)[:, :24]
    if kind is CohereConfig:  # the shift has no place to go
        corrected, careless, target = (y - y.mean(0) for y in (corrected, careless, target))
    assert (corrected - target).square().mean() < 0.3 * (careless - target).square().mean()


def test_norms_without_weights_are_refused() -> None:
    with pytest.raises(UserError, match="width: the norms of OlmoForCausalLM have no weights"):
        select_width(AutoModelForCausalLM.from_config(OlmoConfig(**SHAPE)), WidthConfig(intermediate_size=20), BATCHES)


def test_norm_corrections_by_hand() -> None:
    for name in ("llama", "gpt2"):
        model, kept = make_family(name), list(range(30))
        last, seen = "transformer.ln_f" if name == "gpt2" else "model.norm", []
        handle = model.get_submodule(last).register_forward_hook(
            lambda _, inputs, output, seen=seen: seen.append(inputs[0])
        )
        model(IDS)
        handle.remove()
        x = seen[0][BATCHES[0]["valid"]].detach().double()
        factor, shift = norm_corrections(model, BATCHES[:1], kept)[last]
        if name == "llama":
            expected = (x[:, kept].square().mean(1).sqrt() / x.square().mean(1).sqrt()).mean(), torch.tensor(0.0)
        else:
            spread = x.var(1, correction=0).sqrt()
            expected = (
                (x[:, kept].var(1, correction=0).sqrt() / spread).mean(),
                ((x[:, kept].mean(1) - x.mean(1)) / spread).mean(),
            )
        assert (factor, shift) == pytest.approx([float(value) for value in expected], rel=1e-5)


def test_importance_by_hand() -> None:
    """Llama's first layer, written out: neurons, heads and one norm."""
    model = make_family("llama")
    batch = BATCHES[1]
    layer, valid = model.model.layers[0], batch["valid"]
    with torch.no_grad():
        x = model.model.embed_tokens(batch["input_ids"])
        h = layer.input_layernorm(x)
        positions = model.model.rotary_emb(x, torch.arange(12)[None])
        mask = torch.full((12, 12), -torch.inf).triu(1)[None, None].expand(2, 1, 12, 12)
        written = []
        handle = layer.self_attn.o_proj.register_forward_hook(lambda _, inputs, output: written.append(inputs[0]))
        x = x + layer.self_attn(h, attention_mask=mask, position_embeddings=positions)[0]
        handle.remove()
        g = layer.post_attention_layernorm(x)
        neurons = functional.silu(layer.mlp.gate_proj(g)) * layer.mlp.up_proj(g)
        used = measure_importance(model, [batch])
    torch.testing.assert_close(used.neurons[0].float(), neurons[valid].abs().mean(0))
    heads = written[0][valid].view(-1, 6, 8).norm(dim=-1).mean(0)
    torch.testing.assert_close(used.heads[0].float(), heads)
    assert used.hidden.shape == (36,)
    assert used.neurons.shape == (4, 40)
    assert (used.hidden.float() > h[valid].abs().mean(0) + g[valid].abs().mean(0)).all()


def test_the_most_used_heads_neurons_and_channels_stay() -> None:
    model = make_family("llama")
    with torch.no_grad():
        for layer, decoder in enumerate(model.model.layers):
            decoder.mlp.up_proj.weight[layer::LAYERS] *= 50  # neurons
            decoder.self_attn.v_proj.weight[8 * (layer % 2) : 8 * (layer % 2) + 8] *= 50  # a key-value group
        for norm in residual_norms(model).values():
            norm.weight[::2] *= 50
    cut = select_width(model, WidthConfig(18, 10, 0, 1), BATCHES)
    assert cut.hidden == list(range(0, 36, 2))
    assert cut.neurons == [list(range(layer, 40, LAYERS)) for layer in range(LAYERS)]
    assert cut.key_value_heads == [[layer % 2] for layer in range(LAYERS)]
    assert cut.heads == [[3 * (layer % 2) + i for i in range(3)] for layer in range(LAYERS)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_narrow_student_opens_from_its_folder(name: str, tmp_path: Path) -> None:
    model, width = make_family(name), NARROW_GPT2 if name == "gpt2" else NARROW
    student = prune_width(model, select_width(model, width, BATCHES))
    tied = student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert tied == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)
    assert dict(student.named_parameters()).keys() == dict(model.named_parameters()).keys()
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, student(IDS).logits)
    config = again.config
    assert (config.hidden_size, config.num_attention_heads) == (width.hidden_size, width.num_attention_heads)
    assert {axes for _, _, axes in weighted_modules(again)} == {axes for _, _, axes in weighted_modules(model)}


def test_depth_and_width_together() -> None:
    model = prune_depth(make_family("gemma3"), [0, 3])
    student = prune_width(model, select_width(model, NARROW, BATCHES))
    assert student.config.layer_types == ["sliding_attention", "full_attention"]
    assert len(student.model.layers) == 2
    assert student(IDS).logits.isfinite().all()


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (WidthConfig(hidden_size=48), "width.hidden_size: 48 exceeds the teacher's 36"),
        (WidthConfig(intermediate_size=41), "width.intermediate_size: 41 exceeds"),
        (WidthConfig(num_attention_heads=7), "width.num_attention_heads: 7 exceeds"),
        (WidthConfig(num_attention_heads=3), "3 heads cannot be cut for 2 key-value heads"),
        (WidthConfig(num_attention_heads=6, num_key_value_heads=1), "at most the teacher's 3"),
        (WidthConfig(hidden_size=35), "transformers refuses these sizes: .*35.* not a multiple"),
    ],
)
def test_widths_that_do_not_fit_are_refused(width: WidthConfig, words: str) -> None:
    with pytest.raises(UserError, match=words):
        narrow_config(make_family("llama").config, width)


def test_a_config_that_names_no_neurons_is_refused() -> None:
    with pytest.raises(UserError, match="width: opt names no intermediate_size of all layers"):
        target_widths(WidthConfig(intermediate_size=20), OPTConfig())


def test_heads_and_groups_follow_each_other() -> None:
    def sizes(name: str, width: WidthConfig) -> tuple[int, int]:
        found = target_widths(width, make_family(name).config)
        return found["num_attention_heads"], found["num_key_value_heads"]

    assert sizes("llama", WidthConfig(num_attention_heads=4)) == (4, 2)
    assert sizes("llama", WidthConfig(num_key_value_heads=1)) == (3, 1)
    assert sizes("gpt2", NARROW_GPT2) == (2, 2)


def test_heads_of_gpt2_go_with_its_hidden_size() -> None:
    with pytest.raises(UserError, match="hidden_size: 32 must be heads × head width = 24 for gpt2"):
        narrow_config(make_family("gpt2").config, WidthConfig(num_attention_heads=3))


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (Phi3Config(hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, vocab_size=90,
                    pad_token_id=0), "qkv_proj"),
        (Olmo2Config(hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4, vocab_size=90,
                     num_key_value_heads=2), "q_norm|k_norm"),
    ],
)  # fmt: skip
def test_models_with_other_parts_are_refused(config: object, part: str) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=rf"{type(model).__name__} has a part '.*({part})' that width pruning"):
        select_width(model, WidthConfig(intermediate_size=20), BATCHES)


def test_widths_in_place_of_a_selection_and_other_types_are_refused() -> None:
    model, sizes = make_family("llama"), {"hidden_size": 24}
    for given in (sizes, NARROW):
        with pytest.raises(UserError, match="selection: .* does not say which channels"):
            prune_width(model, given)
    with pytest.raises(UserError, match=r"width: \{'hidden_size': 24\} is no WidthConfig"):
        select_width(model, sizes, BATCHES)


def test_importance_needs_a_token_and_takes_batches_of_transformers() -> None:
    model = make_family("llama")
    for measure in (measure_importance, lambda model, batches: norm_corrections(model, batches, [0, 1])):
        with pytest.raises(UserError, match="batches: they hold no token"):
            measure(model, [])
    theirs = [{"input_ids": batch["input_ids"], "attention_mask": batch["valid"].long()} for batch in BATCHES]
    ours = [{**batch, "valid": batch["attention_mask"].bool()} for batch in theirs]
    assert select_width(model, NARROW, iter(theirs)) == select_width(model, NARROW, ours)
