"""What tasks, groups and tags lm-eval has. Reading its 14,000 YAML files takes ten seconds, so it is done once per
installation and kept in the cache."""

import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from distill_lit.errors import UserError
from distill_lit.files import cache_root, fingerprint, read_json, write_json

INDEX_VERSION = 1
KINDS = {"TASK": "task", "PY_TASK": "python", "GROUP": "group", "TAG": "tag"}
GROUP_KEYS = {"group", "group_alias", "task", "tag", "task_alias", "aggregate_metric_list", "metadata", "include"}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Entry:
    """One name. `members`: task names, or {task: name, key: value, …}, of a group or tag. `config`: what of the task's
    file decides where its documents come from; `digest`: a hash of all of it."""

    name: str
    kind: str
    yaml: str = ""
    members: list[Any] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    digest: str = ""


def lm_eval_version() -> str:
    """The installed version of lm-eval."""
    return importlib.metadata.version("lm_eval")


@functools.cache
def built_in_index() -> dict[str, Entry]:
    """{name: entry} of everything lm-eval brings."""
    return {item["name"]: Entry(**item) for item in read_json(_built_in("tasks"))}


def built_in_names() -> set[str]:
    """The names of `built_in_index`, in a tenth of the time."""
    return set(read_json(_built_in("names")))


def _built_in(what: str) -> Path:
    """The file of all entries (`tasks`) or of their names (`names`), made where it is not there."""
    root = tasks_folder()
    mark = fingerprint([INDEX_VERSION, lm_eval_version(), _stamp(root)])
    paths = {kind: cache_root() / "lm_eval" / f"{kind}-{mark}.json" for kind in ("tasks", "names")}
    if not all(path.is_file() for path in paths.values()):
        with Console(stderr=True).status("reading lm-eval's task files, once"):
            from lm_eval.tasks._index import TaskIndex

            entries = reduce_index(TaskIndex.build([root]), root)
            write_json(paths["tasks"], [asdict(entry) for entry in entries.values()])
            write_json(paths["names"], list(entries))
    return paths[what]


def user_index(folder: str) -> dict[str, Entry]:
    """{name: entry} of the task files below a folder of the user's. Raises UserError for one that cannot be read."""
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f"evaluation.include_path: {folder} is not a folder")
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*.yaml")):
        try:
            config = load_yaml(path, resolve_func=False)
        except Exception as error:
            raise UserError(f"{path}: not a task file: {' '.join(str(error).split())}") from error
        if config.keys() & {"task", "group", "class"}:  # the others are templates to be included
            TaskIndex.process_cfg(config, path, found)
    code = {str(path.relative_to(root)): path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    return reduce_index(found, root, salt=code)


def tasks_folder() -> Path:
    """The folder of lm-eval's task files, found without importing them."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm-eval is not installed; pip install 'lm_eval[hf]>=0.4.13,<0.4.14'")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def reduce_index(index: dict[str, Any], root: Path, salt: Any = None) -> dict[str, Entry]:
    """Our entries for lm-eval's. Paths in digests are relative to `root`, so that they are the same everywhere."""
    entries = {}
    for name, item in index.items():
        kind, config = KINDS[item.kind.name], item.cfg or {}
        members = sorted(item.tags) if kind == "tag" else _members(config) if kind == "group" else []
        entries[name] = Entry(
            name=name,
            kind=kind,
            yaml=str(item.yaml_path or ""),
            members=members,
            config=_reduce_config(config) if kind == "task" else {},
            digest=fingerprint([_relative(config, str(root)), salt]) if kind == "task" else "",
        )
    return entries


def _reduce_config(config: dict[str, Any]) -> dict[str, Any]:
    fewshot = config.get("fewshot_config") or {}
    metrics = [str(m.get("metric")) for m in config.get("metric_list") or [] if isinstance(m, dict)]
    return {
        **{key: config.get(key) for key in ("dataset_path", "dataset_name", "dataset_kwargs", "num_fewshot", *SPLITS)},
        "fewshot_split": config.get("fewshot_split") or fewshot.get("split"),
        "fewshot_samples": "samples" in fewshot,
        "output_type": config.get("output_type") or "generate_until",
        "unsafe_code": bool(config.get("unsafe_code")),
        "custom_dataset": bool(config.get("custom_dataset")),
        "metrics": [m.rpartition(".")[2] if "/" in m else m for m in metrics],
        "metadata": config["metadata"] if isinstance(config.get("metadata"), dict) else {},
    }


def _members(config: dict[str, Any]) -> list[Any]:
    """The members of a group, those of groups defined inside it too, each with the settings that the group adds."""
    added = {key: value for key, value in config.items() if key not in GROUP_KEYS}
    listed = config.get("task") or []
    members: list[Any] = []
    for item in [listed] if isinstance(listed, str) else listed:
        if isinstance(item, dict) and isinstance(item.get("task"), list):
            inner = _members(item)
            members += [{**added, **(m if isinstance(m, dict) else {"task": m})} for m in inner]
        elif isinstance(item, dict) and "group" in item:
            members.append({**added, **{k: v for k, v in item.items() if k != "group"}, "task": item["group"]})
        elif isinstance(item, dict):
            members.append({**added, **item})
        else:
            members.append({**added, "task": item} if added else item)
    return members


def _relative(value: Any, root: str) -> Any:
    if isinstance(value, str):
        return value.replace(root, "")
    if isinstance(value, dict):
        return {str(key): _relative(item, root) for key, item in value.items()}
    return [_relative(item, root) for item in value] if isinstance(value, list) else value


def _stamp(root: Path) -> list[int]:
    """Number, total size and latest change of the files below `root`: a tenth of a second for lm-eval's."""
    count = size = latest = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith((".yaml", ".py")) or "yaml" in name:
                status = os.stat(os.path.join(folder, name))
                count, size, latest = count + 1, size + status.st_size, max(latest, status.st_mtime_ns)
    return [count, size, latest]
