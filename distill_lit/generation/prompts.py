"""What a teacher is asked: rows of a data set, each rendered to one prompt or several."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import TemplateSyntaxError

from distill_lit.config import PromptsConfig
from distill_lit.data.column_values import Row
from distill_lit.data.row_templates import ROW_TEMPLATE_ERRORS, check_reads_row, render_error, template_sandbox
from distill_lit.data.sources import RowSource, check_corpus_source, open_corpus_source
from distill_lit.utils.exceptions import UserError

PROMPT_SAMPLING_VERSION = 2  # raise it when other rows are drawn


@dataclass(frozen=True)
class Prompt:
    """One prompt. reference_answer: the known right one, or empty; row_index, template_index: where it comes from, counted
    from 0 among the rows of the source and the templates of `prompts.text`."""

    text: str
    system_prompt: str = ""
    reference_answer: str = ""
    row_index: int = 0
    template_index: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as the beginning of a chat."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": self.text}]


def check_prompts(key: str, prompts: PromptsConfig, dataset_source: str) -> None:
    """Raises UserError for a source or template that cannot work, as far as that shows without fetching."""
    check_corpus_source(key, prompts, dataset_source)
    _templates(key, prompts)
    if prompts.reference_answer:
        check_reads_row(f"{key}.reference_answer", prompts.reference_answer)


def prompt_source_fingerprint(key: str, prompts: PromptsConfig, dataset_source: str) -> list[Any]:
    """JSON-like value that changes when a row of the source changes."""
    return open_corpus_source(key, prompts, dataset_source).fingerprint()


def read_prompts(key: str, prompts: PromptsConfig, seed: int, dataset_source: str) -> list[Prompt]:
    """Every prompt once, in the order of the rows. Raises UserError where one cannot be rendered, or none is left."""
    prompts_by_text: dict[str, Prompt] = {}
    for prompt in _render_all(key, prompts, seed, dataset_source):
        if prompt.text:
            prompts_by_text.setdefault(prompt.text, prompt)
    if not prompts_by_text:
        raise UserError(f"{key}: no row gives a prompt; all are empty")
    return list(prompts_by_text.values())


def prompt_sampling_metadata(prompts: PromptsConfig) -> dict[str, int]:
    """What beside the fields decides which prompts are asked: how rows are drawn, where they are."""
    return {"drawing": PROMPT_SAMPLING_VERSION} if prompts.max_documents else {}


def _sample_rows(source: RowSource, count: int, seed: int) -> Iterator[tuple[int, Row]]:
    """`count` rows with their numbers, in the order of the source; all for 0. Of more rows those of fewer are a part, so
    that nothing is asked twice when `count` is raised."""
    if not count:
        yield from enumerate(source.rows(None))
        return
    row_indices = np.random.default_rng([seed]).permutation(source.count())[:count].tolist()
    yield from zip(sorted(row_indices), source.rows(set(row_indices)), strict=True)


def _templates(key: str, prompts: PromptsConfig) -> tuple[list[Any], Any]:
    """(templates of the prompts, template of the right answer)."""
    texts = prompts.text if isinstance(prompts.text, list) else [prompts.text]
    try:
        return [template_sandbox().from_string(text) for text in texts], template_sandbox().from_string(
            prompts.reference_answer
        )
    except TemplateSyntaxError as error:
        raise UserError(f"{key}: template line {error.lineno}: {error.message}") from error


def _render_all(key: str, prompts: PromptsConfig, seed: int, origin: str) -> Iterator[Prompt]:
    texts, answer = _templates(key, prompts)
    for number, row in _sample_rows(open_corpus_source(key, prompts, origin), prompts.max_documents, seed):
        try:
            reference_answer = answer.render(row).strip()
            for template, text in enumerate(texts):
                yield Prompt(text.render(row).strip(), prompts.system_prompt, reference_answer, number, template)
        except ROW_TEMPLATE_ERRORS as error:
            raise render_error(key, error, row) from error
