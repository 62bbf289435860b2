"""Rows of one file, by its type: JSON Lines, Parquet, text, an array of JSON, or comma- or tab-separated values."""

import codecs
import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill_lit.data.column_values import Row, as_text
from distill_lit.utils.exceptions import UserError

SHARD_EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet", ".txt")
# beside shards these describe them, as dataset_infos.json does: of a folder they are read where it has no shards
TABLE_EXTENSIONS = (".json", ".csv", ".tsv")
EXTENSIONS = (*SHARD_EXTENSIONS, *TABLE_EXTENSIONS)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
DAMAGED_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
MAX_FIELD_CHARS = 2**31 - 1  # of a field of a table; csv's own limit is 131,072


def count_rows(path: Path) -> int:
    """Rows of a file. Raises UserError for one that cannot be read."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        with _parquet_errors(path):
            return int(parquet.read_metadata(path).num_rows)
    return sum(1 for _ in _items(path))


def read_rows(path: Path, keep: Collection[int] | None) -> Iterator[Row]:
    """The rows with numbers in `keep` (None: all), in order. Raises UserError, naming file and row, for what is no row."""
    if not path.is_file():
        raise UserError(f"{path} was there and is gone; put it back, or start anew without it")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path, keep)
    else:
        yield from (_row(path, i, item) for i, item in enumerate(_items(path)) if keep is None or i in keep)


def _items(path: Path) -> Iterator[Any]:
    """What becomes a row each, in order."""
    if path.suffix == ".txt":
        return _paragraphs(path)
    if path.suffix == ".json":
        return iter(_array(path))
    return _records(path) if path.suffix in DELIMITERS else _lines(path)


def _row(path: Path, number: int, item: Any) -> Row:
    if path.suffix == ".txt":
        return {"text": item}
    row = _parse_line(path, number, item) if path.suffix in (".jsonl", ".gz") else item
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number + 1} is not a JSON object")
    return row


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
        except DAMAGED_GZIP_ERRORS as error:
            raise UserError(f"{path}: {error}") from error
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start:
        raise UserError(f"{path}: not UTF-8, but UTF-16 or UTF-32, or no text; save it as UTF-8")


def _lines(path: Path) -> Iterator[str]:
    """Lines that are not blank."""
    _check_encoding(path)
    with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig") as file:
        try:
            yield from (line for line in file if line.strip())
        except (UnicodeDecodeError, *DAMAGED_GZIP_ERRORS) as error:
            raise UserError(f"{path}: {error}") from error


def _parse_line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: row {number + 1} is not JSON: {error}") from error


def _array(path: Path) -> list[Any]:
    _check_encoding(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        several = "; if each line holds an object, call the file .jsonl" if error.msg == "Extra data" else ""
        raise UserError(f"{path}: not one array of JSON objects: {error}{several}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from error
    if not isinstance(found, list):
        raise UserError(f"{path}: not an array of JSON objects, but {type(found).__name__} at its top")
    return found


def _records(path: Path) -> Iterator[Row]:
    """Lines of a table under the names in its first. All values are texts: an empty field is an empty one, NaN says so."""
    _check_encoding(path)
    csv.field_size_limit(MAX_FIELD_CHARS)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=DELIMITERS[path.suffix], strict=True)
        filled = (line for line in reader if line)  # a blank line is no row
        try:
            names = next(filled, [])
            _check_header(path, names)
            for number, line in enumerate(filled, 1):
                if len(line) != len(names):
                    where = f"{path}: row {number}, which ends in line {reader.line_num},"
                    raise UserError(f"{where} has {len(line)} fields, and the header has {len(names)}")
                yield dict(zip(names, line, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: line {reader.line_num}: {error}") from error


def _check_header(path: Path, names: list[str]) -> None:
    if not names:
        raise UserError(f"{path}: no header with the names of its columns")
    if "" in map(str.strip, names):
        raise UserError(f"{path}: column {[name.strip() for name in names].index('') + 1} of the header has no name")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: the header has the column {repeated[0]!r} twice")


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
