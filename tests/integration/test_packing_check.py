"""Packed rows against each document alone through the plain model: kinds of layers, of attention, writing, positions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import ROOT
from helpers.all_architectures import ROW, documents, largest_kl, packed_rows, table, tiny_config, tiny_model
from helpers.tiny_models import make_corpus, make_model, make_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Phi3Config, Qwen2Config

from distill_lit.config import WidthConfig, load_experiment
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.plan import plan_runs
from distill_lit.generation.sampling import SamplingParams, generate_batch
from distill_lit.models import load_model_config
from distill_lit.models.activations import capture_activations
from distill_lit.models.flops import size_from_config
from distill_lit.models.generation_check import GenerationMode, supported_generation_mode
from distill_lit.models.packed_forward import ONE_MASK, PADDED, plan_forward_passes, run_backbone
from distill_lit.models.packing_check import choose_layout, hidden_states_of_texts, last_hidden_state, unpacked_model_inputs
from distill_lit.models.position_limits import position_limit
from distill_lit.models.pruning import choose_layers, narrow_config
from distill_lit.utils.exceptions import UserError

SHAPE = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
BUILDERS: dict[str, Callable[[], Any]] = {
    "qwen2 with windows": lambda: Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=2, tie_word_embeddings=False
    ),
    "phi3 longrope": lambda: Phi3Config(
        **SHAPE, rope_parameters=LONGROPE, original_max_position_embeddings=16, max_position_embeddings=64
    ),
    "llama dynamic ntk": lambda: LlamaConfig(**SHAPE, rope_parameters=DYNAMIC, max_position_embeddings=16),
}
# architecture: the layout that it is read in
LAYOUTS = {
    "llama": "one_mask",
    "mixtral": "positions",
    "gemma2": "mask_per_kind",
    "gemma3_text": "mask_per_kind",
    "gpt_oss": "mask_per_kind",
    "llama4_text": "mask_per_kind",
    "mistral": "positions",
    "qwen2 with windows": "mask_per_kind",
    "gpt_neo": "positions",
    "mamba2": "padded",
    "jamba": "padded",
    "qwen3_next": "padded",
    "lfm2": "one_mask",
    "rwkv": "padded",
    "bloom": "padded",
    "bart": "padded",
    "phi3 longrope": "alone",
}
TEXTS = (19, 3, 9, 1, 26, 5)


def build(name: str, **options: Any) -> Any:
    """A random model by architecture, or by a name of BUILDERS."""
    if name not in BUILDERS:
        return tiny_model(name, **options)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(BUILDERS[name](), **options).eval()


@pytest.mark.parametrize("name", LAYOUTS)
def test_packed_documents_are_those_of_the_plain_model(name: str) -> None:
    for attention in ("eager", "sdpa") if build(name)._supports_sdpa else ("eager",):
        model = build(name, attn_implementation=attention)
        assert largest_kl(model, documents(model, *TEXTS), ROW) < 1e-6
        assert choose_layout(model, ROW).layout == LAYOUTS[name]


def test_a_mask_without_windows_is_what_the_check_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one mask that forgets windows moves the distribution, and is not taken even where nobody tells of windows; rows
    within the window pack by it."""
    monkeypatch.setattr("distill_lit.models.packing_check.has_local_attention", lambda config, length: False)
    model = build("mistral")
    texts = documents(model, *TEXTS)
    batch = packed_rows(texts, ROW)
    with torch.no_grad():
        right, wrong = (
            last_hidden_state(model, batch),
            run_backbone(model, plan_forward_passes(model, batch, "one_mask")[0]),
        )
    assert choose_layout(model, ROW).layout == "positions"
    real = batch["document_ids"] > 0
    assert float((right - wrong)[real].norm() / right[real].norm()) > 0.1
    assert choose_layout(tiny_model("mistral", sliding_window=ROW), ROW).layout == "one_mask"


