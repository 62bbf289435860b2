"""Tasks of one benchmark, such as the 57 of MMLU, as one task: else each would weigh as much as PIQA in an average.

Every document counts the same, as in lm-eval's own aggregate of MMLU.
"""

import json
from typing import Any

import pandas as pd

from distill_lit.utils.files import fingerprint

Meta = dict[str, dict[str, Any]]
SUMMED = ("n", "n_total", "truncated", "tokens_forwarded", "elapsed_s", "float32_documents", "float32_other_answers")
SAME = ("metric", "num_fewshot", "limit", "seed", "apply_chat_template", "dtype", "eval_split", "official_split",
        "lm_eval_version",
        "version", "harness", "fallback", "higher_is_better")  # fmt: skip


def task_to_group(meta: dict[str, Meta]) -> dict[str, str]:
    """{task: the benchmark it is merged into}, of tasks that have one and are scored in the same metric. meta: {model:
    {task: settings}}."""
    known = {task: facts for tasks in meta.values() for task, facts in tasks.items()}
    groups = {task: str(facts.get("group") or "") for task, facts in known.items()}
    metrics: dict[str, set[str]] = {}
    for task, group in groups.items():
        metrics.setdefault(group, set()).add(str(known[task].get("metric")))
    return {task: group for task, group in groups.items() if group and len(metrics[group]) == 1 and group not in known}


def merge_frame(frame: pd.DataFrame, task_to_group: dict[str, str]) -> pd.DataFrame:
    """The same rows with (benchmark, key) for (task, key) in the index."""
    index = frame.index.to_frame(index=False)
    index["task"] = index["task"].map(lambda task: task_to_group.get(task, task))
    return frame.set_axis(pd.MultiIndex.from_frame(index))


def merge_documents(documents: pd.DataFrame, task_to_group: dict[str, str]) -> pd.DataFrame:
    """`merge_frame`, with the task of each merged document among its metadata."""
    tasks = documents.index.get_level_values("task")
    metadata = [_with_task(text, task) if task in task_to_group else text
                for text, task in zip(documents["metadata"], tasks, strict=True)]  # fmt: skip
    return merge_frame(documents.assign(metadata=metadata), task_to_group)


def _with_task(text: Any, task: str) -> str:
    try:
        found = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        found = {}
    return json.dumps({**(found if isinstance(found, dict) else {}), "task": task}, ensure_ascii=False, sort_keys=True)


def merge_meta(meta: Meta, task_to_group: dict[str, str]) -> Meta:
    """One model's settings with every benchmark as one task; one that lacks a task of a benchmark lacks the benchmark."""
    merged: Meta = {}
    for task, facts in meta.items():
        group = task_to_group.get(task, task)
        parts = [name for name, other in task_to_group.items() if other == group] or [task]
        if group not in merged and all(part in meta for part in parts):
            merged[group] = facts if task not in task_to_group else _joined(group, [meta[part] for part in parts])
    return merged


def _joined(group: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    joined: dict[str, Any] = {"task": group, "tasks": len(parts)}
    joined |= {name: sum(part.get(name) or 0 for part in parts) for name in SUMMED if name in parts[0]}
    for name in SAME:
        values = list(dict.fromkeys(str(part.get(name)) for part in parts))
        joined[name] = parts[0].get(name) if len(values) == 1 else " / ".join(value for value in values if value)
    return joined | {name: fingerprint([part.get(name) for part in parts]) for name in ("task_hash", "data")}
