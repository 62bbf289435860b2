"""The tables of an experiment: the paper's (models × tasks) and the detailed one, both from one score frame."""

import numpy as np
import pandas as pd

from distill_lit.analysis.derived_columns import count_ties
from distill_lit.analysis.model_groups import REFERENCE_ROLES
from distill_lit.analysis.results import has_different_validation_data, has_several_teachers
from distill_lit.analysis.score_table import BASELINE_ROLES, COSTS, MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import (
    MISSING_VALUE,
    NOT_AVAILABLE,
    format_count,
    format_interval,
    format_number,
    format_points,
    format_with_interval,
    join_words,
)
from distill_lit.report.tables.footnotes import EXCLUDED_MARK, evaluation_footnotes, excluded_task_notes, sample_limit_notes

FEW_DOCUMENTS, FEW_PASSAGES = 30, 10
_P = [f"{who}_p" for who in BASELINE_ROLES]
HOLM_MARK, FDR_MARK = "‡", "*"  # significant after Holm, after Benjamini–Hochberg


def score_table(scores: Scores, frame: pd.DataFrame, title: str) -> Table:
    """Rows are model groups, columns the tasks, the macro average, what is retained, size and validation KL."""
    tasks = scores.tasks
    marks = [f"{t} {EXCLUDED_MARK}" if t in scores.excluded_tasks else t for t in tasks]
    costs = [(name, words, show) for name, words, show in _COSTS if frame.get(name, pd.Series(dtype=float)).notna().any()]
    percent = f"{scores.analysis.confidence_level:.0%}"
    head = ["model", "seeds", *marks, f"above chance [{percent}]", f"retained [{percent}]"]
    rows, rules, student = [], set(), None
    for group in scores.groups:
        group_rows = frame[frame["model"] == group.label].set_index("task")
        if student is not None and group.student != student:
            rules.add(len(rows))
        student = group.student
        macro = group_rows.loc[MACRO_AVERAGE]
        rows.append(
            [
                TableCell(group.label),
                TableCell(_seeds(macro)),
                *[_score_cell(group_rows.loc[t]) for t in tasks],
                _macro_cell(macro),
                TableCell(_retention_text(macro)),
                *[TableCell(show(macro[name])) for name, _, show in costs],
            ]
        )
    chance = [TableCell(format_points(float(panel.chance.mean()))) for panel in scores.responses.tasks]
    rules.add(len(rows))
    rows.append([TableCell("guessing"), TableCell(""), *chance, TableCell("0.0"), *[TableCell("")] * (len(costs) + 1)])
    return Table(
        title,
        [*head, *(words for _, words, _ in costs)],
        rows,
        header_notes=sample_limit_notes(scores),
        footnotes=_main_notes(scores, frame),
        provenance=evaluation_footnotes(scores),
        rules_before=rules,
    )


def _training_flops(value: float) -> str:
    return "0" if value == 0 else format_count(value)


_COSTS = (
    ("parameters", "parameters", format_count),
    ("val_kl", "val. KL, nats", lambda v: format_number(v, 2)),
    ("training_flops", "training FLOPs", _training_flops),
    ("pipeline_training_flops", "… and of what it is made from", _training_flops),
)


def with_training_flops(frame: pd.DataFrame) -> pd.DataFrame:
    """The score frame with the FLOPs of training, the teacher's forward passes included."""
    both = frame["student_training_flops"].fillna(0) + frame["teacher_training_flops"].fillna(0)
    own = both.where(frame["student_training_flops"].notna() & ~frame["role"].isin(REFERENCE_ROLES))
    frame = frame.assign(training_flops=own)
    if "pipeline_training_flops" in frame:  # of a model made from none of this experiment it is all there is
        frame["pipeline_training_flops"] = frame["pipeline_training_flops"].fillna(own)
    return frame


def _seeds(row: pd.Series) -> str:
    if row["role"] in (*REFERENCE_ROLES, "untrained"):
        return "" if row["num_seeds"] else row["status"]
    return (
        f"{row['num_seeds']}" if row["num_seeds"] == row["num_planned"] else f"{row['num_seeds']} of {row['num_planned']}"
    )