@pytest.mark.parametrize("name", ["falcon", "mpt"])
def test_alibi_counts_along_the_row(name: str) -> None:
    model = tiny_model(name, alibi=True) if name == "falcon" else tiny_model(name)
    assert largest_kl(model, documents(model, *TEXTS), ROW) < 1e-6


def test_dynamic_rope_depends_on_the_longest_text_of_a_batch() -> None:
    model = build("llama dynamic ntk")
    texts = documents(model, 12, 5, 9, 3)  # within the trained positions: the plain model's own state never grows
    assert largest_kl(model, texts, 16) < 1e-6


@pytest.mark.parametrize("name", ["rwkv", "mamba2", "gemma3_text", "bart"])
def test_gradients_are_those_of_documents_alone(name: str) -> None:
    model = tiny_model(name)
    texts = documents(model, *TEXTS)
    batch = packed_rows(texts, ROW)
    weights = torch.randn(120, 32, generator=torch.Generator().manual_seed(3))
    score = lambda hidden, ids: (hidden * weights[ids]).sum()  # noqa: E731
    real = batch["document_ids"] > 0
    score(last_hidden_state(model, batch)[real], batch["input_ids"][real]).backward()
    packed = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    hidden: list[torch.Tensor] = []
    backbone = model.get_decoder() if name == "bart" else model.base_model
    for text in texts:
        ids = torch.tensor([text])
        hidden.append(score(backbone(input_ids=ids, use_cache=False).last_hidden_state[0], ids[0]))
    sum(hidden).backward()
    alone = [p.grad for p in model.parameters() if p.grad is not None]
    for mine, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-6)


def test_inner_states_come_back_in_the_shape_of_the_batch() -> None:
    model = tiny_model("jamba", attn_implementation="eager")
    texts = documents(model, *TEXTS)
    batch, layers = packed_rows(texts, ROW), {1, 3}  # the attention layers
    with (
        torch.no_grad(),
        capture_activations(model, {"hidden_states": {0, 3}, "attention": layers, "keys": layers}) as states,
    ):
        last_hidden_state(model, batch, states)
    assert choose_layout(model, ROW).layout == PADDED
    rows, length = batch["input_ids"].shape
    for row in range(rows):
        for number in range(1, int(batch["document_ids"][row].max()) + 1):
            here = (batch["document_ids"][row] == number).nonzero()[:, 0]
            with (
                torch.no_grad(),
                capture_activations(model, {"hidden_states": {0, 3}, "attention": layers, "keys": layers}) as alone,
            ):
                model(input_ids=batch["input_ids"][row, here][None], use_cache=False)
            for (what, layer), value in alone.items():
                found = states[what, layer][row]
                found = found[:, here][:, :, here] if what == "attention" else found[here]
                torch.testing.assert_close(found, value[0], rtol=1e-4, atol=1e-5)
    assert states["attention", 1].shape == (rows, 4, length, length)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "mistral", "gemma3_text"])
