"""Which layers stay, against cases done by hand, and models that have only these."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_architectures import FAMILIES, LAYERS, make_family, text_batches
from torch.nn import functional
from transformers import AutoModelForCausalLM, BatchEncoding, Qwen3MoeConfig

from distill_lit.models.pruning import (
    block_influence,
    calibration_inputs,
    check_layers,
    choose_layers,
    only_layers,
    prune_depth,
    removal_order,
)
from distill_lit.models.pruning.architecture import ATTENTION_OUTPUTS, FFN_OUTPUTS, submodules
from distill_lit.utils.exceptions import UserError

BATCHES = text_batches()
IDS = BATCHES[0]["input_ids"]


def silence(model: torch.nn.Module, *layers: int) -> None:
    """Makes these layers write nothing into the residual stream."""
    with torch.no_grad():
        for modules in (submodules(model, ATTENTION_OUTPUTS), submodules(model, FFN_OUTPUTS)):
            for layer in layers:
                for parameter in modules[layer].parameters():
                    parameter.zero_()


@pytest.mark.parametrize(
    ("method", "depth", "kept"),
    [
        ("uniform", 1, [0]),
        ("uniform", 2, [0, 3]),
        ("uniform", 3, [0, 2, 3]),
        ("uniform", 4, [0, 1, 2, 3]),
        ("first_last", 1, [0]),
        ("first_last", 2, [0, 3]),
        ("first_last", 3, [0, 1, 3]),
    ],
)
def test_layers_chosen_without_measuring(method: str, depth: int, kept: list[int]) -> None:
    assert choose_layers(make_family("llama"), depth, method, []) == kept


@pytest.mark.parametrize("method", ["block_influence", "kl_greedy"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_measured_methods_drop_layers_that_do_nothing(name: str, method: str) -> None:
    model = make_family(name)
    silence(model, 1, 2)
    if name == "gemma3":  # its post-norms would make something even of nothing, but for their eps
        assert torch.allclose(model(IDS).logits, prune_depth(model, [0, 3])(IDS).logits, atol=1e-5)
    assert choose_layers(model, 2, method, BATCHES) == [0, 3]


def test_block_influence_is_one_minus_the_cosine_of_input_and_output() -> None:
    model = make_family("llama")
    total, count = torch.zeros(LAYERS), 0
    for batch in BATCHES:
        hidden = list(model(batch["input_ids"], output_hidden_states=True).hidden_states[:-1])
        positions = model.model.rotary_emb(hidden[0], torch.arange(12)[None])
        # the last entry of hidden_states has passed the final norm, so the last layer is run by hand
        mask = torch.full((12, 12), -torch.inf).triu(1)[None, None].expand(2, 1, 12, 12)
        hidden.append(model.model.layers[-1](hidden[-1], attention_mask=mask, position_embeddings=positions))
        for layer in range(LAYERS):
            cosine = functional.cosine_similarity(hidden[layer], hidden[layer + 1], dim=-1)
            total[layer] += (1 - cosine)[batch["valid"]].sum().detach()
        count += int(batch["valid"].sum())
    assert block_influence(model, BATCHES) == pytest.approx((total / count).tolist(), rel=1e-4)


def test_block_influence_ignores_padding() -> None:
    model, other = make_family("llama"), [{name: value.clone() for name, value in batch.items()} for batch in BATCHES]
    other[0]["input_ids"][1, 9:] = 7
    assert block_influence(model, other) == pytest.approx(block_influence(model, BATCHES))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_greedy_order_equals_a_search_over_real_models(name: str) -> None:
    """Every candidate is built as a model of its own and compared with the whole one by its logits."""
    model = make_family(name)

    def cost(kept: list[int]) -> float:
        student, total = prune_depth(model, kept), 0.0
        for batch in BATCHES:
            with torch.no_grad():
                p, q = (m(batch["input_ids"]).logits[batch["valid"]].log_softmax(-1) for m in (model, student))
            total += float(functional.kl_div(q, p, log_target=True, reduction="batchmean"))
        return total

    kept, order = list(range(LAYERS)), []
    while len(kept) > 1:
        order.append(min(kept, key=lambda layer: cost([i for i in kept if i != layer])))
        kept.remove(order[-1])
    assert removal_order(model, 1, BATCHES) == order


def test_greedy_order_does_not_depend_on_how_tokens_are_batched() -> None:
    model, long = make_family("llama"), text_batches(1, seed=5)[0]["input_ids"]
    short = long[1:, :2]
    batches = [{"input_ids": ids, "valid": torch.ones_like(ids, dtype=torch.bool)} for ids in (long[:1], short)]
    valid = torch.ones_like(long, dtype=torch.bool)
    valid[1, 2:] = False
    assert removal_order(model, 1, batches) == removal_order(model, 1, [{"input_ids": long, "valid": valid}])


def test_greedy_order_goes_on_from_a_shorter_one() -> None:
    model = make_family("llama")
    whole, trials = removal_order(model, 1, BATCHES), []
    assert removal_order(model, 3, BATCHES) == whole[:1]
    rest = removal_order(model, 1, BATCHES, whole[:1], lambda stage, done, total, unit: trials.append((done, total)))
    assert rest == whole
    assert trials == [(i + 1, 5) for i in range(5)]  # three layers tried, then two


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_with_all_layers_says_the_same(name: str) -> None:
    model = make_family(name)
    assert torch.equal(prune_depth(model, [0, 1, 2, 3])(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_left_out_of_a_model_and_a_model_without_them_agree(name: str) -> None:
    """Layers that differ in kind, such as Gemma's sliding ones, keep their kind."""
    model = make_family(name)
    before = model(IDS).logits
    with only_layers(model, [1, 2]):
        inside = model(IDS, use_cache=False).logits
    student = prune_depth(model, [1, 2])
    assert torch.equal(inside, student(IDS).logits)
    assert torch.equal(model(IDS).logits, before)
    assert student.num_parameters() < model.num_parameters()


