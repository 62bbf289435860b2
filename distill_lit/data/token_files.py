"""Text that is tokens already: `.npy` and `.bin` files, of which only what is asked for is ever read.

A file of tokens says nothing of its tokenizer, so beside `corpus.bin` lies `corpus.bin.json`, or in its folder one
`tokens.json` for all: {"tokenizer": its fingerprint, "dtype": "uint16"}; perhaps `header_bytes` before the first token of a
.bin file, and `tokens`, how many there are.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from distill_lit.config import CorpusConfig
from distill_lit.data.row_files import SHARD_EXTENSIONS
from distill_lit.models.vocabulary import unpadded_vocab_size
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint, read_json
from distill_lit.utils.path_variables import expand_path, missing

TOKEN_EXTENSIONS = (".npy", ".bin")
FOLDER_SIDECAR = "tokens.json"
DTYPES = ("uint8", "uint16", "uint32", "int32", "uint64", "int64")
SIDECAR_KEYS = ("tokenizer", "dtype", "header_bytes", "tokens")
SAMPLED_BLOCKS, BLOCK_TOKENS = 64, 2048  # of a file, spread evenly, that identify it without reading it whole
NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class TokenFile:
    """A file of whole numbers, one token each. tokens: how many; header_bytes: before the first; file_bytes: its size, by
    which a change shows; tokenizer: the fingerprint that its sidecar gives."""

    path: Path
    dtype: np.dtype[Any]
    header_bytes: int
    tokens: int
    file_bytes: int
    tokenizer: str

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens (count,) from number `start` on. Raises UserError where the file is gone or has changed."""
        size = self.dtype.itemsize
        try:
            with self.path.open("rb") as file:
                if (found := os.fstat(file.fileno()).st_size) != self.file_bytes:
                    raise UserError(f"{self.path} has {found:,} bytes, and had {self.file_bytes:,}: it has changed in use")
                data = os.pread(file.fileno(), count * size, self.header_bytes + start * size)
        except OSError as error:
            raise UserError(f"{self.path} was there and cannot be read now: {error.strerror}") from error
        if len(data) != count * size:
            raise UserError(f"{self.path} ends early, after {len(data):,} of {count * size:,} bytes")
        return np.frombuffer(data, self.dtype)

    def sample(self) -> list[np.ndarray]:
        """At most SAMPLED_BLOCKS blocks of its tokens, the first and the last among them."""
        last = max(0, self.tokens - BLOCK_TOKENS)
        starts = sorted({round(x) for x in np.linspace(0, last, SAMPLED_BLOCKS)})
        return [self.read(start, min(BLOCK_TOKENS, self.tokens)) for start in starts]

    def fingerprint(self) -> list[Any]:
        """JSON-like value that changes with the file's size, its sidecar, or a sampled block."""
        digest = blake2b(digest_size=16)
        for block in self.sample():
            digest.update(block.tobytes())
        return [self.path.name, self.file_bytes, str(self.dtype), self.header_bytes, self.tokenizer, digest.hexdigest()]


def is_token_corpus(key: str, corpus: CorpusConfig) -> bool:
    """Whether a corpus is files of tokens: by its path's ending, or by what a folder holds. key: its own in the config."""
    if corpus.dataset or corpus.generated is not None or not corpus.path or re.match(r"(hf|pypi|shipped):", corpus.path):
        return False
    path = _plain_path(key, corpus)
    return path.suffix in TOKEN_EXTENSIONS or (path.is_dir() and bool(_files_in(path)))


def token_files(key: str, corpus: CorpusConfig) -> list[TokenFile]:
    """The files of a corpus of tokens, in the order of their names. Raises UserError for what cannot be read as tokens."""
    path = _plain_path(key, corpus)
    if corpus.forms:
        raise UserError(f"{key}: files of tokens have no columns for {corpus.forms[0]}; leave it out")
    if corpus.max_documents:
        raise UserError(f"{key}.max_documents: files of tokens are no rows of documents; set data.max_tokens")
    if not path.exists():
        raise UserError(f"{key}.path: {path}: {missing(path)}")
    if not path.is_dir():
        return [_open(key, path)]
    others = sorted(p.name for p in path.rglob("*") if p.name.endswith(SHARD_EXTENSIONS))
    if others:
        raise UserError(f"{key}.path: {path} holds tokens and, in {others[0]}, text; give each a folder of its own")
    return [_open(key, file) for file in _files_in(path)]


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Identifies what every token id means, and which ends a text; not how text becomes tokens."""
    return fingerprint([sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id])


def check_tokens(key: str, files: list[TokenFile], tokenizer: Any, folder: Path) -> None:
    """Raises UserError for tokens of another tokenizer, by the sidecar's word and by sampled ids that there are not."""
    expected, size = vocabulary_fingerprint(tokenizer), unpadded_vocab_size(tokenizer)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-sequence token, which ends every document")
    for file in files:
        if file.tokenizer != expected:
            raise UserError(
                f"{key}: {file.path.name} is of the tokenizer {file.tokenizer or 'unknown'}, and that of {folder} is "
                f'{expected}; tokenize the text anew, or, if they are the same, put "tokenizer": "{expected}" into '
                f"{file.path.name}.json"
            )
        for block in file.sample():
            check_in_vocabulary(file, block, size)


