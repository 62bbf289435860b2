"""Small random models of every shape that surgery knows."""

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY, LAYERS = 120, 4
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 36,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"query_pre_attn_scalar": 9, "sliding_window": 5}
GPT2 = {"n_embd": 32, "n_inner": 40, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama_bias": lambda: LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "qwen2": lambda: Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "gemma2": lambda: Gemma2Config(**SHAPE, **GEMMA, final_logit_softcapping=5.0, attn_logit_softcapping=3.0),
    "gemma3": lambda: Gemma3TextConfig(
        **SHAPE,
        **GEMMA,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, **GPT2, initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
}
FAMILIES = tuple(CONFIGS)


def make_family(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose biases and norm weights are no longer 0 and 1 either."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def text_batches(count: int = 2, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Calibration batches of random tokens; the last three of the second row are not valid."""
    torch.manual_seed(seed)
    batches = []
    for _ in range(count):
        valid = torch.ones(2, 12, dtype=torch.bool)
        valid[1, 9:] = False
        batches.append({"input_ids": torch.randint(3, VOCABULARY, (2, 12)), "valid": valid})
    return batches
