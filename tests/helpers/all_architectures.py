"""Every causal architecture of transformers at tiny size: configs shrunk by the names of their knobs, random weights.

PYTHONPATH=tests python -m helpers.all_architectures > docs/architectures.md
"""

import inspect
import re
from collections import Counter
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from distill_lit.data.loader import make_batch
from distill_lit.data.packing import pack
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models.dummy_inputs import text_token_ids
from distill_lit.models.generation_check import GenerationMode, supported_generation_mode
from distill_lit.models.packing_check import choose_layout, last_hidden_state
from distill_lit.utils.exceptions import UserError, one_line_message
from helpers.tiny_data import tokens_of

ROW = 32  # tokens
READS = {
    "one_mask": "packs, one mask",
    "mask_per_kind": "packs, a mask for each kind of layer",
    "positions": "packs, masks from positions",
    "padded": "one a row, padded",
    "alone": "one a row, of equal length",
}
WRITES = {
    GenerationMode(True, True): "side by side",
    GenerationMode(False, True): "prompts of equal length",
    GenerationMode(False, False): "prompts of equal length, no cache",
}
HEAD = """# Which architectures can be distilled, and how they read documents

Training rows hold several documents. Before a model reads any, it is compared with itself: rows of random tokens in each
layout, under the attention that will be used, against every document alone through the plain model; and the same for
writing, prompts of unequal length with a cache against the whole text. The first layout that agrees is taken. This table is
every causal architecture of transformers {version} at tiny size, with a window of 6 tokens where it has windows and rows of
32: {counts}. `PYTHONPATH=tests python -m helpers.all_architectures` prints
it, and compares again on documents that no self-check has read.

* packs: several documents in a row, by one mask, by a mask for each kind of layer, or by positions that begin anew
* one a row: every document in a row of its own, which is exact and takes longer: states that run along the row (Mamba,
  linear attention, convolutions), and positions counted along it (alibi, BART)
* refused: it is no causal model as configured, or something stands between its last hidden states and the lm_head
* not built: at this size, or without a package that it needs; the self-check decides when you use it

| architecture | class | documents | writes | why |
|---|---|---|---|---|
"""
VOCABULARY, LAYERS, WINDOW, POSITIONS = 120, 4, 6, 64
MOST_PARAMETERS = 20_000_000
SIZES: dict[int, str] = {
    32: "hidden_size d_model n_embd dim embed_dim embedding_size attention_hidden_size lru_width moe_intermediate_size "
    "shared_expert_intermediate_size expert_ffn_hidden_size",
    48: "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim dim_ff d_inner",
    16: "q_lora_rank kv_lora_rank o_lora_rank laurel_rank",
    8: "head_dim global_head_dim v_head_dim swa_head_dim attention_head_dim qk_nope_head_dim qk_rope_head_dim "
    "mamba_n_heads mamba_d_head mamba_head_dim linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input",
    LAYERS: "num_hidden_layers n_layer n_layers decoder_layers encoder_layers num_layers num_attention_heads n_head "
    "n_heads decoder_attention_heads encoder_attention_heads rotary_dim num_experts num_local_experts n_routed_experts "
    "moe_num_experts num_routed_experts mamba_d_state state_size ssm_state_size mamba_d_conv",
    2: "num_key_value_heads num_kv_heads num_global_key_value_heads swa_num_key_value_heads num_experts_per_tok moe_topk "
    "moe_k top_k_experts num_experts_per_token n_shared_experts linear_num_key_heads linear_num_value_heads "
    "mamba_n_groups n_groups n_group topk_group eos_token_id",
    VOCABULARY: "vocab_size text_vocab_size vocab_size_per_layer_input",
    POSITIONS: "n_positions max_position_embeddings max_seq_len n_ctx",
    WINDOW: "sliding_window attention_window_size window_size attention_chunk_size",
    0: "pad_token_id",
    1: "bos_token_id",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()} | {"is_decoder": True}
KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
# what fits these architectures alone: patterns of layers, sizes that divide one another
OWN: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {"num_kv_shared_layers": 2, "layer_types": KINDS},
    "dots3_note": {"num_key_value_heads": 4},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
}


