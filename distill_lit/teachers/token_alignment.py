"""Tokenizer alignment: of the same text in two tokenizers, which tokens of one say the same bytes as which tokens of the
other.

Everything is counted in bytes: characters are cut differently by byte-level tokens, and one character may be several.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_lit.models.vocabulary import unpadded_vocab_size
from distill_lit.utils.exceptions import UserError

MAX_UTF8_CONTINUATION_BYTES = 3  # bytes that can follow the first of a character
NORMALIZATION_PROBES = {  # what a tokenizer does to text, and a text that shows it
    "changes the case of letters": "A",
    "takes accents off letters": "é",
    "writes letters in other forms (NFKC)": "ﬁ",
    "changes blanks": " a  b ",
    "changes ends of lines": "a\n\nb\n",
}


class AlignedSpans(NamedTuple):
    """Stretches of bytes that both tokenizers cut at both ends, the shortest there are, in order.

    student, teacher: (S, 2) int64, first token and the one after the last, of each tokenizer.
    """

    student: np.ndarray
    teacher: np.ndarray


def align_tokens(
    student_byte_lengths: Sequence[int] | np.ndarray, teacher_byte_lengths: Sequence[int] | np.ndarray
) -> AlignedSpans:
    """Spans of two tokenizations of the same bytes, given the bytes of each token; tokens without bytes, such as a BOS,
    belong to no span.

    Raises UserError when they are not of the same length.
    """
    a, b = np.cumsum(student_byte_lengths), np.cumsum(teacher_byte_lengths)
    if (a[-1] if len(a) else 0) != (b[-1] if len(b) else 0):
        raise UserError("two tokenizations of a text have different lengths in bytes and cannot be aligned")
    ends = np.intersect1d(a, b)
    ends = ends[ends > 0]
    return AlignedSpans(
        _ranges(np.asarray(student_byte_lengths), a, ends), _ranges(np.asarray(teacher_byte_lengths), b, ends)
    )


def _ranges(sizes: np.ndarray, ends_of_tokens: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(first token, after the last) of the spans that end at `ends`."""
    non_empty = np.flatnonzero(sizes)  # of tokens that end at the same byte, the one that has bytes
    last = non_empty[np.searchsorted(ends_of_tokens[non_empty], ends)]
    first = (
        non_empty[np.searchsorted(ends_of_tokens[non_empty], np.concatenate([[0], ends[:-1]]), side="right")]
        if len(ends)
        else last
    )
    return np.stack([first, last + 1], axis=1).astype(np.int64).reshape(-1, 2)


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The bytes that every token id stands for; special tokens stand for none.

    Knows byte-level BPE (GPT-2 and after) and SentencePiece-like pieces with byte fallback. Raises UserError for others.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = _decoder_types(backend.get("decoder"))
    if "ByteLevel" in kinds:
        unicode_to_bytes = _unicode_to_bytes()

        def read(piece: str) -> bytes:
            known = all(letter in unicode_to_bytes for letter in piece)
            return bytes(unicode_to_bytes[letter] for letter in piece) if known else piece.encode()

    elif "ByteFallback" in kinds or "Metaspace" in kinds or "Replace" in kinds:
        read = _read_piece
    else:
        raise UserError(
            f"a tokenizer that decodes by {', '.join(sorted(kinds)) or 'nothing'} cannot be aligned byte by byte"
        )
    special = {int(n) for n in tokenizer.all_special_ids} | {t["id"] for t in backend["added_tokens"] if t["special"]}
    model_vocab = backend["model"]["vocab"]
    model_vocab = model_vocab if isinstance(model_vocab, dict) else {piece for piece, _ in model_vocab}
    # one that is a piece too, such as Gemma's ▁▁, is spelled like a piece
    added = {t["id"]: t["content"] for t in backend["added_tokens"] if t["content"] not in model_vocab}
    found = [b""] * unpadded_vocab_size(tokenizer)
    for piece, number in tokenizer.get_vocab().items():
        if number not in special:
            found[number] = added[number].encode() if number in added else read(piece)
    return found


def check_alignable(key: str, owner: str, tokenizer: Any, table: Sequence[bytes]) -> None:
    """Raises UserError, naming the field `key`, for a tokenizer that reads usual texts as other texts than they are.

    Unicode's canonical forms (NFC), which rarely change one, are no reason. table: what `token_bytes` says.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    unknown = get_unk_token_id(tokenizer)
    for reason, text in NORMALIZATION_PROBES.items():
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        shown = normalizer.normalize_str(text).replace("▁", " ") if normalizer else text
        is_spelled = unknown in ids or b"".join(table[i] for i in ids) in (text.encode(), f" {text}".encode())
        if not is_spelled or shown not in (text, f" {text}"):
            raise UserError(
                f"{key}: {owner} tokenizer {reason}, so its tokens spell another text than they are made of, and cannot "
                "be aligned; choose a model whose tokenizer reads text as it is"
            )


def get_unk_token_id(tokenizer: Any) -> int | None:
    """The id that stands for whatever has no token; None for a tokenizer without one, or where it ends texts too."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    name = model.get("unk_token")
    number = model.get("unk_id") if name is None else tokenizer.get_vocab().get(name)
    return None if number in (tokenizer.bos_token_id, tokenizer.eos_token_id) else number


def _decoder_types(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    return {decoder["type"]}.union(*(_decoder_types(inner) for inner in decoder.get("decoders", [])))


def _read_piece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


def _unicode_to_bytes() -> dict[str, int]:
    """GPT-2's visible letter of each byte, turned round (Radford et al. 2019, `bytes_to_unicode`)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + i): byte for i, byte in enumerate(hidden)}}


def token_byte_lengths(text: bytes, pieces: Sequence[bytes]) -> np.ndarray | None:
    """(tokens,) int64: how many bytes of the text each token spells; None where together they spell another text.

    A blank that a tokenizer puts in front of a text, and behind a token added to it, is of no byte.
    """
    if pieces and b"".join(pieces) == b" " + text:
        first = next(i for i, piece in enumerate(pieces) if piece)
        return np.array([len(piece) - (i == first) for i, piece in enumerate(pieces)], dtype=np.int64)
    sizes, offset = [], 0
    for piece in pieces:
        shown = piece if text.startswith(piece, offset) else piece.removeprefix(b" ")
        if not text.startswith(shown, offset):
            return None
        sizes.append(len(shown))
        offset += len(shown)
    return np.array(sizes, dtype=np.int64) if offset == len(text) else None


def adds_prefix_space(tokenizer: Any, table: Sequence[bytes]) -> bool:
    """Whether the tokenizer puts a blank in front of every text."""
    return b"".join(table[i] for i in tokenizer("a")["input_ids"]).startswith(b" ")


def trim_partial_characters(data: bytes) -> tuple[str, int]:
    """(text, bytes left out before it): `data` without the parts of characters that a cut has left at its ends.

    Empty text where what is between them is no UTF-8.
    """
    for start in range(min(MAX_UTF8_CONTINUATION_BYTES, len(data)) + 1):
        for end in range(len(data), max(start, len(data) - MAX_UTF8_CONTINUATION_BYTES) - 1, -1):
            try:
                return data[start:end].decode("utf-8"), start
            except UnicodeDecodeError:
                continue
    return "", 0
