"""Rows of dataset repositories of the hub: fetched into the cache of `datasets`, or streamed."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from distill_lit.assets.hub import describe_refusal
from distill_lit.data.column_values import Row, as_text
from distill_lit.utils.exceptions import UserError, one_line_message

UNNAMED = "default"  # a configuration that nobody has named: the only one of a repository, or its own default


@dataclass(frozen=True)
class Repository:
    """One split of a dataset repository of the hub. revision: its commit, tag or branch, empty for the latest."""

    repository: str
    name: str
    split: str
    revision: str = ""

    def place(self) -> list[str]:
        """What tells it apart from other splits, but for what is in it."""
        return [self.repository, self.name, self.split, *([self.revision] if self.revision else [])]

    def open_with(self, load: Callable[..., Any], **options: Any) -> Any:
        """What `load` of `datasets` makes of it. Raises UserError, one line, when it cannot be had."""
        configuration = None if self.name in ("", UNNAMED) else self.name
        try:
            return load(self.repository, configuration, revision=self.revision or None, **options)
        except Exception as error:
            if refusal := describe_refusal(error, "dataset", self.repository):
                raise UserError(refusal) from error
            raise UserError(f"dataset {self.repository!r} cannot be loaded: {one_line_message(error)}") from error


@dataclass(frozen=True)
class HubSource(Repository):
    """Rows of one split of a dataset repository of the hub, through `datasets` and its cache."""

    def fingerprint(self) -> list[Any]:
        return [*self.place(), self._load()._fingerprint]

    def count(self) -> int:
        return len(self._load())

    def rows(self, keep: Collection[int] | None) -> Iterator[Row]:
        dataset = self._load()
        for i, row in enumerate(dataset if keep is None else dataset.select(sorted(keep))):
            yield {name: as_text(value, f"{self.repository}: row {i + 1}: column {name!r}") for name, value in row.items()}

    def _load(self) -> Any:
        import datasets

        return self.open_with(datasets.load_dataset, split=self.split)


@dataclass(frozen=True)
class StreamSource(Repository):
    """Rows of one split of a dataset repository of the hub, as they come: neither fetched whole nor kept."""

    def fingerprint(self) -> list[Any]:
        return [*self.place(), "streaming", self._builder().hash]

    def count(self) -> int:
        """Rows by the repository's own account. Raises UserError where it gives none."""
        count = self._declared_rows()
        if count is None:
            raise UserError(f"dataset {self.repository!r} does not say how many rows it has")
        return count

    def rows(self, keep: Collection[int] | None) -> Iterator[Row]:
        """The rows, up to the last that is wanted. Raises UserError for a stream that breaks off or ends early."""
        last = max(keep, default=-1) + 1 if keep is not None else None
        number = 0
        try:
            for number, row in enumerate(self._stream(), 1):
                if keep is None or number - 1 in keep:
                    where = f"{self.repository}: row {number}: column"
                    yield {name: as_text(value, f"{where} {name!r}") for name, value in row.items()}
                if number == last:
                    return
        except (OSError, ValueError, RuntimeError, LookupError) as error:
            reason = one_line_message(error)
            raise UserError(f"dataset {self.repository!r}: the stream broke off after {number:,} rows: {reason}") from error
        declared = self._declared_rows()
        if declared is not None and number < declared:
            raise UserError(f"dataset {self.repository!r}: the stream ended early, after {number:,} of {declared:,} rows")

    def _declared_rows(self) -> int | None:
        splits = self._builder().info.splits or {}
        return int(splits[self.split].num_examples) or None if self.split in splits else None

    def _stream(self) -> Any:
        return self._builder().as_streaming_dataset(split=self.split)

    def _builder(self) -> Any:
        import datasets

        return self.open_with(datasets.load_dataset_builder)
