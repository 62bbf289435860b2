"""What tasks, groups and tags lm-eval has. Reading its 14,000 YAML files takes ten seconds, so it is done once per
installation and kept in the cache."""

import functools
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, folder_stamp, write_text
from distill_lit.utils.path_variables import expand_path, missing

INDEX_VERSION = 4
ENTRY_KINDS = {"TASK": "task", "PY_TASK": "python", "GROUP": "group", "TAG": "tag"}
GROUP_KEYS = {"group", "group_alias", "task", "tag", "task_alias", "aggregate_metric_list", "metadata", "include"}
DEFAULT_MAX_GEN_TOKS = 256  # tokens that lm-eval lets a model write where a task says nothing
SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class TaskEntry:
    """One name. `members`: task names, or {task: name, key: value, …}, of a group or tag. `config`: what of the task's
    file decides where its documents come from; `digest`: a hash of all of it."""

    name: str
    kind: str
    yaml_path: str = ""
    members: list[Any] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    digest: str = ""


def lm_eval_version() -> str:
    """The installed version of lm-eval."""
    return importlib.metadata.version("lm_eval")


class StoredIndex(Mapping[str, TaskEntry]):
    """Entries of a file, each read when it is asked for: all 14,000 of lm-eval take half a second."""

    def __init__(self, path: Path) -> None:
        """path: as `store` writes it."""
        lines = path.read_text(encoding="utf-8").splitlines()
        self._lines = dict(line.split("\t", 1) for line in lines)

    @staticmethod
    def write(path: Path, entries: Mapping[str, TaskEntry]) -> None:
        """Writes a line for each entry: its name, a tab, JSON."""
        write_text(path, "".join(f"{name}\t{json.dumps(asdict(entry))}\n" for name, entry in entries.items()))

    def __getitem__(self, name: str) -> TaskEntry:
        return TaskEntry(**json.loads(self._lines[name]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


def built_in_index_path() -> Path:
    """Where the entries of this installation's lm-eval are kept once they have been read."""
    stamp = folder_stamp(tasks_folder(), lambda name: "yaml" in name or name.endswith(".py"))  # _default_template_yaml too
    index_key = fingerprint([INDEX_VERSION, lm_eval_version(), stamp])
    return cache_root() / "lm_eval" / f"tasks-{index_key}.txt"


@functools.cache
def built_in_index() -> Mapping[str, TaskEntry]:
    """{name: entry} of everything lm-eval brings."""
    root, path = tasks_folder(), built_in_index_path()
    if not path.is_file():
        with Console(stderr=True).status("reading lm-eval's task files, once"):
            from lm_eval.tasks._index import TaskIndex

            entries = convert_lm_eval_index(TaskIndex.build([root]), root)
        try:
            StoredIndex.write(path, entries)
        except UserError:  # there is nowhere to keep it
            return entries
    return StoredIndex(path)


def user_index(folder: str) -> dict[str, TaskEntry]:
    """{name: entry} of the task files below a folder of the user's. Raises UserError for one that cannot be read."""
    from lm_eval.tasks._index import TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    root = expand_path(folder, "evaluation.include_path").resolve()
    if not root.is_dir():
        reason = "not a folder" if root.exists() else missing(expand_path(folder))
        raise UserError(f"evaluation.include_path: {folder}: {reason}")
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*.yaml")):
        try:
            config = load_yaml(path, resolve_func=False)
        except Exception as error:
            raise UserError(f"{path}: not a task file: {' '.join(str(error).split())}") from error
        if config.keys() & {"task", "group", "class"}:  # the others are templates to be included
            TaskIndex.process_cfg(config, path, found)
    code = {str(path.relative_to(root)): path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    try:
        return convert_lm_eval_index(found, root, salt=code)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: a task file says something of the wrong kind: {error}") from error


def tasks_folder() -> Path:
    """The folder of lm-eval's task files, found without importing them."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("lm-eval is not installed; pip install 'lm_eval[hf]>=0.4.13,<0.4.14'")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def convert_lm_eval_index(index: dict[str, Any], root: Path, salt: Any = None) -> dict[str, TaskEntry]:
    """Our entries for lm-eval's. Paths in digests are relative to `root`, so that they are the same everywhere."""
    entries = {}
    for name, item in index.items():
        kind, config = ENTRY_KINDS[item.kind.name], item.cfg or {}
        members = sorted(item.tags) if kind == "tag" else _members(config) if kind == "group" else []
        entries[name] = TaskEntry(
            name=name,
            kind=kind,
            yaml_path=str(item.yaml_path or ""),
            members=members,
            config=_reduce_config(config) if kind == "task" else {},
            digest=_digest(config, root, salt) if kind == "task" else "",
        )
    return entries


def _digest(config: dict[str, Any], root: Path, salt: Any) -> str:
    default_metrics = (
        [] if config.get("metric_list") else [_reduce_config(config)["metrics"]]
    )  # lm-eval's own, not in the file
    return fingerprint([_relative(config, str(root)), salt, *default_metrics])


def _reduce_config(config: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    num_fewshot = config.get("fewshot_config") or {}
    output_type = config.get("output_type") or "generate_until"
    default_metrics = [{"metric": name} for name in DEFAULT_METRIC_REGISTRY.get(output_type, [])]
    metrics = [str(m.get("metric")) for m in config.get("metric_list") or default_metrics if isinstance(m, dict)]
    return {
        **{key: config.get(key) for key in ("dataset_path", "dataset_name", "dataset_kwargs", "num_fewshot", *SPLIT_KEYS)},
        "fewshot_split": config.get("fewshot_split") or num_fewshot.get("split"),
        "fewshot_samples": "samples" in num_fewshot,
        "output_type": output_type,
        "max_gen_toks": max_gen_toks(config.get("generation_kwargs") or {}) if output_type == "generate_until" else 0,
        "generation_kwargs": sampling_kwargs(config.get("generation_kwargs") or {}),
        "repeats": config.get("repeats") or 1,
        "min_repeats": _min_repeats(config.get("filter_list") or []),
        "unsafe_code": bool(config.get("unsafe_code")),
        "custom_dataset": bool(config.get("custom_dataset")),
        "metrics": [m.rpartition(".")[2] if "/" in m else m for m in metrics],
        "metadata": config["metadata"] if isinstance(config.get("metadata"), dict) else {},
    }


def max_gen_toks(options: dict[str, Any]) -> int:
    """Tokens that a model may write, by the names that lm-eval takes, the first of them first."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return int(next((options[name] for name in names if options.get(name) is not None), DEFAULT_MAX_GEN_TOKS))


def sampling_kwargs(options: dict[str, Any]) -> dict[str, Any]:
    """What of a task's generation_kwargs says how answers are drawn."""
    return {name: options[name] for name in ("do_sample", "temperature", "top_p") if options.get(name) is not None}


def _min_repeats(filter_list: list[Any]) -> int:
    """Answers to a document without which a filter of the task fails: it takes the first k of them."""
    steps = [step for each in filter_list if isinstance(each, dict) for step in each.get("filter") or []]
    taken = [step["k"] for step in steps if isinstance(step, dict) and step.get("function") == "take_first_k"]
    return max([1, *(int(k) for k in taken if isinstance(k, int))])


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
