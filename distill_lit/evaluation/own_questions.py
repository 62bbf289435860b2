"""What stands in the files of the user's own that models are asked: task files, their data, text of probes.

A config holds their names alone. Read without lm-eval, whose import takes seconds: the state of a run asks for it.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.data.sources import own_files_fingerprint
from distill_lit.evaluation.probe_corpora import PROBES_SECTION, probe_corpora
from distill_lit.evaluation.task_data import data_file_patterns, find_data_files, matching_files
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cached_file_sha256, fingerprint
from distill_lit.utils.path_variables import expand_path

TASK_SUFFIXES = (".yaml", ".py")  # of files below `include_path`


class _Loader(yaml.SafeLoader):
    """Reads a task file, its functions as nothing."""


_Loader.add_multi_constructor("", lambda *_: None)


def own_questions_fingerprint(settings: EvaluationConfig) -> str:
    """A hash of the contents; empty where all that is asked is from packages or the hub, or where a file is gone, which
    says nothing about answers that are there."""
    try:
        tasks = list(_task_file_hashes(settings.include_path)) if settings.include_path else []
        probes = {
            name: facts
            for name, corpus in probe_corpora(settings).items()
            if (facts := own_files_fingerprint(f"{PROBES_SECTION}.{name}", corpus))
        }
    except (OSError, UserError):
        return ""
    return fingerprint([tasks, probes]) if tasks or probes else ""


def _task_file_hashes(include_path: str) -> Iterator[list[str]]:
    """[name, sha256] of task files, of code beside them, of what they include, and of data that they name."""
    files, patterns = _task_files(expand_path(include_path, "evaluation.include_path").resolve())
    for path in (*files, *(path for pattern in patterns for path in matching_files(pattern))):
        yield [path.name, cached_file_sha256(path)]


def _task_files(root: Path) -> tuple[list[Path], list[str]]:
    """(task files and code below a folder, and what these include, from anywhere; the data files that they name)."""
    below = [path for path in sorted(root.rglob("*")) if path.suffix in TASK_SUFFIXES and path.is_file()]
    files, patterns = dict.fromkeys(below), dict[str, None]()
    for task in below:
        if task.suffix == ".yaml":
            read: list[Path] = []
            data = _read_with_included(task, read).get("dataset_kwargs")
            files |= dict.fromkeys(read[1:])
            if isinstance(data, dict) and "data_files" in data:
                patterns |= dict.fromkeys(data_file_patterns(find_data_files(data["data_files"], task.parent)))
    return list(files), list(patterns)


def _read_with_included(path: Path, read: list[Path]) -> dict[str, Any]:
    """A task file as lm-eval merges it with what it includes, whatever the names of these. read: grows by all files."""
    path = path.resolve()
    if path in read or not path.is_file():
        return {}
    read.append(path)
    own, merged = _read(path, cached_file_sha256(path)), dict[str, Any]()
    included = own.get("include") or []
    for name in included if isinstance(included, list) else [included]:
        merged |= _read_with_included(path.parent / str(name), read)
    return merged | own


@functools.lru_cache(maxsize=4096)
def _read(path: Path, _: str) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_bytes(), Loader=_Loader)
    except (ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