def _score_cell(row: pd.Series) -> TableCell:
    text = format_points(row["score"])
    if pd.notna(row["seed_std"]):
        text += f" ± {format_points(row['seed_std'])}"
    return TableCell(text, bool(row["best"]))


def _macro_cell(row: pd.Series) -> TableCell:
    return TableCell(format_with_interval(row["score"], row["low"], row["high"]), bool(row["best"]))


def _retention_text(row: pd.Series) -> str:
    if row["role"] == "teacher" or pd.isna(row["retention"]):
        return "" if row["role"] == "teacher" else MISSING_VALUE
    return f"{format_points(row['retention'], 0)}% {format_interval(row['retention_low'], row['retention_high'], 0)}"


def _main_notes(scores: Scores, frame: pd.DataFrame) -> list[str]:
    many = frame["seed_std"].notna().any()
    deviation = (
        "± is the standard deviation over seeds"
        if many
        else (f"Standard deviation over seeds: {NOT_AVAILABLE}, one seed each")
    )
    notes = [
        f"Scores in points of the task's metric. {deviation}; the error from documents is in the detailed table.",
        "Above chance: mean over tasks of (score − chance) / (1 − chance), in points; its interval redraws documents "
        f"within tasks{_seeds_in_words(scores)}. Retained: that average as a share of the teacher's. Bold: the best "
        "student and every student not significantly different from it (Holm within the column).",
    ]
    if has_different_validation_data(scores.results.runs):
        notes.append(
            "Validation (KL, curves): each student on held-out rows of its own text; other data are another measure."
        )
    if has_several_teachers(scores.results.runs):
        notes.append(
            "Validation KL: to each student's own teacher, so that it does not compare between teachers; of a student "
            "without teacher that stands beside several, to the first."
        )
    notes += excluded_task_notes(scores)
    if scores.teacher is None:
        notes.append("The teacher has no result: nothing is compared with it, and tasks at chance cannot be told.")
    few = [p.task for p in scores.responses.tasks if p.n < FEW_DOCUMENTS or int(p.clusters.max()) + 1 < FEW_PASSAGES]
    if few:
        notes.append(
            f"Fewer than {FEW_DOCUMENTS} documents or {FEW_PASSAGES} passages on {join_words(few)}: too few for redrawn "
            "documents to say how uncertain an average is."
        )
    declared = int(frame.loc[(frame["task"] == MACRO_AVERAGE) & (frame["role"] == "distilled"), _P].notna().sum().sum())
    if 2 / (scores.analysis.n_resamples + 1) * declared > scores.analysis.alpha:
        notes.append(
            f"With {scores.analysis.n_resamples} bootstrap draws nothing can be significant after Holm over {declared} "
            "comparisons: raise analysis.n_resamples."
        )
    metrics = {panel.task: panel.metric for panel in scores.responses.tasks}
    counted = [count_ties(frame, metrics) for frame in scores.results.records.values()]
    tied, answers = (sum(numbers) for numbers in zip(*counted, strict=True))
    if tied:
        notes.append(
            f"In {tied:,} of {answers:,} answers among choices two or more score best by the task's metric; the first one "
            "counts."
        )
    for g, group in enumerate(scores.groups):
        lacking = [
            task for t, task in enumerate(scores.tasks) if task not in scores.excluded_tasks and np.isnan(scores.raw[t, g])
        ]
        if group.models and lacking:
            notes.append(f"Missing: {group.label} has no result on {join_words(lacking)}, hence no average.")
        if len(group.models) < group.num_planned:
            done, why = len(group.models), group.reason or "missing"
            notes.append(f"Missing: {group.label}, {group.num_planned - done} of {group.num_planned} ({why}).")
    return notes


def _seeds_in_words(scores: Scores) -> str:
    """What intervals say of other seeds."""
    seeds = {len(group.models) for group in scores.groups if group.role in ("ce_only", "distilled") and group.models}
    if not seeds or max(seeds) > 1:
        one = "; of students with one seed, documents alone" if 1 in seeds else ""
        return f" and seeds together{one}" if seeds else ""
    return "; with one seed each it covers documents alone, and another seed may differ by more"


