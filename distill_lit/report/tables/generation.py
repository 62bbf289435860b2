"""Tables of what models wrote: pass@k, length and variety, and where the variance of a score comes from."""

import numpy as np
import pandas as pd

from distill_lit.analysis.generation import groups_without_answers
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import (
    format_number,
    format_percent,
    format_points,
    format_with_interval,
    join_words,
)
from distill_lit.report.tables.footnotes import sample_limit_notes

VARIANCE_SOURCES = {
    "documents": "documents",
    "seeds": "training seeds",
    "interaction": "documents × seeds",
    "answers": "answers",
}


def generation_table(scores: Scores, frame: pd.DataFrame) -> Table:
    """A row for each model and task of `generation_frame`."""
    ks = sorted(int(name.removeprefix("pass@")) for name in frame if name.removeprefix("pass@").isdigit())
    percent = f"{scores.analysis.confidence_level:.0%}"
    delta = f"pass@{ks[-1]} − teacher" if ks else ""
    columns = ["model", "task", "documents × answers", *(["score"] if _has_graded(frame) else [])]
    columns += [f"pass@{k} [{percent}]" for k in ks] + ([f"{delta} [{percent}]"] if ks else [])
    columns += ["tokens", "ended", "repetition", "distinct-1", "distinct-2"]
    rows, rules = [], set()
    for number, (_, row) in enumerate(frame.iterrows()):
        if number and row["task"] != frame.iloc[number - 1]["task"]:
            rules.add(number)
        texts = [row["model"], row["task"], f"{row['n']} × {row['repeats']}"]
        texts += [format_number(row["score"], 3)] if _has_graded(frame) else []
        texts += [_interval(row, f"pass@{k}") for k in ks]
        texts += [_interval(row, f"pass@{ks[-1]}_delta", signed=True)] if ks else []
        texts += [format_number(row["tokens"], 0), format_percent(row["finished"]), _share(row, "repetition")]
        rows.append([TableCell(text) for text in [*texts, _share(row, "distinct_1"), _share(row, "distinct_2")]])
    return Table(
        "What they wrote",
        columns,
        rows,
        num_text_columns=2,
        header_notes=sample_limit_notes(scores),
        footnotes=_notes(scores, frame),
        rules_before=rules,
    )


def variance_table(frame: pd.DataFrame) -> Table | None:
    """Shares of the variance of each score; None where every model wrote one answer and has one seed."""
    known = frame[(frame["repeats"] > 1) | (frame["models"] > 1)] if "standard_error" in frame else frame.iloc[:0]
    if known.empty:
        return None
    rows = []
    for _, row in known.iterrows():
        shares = [_share(row, f"share_{source}") for source in VARIANCE_SOURCES]
        design = f"{row['n']} × {row['models']} × {row['repeats']}"
        texts = [row["model"], row["task"], design, format_points(row["standard_error"], 2), *shares]
        rows.append([TableCell(text) for text in texts])
    return Table(
        "What the mean of a score varies by",
        ["model", "task", "documents × seeds × answers", "standard error", *VARIANCE_SOURCES.values()],
        rows,
        num_text_columns=2,
        footnotes=[
            "Standard error of the mean of all answers, in points, and shares of its square. Where answers have a large "
            "share, more repeats help; where documents have it, only more documents do. A dash: one seed, or one answer, "
            "cannot tell, and what it varies by is counted with documents."
        ],
    )


def _has_graded(frame: pd.DataFrame) -> bool:
    """Whether a task grades its answers by a number that is neither right nor wrong."""
    return "pass@1" not in frame or bool(frame["pass@1"].isna().any())


def _interval(row: pd.Series, name: str, signed: bool = False) -> str:
    value, low, high = (row.get(key, np.nan) for key in (name, f"{name}_low", f"{name}_high"))
    return format_with_interval(value, low, high, signed=signed)


def _share(row: pd.Series, name: str) -> str:
    return format_percent(row.get(name, np.nan), 1)


def _notes(scores: Scores, frame: pd.DataFrame) -> list[str]:
    notes = [
        "pass@k: probability that one of k answers is right, unbiased (Chen et al. 2021); its interval is for other "
        "documents, by passage where they share one, and for other training seeds. tokens: of an answer. ended: before its "
        "longest length. repetition: 4-grams of words that occurred before in the answer. distinct-n: different n-grams of "
        "words among all answers to the task; it falls with their number and length, so compare it at equal both."
    ]
    for task in dict.fromkeys(frame["task"]):
        drawn = scores.results.settings(task).get("generation") or {}
        if drawn:
            top_p = f", top-p {drawn['top_p']:g}" if drawn.get("top_p") not in (None, 1.0) else ""
            how = f"drawn at temperature {drawn['temperature']:g}{top_p}" if drawn.get("do_sample") else "greedy"
            notes.append(f"{task}: {how}, at most {drawn['max_gen_toks']} tokens.")
    return [*notes, *missing_answer_notes(scores)]


def missing_answer_notes(scores: Scores) -> list[str]:
    """A line for each generative task of which some records hold no answers."""
    return [
        f"{task}: records of {join_words(labels)} are from before answers were kept; evaluate again to see them."
        for task, labels in groups_without_answers(scores).items()
    ]
