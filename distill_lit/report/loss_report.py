"""longtail.md and longtail.csv: what was lost where, and how surely the tail lost more than the head."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import zipf_frequency_function
from distill_lit.analysis.flips import MODAL_SEEDS
from distill_lit.analysis.long_tail import LongTail, averaged_flips
from distill_lit.analysis.model_groups import group_cost
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.markdown_table import (
    escape_markdown,
    escape_markdown_cell,
    markdown_paragraphs,
    to_markdown,
)
from distill_lit.report.number_format import format_count, format_number, format_points, join_words
from distill_lit.report.tables.footnotes import excluded_task_notes, sample_limit_notes
from distill_lit.report.tables.long_tail import (
    KEY_AXES,
    baseline_uses_other_data,
    slice_table,
    stratum_fraction,
    tail_table,
    with_adjusted_p,
)

NUM_LOST_EXAMPLES = 5  # lost documents shown per slice
MAX_EXAMPLE_PROMPT_CHARS = 300


def loss_report_markdown(
    scores: Scores,
    long_tail: LongTail,
    title: str,
    statements: dict[str, list[str]],
    has_calibration: bool,
    probes: Sequence[str] = (),
) -> str:
    """The page. `title`: of the experiment; `statements`: {label: paragraphs of its loss statement}; `has_calibration`:
    calibration.png was drawn; `probes`: Markdown of held-out text."""
    lines = [f"# Long tail: {escape_markdown(title)}", ""]
    banner = [f"> {escape_markdown(text)}\n" for text in sample_limit_notes(scores)]
    if not long_tail.flips:
        missing = "the teacher has no result" if scores.teacher is None else "no distilled student has a result"
        return "\n".join([*lines, f"Nothing can be said about what was lost: {missing}.", "", *banner, *probes])
    lines += [f"**{escape_markdown_cell(tail_answer(scores, long_tail))}**", "", *banner]
    lines += [to_markdown(replace(tail_table(scores, long_tail), header_notes=[]))]
    slices = slice_table(long_tail)
    lines += ["![Long tail](longtail.png)", ""]
    lines += [to_markdown(slices)] if slices.rows else markdown_paragraphs(slices.warnings)
    lines += [*probes, "## Loss statements", ""]
    for label, paragraphs in statements.items():
        lines += [f"**{escape_markdown(label)}**", "", *markdown_paragraphs(paragraphs)]
    lines += ["![Calibration](calibration.png)", ""] if has_calibration else []
    rest = (
        "Every axis and stratum, flips per task, calibration and slices are in [longtail.csv](longtail.csv); the lost "
        "documents can be read on the page (report.html)."
    )
    where = "Settings, tasks and training text are in [table.md](table.md)."
    lines += ["## How this was computed", "", f"{rest} {where}", "", *markdown_paragraphs(_method(scores, long_tail))]
    return "\n".join(lines)


def tail_answer(scores: Scores, long_tail: LongTail, num_axes: int = len(KEY_AXES)) -> str:
    """Whether rare answers, and rare questions, lose more than common ones, by the students' own scores and beside the same
    students without teacher. num_axes: how many of the two; first one on which students themselves are worse."""
    contrasts = with_adjusted_p(long_tail.tail_contrasts)
    if contrasts.empty:
        return ""
    of_axis = {axis: contrasts[contrasts["axis"] == axis] for axis in KEY_AXES}
    known = {axis: rows[rows["tail_loss"].notna()] for axis, rows in of_axis.items() if "tail_loss" in rows}
    order = sorted(known, key=lambda axis: not _are_worse_themselves(scores, known[axis]))
    sentences = [_axis_answer(scores, known[axis], axis) for axis in order if len(known[axis])]
    return " ".join(sentences[:num_axes]) or "There are too few documents to tell whether rare words lose more."


def _are_worse_themselves(scores: Scores, rows: pd.DataFrame) -> bool:
    """Whether a student that loses more on the rare end is worse there by its own score too."""
    q = scores.analysis.false_discovery_rate
    sure = (rows["tail_loss"] < 0) & (rows["tail_loss_p_adjusted"] <= q) & (rows["student_change_p_adjusted"] <= q)
    return bool((sure & (rows["student_change"] < 0)).any())


def _axis_answer(scores: Scores, rows: pd.DataFrame, axis: str) -> str:
    q, end, words = scores.analysis.false_discovery_rate, stratum_fraction(scores), KEY_AXES[axis]
    sure = rows[rows["tail_loss_p_adjusted"] <= q]
    if sure.empty:
        are_sure_alone = (rows["tail_loss_low"] > 0) | (rows["tail_loss_high"] < 0)
        undecided = f"Whether {words} lose more is undecided{' after correction' if are_sure_alone.any() else ''}"
        most = -rows["tail_loss_low"].min()
        if not most < 1:  # more than there is, or unknown
            return f"{undecided} (there are too few documents to exclude any additional loss)."
        return f"{undecided} (an additional loss above {format_points(most)} points is excluded for every student)."
    more = sure[sure["tail_loss"] < 0]
    if len(more) < len(sure):
        counts = {"more": len(more), "less": len(sure) - len(more)}
        ways = " and ".join(f"{way} in {number}" for way, number in counts.items() if number)
        return f"{words.capitalize()} lose {f'{ways} of {len(rows)} students' if len(rows) > 1 else 'less'}."
    sizes = sorted(-more["tail_loss"])
    size = " to ".join(dict.fromkeys(format_points(size) for size in (sizes[0], sizes[-1])))
    who = "" if len(rows) == 1 else f", significantly for {len(more)} of {len(rows)} students"
    found = "lose more" if _are_worse_themselves(scores, rows) else "lose more beside the teacher"
    text = f"{words.capitalize()} {found}: {size} points more on the rarest {end} than on the most common{who}"
    parts = [text, _own_changes(scores, more, len(rows)), _beside_the_student_without_teacher(scores, more, len(rows))]
    return f"{'; '.join(part for part in parts if part)}."


def _own_changes(scores: Scores, rows: pd.DataFrame, of: int) -> str:
    """What students and teacher change by from the most common words to the rarest, each alone: a loss beside a teacher
    that is better on rare words is no worse student. of: how many students there are."""
    sure = int((rows["student_change_p_adjusted"] <= scores.analysis.false_discovery_rate).sum())
    known = "not significant" if not sure else "significant" if sure == len(rows) else f"significant for {sure}"
    own = rows["student_change"]
    size = " to ".join(dict.fromkeys(format_points(value, signed=True) for value in (own.min(), own.max())))
    whose = "its own score changes" if of == 1 else "their own scores change"
    return f"{whose} by {size} ({known}), the teacher's by {format_points(rows['teacher_change'].iloc[0], signed=True)}"


def _beside_the_student_without_teacher(scores: Scores, rows: pd.DataFrame, of: int) -> str:
    """Where rare words lose more, whether they lose more still than those of the same student without teacher; that no
    excess is significant does not mean that there is none. of: how many students there are."""
    if "excess_p_adjusted" not in rows or rows["excess"].isna().all():
        return ""
    sure = rows[rows["excess_p_adjusted"] <= scores.analysis.false_discovery_rate]
    counts = {"more": int((sure["excess"] < 0).sum()), "less": int((sure["excess"] > 0).sum())}
    ways = join_words([f"in {number} {way}" if of > 1 else way for way, number in counts.items() if number])
    whom = f"the student trained without the teacher{' on other data' if baseline_uses_other_data(scores) else ''}"
    return f"{ways} than {whom} loses" if ways else f"no more loss is shown than that of {whom}"


def slice_examples(scores: Scores, long_tail: LongTail, model: str) -> list[tuple[str, list[str]]]:
    """(slice, NUM_LOST_EXAMPLES of its lost documents) for every confirmed slice, in plain text."""
    flips = averaged_flips(scores, long_tail.flips[model])
    strata = long_tail.stratum_codes.loc[flips.index]
    found = []
    for _, row in long_tail.slices[model].iterrows():
        if row["confirmed"]:
            inside = np.logical_and.reduce([(strata[axis] == stratum).to_numpy() for axis, stratum in row["rule"].items()])
            found.append((str(row["slice"]), _examples(scores, flips[inside])))
    return found


def _examples(scores: Scores, flips: pd.DataFrame) -> list[str]:
    """Lost documents among `flips`, drawn at random with a fixed seed, with both answers."""
    lost = flips[flips["flip"] == "lost"]
    drawn = lost.sample(min(NUM_LOST_EXAMPLES, len(lost)), random_state=0)
    documents = scores.results.documents.loc[drawn.index]
    lines = []
    for (index, row), (_, document) in zip(drawn.iterrows(), documents.iterrows(), strict=True):
        choices = [str(c) for c in document["choices"]] if document["choices"] is not None else []
        prompt = " ".join(str(document["prompt"]).split())
        shown = prompt if len(prompt) <= MAX_EXAMPLE_PROMPT_CHARS else f"… {prompt[-MAX_EXAMPLE_PROMPT_CHARS:]}"
        teacher, student = (_choice(choices, row[f"{who}_choice"]) for who in ("teacher", "student"))
        lines.append(f"{scores.results.display.label(index[0])}: {shown} — teacher: {teacher} (right); student: {student}")
    return lines


def _choice(choices: list[str], number: int) -> str:
    if len(choices) < 2:
        return "right" if number == 0 else "another text"
    return choices[number].strip() if 0 <= number < len(choices) else "?"


def _method(scores: Scores, report: LongTail) -> list[str]:
    axes = "; ".join(f"{axis.name}: {axis.description}" for axis in report.axes if axis.family != "metadata")
    seeds = sorted({len(g.models) for g in scores.groups if g.role == "distilled" and g.models})
    modal, first = "the modal answer over seeds", "the answer of the first seed (fewer than 3 seeds)"
    if seeds and seeds[0] < MODAL_SEEDS:
        modal = f"{modal}, or {first}" if seeds[-1] >= MODAL_SEEDS else first
    strata = (
        f"Strata are {scores.analysis.num_strata} quantile groups within each task, pooled with equal task weight. Scores "
        f"are above chance. Flips compare {modal}."
    )
    return [_word_counts(scores), strata, f"Axes: {axes}.", *excluded_task_notes(scores)]


def _word_counts(scores: Scores) -> str:
    """Where word frequencies come from, with an example that was counted, and how little of it students read."""
    results = scores.results
    if not results.uses_corpus_word_counts:
        why = "the experiment has no counts of its corpus"
        if results.corpus_words:
            why = f"the {results.corpus_words:,} words of the distillation corpus are too few"
        return f"Word frequencies are those of wordfreq's general English, because {why}."
    example = "none of the words that tasks ask about is in it"
    if results.word_counts:
        word = max(results.word_counts, key=lambda name: results.word_counts[name])
        frequency = format_number(zipf_frequency_function(results)(word), 1)
        example = f'the most frequent word that is counted is "{word}" ({frequency})'
    return (
        f"Word frequencies are log10 occurrences per billion in all {results.corpus_words:,} words of the distillation "
        f"corpus{_read_tokens(scores)}; {example}."
    )


def _read_tokens(scores: Scores) -> str:
    """How much of the corpus students read; empty where that is unknown."""
    groups = [group for group in scores.groups if group.role == "distilled"]
    known = [tokens for group in groups if (tokens := group_cost(group, scores.results, "training_tokens")) > 0]
    if not known:
        return ""
    least, most = format_count(min(known)), format_count(max(known))
    read = f"each student read {most}" if least == most else f"students read {least} to {most}"
    return f", of which {read} tokens"


def loss_report_frame(long_tail: LongTail) -> pd.DataFrame:
    """Everything as one long frame; `table` is contrast, stratum, task, worst, calibration or slice."""
    slices = [frame.drop(columns="rule").assign(model=model) for model, frame in long_tail.slices.items() if len(frame)]
    parts = {
        "contrast": with_adjusted_p(long_tail.tail_contrasts),
        "stratum": long_tail.stratum_scores,
        "task": long_tail.task_flips,
        "worst": long_tail.worst_strata,
        "calibration": long_tail.calibration,
        "slice": pd.concat(slices, ignore_index=True) if slices else pd.DataFrame(),
    }
    known = [frame.assign(table=name) for name, frame in parts.items() if not frame.empty]
    if not known:
        return pd.DataFrame(columns=["table", "model"])
    joined = pd.concat(known, ignore_index=True)
    return joined[["table", "model", *(c for c in joined if c not in ("table", "model"))]]