def detail_table(scores: Scores, frame: pd.DataFrame, title: str) -> Table:
    """One row per task and model: score, document and seed error, differences to the teacher and to itself without."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    columns = [
        "task",
        "model",
        "seeds",
        f"score [{percent}]",
        "standard error (documents)",
        "std. over seeds",
        f"Δ teacher [{percent}]",
        f"Δ without teacher [{percent}]",
        "retained",
        "min. detectable Δ",
    ]
    rows: list[list[TableCell]] = []
    rules: set[int] = set()
    for task in [*scores.tasks, MACRO_AVERAGE]:
        task_rows = frame[frame["task"] == task]
        rules.add(len(rows))
        for i, (_, row) in enumerate(task_rows.iterrows()):
            rows.append([TableCell(task if i == 0 else ""), *_detail_cells(scores, row)])
    notes = [
        f"Paired differences in points; {HOLM_MARK} significant after Holm over the declared comparisons (distilled "
        f"students on the average) at {scores.analysis.alpha:.3g}, {FDR_MARK} after Benjamini–Hochberg over tasks and "
        f"models, for each opponent by itself, at "
        f"{scores.analysis.false_discovery_rate:.3g}. Minimum detectable Δ: the "
        "smallest difference to the teacher that this many documents show with 80% power.",
    ]
    return Table(
        title,
        columns,
        rows,
        num_text_columns=2,
        header_notes=sample_limit_notes(scores),
        footnotes=notes,
        provenance=evaluation_footnotes(scores),
        rules_before=rules - {0},
    )


def _detail_cells(scores: Scores, row: pd.Series) -> list[TableCell]:
    trained = row["role"] not in (*REFERENCE_ROLES, "untrained")
    deviation = format_points(row["seed_std"]) if pd.notna(row["seed_std"]) else NOT_AVAILABLE
    retained = (
        ""
        if row["role"] == "teacher"
        else f"{format_points(row['retention'], 0)}%"
        if pd.notna(row["retention"])
        else MISSING_VALUE
    )
    retained = "teacher at chance" if row["teacher_at_chance"] and row["role"] != "teacher" else retained
    return [
        TableCell(row["model"]),
        TableCell(_seeds(row)),
        TableCell(format_with_interval(row["score"], row["low"], row["high"]), bool(row["best"])),
        TableCell(format_points(row["document_se"])),
        TableCell(deviation if trained else ""),
        TableCell(_difference(scores, row, "teacher")),
        TableCell(_difference(scores, row, "ce_only")),
        TableCell(retained),
        TableCell(format_points(row["minimum_detectable_effect"])),
    ]


def _difference(scores: Scores, row: pd.Series, who: str) -> str:
    delta = row[f"{who}_delta"]
    if pd.isna(delta):
        return ""
    declared = row["task"] == MACRO_AVERAGE and row["role"] == "distilled"
    mark, level = (HOLM_MARK, scores.analysis.alpha) if declared else (FDR_MARK, scores.analysis.false_discovery_rate)
    mark = mark if row[f"{who}_p_adjusted"] <= level else ""
    return format_with_interval(delta, row[f"{who}_delta_low"], row[f"{who}_delta_high"], signed=True) + mark


def csv_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The score frame with its columns in reading order."""
    first = [
        "task",
        "metric",
        "num_fewshot",
        "limit",
        "n",
        "chance",
        "teacher_at_chance",
        "model",
        "role",
        "student",
        "variant",
        "num_seeds",
        "num_planned",
        "status",
        "score",
        "low",
        "high",
        "document_se",
        "seed_std",
        "best",
        "retention",
        "retention_low",
        "retention_high",
        "minimum_detectable_effect",
    ]
    rest = [c for c in frame.columns if c not in (*first, *COSTS, "p")]
    return frame[[*first, *rest, *(c for c in COSTS if c in frame)]]
