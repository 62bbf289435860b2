"""Depth cuts of every architecture of transformers: the student says what its teacher says when it skips the rest."""

import contextlib
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from distill_lit.models.pruning import check_pruned_logits, only_layers, prune_depth
from distill_lit.models.pruning.architecture import get_decoder_layers
from distill_lit.utils.exceptions import UserError

LAYERS = 4
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4},
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 4},
    "deepseek_v3": {
        "head_dim": None,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 2,
    },
    "falcon": {"head_dim": None},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 96,
        "global_head_dim": 8,
        "num_kv_shared_layers": 2,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "state_size": 8, "n_groups": 1},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4},
}
CUTS = ([0, 2, 3], [0, 2], [1, 3], [0, 1])


def make(name: str, **changes: Any) -> Any:
    """A tiny model of an architecture, with weights that are no longer 0 and 1."""
    settings = {**SMALL, **SPECIAL.get(name, {}), **changes}
    config = CONFIG_MAPPING[name](**{key: value for key, value in settings.items() if value is not None})
    with torch.device("meta"):
        if AutoModelForCausalLM.from_config(config).num_parameters() > 12_000_000:
            raise ValueError("not tiny")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def skipped(model: Any, layers: list[int], ids: torch.Tensor) -> torch.Tensor:
    """What a model says without its other layers, whose outputs are their inputs."""
    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(get_decoder_layers(model)[1]):
            if number not in layers:
                handle = layer.register_forward_hook(
                    lambda _, given, named, out: (
                        ([*given, *named.values()][0], *out[1:]) if isinstance(out, tuple) else [*given, *named.values()][0]
                    ),
                    with_kwargs=True,
                )
                stack.callback(handle.remove)
        return model(ids, use_cache=False).logits.detach()


def cut(model: Any, layers: list[int]) -> Any:
    student = prune_depth(model, layers)
    check_pruned_logits(model, student, layers)
    return student


@pytest.mark.parametrize("layers", CUTS, ids=str)
@pytest.mark.parametrize("name", ["gpt_neo", "bamba", "jamba", "gemma3_text"])
def test_lists_numbers_and_periods_of_a_config_are_cut_along(name: str, layers: list[int]) -> None:
    model, ids = make(name), torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = skipped(model, layers, ids)
    student = cut(model, layers)
    torch.testing.assert_close(student(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    assert student.config.num_hidden_layers == len(layers)
    again = AutoModelForCausalLM.from_config(type(student.config).from_dict(student.config.to_dict()), dtype=torch.float32)
    again.load_state_dict(student.state_dict())
    torch.testing.assert_close(again.eval()(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    with only_layers(model, layers):
        inside = model(ids, use_cache=False).logits
    torch.testing.assert_close(inside, expected, rtol=1e-4, atol=1e-4)


def test_a_period_that_no_cut_keeps_is_refused_by_its_name() -> None:
    model = make("jamba", attn_layer_period=4, attn_layer_offset=0, num_hidden_layers=8)
    with pytest.raises(UserError, match="attn_layer_period: 4 and attn_layer_offset: 0"):
        prune_depth(model, [0, 4, 5, 6])
    assert [cut(model, [0, 4]).config.attn_layer_period, cut(model, [1, 2]).config.num_hidden_layers] == [1, 2]


def test_a_layer_that_depends_on_its_number_is_refused_by_the_key() -> None:
    model = make("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx: True makes a layer depend on its number"):
        cut(model, [0, 2])
    cut(model, [0, 1])
    cut(make("gpt2"), [0, 2])


def test_layers_that_share_the_keys_of_one_that_is_left_out_are_refused_in_a_line() -> None:
    with pytest.raises(UserError, match="no smaller model can be built: The set of layer types") as refused:
        cut(make("gemma3n_text"), [0, 2, 3])
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_every_cut_of_every_architecture_is_exact_or_refused() -> None:
    outcome: dict[str, list[str]] = {"exact": [], "refused": [], "not built": []}
    wrong: list[str] = []
    ids = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(1))
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            model = make(name)
            if model.config.is_encoder_decoder or model.config.get_text_config().num_hidden_layers != LAYERS:
                raise ValueError("of another shape")
            model(ids, use_cache=False)
        except Exception as error:
            outcome["not built"].append(f"{name}: {type(error).__name__}")
            continue
        print(name, [len(names) for names in outcome.values()], wrong[-1:], flush=True)
        for layers in CUTS:
            try:
                student = cut(model, layers)
            except UserError as error:
                outcome["refused"].append(f"{name} {layers}: {error}")
                if "\n" in str(error):
                    wrong.append(f"{name} {layers}: several lines")
                continue
            except Exception as error:
                wrong.append(f"{name} {layers}: raw {type(error).__name__}: {error}")
                continue
            apart = (student(ids, use_cache=False).logits - skipped(model, layers, ids)).abs().max()
            if not apart < 1e-3:
                wrong.append(f"{name} {layers}: differs by {apart}")
            outcome["exact"].append(f"{name} {layers}")
    for kind, names in outcome.items():
        print(f"{kind}: {len(names)}", *names, sep="\n  ")
    assert not wrong, "\n".join(wrong)
    assert len(outcome["exact"]) > 150
