"""Small inputs for the tests of `distill_lit.data`: a tokenizer whose tokens are bytes, and packed rows by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill_lit.data import PackedDataset
from distill_lit.data.packing import pack
from distill_lit.data.tokenization import TokenizedDocuments

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# SmolLM2-Instruct's own, which has no {% generation %}
CHAT_TEMPLATE = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}\
{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """256 bytes, then the special tokens; <|im_end|> ends a text."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", extra_special_tokens=list(SPECIAL)
    )
    wrapped.chat_template = chat_template
    return wrapped


def save_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    byte_tokenizer(chat_template).save_pretrained(folder)
    return folder


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tokens_of(*documents: list[int], supervised: list[list[bool]] | None = None) -> TokenizedDocuments:
    """Documents given as their token ids."""
    marks = supervised or [[True] * len(document) for document in documents]
    offsets = np.cumsum([0, *map(len, documents)])
    return TokenizedDocuments(
        np.array([t for d in documents for t in d], dtype=np.uint16),
        offsets,
        np.array([m for d in marks for m in d], dtype=bool),
    )


def random_rows(rows: int, length: int, seed: int = 0) -> PackedDataset:
    """At least `rows` documents of random lengths, packed; the first `rows` rows."""
    rng = np.random.default_rng(seed)
    documents = [rng.integers(1, 90, size).tolist() for size in rng.integers(length // 3, length + 1, 3 * rows)]
    packed, _ = pack(tokens_of(*documents), length)
    return packed.take(np.arange(rows))
