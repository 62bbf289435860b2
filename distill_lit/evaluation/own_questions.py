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
from distill_lit.utils.files import cached_file_sha256, fingerprint, folder_stamp
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
    """[name, sha256] of task files, of code beside them, and of data that they name."""
    root = expand_path(include_path, "evaluation.include_path").resolve()
    files, patterns = _task_files(root, *folder_stamp(root, lambda name: name.endswith(TASK_SUFFIXES)))
    for path in (*files, *(path for pattern in patterns for path in matching_files(pattern))):
        yield [path.name, cached_file_sha256(path)]


@functools.lru_cache(maxsize=64)
def _task_files(root: Path, *_: int) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """(task files and code below a folder, and what these include from elsewhere; the data files that they name)."""
    found = [path for path in sorted(root.rglob("*")) if path.suffix in TASK_SUFFIXES and path.is_file()]
    patterns: list[str] = []
    for path in found:  # grows by what is included
        config = _read(path) if path.suffix == ".yaml" else {}
        included = config.get("include") or []
        others = (path.parent / str(name) for name in ([included] if isinstance(included, str) else included))
        found += [other for other in map(Path.resolve, others) if other.is_file() and other not in found]
        data = config.get("dataset_kwargs")
        if isinstance(data, dict) and "data_files" in data:
            patterns += data_file_patterns(find_data_files(data["data_files"], path.parent))
    return tuple(found), tuple(dict.fromkeys(patterns))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.load(path.read_bytes(), Loader=_Loader)
    except (ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