def test_calibration_is_the_same_under_either_attention(name: str) -> None:
    """A boolean mask that eager attention adds to its scores lets later tokens change what is measured of earlier ones."""
    found = []
    for attention in ("eager", "sdpa"):
        model = tiny_model(name, attn_implementation=attention)
        batches = unpacked_model_inputs(model, [packed_rows(documents(model, *TEXTS), ROW)])
        with torch.no_grad():
            inputs = [{k: v for k, v in batch.items() if k != "valid"} for batch in batches]
            logits = [
                model(**one, use_cache=False).logits[batch["valid"]] for one, batch in zip(inputs, batches, strict=True)
            ]
        found.append((torch.cat(logits), choose_layers(model, 2, "kl_greedy", batches)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)
    assert found[0][1] == found[1][1]


def test_short_number_formats_pack_and_are_told_apart() -> None:
    assert choose_layout(tiny_model("llama").bfloat16(), ROW).layout == "one_mask"
    assert choose_layout(tiny_model("rwkv").bfloat16(), ROW).layout == "padded"


@pytest.mark.parametrize("name", ["jamba", "falcon_h1", "bloom", "inkling_text"])
def test_a_leak_that_rounding_would_hide_is_found(name: str) -> None:
    """Weights of a fresh model are small: what a document passes to the next is no more than bfloat16 rounds away."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32).eval().bfloat16()
    assert choose_layout(model, ROW).layout == "padded"


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "gpt_oss", "gemma3_text"])
def test_short_number_formats_still_pack(name: str) -> None:
    assert choose_layout(tiny_model(name).bfloat16(), ROW).layout in ("one_mask", "mask_per_kind", "positions")


@pytest.mark.parametrize("name", ["falcon_mamba", "mamba"])
def test_states_kept_in_float32_reach_a_bfloat16_lm_head(name: str) -> None:
    model = tiny_model(name).bfloat16()
    assert choose_layout(model, ROW).layout == "padded"
    assert last_hidden_state(model, packed_rows(documents(model, 9, 5), ROW)).dtype == torch.bfloat16


def with_a_token_that_jumps(name: str) -> Any:
    """A model of which one token's hidden state depends on how long the row is, as rounded activations may."""
    model = tiny_model(name)

    def jump(_: Any, __: Any, output: Any) -> Any:
        if output.last_hidden_state.shape[1] > 8:
            output.last_hidden_state[:, 2] *= 1.4
        return output

    model.model.register_forward_hook(jump)
    return model


def test_a_single_token_may_jump_where_weights_are_quantized() -> None:
    """Of 18 layers in int8 with a scale per token, one token of 128 was 0.40 away, the mean 0.026."""
    with pytest.raises(UserError, match="later tokens change what it makes of earlier ones .relative difference 0.29"):
        choose_layout(with_a_token_that_jumps("llama"), ROW)
    model = with_a_token_that_jumps("llama")
    model.config.quantization_config = {"quant_method": "torchao"}
    assert choose_layout(model, ROW).layout in (ONE_MASK, PADDED)


def test_what_is_no_causal_model_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="later tokens change what it makes of earlier ones"):
        choose_layout(tiny_model("xlm"), ROW)
    with pytest.raises(UserError, match="its logits are not lm_head and last hidden states alone"):
        choose_layout(tiny_model("bert"), ROW)


def test_a_layer_that_reads_across_rows_is_named() -> None:
    """Nothing makes such a model right: each layout is tried, and the first layer that differs is named."""
    model = tiny_model("llama")
    layer = model.model.layers[2]
    layer.register_forward_hook(
        lambda _, inputs, output: output + 0.1 * torch.arange(output.shape[1])[:, None] / output.shape[1]
    )
    with pytest.raises(UserError, match=r"from layer 2 \(LlamaDecoderLayer\) on|later tokens"):
        choose_layout(model, ROW)


@pytest.mark.parametrize("name", ["llama", "rwkv", "gemma3_text", "mamba"])
def test_texts_read_side_by_side_are_those_of_the_plain_model(name: str) -> None:
    model = tiny_model(name)
    texts = documents(model, 3, 19, 7)
    for text, hidden in zip(texts, hidden_states_of_texts(model, texts), strict=True):
        with torch.no_grad():
            alone = model.base_model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(hidden, alone, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("name", "writing"),
    [
        ("llama", GenerationMode(True, True)),
        ("gemma3_text", GenerationMode(True, True)),
        ("rwkv", GenerationMode(False, False)),
        ("recurrent_gemma", GenerationMode(False, True)),
        ("bart", GenerationMode(False, True)),
        ("granitemoehybrid", GenerationMode(False, False)),
    ],
)
def test_what_is_written_greedily_is_what_the_plain_model_would_choose(name: str, writing: GenerationMode) -> None:
    model = tiny_model(name)
    prompts = documents(model, 3, 14, 3, 9)
    written = generate_batch(model, prompts, [2], SamplingParams(0.0, 1.0, 5), seed=0)
    assert supported_generation_mode(model, 14) == writing
    for prompt, text in zip(prompts, written, strict=True):
        whole = torch.tensor([[*prompt, *text.token_ids]])
        with torch.no_grad():
            logprobs = model(input_ids=whole, use_cache=False).logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
        assert logprobs.argmax(-1).tolist() == text.token_ids
        torch.testing.assert_close(torch.tensor(text.logprobs), logprobs.amax(-1), atol=2e-3, rtol=1e-3)


