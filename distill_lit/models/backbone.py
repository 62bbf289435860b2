"""The body of a causal language model: all but its head."""

from typing import Any

from torch import nn

from distill_lit.utils.exceptions import UserError


def get_backbone(model: Any) -> nn.Module:
    """The part of a causal language model that ends in the final norm: the decoder, where the model names one that holds
    its embeddings, else the part that does."""
    embeddings = model.get_input_embeddings()
    named = [model.get_decoder()] if hasattr(model, "get_decoder") else []
    for part in (*named, model.base_model, *model.children()):
        if part is not model and any(module is embeddings for module in part.modules()):
            body: nn.Module = part
            return body
    raise UserError(f"{type(model).__name__}: no part of it was found that holds its embeddings and is not the whole")