def check_in_vocabulary(file: TokenFile, tokens: np.ndarray, vocab_size: int) -> None:
    """Raises UserError for an id that the tokenizer has no token for."""
    least, most = int(tokens.min(initial=0)), int(tokens.max(initial=0))
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise UserError(f"{file.path}: token {wrong:,}, and the tokenizer has {vocab_size:,} tokens; is its dtype right?")


def _plain_path(key: str, corpus: CorpusConfig) -> Path:
    return expand_path(corpus.path.removeprefix("file:"), f"{key}.path")


def _files_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in TOKEN_EXTENSIONS and p.is_file())


def _open(key: str, path: Path) -> TokenFile:
    facts, size = _sidecar(key, path), path.stat().st_size
    dtype, header = _npy_header(key, path) if path.suffix == ".npy" else _bin_header(key, path, facts)
    body = size - header
    if body <= 0 or body % dtype.itemsize:
        raise UserError(f"{key}.path: {path} has {size:,} bytes, which are no whole number of {dtype} tokens")
    tokens = body // dtype.itemsize
    if facts.get("tokens", tokens) != tokens:
        raise UserError(f"{key}.path: {path} holds {tokens:,} tokens, by its sidecar {facts['tokens']:,}: it is not whole")
    return TokenFile(path, dtype, header, tokens, size, str(facts.get("tokenizer", "")))


def _sidecar(key: str, path: Path) -> Mapping[str, Any]:
    places = [path.with_name(f"{path.name}.json"), path.with_name(FOLDER_SIDECAR)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"{key}.path: {path} needs {places[0].name} beside it, or {FOLDER_SIDECAR} for the whole folder: "
            '{"tokenizer": its fingerprint, "dtype": "uint16"}'
        )
    try:
        facts = read_json(found)
    except ValueError as error:
        raise UserError(f"{key}.path: {found} is not JSON: {error}") from error
    if not isinstance(facts, dict) or (unknown := sorted(set(facts) - set(SIDECAR_KEYS))):
        wrong = f"unknown key {unknown[0]!r}" if isinstance(facts, dict) else "no JSON object"
        raise UserError(f"{key}.path: {found}: {wrong}; its keys are {', '.join(SIDECAR_KEYS)}")
    for name in ("header_bytes", "tokens"):
        if name in facts and (type(facts[name]) is not int or facts[name] < 0):
            raise UserError(f"{key}.path: {found}: {name} is {facts[name]!r}, no whole number")
    return facts


def _bin_header(key: str, path: Path, facts: Mapping[str, Any]) -> tuple[np.dtype[Any], int]:
    if facts.get("dtype") not in DTYPES:
        raise UserError(
            f"{key}.path: {path}: its sidecar has dtype {facts.get('dtype')!r}; choose from {', '.join(DTYPES)}"
        )
    return np.dtype(facts["dtype"]).newbyteorder("<"), int(facts.get("header_bytes", 0))


def _npy_header(key: str, path: Path) -> tuple[np.dtype[Any], int]:
    with path.open("rb") as file:
        if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
            raise UserError(f"{key}.path: {path} is no .npy file of NumPy; name raw numbers .bin")
        file.seek(0)
        try:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = reader(file)
        except ValueError as error:
            raise UserError(f"{key}.path: {path}: {error}") from error
        header = file.tell()
    if len(shape) != 1 or dtype.name not in DTYPES:
        raise UserError(f"{key}.path: {path} holds {dtype} of shape {shape}; tokens are whole numbers in one dimension")
    if path.stat().st_size != header + shape[0] * dtype.itemsize:
        raise UserError(f"{key}.path: {path} holds fewer tokens than the {shape[0]:,} of its header: it is not whole")
    return dtype, header