# ---------------------------------------------------------------- positions


@pytest.mark.parametrize(
    ("name", "limit"), [("gpt2", 64), ("opt", 64), ("gptj", 64), ("gpt_neo", 64), ("llama", None), ("bloom", None)]
)
def test_learned_positions_end(name: str, limit: int | None) -> None:
    config = tiny_config(name)
    assert position_limit(config) == limit
    model = tiny_model(name)
    with torch.no_grad():
        model(input_ids=torch.full((1, 64), 7), use_cache=False)
        if limit:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, 65), 7), use_cache=False)


def test_rows_beyond_the_positions_are_refused_by_the_plan(tmp_path: Path) -> None:
    """For the teacher, and for a student of its own."""
    corpus = make_corpus(tmp_path / "text.jsonl")
    short = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(short).save_pretrained(tmp_path / "gpt2")
    make_tokenizer(tmp_path / "gpt2")
    make_model(tmp_path / "llama")
    experiment = """
name: positions
teacher: {{model: "file:{teacher}"}}
students: {{small: {student}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}}}
data: {{corpora: {{text: {{path: "file:{corpus}"}}}}, sequence_length: {length}, validation_sequences: 4}}
evaluation: {{tasks: [piqa], limit: 10}}
"""
    for teacher, student in (("gpt2", "{num_layers: 1}"), ("llama", f"{{from: 'file:{tmp_path}/gpt2'}}")):
        for length in (64, 65):
            path = tmp_path / "positions.yaml"
            path.write_text(experiment.format(teacher=tmp_path / teacher, student=student, corpus=corpus, length=length))
            if length == 64:
                check_against_teacher(plan_runs(load_experiment(path)))
                continue
            with pytest.raises(UserError, match="data.sequence_length: 65 exceeds the 64 positions of students.small"):
                check_against_teacher(plan_runs(load_experiment(path)))
    assert load_model_config(tmp_path / "gpt2").n_positions == 64


# ---------------------------------------------------------------- every architecture


@pytest.mark.slow
def test_the_table_of_architectures_is_that_of_the_pinned_transformers() -> None:
    committed = (ROOT / "docs/architectures.md").read_text()
    assert f"transformers {transformers.__version__} " in committed, "print it again: python tests/architectures.py"
    assert table() == committed


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv", "falcon_mamba"])
def test_a_model_without_attention_heads_is_a_teacher(name: str, tmp_path: Path) -> None:
    """The table says that it can be distilled: its config is read, its arithmetic counted without attention."""
    tiny_config(name).save_pretrained(tmp_path)
    size = size_from_config(load_model_config(tmp_path))
    assert (size.attention_width, size.kv_cache_values_per_token, size.layers) == (0, 0, 4)
    with pytest.raises(UserError, match="has no attention heads; only its layers can be cut"):
        narrow_config(load_model_config(tmp_path), WidthConfig(hidden_size=16))


def test_a_vocabulary_without_text_is_refused() -> None:
    model = tiny_model("llama")
    model.config.eos_token_id = list(range(120))
    with pytest.raises(UserError, match="names every token as one that is no text"):
        choose_layout(model, ROW)
    model.config.eos_token_id = list(range(119))
    assert choose_layout(model, ROW).layout == "one_mask"
