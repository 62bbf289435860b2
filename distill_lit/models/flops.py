"""How big a model is, and how much arithmetic a token costs."""

from dataclasses import dataclass
from typing import Any

import torch

from distill_lit.models.loading import build_on_meta
from distill_lit.models.pruning.architecture import get_head_dim, get_num_attention_heads, get_num_key_value_heads

FEED_FORWARD_KEYS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")  # of a transformers config

CACHELESS_LAYER_TYPES = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "mlp", "moe")  # of hybrids


@dataclass(frozen=True)
class ModelSize:
    """parameters: unique, tied weights once; embedding: tables of tokens and positions; lm_head_parameters: weights that
    the head multiplies; layers: of the decoder; attention_width: Σ over layers of heads × head width, for the part of
    attention that grows with the context; kv_cache_values_per_token: Σ over layers of keys and values, the numbers that are
    kept of every token read; hidden_size, vocab_size: of the config; feed_forward_size: channels inside the feed-forward
    part; inactive_parameters: parameters of experts that a token is not sent to, of mixtures."""

    parameters: int
    embedding: int
    lm_head_parameters: int
    attention_width: int
    layers: int
    is_tied: bool
    kv_cache_values_per_token: int
    hidden_size: int
    feed_forward_size: int
    vocab_size: int
    inactive_parameters: int = 0

    @property
    def non_embedding(self) -> int:
        """Parameters that are neither in tables of tokens or positions nor in the head."""
        return self.parameters - self.embedding - (0 if self.is_tied else self.lm_head_parameters)

    def flops_per_token(self, context: float = 0.0, *, head: bool = True) -> float:
        """Forward multiplications and additions for one token that sees `context` tokens: 2 per weight, and 4 per
        attention channel and token seen. Kaplan et al. 2020, 2001.08361 §2.1."""
        weights = self.non_embedding - self.inactive_parameters + (self.lm_head_parameters if head else 0)
        return 2.0 * weights + 4.0 * self.attention_width * context


def size_of(model: Any) -> ModelSize:
    """The size of a model, which may be on the meta device."""
    unique = {id(parameter): parameter for parameter in model.parameters()}
    table, output = model.get_input_embeddings().weight, model.get_output_embeddings()
    text = model.config.get_text_config()
    heads, width = get_num_attention_heads(text), get_head_dim(text)
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in unique.values()),
        embedding=sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)),
        lm_head_parameters=output.weight.numel(),
        attention_width=text.num_hidden_layers * heads * width,
        layers=text.num_hidden_layers,
        kv_cache_values_per_token=_num_cached_layers(text) * _cached_channels(text),
        is_tied=output.weight is table,
        hidden_size=text.hidden_size,
        feed_forward_size=_feed_forward_size(text),
        vocab_size=text.vocab_size,
        inactive_parameters=_inactive_parameters(model, text),
    )


def _num_cached_layers(text: Any) -> int:
    """Layers that keep keys and values of their own."""
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or []
    without = sum(kind in CACHELESS_LAYER_TYPES for kind in kinds)
    return int(text.num_hidden_layers - without - (getattr(text, "num_kv_shared_layers", None) or 0))


def _cached_channels(text: Any) -> int:
    """Keys and values of a layer, as transformers keeps them: of latent attention (DeepSeek) those of every head."""
    if getattr(text, "kv_lora_rank", None) and getattr(text, "v_head_dim", None):
        return int(get_num_attention_heads(text) * (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim))
    return 2 * get_num_key_value_heads(text) * get_head_dim(text)


def _feed_forward_size(text: Any) -> int:
    """Channels inside the feed-forward part, of the widest layer where layers differ."""
    sizes = next((size for name in FEED_FORWARD_KEYS if (size := getattr(text, name, None))), 4 * text.hidden_size)
    return int(max(sizes) if isinstance(sizes, (list, tuple)) else sizes)


def _inactive_parameters(model: Any, text: Any) -> int:
    """Parameters of the experts that are not chosen for a token."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((n for name in names if (n := getattr(text, name, None))), 0)
    if not count:
        return 0
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    return int(experts * (count - text.num_experts_per_tok) // count)


def size_from_config(config: Any) -> ModelSize:
    """The size of a model that is never built: its config is enough."""
    model = build_on_meta(config)
    model.tie_weights()
    return size_of(model)
