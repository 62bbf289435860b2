"""How many positions a model has: a table of learned ones ends, rotary ones do not."""

import re
from typing import Any

from torch import nn

from distill_lit.models.backbone import get_backbone
from distill_lit.models.loading import build_on_meta
from distill_lit.utils.exceptions import UserError

_known: dict[tuple[type, int], int | None] = {}


def check_row_length(key: str, name: str, config: Any, sequence_length: int) -> None:
    """Raises UserError, naming the field `key` and the model `name`, when rows of `sequence_length` tokens are longer than
    the positions of a model with this transformers config."""
    limit = position_limit(config)
    if limit is not None and sequence_length > limit:
        raise UserError(
            f"{key}: {sequence_length} exceeds the {limit} positions of {name} ({config.model_type}); give at most {limit}"
        )


def max_context(config: Any) -> int:
    """Tokens of the longest context that a transformers config names; more than any text has where it names none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def position_limit(config: Any) -> int | None:
    """The most tokens that a model with this transformers config can read; None where positions are computed.

    Tables are learned (GPT-2), or computed once and as long (the sines of GPT-J, the causal mask of GPT-Neo).
    """
    named = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not named:
        return None
    key = type(config), int(named)
    if key not in _known:
        _known[key] = int(named) if _has_table(config, int(named)) else None
    return _known[key]


def _has_table(config: Any, length: int) -> bool:
    backbone = get_backbone(build_on_meta(config))
    names = [name.rsplit(".")[-1] for name, module in backbone.named_modules() if isinstance(module, nn.Embedding)]
    tables = [table for name, table in backbone.named_buffers() if not name.endswith("inv_freq")]
    return any(re.search(r"pos|wpe", name) for name in names) or any(length in table.shape for table in tables)
