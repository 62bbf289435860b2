"""Losses between inner states: their laws and hand arithmetic, layer maps, and what is refused."""

import itertools
from typing import Any

import pytest
import torch
from helpers.tiny_architectures import FAMILIES, make_family
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPTBigCodeConfig, Qwen3NextConfig

from distill_lit import losses
from distill_lit.config import StudentConfig, TeacherConfig, TermConfig, WidthConfig
from distill_lit.losses import FEATURE_LOSSES, NumberOption, as_objective, build_objective
from distill_lit.losses import hidden_states as r
from distill_lit.losses.layer_mapping import cka_layer_pairs, fixed_layer_pairs, linear_cka
from distill_lit.losses.objective import FeatureTerm
from distill_lit.models import student_config
from distill_lit.models.activations import activation_dims, capture_activations
from distill_lit.models.packed_forward import block_causal_mask
from distill_lit.teachers import teacher_capabilities, teacher_source
from distill_lit.training.feature_alignment import (
    build_feature_alignment,
    check_feature_dimensions,
    check_teacher_supports_features,
    layer_outputs,
)
from distill_lit.utils.exceptions import UserError

QWEN3_NEXT = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
ALLOWED = block_causal_mask(torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]))
generator = torch.Generator().manual_seed(0)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=dtype)


def maps(*shape: int) -> Tensor:
    return random(*shape).softmax(-1)


PER_TOKEN = {**r.HIDDEN_STATE_LOSSES, **{f"attention_{name}": loss for name, loss in r.ATTENTION_LOSSES.items()}}


def inputs(name: str) -> tuple[Tensor, Tensor]:
    return (maps(5, 3, 7), maps(5, 3, 7)) if name.startswith("attention") else (random(5, 7), random(5, 7))


@pytest.mark.parametrize("name", PER_TOKEN)
def test_zero_where_equal_and_never_below(name: str) -> None:
    student, teacher = inputs(name)
    loss = PER_TOKEN[name]
    assert loss(student, teacher).shape == (5,)
    assert (loss(student, teacher) > 0).all()
    torch.testing.assert_close(loss(teacher, teacher), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", PER_TOKEN)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    student, teacher = inputs(name)
    assert torch.autograd.gradcheck(lambda x: PER_TOKEN[name](x, teacher), student.requires_grad_())


def test_hidden_losses_by_hand() -> None:
    s, t = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[3.0, 2.0], [4.0, 0.0]])
    assert r.hidden_mse(s, t).tolist() == [2.0, 12.5]
    assert r.hidden_cosine(s, t).tolist() == pytest.approx([1 - 7 / (5 * 13) ** 0.5, 1.0])
    assert r.hidden_normalized(s, t).tolist() == pytest.approx([4 / 13, 25 / 16])


