"""Documents of generative tasks with what each model wrote, to be read beside each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill_lit.analysis.generation import WrittenAnswers
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.markdown_table import escape_markdown
from distill_lit.report.number_format import format_number

DOCUMENTS_PER_TASK = 6  # shown, drawn at random
MAX_SHOWN_CHARS = 700  # of a prompt, from its end, and of an answer, from its start
MAX_SHOWN_GROUPS = 6  # models side by side


@dataclass(frozen=True)
class SideBySide:
    """One document. `answers`: [(model, its first answer, its score)]."""

    task: str
    doc_id: int
    prompt: str
    target: str
    answers: list[tuple[str, str, float]]


def side_by_side(scores: Scores, written: Sequence[WrittenAnswers]) -> list[SideBySide]:
    """DOCUMENTS_PER_TASK documents of every generative task, drawn with a fixed seed, and what the first model of each of
    the first MAX_SHOWN_GROUPS groups, teacher first, answered first."""
    found: list[SideBySide] = []
    for task in dict.fromkeys(each.task.task for each in written):
        shown = [each for each in written if each.task.task == task][:MAX_SHOWN_GROUPS]
        index = shown[0].task.index
        picked = np.sort(np.random.default_rng(0).permutation(len(index))[:DOCUMENTS_PER_TASK])
        for number in picked:
            document = scores.results.documents.loc[index[number]]
            answers = [
                (scores.groups[each.group].label, each.texts[0][number][0], float(each.scores[number, 0, 0]))
                for each in shown
            ]
            target = document.get("target")
            found.append(
                SideBySide(
                    task,
                    int(document["doc_id"]),
                    str(document["prompt"]),
                    target if isinstance(target, str) else "",
                    answers,
                )
            )
    return found


def side_by_side_markdown(examples: Sequence[SideBySide]) -> list[str]:
    """Lines of Markdown: each document with its answers as a list."""
    lines = ["## Side by side", ""]
    for example in examples:
        lines += [f"**{escape_markdown(example.task)} {example.doc_id}** {escape_markdown(end_of(example.prompt))}", ""]
        lines += [f"- right: {escape_markdown(start_of(example.target))}"] if example.target else []
        lines += [
            f"- {escape_markdown(model)} ({format_number(score, 0 if score in (0, 1) else 2)}): "
            f"{escape_markdown(start_of(text)) or '(nothing)'}"
            for model, text, score in example.answers
        ]
        lines.append("")
    return lines


def start_of(text: str) -> str:
    """At most MAX_SHOWN_CHARS from the start."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]} …"


def end_of(text: str) -> str:
    """At most MAX_SHOWN_CHARS from the end."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"… {text[-MAX_SHOWN_CHARS:]}"
