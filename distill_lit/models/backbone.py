"""The body of a causal language model: all but its head."""

from collections.abc import Callable
from typing import Any

import torch
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


def compile_backbone(model: Any) -> nn.Module:
    """torch.compile of a model's backbone, which is returned. A part that cannot be compiled runs as it is, and the log
    says so: a training does not end for it. Rows of a second shape are compiled once more, for any shape."""
    import torch._dynamo  # takes seconds

    torch._dynamo.config.suppress_errors = True
    backbone = get_backbone(model)
    backbone.compile()
    return backbone


def compile_for_training(model: Any) -> None:
    """The same where gradients are recorded. Without, as in validations and checks, whose rows have shapes of their own,
    the backbone runs as it is: each shape and mode would have to be compiled for itself."""
    backbone = compile_backbone(model)
    compiled: Callable[..., Any] | None = backbone._compiled_call_impl
    assert compiled is not None  # by now

    def call(*args: Any, **options: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else backbone._call_impl)(*args, **options)

    backbone._compiled_call_impl = call