def test_attention_losses_by_hand() -> None:
    s = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]])
    t = torch.tensor([[[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]])
    kl = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    assert float(r.attention_kl(s, t)) == pytest.approx(float(kl) / 2, rel=1e-5)
    assert float(r.attention_mse(s, t)) == pytest.approx((0.0625 + 0.0625) / 2)


def test_attention_to_nowhere_is_finite() -> None:
    student = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    loss = r.attention_kl(student, torch.tensor([[[0.5, 0.5]]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


def test_relations_equal_a_loop() -> None:
    """Head by head, row by row, over the keys that a token may see."""
    student, teacher = random(2, 6, 8), random(2, 6, 12)
    found = r.relation_kl(student, teacher, 2, ALLOWED)
    for b, i in itertools.product(range(2), range(6)):
        expected = torch.zeros((), dtype=torch.float64)
        for head in range(2):
            keys = ALLOWED[b, 0, i].nonzero().flatten()
            rows = []
            for states in (student, teacher):
                width = states.shape[-1] // 2
                part = states[b, :, head * width : (head + 1) * width]
                rows.append((part[keys] @ part[i] / width**0.5).log_softmax(0))
            expected += functional.kl_div(*rows, log_target=True, reduction="sum") / 2
        torch.testing.assert_close(found[b, i], expected)


def test_relations_are_zero_where_equal_and_see_neither_padding_nor_other_documents() -> None:
    states = random(2, 6, 8).requires_grad_()
    other = random(2, 6, 8)
    assert r.relation_kl(states, states, 2, ALLOWED).abs().max() < 1e-12
    r.relation_kl(states, other, 2, ALLOWED)[0, :3].sum().backward()
    assert (states.grad[0, 3:] == 0).all()  # another document, and padding
    assert (states.grad[1] == 0).all()
    assert (states.grad[0, :3] != 0).any()
    assert torch.autograd.gradcheck(lambda x: r.relation_kl(x, other, 2, ALLOWED), states)


# ---------------------------------------------------------------- layer maps


def term(kind: str, **options: object) -> FeatureTerm:
    return build_objective({"t": TermConfig(kind=kind, options=options)}).feature_terms[0]


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        ("uniform", 4, 12, [(0, 2), (1, 5), (2, 8), (3, 11)]),  # TinyBERT's own
        ("uniform", 3, 4, [(0, 0), (1, 1), (2, 3)]),
        ("uniform", 2, 2, [(0, 0), (1, 1)]),
        ("uniform", 3, 1, [(0, 0), (1, 0), (2, 0)]),
        ("last", 4, 12, [(3, 11)]),
        ([[0, 5], [3, 2]], 4, 12, [(0, 5), (3, 2)]),
    ],
)
def test_fixed_maps(layers: object, student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert fixed_layer_pairs(term("hidden_states", layers=layers), student, teacher) == pairs


def test_cka_is_one_up_to_rotation_and_scale_and_low_for_noise() -> None:
    x = random(400, 6, dtype=torch.float32)
    rotation = torch.linalg.qr(random(6, 6, dtype=torch.float32)).Q
    assert float(linear_cka(x, 3 * x @ rotation)) == pytest.approx(1, abs=1e-4)
    assert float(linear_cka(x, random(400, 6, dtype=torch.float32))) < 0.1


def test_cka_against_its_kernel_form() -> None:
    """⟨K, L⟩ / (‖K‖ ‖L‖) with centred Gram matrices of tokens of length 1."""
    a, b = random(20, 4, dtype=torch.float32), random(20, 7, dtype=torch.float32)
    centre = torch.eye(20) - 1 / 20
    k, other = (centre @ (f := functional.normalize(x)) @ f.T @ centre for x in (a, b))
    torch.testing.assert_close(linear_cka(a, b), (k * other).sum() / (k.norm() * other.norm()))


def test_similar_layers_of_a_pruned_student_are_those_it_came_from() -> None:
    teacher = [random(200, 8, dtype=torch.float32) for _ in range(6)]
    assert cka_layer_pairs([teacher[1], teacher[2], teacher[5]], teacher) == [(0, 1), (1, 2), (2, 5)]


def test_similar_pairs_never_cross_and_are_the_best_of_those() -> None:
    student = [random(60, 5, dtype=torch.float32) for _ in range(3)]
    teacher = [random(60, 5, dtype=torch.float32) for _ in range(5)]
    scores = [[float(linear_cka(a, b)) for b in teacher] for a in student]
    rising = [path for path in itertools.product(range(5), repeat=3) if list(path) == sorted(path)]
    best = max(rising, key=lambda path: sum(scores[i][j] for i, j in enumerate(path)))
    assert cka_layer_pairs(student, teacher) == list(enumerate(best))
    swapped = cka_layer_pairs([teacher[4], teacher[0]], teacher)
    assert swapped[0][1] <= swapped[1][1]


# ---------------------------------------------------------------- states


@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_the_models_own(name: str) -> None:
    model = make_family(name)
    model.set_attn_implementation("eager")
    ids, shape = torch.randint(3, 100, (2, 7)), activation_dims(model.config)
    wanted = {"hidden_states": {0, 2}, "attention": {1}, "queries": {3}, "keys": {3}, "values": {0}}
    with capture_activations(model, wanted) as states:
        output = model(ids, output_hidden_states=True, output_attentions=True)
    assert set(states) == {
        ("hidden_states", 0),
        ("hidden_states", 2),
        ("attention", 1),
        ("queries", 3),
        ("keys", 3),
        ("values", 0),
    }
    assert torch.equal(states["hidden_states", 0], output.hidden_states[1])
    assert torch.equal(states["hidden_states", 2], output.hidden_states[3])
    assert torch.equal(states["attention", 1], output.attentions[1])
    assert states["queries", 3].shape == (2, 7, shape.query_size)
    assert states["keys", 3].shape == states["values", 0].shape == (2, 7, shape.key_value_size)
    states.clear()
    model(ids)
    assert not states


def test_fused_projections_are_taken_apart() -> None:
    model, ids = make_family("gpt2"), torch.randint(3, 100, (1, 5))
    with capture_activations(model, {"hidden_states": {0}, "queries": {1}, "keys": {1}, "values": {1}}) as states:
        model(ids)
    block = model.transformer.h[1]
    whole = block.attn.c_attn(block.ln_1(states["hidden_states", 0]))
    torch.testing.assert_close(torch.cat([states[name, 1] for name in ("queries", "keys", "values")], -1), whole)


def test_projections_of_another_layout_are_refused() -> None:
    """GPT-BigCode's c_attn has one key and value for all heads; Qwen3-Next's q_proj a gate beside each query."""
    sizes = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    for config, words in (
        (GPTBigCodeConfig(**sizes, bos_token_id=1, eos_token_id=2), "c_attn is not GPT-2's.* queries cannot be compared"),
        (Qwen3NextConfig(**sizes, **QWEN3_NEXT, layer_types=["full_attention"] * 2), "q_proj makes a gate beside each"),
    ):
        model = AutoModelForCausalLM.from_config(config)
        with pytest.raises(UserError, match=words), capture_activations(model, {"queries": {1}}):
            pass
        with capture_activations(model, {"hidden_states": {1}, "values": {1} if "q_proj" in words else set()}):
            pass


def test_layer_outputs_are_of_valid_tokens() -> None:
    model, ids = make_family("qwen3"), torch.randint(3, 100, (2, 6))
    documents = torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    valid, positions = documents > 0, torch.arange(6) * documents
    found = layer_outputs(model, [{"input_ids": ids, "document_ids": documents, "position_ids": positions}])
    assert [part.shape for part in found] == [(8, 36)] * 4
    torch.testing.assert_close(found[1], model(ids, output_hidden_states=True).hidden_states[2][valid])


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("hidden_states", {"loss": "l2"}, "options.loss: unknown value 'l2'"),
        ("hidden_states", {"layer": "last"}, "unknown option 'layer'; did you mean 'layers'"),
        ("hidden_states", {"layers": "unifrom"}, "unknown map 'unifrom'; did you mean 'uniform'"),
        ("hidden_states", {"layers": [[0, 1, 2]]}, "nor a list of"),
        ("hidden_states", {"layers": [[0, -1]]}, "nor a list of"),
        ("hidden_states", {"layers": []}, "nor a list of"),
        ("hidden_states", {"projector": "yes"}, "neither true nor false"),
        ("attention", {"heads": "all"}, "options.heads: unknown value 'all'"),
        ("qkv_relations", {"relations": ["q", "o"]}, "not a list of some of q, k, v"),
        ("qkv_relations", {"num_relation_heads": 1.5}, "not a whole number"),
    ],
)
def test_wrong_options_are_refused(kind: str, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=f"objective.terms.t.*{words}"):
        term(kind, **options)


def test_a_temperature_or_a_negative_weight_is_refused() -> None:
    with pytest.raises(UserError, match="hidden_states has no temperature"):
        build_objective({"hidden_states": TermConfig(temperature=2.0)})
    with pytest.raises(UserError, match="objective.terms.hidden_states.weight"):
        build_objective({"hidden_states": TermConfig(weight={"start": 1, "end": -1})})


def check_features(objective: Any, source: str, student_compiled: bool = False, **knobs: Any) -> None:
    config = TeacherConfig(model="", source=source, **knobs)
    described = teacher_source(config).describe(config)
    check_teacher_supports_features(objective, teacher_capabilities(config), described, student_compiled)


@pytest.mark.parametrize("kind", FEATURE_LOSSES)
def test_a_source_without_inner_states_is_refused(kind: str) -> None:
    objective = build_objective({kind: TermConfig()})
    check_features(objective, "online")
    for source in ("offline", "cross_tokenizer", "none"):
        with pytest.raises(UserError, match=rf"objective.terms.{kind}: .* teacher.source {source} .*does not show"):
            check_features(objective, source)
    with pytest.raises(UserError, match="training.compile"):
        check_features(objective, "online", student_compiled=True)
    assert objective.needs_teacher


def test_a_cache_feeds_hidden_states_of_the_layers_it_keeps() -> None:
    described = "teacher.source offline with cache_format hidden_states"
    check_features(build_objective({"hidden_states": TermConfig()}), "offline", hidden_layers=[1, 3])
    for kind in ("attention", "qkv_relations"):
        with pytest.raises(
            UserError, match=f"{kind} compares inner states, which {described} does not show; use teacher.source online$"
        ):
            check_features(build_objective({kind: TermConfig()}), "offline", hidden_layers=[1, 3])
    by_cka = build_objective({"hidden_states": TermConfig(options={"layers": "cka"})})
    with pytest.raises(UserError, match=f"options.layers: cka looks at all layers, and {described} shows some; give"):
        check_features(by_cka, "offline", hidden_layers=[1, 3])
    for knobs in ({}, {"cache_format": "top_k", "hidden_layers": [1, 3]}):
        with pytest.raises(UserError, match="use teacher.source online, or let teacher.hidden_layers name the layers"):
            check_features(build_objective({"hidden_states": TermConfig()}), "offline", **knobs)
    model = make_family("llama").config
    pairs = build_objective({"hidden_states": TermConfig(options={"layers": [[0, 1], [1, 2]]})})
    check_feature_dimensions(pairs, model, model, (1, 2))
    with pytest.raises(
        UserError, match="teacher.hidden_layers: layer 2 is not among them, and objective.terms.hidden_states compares"
    ):
        check_feature_dimensions(pairs, model, model, (1, 3))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("hidden_states", {"layers": [[2, 1]]}, "options.layers: 2 is beyond the student's last layer 1"),
        ("hidden_states", {"layers": [[1, 4]]}, "options.layers: 4 is beyond the teacher's last layer 3"),
        ("hidden_states", {}, "hidden states are 24 wide in the student and 36 in the teacher; set projector: true"),
        ("attention", {}, "the student has 4 heads and the teacher 6; set heads: mean"),
        ("qkv_relations", {"num_relation_heads": 5}, "5 does not divide the 32 channels of the student's queries"),
        (
            "qkv_relations",
            {"num_relation_heads": 32, "relations": ["k"]},
            "32 does not divide the 16 channels of the student's keys",
        ),
    ],
)
def test_terms_that_do_not_fit_the_models_are_refused(kind: str, options: dict, words: str) -> None:
    teacher = make_family("llama").config
    student = student_config(StudentConfig(num_layers=2, width=WidthConfig(hidden_size=24, num_attention_heads=4)), teacher)
    with pytest.raises(UserError, match=words):
        check_feature_dimensions(build_objective({"t": TermConfig(kind=kind, options=options)}), student, teacher)