def names() -> list[str]:
    """The model types of all causal architectures."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str) -> PreTrainedConfig:
    """The config of a model type at tiny size."""
    kinds = {config.model_type: config for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    return shrunk(kinds[name])


def shrunk(kind: type[PreTrainedConfig]) -> PreTrainedConfig:
    """A config of this class with small numbers wherever a knob is known by name."""
    default, other_names = kind(), getattr(kind, "attribute_map", {})
    parts = {n: shrunk(type(value)) for n, value in vars(default).items() if isinstance(value, PreTrainedConfig)}
    have = {*vars(default), *inspect.signature(kind.__init__).parameters}
    changes = {n: value for n, value in SMALL.items() if n in have and n not in parts and n not in other_names}
    changes |= {other_names[n]: value for n, value in SMALL.items() if n in other_names and other_names[n] not in changes}
    if "qk_nope_head_dim" in have:  # latent attention: keys and values of every head are made of one latent
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    return kind(**{**changes, **parts, **OWN.get(kind.model_type, {})})


def tiny_model(name: str, attn_implementation: str | None = None, **changes: Any) -> Any:
    """A random model of a model type, none of its biases and norm weights 0 or 1. Raises whatever transformers raises."""
    torch.manual_seed(0)
    config = tiny_config(name)
    for knob, value in changes.items():
        setattr(config, knob, value)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attn_implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def documents(model: Any, *sizes: int, seed: int = 1) -> list[list[int]]:
    """Token sequences of these lengths, without special tokens."""
    usual = text_token_ids(model)
    drawn = torch.randint(len(usual), (sum(sizes),), generator=torch.Generator().manual_seed(seed))
    return [part.tolist() for part in usual[drawn].split(list(sizes))]


def packed_rows(texts: list[list[int]], length: int) -> dict[str, torch.Tensor]:
    """The documents packed as for training, in one batch."""
    packed, _ = pack(tokens_of(*texts), length)
    return make_batch(packed, np.arange(len(packed)), 1)


def largest_kl(model: Any, texts: list[list[int]], length: int) -> float:
    """The largest KL (nats a token) between the plain model's distribution on each document alone and that of the packed
    forward pass."""
    batch, worst = packed_rows(texts, length), 0.0
    head = get_lm_head(model, model.get_output_embeddings().weight.shape[0])
    with torch.no_grad():
        logits = head.scale_and_cap(head.project(last_hidden_state(model, batch)))
        for row, numbers in enumerate(batch["document_ids"]):
            for number in range(1, int(numbers.max()) + 1):
                here = numbers == number
                alone = model(input_ids=batch["input_ids"][row, here][None], use_cache=False).logits[0].log_softmax(-1)
                kl = (alone.exp() * (alone - logits[row, here].log_softmax(-1))).sum(-1)
                worst = max(worst, float(kl.abs().max()))
    return worst


def reason(error: object) -> str:
    """What it says, without what all say and without numbers that differ between processors."""
    words = str(error).partition(": ")[2]
    return re.sub(r" \(relative difference [^)]*\)|, so it cannot be distilled here", "", words)


def row_of_the_table(name: str) -> str:
    """What the suite does with an architecture, as a line of Markdown; checked on documents that no self-check has read."""
    try:
        model = tiny_model(name)
    except Exception as error:
        return f"| {name} | – | not built | – | {one_line_message(error)[:100]} |"
    kind = type(model).__name__
    try:
        reading = choose_layout(model, ROW)
    except UserError as error:
        return f"| {name} | {kind} | refused | – | {reason(error)} |"
    assert largest_kl(model, documents(model, 19, 3, 9, 1, 26, 5), ROW) < 1e-6, name
    try:
        writing = WRITES[supported_generation_mode(model, ROW // 2)]
    except UserError as error:
        writing = f"refused: {reason(error)}"
    why = "" if reading.layout not in ("padded", "alone") else reason(reading.fallback_reason)
    return f"| {name} | {kind} | {READS[reading.layout]} | {writing} | {why} |"


def table() -> str:
    """All rows, as docs/architectures.md has them."""
    rows = [row_of_the_table(name) for name in sorted(names())]
    counts = Counter(row.split(" | ")[2].split(",")[0] for row in rows)
    return HEAD.format(
        version=transformers.__version__,
        counts=", ".join(f"{counts[name]} {name}" for name in ("packs", "one a row", "refused", "not built")),
    ) + "".join(f"{row}\n" for row in rows)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    print(table(), end="")