def test_layers_without_which_nothing_changes_can_go() -> None:
    model = make_family("qwen3")
    silence(model, 0, 2)
    torch.testing.assert_close(prune_depth(model, [1, 3])(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "depth", "words"),
    [
        ("unifrom", 2, "did you mean 'uniform'"),
        ([0, 0], 2, "rising, distinct"),
        ([1, 0], 0, "rising, distinct"),
        ([0, 1], 3, "as many as num_layers"),
        ([], 0, "rising"),
        ([0, -1], 0, "neither a method"),
        (3, 0, "neither a method"),
    ],
)
def test_wrong_layers_are_refused(layers: object, depth: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_layers(layers, depth)


def test_an_unknown_method_chooses_nothing() -> None:
    """It was taken for kl_greedy, by which an experiment may be misled for long."""
    with pytest.raises(UserError, match="layers: unknown method 'kl_gredy'; did you mean 'kl_greedy'"):
        choose_layers(make_family("llama"), 2, "kl_gredy", BATCHES)


def test_layers_beyond_the_teacher_are_refused() -> None:
    with pytest.raises(UserError, match="num_layers: 5 exceeds the teacher's 4 layers"):
        choose_layers(make_family("llama"), 5, "uniform", [])
    with pytest.raises(UserError, match="4 is beyond the teacher's last layer 3"):
        prune_depth(make_family("llama"), [0, 4])


@pytest.mark.parametrize(
    ("method", "depth", "batches", "words"),
    [
        ("uniformly", 2, BATCHES, "layers: unknown method 'uniformly'; did you mean 'uniform'"),
        ([0, 1], 2, BATCHES, r"layers: \[0, 1\] is no method"),
        ("uniform", 0, [], "num_layers: 0 is not a whole number from 1 to 4"),
        ("first_last", -1, [], "num_layers: -1 is not"),
        ("kl_greedy", 2.0, BATCHES, "num_layers: 2.0 is not"),
        ("block_influence", True, BATCHES, "num_layers: True is not"),
        ("block_influence", 2, [], "batches: they hold no token"),
        ("kl_greedy", 2, [], "batches: they hold no token"),
        ("kl_greedy", 2, [{"input_ids": IDS, "valid": torch.zeros_like(IDS)}], "batches: they hold no token"),
        ("kl_greedy", 2, BATCHES[0], "batches: one batch"),
        ("kl_greedy", 2, [IDS], "not Tensor"),
        ("kl_greedy", 2, [{"ids": IDS}], "not ids"),
        ("kl_greedy", 2, [{"input_ids": IDS, "attention_mask": torch.ones(2, 1, 12, 12)}], r"shape \(2, 1, 12, 12\)"),
    ],
)
def test_choices_that_cannot_be_made_are_refused(method: Any, depth: Any, batches: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        choose_layers(make_family("llama"), depth, method, batches)


def test_batches_of_transformers_count_the_tokens_of_their_mask() -> None:
    model = make_family("llama")
    theirs = [BatchEncoding({"input_ids": b["input_ids"], "attention_mask": b["valid"].long()}) for b in BATCHES]
    ours = [{**batch, "valid": batch["attention_mask"].bool()} for batch in theirs]
    assert block_influence(model, iter(theirs)) == block_influence(model, ours)
    assert removal_order(model, 2, iter(theirs)) == removal_order(model, 2, ours)
    unmasked = [{"input_ids": batch["input_ids"]} for batch in BATCHES]
    whole = [{**batch, "valid": torch.ones_like(batch["input_ids"]).bool()} for batch in unmasked]
    assert block_influence(model, unmasked) == block_influence(model, whole)


def test_a_batch_without_a_token_that_counts_changes_nothing() -> None:
    model, empty = make_family("llama"), {"input_ids": IDS, "valid": torch.zeros_like(IDS)}
    assert removal_order(model, 2, [empty, *BATCHES]) == removal_order(model, 2, BATCHES)


def test_a_text_in_place_of_texts_is_refused() -> None:
    with pytest.raises(UserError, match="texts: 'the river stone' is one text; give a list"):
        calibration_inputs(None, "the river stone")


def test_a_model_whose_layers_depend_on_their_number_is_refused() -> None:
    """Every second layer of this one is a mixture of experts."""
    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "decoder_sparse_step": 2}
    model = AutoModelForCausalLM.from_config(Qwen3MoeConfig(**shape, **experts, intermediate_size=8, num_hidden_layers=4))
    with pytest.raises(UserError, match="Qwen3MoeForCausalLM: its parts do not fit a smaller model"):
        prune_depth(model, [0, 2])
    assert len(prune_depth(model, [0, 1]).model.layers) == 2


@pytest.mark.parametrize("layers", [(0, 2), range(0, 4, 2), np.array([0, 2]), [np.int64(0), 2], torch.tensor([0, 2])])
def test_layers_may_stand_in_any_sequence_of_integers(layers: Any) -> None:
    model = make_family("llama")
    assert torch.equal(prune_depth(model, layers)(IDS).logits, prune_depth(model, [0, 2])(IDS).logits)


@pytest.mark.parametrize("layers", [[], [0, 0], [2, 1], [-1], [9], "uniform", 2, True, [False, True], [0.0, 1.0], ["0"]])
def test_prune_depth_refuses_what_is_no_list_of_layers(layers: Any) -> None:
    with pytest.raises(UserError, match="layers: ") as refusal:
        prune_depth(make_family("llama"), layers)
    assert "neither a method" not in str(refusal.value)