def test_terms_that_fit_are_taken() -> None:
    teacher = make_family("llama").config
    student = student_config(StudentConfig(num_layers=2, width=WidthConfig(hidden_size=24, num_attention_heads=4)), teacher)
    terms = {
        "hidden_states": TermConfig(options={"projector": True}),
        "attention": TermConfig(options={"heads": "mean"}),
        "qkv_relations": TermConfig(),
    }
    check_feature_dimensions(build_objective(terms), student, teacher)


def test_an_entry_of_the_registry_is_all_that_a_loss_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the mean absolute difference of the values of both last layers, by hand at two predicted tokens."""
    spec = r.FeatureLossSpec(
        "Values of mapped layers: mean absolute difference.",
        {"layers": (r.LayerMappingOption(), "last"), "factor": (NumberOption(0), 1.0)},
        lambda _: ("values",),
        lambda student, teacher, options, inputs: (
            options["factor"] * inputs.at_predictions((student - teacher).abs().mean(-1))
        ),
    )
    monkeypatch.setitem(FEATURE_LOSSES, "value_l1", spec)
    objective = as_objective(losses.Loss("value_l1", factor=2.0))
    check_features(objective, "online")
    with pytest.raises(UserError, match="value_l1 compares inner states, which teacher.source none does not show"):
        check_features(objective, "none")
    model = make_family("llama")
    alignment = build_feature_alignment(objective, model, model.config, model, [], 0)
    assert alignment.captured_layers == ({"values": {3}}, {"values": {3}})
    student, teacher = random(1, 3, 16), random(1, 3, 16)
    documents, mask = torch.ones(1, 3, dtype=torch.long), torch.tensor([[True, True]])
    found = alignment({("values", 3): student}, {("values", 3): teacher}, documents, mask)
    expected = 2 * sum((student[0, i] - teacher[0, i]).abs().sum() / 16 for i in range(2))
    torch.testing.assert_close(found, expected[None])


def test_without_such_terms_there_is_nothing_to_match() -> None:
    assert build_feature_alignment(build_objective({"ce": TermConfig()}), None, None, None, [], 0) is None
