"""longtail.md and longtail.csv: what was lost where, and how surely the tail lost more than the head."""

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import zipf_frequency_function
from distill_lit.analysis.long_tail import LongTail, averaged_flips
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.markdown_table import escape_markdown, markdown_paragraphs, to_markdown
from distill_lit.report.number_format import format_number
from distill_lit.report.tables.footnotes import evaluation_footnotes, excluded_task_notes, sample_limit_notes
from distill_lit.report.tables.long_tail import (
    calibration_table,
    contrast_table,
    flip_table,
    slice_table,
    stratum_overview_table,
    stratum_table,
)

NUM_LOST_EXAMPLES = 5  # lost documents shown per student
MAX_EXAMPLE_PROMPT_CHARS = 300
DETAILED = ("rarity_question", "difficulty")  # axes whose strata stand in the page; all are in the CSV


def loss_report_markdown(
    scores: Scores, long_tail: LongTail, title: str, statements: dict[str, list[str]], has_calibration: bool
) -> str:
    """The page. `statements`: {label: paragraphs of its loss statement}; `has_calibration`: calibration.png was drawn."""
    lines = [
        f"# Long tail: {escape_markdown(title)}",
        "",
        *(f"> {escape_markdown(w)}\n" for w in sample_limit_notes(scores)),
    ]
    if not long_tail.flips:
        missing = "the teacher has no result" if scores.teacher is None else "no distilled student has a result"
        return "\n".join([*lines, f"Nothing can be said about what was lost: {missing}.", ""])
    for label, paragraphs in statements.items():
        lines += [f"**{escape_markdown(label)}**", "", *markdown_paragraphs(paragraphs)]
    lines += ["![Long tail](longtail.png)", "", "## Did the tail lose more than the head?", ""]
    lines += [to_markdown(contrast_table(scores, long_tail)), "## Flips per task", "", to_markdown(flip_table(long_tail))]
    lines += ["## Calibration", "", to_markdown(calibration_table(long_tail))]
    lines += ["![Calibration](calibration.png)", ""] if has_calibration else []
    for model in long_tail.flips:
        lines += [f"## {escape_markdown(model)}", "", to_markdown(stratum_overview_table(scores, long_tail, model))]
        lines += [
            to_markdown(stratum_table(scores, long_tail, model, axis)) for axis in long_tail.axes if axis.name in DETAILED
        ]
        lines += [to_markdown(slice_table(long_tail, model)), *slice_examples(scores, long_tail, model)]
        lines += lost_examples(scores, long_tail, model)
    return "\n".join(
        [
            *lines,
            "## How this was computed",
            "",
            *markdown_paragraphs(_method(scores, long_tail)),
            *markdown_paragraphs(evaluation_footnotes(scores)),
        ]
    )


def slice_examples(scores: Scores, long_tail: LongTail, model: str) -> list[str]:
    """NUM_LOST_EXAMPLES lost documents of every confirmed slice, from the tasks that slices were looked for in."""
    lines = []
    flips = averaged_flips(scores, long_tail.flips[model])
    for _, row in long_tail.slices[model].iterrows():
        if row["confirmed"]:
            strata = long_tail.stratum_codes.loc[flips.index]
            inside = np.logical_and.reduce([(strata[axis] == stratum).to_numpy() for axis, stratum in row["rule"].items()])
            lines += _examples(scores, flips[inside], f'lost documents in "{row["slice"]}"')
    return lines


def lost_examples(scores: Scores, long_tail: LongTail, model: str) -> list[str]:
    """NUM_LOST_EXAMPLES documents the student lost, from the tasks on which the teacher is above chance."""
    return _examples(scores, averaged_flips(scores, long_tail.flips[model]), "lost documents")


def _examples(scores: Scores, flips: pd.DataFrame, what: str) -> list[str]:
    """Lost documents among `flips`, drawn at random with a fixed seed, with both answers."""
    lost = flips[flips["flip"] == "lost"]
    if lost.empty:
        return ["No document was lost.", ""]
    drawn = lost.sample(min(NUM_LOST_EXAMPLES, len(lost)), random_state=0)
    documents = scores.results.documents.loc[drawn.index]
    lines = [escape_markdown(f"{len(drawn)} of {len(lost)} {what}, drawn at random:"), ""]
    for (index, row), (_, document) in zip(drawn.iterrows(), documents.iterrows(), strict=True):
        choices = [str(c) for c in document["choices"]] if document["choices"] is not None else []
        prompt = " ".join(str(document["prompt"]).split())
        shown = prompt if len(prompt) <= MAX_EXAMPLE_PROMPT_CHARS else f"… {prompt[-MAX_EXAMPLE_PROMPT_CHARS:]}"
        teacher, student = (_choice(choices, row[f"{who}_choice"]) for who in ("teacher", "student"))
        answer = f"teacher: {teacher} (right); student: {student}"
        lines += [f"- {escape_markdown(index[0])}: {escape_markdown(shown)} — {escape_markdown(answer)}"]
    return [*lines, ""]


def _choice(choices: list[str], number: int) -> str:
    if len(choices) < 2:
        return "right" if number == 0 else "another text"
    return choices[number].strip() if 0 <= number < len(choices) else "?"


def _method(scores: Scores, report: LongTail) -> list[str]:
    results = scores.results
    why = "the experiment has no counts of its corpus"
    if results.corpus_words:
        why = f"the {results.corpus_words:,} words of the distillation corpus are too few"
    source = "the distillation corpus" if results.uses_corpus_word_counts else f"wordfreq's general English, because {why}"
    example = format_number(zipf_frequency_function(results)("the"), 1)
    axes = "; ".join(f"{axis.name}: {axis.description}" for axis in report.axes if axis.family != "metadata")
    seeds = sorted({len(g.models) for g in scores.groups if g.role == "distilled" and g.models})
    modal = (
        "the modal answer over seeds" if seeds and seeds[0] >= 3 else "the answer of the first seed (fewer than 3 seeds)"
    )
    lines = [
        f"Axes: {axes}.",
        f'Word frequencies are those of {source} ("the": {example}).',
        f"Strata are {scores.analysis.num_strata} quantile groups within each task, pooled with equal task weight. Scores "
        f"are above chance. Flips compare {modal}.",
    ]
    return [*lines, *excluded_task_notes(scores)]


def loss_report_frame(long_tail: LongTail) -> pd.DataFrame:
    """Everything as one long frame; `table` is contrast, stratum, task or worst."""
    parts = {
        "contrast": long_tail.tail_contrasts,
        "stratum": long_tail.stratum_scores,
        "task": long_tail.task_flips,
        "worst": long_tail.worst_strata,
    }
    known = [frame.assign(table=name) for name, frame in parts.items() if not frame.empty]
    if not known:
        return pd.DataFrame(columns=["table", "model"])
    joined = pd.concat(known, ignore_index=True)
    return joined[["table", "model", *(c for c in joined if c not in ("table", "model"))]]
