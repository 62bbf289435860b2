"""What of a task's documents cannot be asked or judged: no choices, labels that are hidden or wrong, too few examples."""

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distill_lit.evaluation.records import TASK_FUNCTION_ERRORS, gold_indices, gold_label, has_gold
from distill_lit.utils.exceptions import UserError, one_line_message

if TYPE_CHECKING:
    from distill_lit.evaluation.tasks import TaskSpec

MAX_FEWSHOT_EXAMPLES_CHECKED = 200  # of a pool, for right answers that are not there
HIDDEN_LABELS = (-1, None, "", "None", "-1")  # labels of splits for a leaderboard


def check_gold(spec: "TaskSpec", task: Any) -> None:
    """Raises UserError where no document of a task has a known right answer, an example before them has none, or there are
    fewer examples than are asked for."""
    documents = task.eval_docs
    if len(documents) and not any(has_gold(task, document) for document in documents):
        raise UserError(
            f"task {spec.name!r}: none of its {len(documents)} documents in split {spec.data_source.eval_split!r} has a "
            "known "
            "right answer, as in splits whose labels are hidden; name one with labels as its test_split or validation_split"
        )
    if not spec.num_fewshot:
        return
    _check_pool(spec, task)
    fewshot_examples = list(itertools.islice(task.fewshot_docs() or (), MAX_FEWSHOT_EXAMPLES_CHECKED))
    hidden = sum(not has_gold(task, document) and not _has_own_answer(task, document) for document in fewshot_examples)
    if hidden:
        raise UserError(
            f"task {spec.name!r}: {hidden} of {len(fewshot_examples)} examples in {_pool_name(spec)} have no known "
            "right answer; name another fewshot_split, or set evaluation.num_fewshot=0"
        )


def _check_pool(spec: "TaskSpec", task: Any) -> None:
    """Raises UserError where the pool is too small. lm-eval takes the document at hand from it if both are of one split;
    to draw at random it then wants one more, the document or not, and also where neither split has a name."""
    from lm_eval.api.samplers import FirstNSampler

    sampler = getattr(task, "sampler", None)
    pool = len(getattr(sampler, "fewshot_indices", None) or getattr(sampler, "df", None) or ())
    is_first_n = isinstance(sampler, FirstNSampler)
    wants_one_more = spec.fewshot_from_eval_split if is_first_n else task.fewshot_cfg.split == task.config.test_split
    left = max(0, pool - wants_one_more)
    if spec.num_fewshot > left:
        beside = " beside the question" if left < pool else ""
        raise UserError(
            f"task {spec.name!r}: {spec.num_fewshot} examples are asked for, and {_pool_name(spec)} has {left}{beside}; "
            f"set evaluation.num_fewshot to {left} or less"
        )


def _pool_name(spec: "TaskSpec") -> str:
    return f"split {spec.data_source.fewshot_split!r}" if spec.data_source.fewshot_split else "its own list"


def _has_own_answer(task: Any, document: Any) -> bool:
    """Whether an example has an answer by a template of `fewshot_config` that is another than that of questions."""
    template = task.fewshot_cfg.doc_to_target
    if template == task.config.doc_to_target:
        return False
    try:
        answer = task.doc_to_target(document, template)
    except TASK_FUNCTION_ERRORS:
        return False
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    return bool(answers) and not any(one in HIDDEN_LABELS for one in answers)


def check_choices(spec: "TaskSpec", task: Any, doc_indices: Iterable[int], check_labels: bool = False) -> None:
    """Raises UserError for the first of these documents that has no choices. check_labels: also for one whose label is none
    of its choices and does not mean that it is hidden."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    documents = task.eval_docs
    for number in doc_indices:
        if problem := _choices_problem(task, documents[number], check_labels):
            raise UserError(
                f"task {spec.name!r}: document {number + 1} of split {spec.data_source.eval_split!r} {problem}; "
                "fix it, or leave it out"
            )


def _choices_problem(task: Any, document: Any, check_labels: bool) -> str:
    """What is wrong with a document, or nothing."""
    try:
        choices = task.doc_to_choice(document)
    except Exception as error:  # of a column that is missing or null, or a function of the user's own
        return f"has no choices: {one_line_message(error)}"
    if not isinstance(choices, (list, tuple)) or not choices:
        return "has no choices"
    odd = [choice for choice in choices if not isinstance(choice, str) or not choice]
    if odd:
        return f"has {odd[0]!r} among its choices, which is no text"
    if not check_labels or callable(task.config.process_results):
        return ""
    try:
        label = gold_label(task, document)
    except Exception:  # as good as hidden
        return ""
    if gold_indices(label, list(choices)) or all(
        one in HIDDEN_LABELS for one in (label if isinstance(label, list) else [label])
    ):
        return ""
    return f"has label {label!r}, which is none of its {len(choices)} choices"
