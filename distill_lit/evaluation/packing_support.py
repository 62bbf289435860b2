"""Which models cannot be packed: by their configuration, and by what they raise."""

from typing import Any

PACKING_ERRORS = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
)  # what a model raises that knows no packs


def packing_unsupported_reason(config: Any, max_request_tokens: int) -> str:
    """Why a model cannot be packed with requests of `max_request_tokens` tokens, or nothing."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    implementation = getattr(text, "_attn_implementation", "sdpa")
    if implementation not in ("sdpa", "eager"):
        return f"attention {implementation!r} takes no mask of ancestors"
    if text.model_type == "rwkv" or getattr(text, "alibi", False) or _option(getattr(text, "attn_config", None), "alibi"):
        return f"{text.model_type} tells places by their order in the row, not by a number"
    kinds = {*(getattr(text, "layer_types", None) or []), *(getattr(text, "attention_layers", None) or [])}
    if other := sorted(kinds - {"full_attention", "sliding_attention", "global"}):
        return f"{text.model_type} has layers with {other[0]!r} attention"
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    local = window and max_request_tokens > window
    return f"{text.model_type} has a window of {window} tokens, shorter than a request" if local else ""


def _option(settings: Any, name: str) -> Any:
    """A setting of a configuration within a configuration, which may be a mapping."""
    return settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)


def packing_error_reason(error: Exception) -> str:
    """Why a model cannot be packed that raised this."""
    return f"the model cannot be packed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
