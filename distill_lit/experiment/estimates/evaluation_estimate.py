"""What the evaluation of a model reads and writes: questions, probes, answers of generative tasks."""

from dataclasses import dataclass

from distill_lit.config import ExperimentConfig
from distill_lit.evaluation.probe_corpora import probe_corpora
from distill_lit.evaluation.tasks import AskedTask, asked_tasks

TOKENS_PER_DOCUMENT = 120  # of the benchmark questions, shared prefixes once
TOKENS_PER_PASSAGE = 150  # of a probe: passages of novels have about 100, of an encyclopedia about 180
DEFAULT_TASK_DOCUMENTS = 1500  # a guess where no limit is given
MEMBER_DOCUMENTS = 250  # the same of each task of a benchmark of many, as MMLU's 14,042 questions are of 57


@dataclass(frozen=True)
class EvaluationWork:
    """num_tasks: probes among them; question_tokens: of prompts with their examples; probe_tokens: of passages, which the
    teacher reads too; written_tokens: of answers, each as long as its task allows."""

    num_tasks: int = 0
    question_tokens: int = 0
    probe_tokens: int = 0
    written_tokens: int = 0

    @classmethod
    def of(cls, config: ExperimentConfig, steps: int) -> "EvaluationWork":
        """Of the evaluation at the end of a run and of those on the way of its training. steps: of the optimizer, 0 for a
        run that is not trained."""
        asked = asked_tasks(config.evaluation, config.dataset_source)
        documents = {task.name: _documents(config, task, steps) for task in asked}
        written = sum(documents[task.name] * task.repeats * task.max_gen_toks for task in asked)
        probes = probe_corpora(config.evaluation).values()
        passages = sum(corpus.max_documents or DEFAULT_TASK_DOCUMENTS for corpus in probes)
        return cls(
            len(asked) + len(probes),
            sum(documents[task.name] * TOKENS_PER_DOCUMENT * (1 + task.num_fewshot) for task in asked),
            passages * TOKENS_PER_PASSAGE,
            written,
        )


def _documents(config: ExperimentConfig, task: AskedTask, steps: int) -> int:
    """Documents that a task is asked, those on the way of a training again."""
    fields, usual = config.evaluation, MEMBER_DOCUMENTS if task.group else DEFAULT_TASK_DOCUMENTS
    documents = fields.limit or usual
    if not (steps and fields.interval):
        return documents
    on_the_way = 1 + steps // max(1, round(fields.interval * steps))  # before the first step, then at every interval
    return documents + on_the_way * min(fields.interval_limit or documents, documents)
