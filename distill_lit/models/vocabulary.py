"""Do teacher and student mean the same token by the same number?"""

from pathlib import Path
from typing import Any

import numpy as np

from distill_lit.models.loading import load_model_config, load_tokenizer
from distill_lit.utils.exceptions import UserError


def unpadded_vocab_size(tokenizer: Any, embedding_rows: int = 1 << 62) -> int:
    """Real tokens: columns of the logits beyond them are padding. embedding_rows: of the embeddings; a token beyond them,
    such as one for images in a model of text, is none."""
    return min(embedding_rows, int(max(tokenizer.get_vocab().values())) + 1)


def load_unpadded_vocab_size(folder: Path) -> int:
    """Columns of the logits of the model in `folder` that are tokens of its tokenizer: heads are often padded."""
    return unpadded_vocab_size(load_tokenizer(folder), load_model_config(folder).get_text_config().vocab_size)


def check_ids(ids: Any, tokenizer: Any, rows: int) -> None:
    """Raises UserError for a token that a model with embeddings of `rows` tokens cannot read. ids: any array of tokens."""
    largest = int(np.max(ids, initial=0))
    if largest >= rows:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(f"the text holds {token!r}, token {largest} of a model that has {rows:,}; leave such rows out")


def check_same_vocabulary(teacher: Any, student: Any) -> int:
    """The number of real tokens both tokenizers share. Raises UserError at the first id they read differently.

    Sizes alone prove nothing: two tokenizers of equal size can number their tokens differently.
    """
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    if ours == theirs:
        return unpadded_vocab_size(teacher)
    names = {number: token for token, number in theirs.items()}
    for token, number in sorted(ours.items(), key=lambda item: item[1]):
        if names.get(number) != token:
            raise UserError(
                f"tokenizers differ: id {number} is {token!r} for the teacher and {names.get(number)!r} for the student; "
                "only a cross-tokenizer objective can join them"
            )
    raise UserError(f"tokenizers differ: the student has {len(theirs) - len(ours)} tokens that the teacher lacks")


def check_special_tokens(tokenizer: Any, rows: int, folder: Path) -> None:
    """Raises UserError when the model in `folder`, with embeddings of `rows` tokens, cannot read the special tokens of its
    tokenizer, or when no token begins a text and none ends it. Others that it cannot read are fine until they occur."""
    needed = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    for name, number in needed.items():
        if number is not None and number >= rows:
            raise UserError(f"{folder}: its tokenizer's {name}_token is {number:,}, and the model has {rows:,} tokens")
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has neither a beginning- nor an end-of-sequence token")
