"""A tokenizer as fields of a GGUF file. Byte-level BPE, as of GPT-2, Llama 3, SmolLM2 and Qwen, is tokens and merges; how
text is split before them is a name that readers know. SentencePiece's BPE, as of Gemma, is tokens and scores: readers merge
whatever gives the token of the best score."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_lit.models.loading import load_tokenizer
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Fields = dict[str, Any]

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
BYTE_LEVEL: Fields = {"type": "ByteLevel", "add_prefix_space": False}
SPLITS: dict[str, list[Fields]] = {  # {name that llama.cpp gives it: steps, without what does not change them}
    "gpt-2": [{**BYTE_LEVEL, "use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "use_regex": True}],
    "llama-bpe": [{"type": "Split", "pattern": LLAMA3_SPLIT}, {**BYTE_LEVEL, "use_regex": False}],
    "qwen2": [{"type": "Split", "pattern": QWEN2_SPLIT}, {**BYTE_LEVEL, "use_regex": False}],
}
GEMMA_NORMALIZER: Fields = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def check_gguf_tokenizer(folder: Path, config: PreTrainedConfig) -> None:
    """Raises UserError for a tokenizer that a GGUF file cannot hold as it is."""
    tokenizer = load_tokenizer(folder)
    try:
        fields = _fields(tokenizer)
        if _is_sentencepiece(fields):
            _check_merges(fields)
        else:
            _split_name(fields)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    highest = max([*fields["model"]["vocab"].values(), *(token["id"] for token in fields["added_tokens"])])
    if highest >= config.vocab_size:
        raise UserError(f"{folder}: token {highest} has no row among the model's {config.vocab_size:,}")


def _fields(tokenizer: PreTrainedTokenizerBase) -> Fields:
    """What its tokenizer.json holds."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("its tokenizer has no tokenizer.json, from which a GGUF file is written")
    fields: Fields = json.loads(backend.to_str())
    model, normalizer = fields["model"], fields["normalizer"]
    if model["type"] != "BPE" or (model.get("byte_fallback") and normalizer != GEMMA_NORMALIZER):
        kind = f"{model['type']}{' with byte fallback, not as Gemma has it' if model.get('byte_fallback') else ''}"
        raise UserError(f"its tokenizer is {kind}; byte-level BPE and Gemma's tokenizer are written to GGUF")
    if normalizer is not None and normalizer.get("type") != "NFC" and not _is_sentencepiece(fields):
        raise UserError(f"its tokenizer changes text by {normalizer.get('type')}, which a GGUF file has no place for")
    return fields


def _is_sentencepiece(fields: Fields) -> bool:
    return bool(fields["model"].get("byte_fallback"))


def _check_merges(fields: Fields) -> None:
    """Raises UserError unless merging whatever gives the earliest token is what these merges do."""
    vocabulary: dict[str, int] = fields["model"]["vocab"]
    made = [vocabulary["".join(_pair(merge))] for merge in fields["model"]["merges"]]
    possible = sum(
        token[:n] in vocabulary and token[n:] in vocabulary for token in vocabulary for n in range(1, len(token))
    )
    if made != sorted(made) or len(made) != possible:
        raise UserError("its tokenizer merges in another order than that of its tokens, which a GGUF file has no place for")


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _split_name(fields: Fields) -> str:
    """How llama.cpp calls the way that text is split before merges."""
    step = fields["pre_tokenizer"] or {}
    steps = [_step(one) for one in step.get("pretokenizers", [step])]
    for name, known in SPLITS.items():
        if steps == known:
            return name
    kinds = ", ".join(str(one.get("type", "nothing")) for one in steps)
    raise UserError(f"its tokenizer splits text in a way ({kinds}) that has no name in GGUF; known are {', '.join(SPLITS)}")


def _step(step: Fields) -> Fields:
    """One step, without options that change no token."""
    kept = {
        key: value for key, value in step.items() if key in ("type", "add_prefix_space", "use_regex", "individual_digits")
    }
    return kept | ({"pattern": step["pattern"].get("Regex", "")} if "pattern" in step else {})


def write_gguf_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Adds tokens with their kinds, merges or scores, special tokens, what is put around a text, and the chat template."""
    from gguf import TokenType

    fields = _fields(tokenizer)
    size, is_sentencepiece = config.vocab_size, _is_sentencepiece(fields)
    tokens, kinds = [f"[PAD{n}]" for n in range(size)], [TokenType.UNUSED] * size  # rows beyond the tokenizer
    for token, number in fields["model"]["vocab"].items():
        is_byte = is_sentencepiece and BYTE_TOKEN.fullmatch(token)
        tokens[number], kinds[number] = token, TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in fields["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], kind
    writer.add_token_list(tokens)
    if is_sentencepiece:
        kinds[fields["model"]["vocab"][fields["model"]["unk_token"]]] = TokenType.UNKNOWN
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(n) for n in range(size)])
        writer.add_add_space_prefix(False)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split_name(fields))
        writer.add_token_merges([" ".join(_pair(merge)) for merge in fields["model"]["merges"]])
    writer.add_token_types(kinds)
    _write_special_tokens(writer, tokenizer)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _write_special_tokens(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    around = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and around[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and around[-1] == tokenizer.eos_token_id)
