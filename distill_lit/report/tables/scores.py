"""The tables of scores: the answer's (models × what is kept and gained), the tasks', and the detailed one."""

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import REFERENCE_ROLES, ModelGroup, group_cost, validation_teacher
from distill_lit.analysis.results import SAME_TEACHER_NATS
from distill_lit.analysis.score_table import COSTS, MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.config.report import ReportConfig
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import (
    NOT_AVAILABLE,
    format_count,
    format_number,
    format_points,
    format_retention,
    format_with_interval,
)
from distill_lit.report.tables.footnotes import evaluation_footnotes, excluded_task_notes, sample_limit_notes, task_heads
from distill_lit.report.tables.score_notes import (
    FDR_MARK,
    HOLM_MARK,
    bold_note,
    earned_bold,
    has_other_vocabulary,
    main_notes,
    score_warnings,
    ties_note,
)

CORPUS_LOSS, TEACHER_LOSS = "loss on the corpus, nats", "teacher's loss there"


def score_table(scores: Scores, frame: pd.DataFrame, title: str) -> Table:
    """A row per model group: above chance, retained, Δ without teacher first, then seeds, losses and costs."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    frame = frame.assign(best=earned_bold(frame))
    macro = frame[frame["task"] == MACRO_AVERAGE].set_index("model")
    # of models made from others their making; sizes, and the costs of all others, stand in a table of their own
    shown_costs = _COSTS if "pipeline_training_flops" in macro else _COSTS[:1]
    costs = [cost for cost in shown_costs if macro.get(cost[0], pd.Series(dtype=float)).notna().any()]
    losses, display = _corpus_losses(scores), scores.results.display
    named = {"above_chance": "above chance", "retained": "retained", "delta_ce_only": "Δ without teacher"}
    shown = [f"{display.labels.get(name, words)} [{percent}]" for name, words in named.items()]
    head = [display.label("model"), *shown, display.label("seeds")]
    rows, rules, student = [], set(), None
    for g, group in enumerate(scores.groups):
        if student is not None and group.student != student:
            rules.add(len(rows))
        student, row = group.student, macro.loc[group.label]
        texts = [format_retention(row, display.digits("retained", 0)), _difference(scores, row, "ce_only"), _seeds(row)]
        texts += [*(column[g] for column in losses.values()), *(show(row[name], display) for name, _, show in costs)]
        rows.append([_name_cell(scores, group.label), _macro_cell(row, display), *map(TableCell, texts)])
    return Table(
        title,
        [*head, *losses, *(display.labels.get(name, words) for name, words, _ in costs)],
        rows,
        header_notes=sample_limit_notes(scores),
        footnotes=main_notes(scores, frame),
        warnings=score_warnings(scores),
        provenance=evaluation_footnotes(scores),
        rules_before=rules,
    )


def task_table(scores: Scores, frame: pd.DataFrame, title: str = "Scores by task") -> Table:
    """Rows are model groups, columns the tasks, in points of the task's metric."""
    display = scores.results.display
    frame = frame.assign(best=earned_bold(frame))
    by_model = {label: rows.set_index("task") for label, rows in frame.groupby("model", sort=False)}
    digits = display.digits("score", 1)
    rows = [
        [_name_cell(scores, g.label), *(_score_cell(by_model[g.label].loc[t], digits) for t in scores.tasks)]
        for g in scores.groups
    ]
    students = [group.student for group in scores.groups]
    rules = {i for i in range(1, len(students)) if students[i] != students[i - 1]} | {len(rows)}
    chance = [TableCell(format_points(float(panel.chance.mean()), digits)) for panel in scores.responses.tasks]
    rows.append([TableCell("guessing"), *chance])
    deviation = "± is the standard deviation over seeds." if frame["seed_std"].notna().any() else "One seed each."
    notes = [f"Points of the task's metric. {deviation}{bold_note(frame)}", *excluded_task_notes(scores)]
    notes += [note for note in [ties_note(scores)] if note]
    head = [display.label("model"), *task_heads(scores)]
    return Table(title, head, rows, header_notes=sample_limit_notes(scores), footnotes=notes, rules_before=rules)


def _corpus_losses(scores: Scores) -> dict[str, list[str]]:
    """{column: text per group}: cross-entropy on held-out training text, the teacher's own in its row, or, where students
    read different texts or have other teachers, in a column."""
    own = [group_cost(group, scores.results, "val_ce") for group in scores.groups]
    teacher = [group_cost(group, scores.results, "val_teacher_nll") for group in scores.groups]
    if has_other_vocabulary(scores):
        teacher = [float("nan")] * len(teacher)
    known = [value for value in teacher if np.isfinite(value)]
    if not np.isfinite(own).any():
        return {}
    others = [validation_teacher(group, scores.results) for group in scores.groups]
    of_row = [value for value, other in zip(teacher, others, strict=True) if np.isfinite(value) and not other]
    if of_row and np.ptp(of_row) <= SAME_TEACHER_NATS and scores.teacher is not None:
        own[scores.teacher] = of_row[0]
    shown = {CORPUS_LOSS: [_nats(value, group) for value, group in zip(own, scores.groups, strict=True)]}
    if known and (np.ptp(known) > SAME_TEACHER_NATS or any(others)):
        shown[TEACHER_LOSS] = [_nats(value, group) for value, group in zip(teacher, scores.groups, strict=True)]
    return shown


def _nats(value: float, group: ModelGroup) -> str:
    return "" if not np.isfinite(value) and group.role in REFERENCE_ROLES else format_number(value, 2)


def _training_flops(value: float, _: ReportConfig) -> str:
    return "" if np.isnan(value) else "0" if value == 0 else format_count(value)


_COSTS = (
    ("val_kl", "KL to the teacher, nats", lambda v, to: "" if np.isnan(v) else format_number(v, to.digits("val_kl", 2))),
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


def _name_cell(scores: Scores, label: str) -> TableCell:
    """What a model is called; only the teacher's label is not in its name already."""
    return TableCell(scores.results.display.label(label) if label == "teacher" else label)


def _score_cell(row: pd.Series, digits: int) -> TableCell:
    text = format_points(row["score"], digits)
    if pd.notna(row["seed_std"]):
        text += f" ± {format_points(row['seed_std'], digits)}"
    return TableCell(text, bool(row["best"]))


def _macro_cell(row: pd.Series, display: ReportConfig) -> TableCell:
    digits = display.digits("above_chance", 1)
    return TableCell(format_with_interval(row["score"], row["low"], row["high"], digits), bool(row["best"]))


def detail_table(scores: Scores, frame: pd.DataFrame, title: str) -> Table:
    """One row per task and model: score, differences to the teacher and to itself without, document and seed error."""
    percent = f"{scores.analysis.confidence_level:.0%}"
    columns = ["model", f"score [{percent}]", f"Δ without teacher [{percent}]", f"Δ teacher [{percent}]", "retained",
               "seeds", "std. over seeds", "standard error (documents)", "min. detectable Δ"]  # fmt: skip
    frame = frame.assign(best=earned_bold(frame))
    rows: list[list[TableCell]] = []
    headings: dict[int, str] = {}
    for task, head in zip([*scores.tasks, MACRO_AVERAGE], [*task_heads(scores), MACRO_AVERAGE], strict=True):
        headings[len(rows)] = head
        rows += [_detail_cells(scores, row) for _, row in frame[frame["task"] == task].iterrows()]
    notes = [
        f"Paired differences in points; {HOLM_MARK} significant after Holm over the declared comparisons (distilled "
        "students on the average, with themselves without teacher; with the teacher and themselves before training only "
        f"where that is significant) at {scores.analysis.alpha:.3g}, {FDR_MARK} after Benjamini–Hochberg over tasks and "
        f"models, for each opponent by itself, at {scores.analysis.false_discovery_rate:.3g}. Minimum detectable Δ: the "
        "smallest difference to the student without teacher, else to the teacher, that this many documents and seeds show "
        "with 80% power."
        f"{bold_note(frame)}",
    ]
    return Table(
        title,
        columns,
        rows,
        header_notes=sample_limit_notes(scores),
        footnotes=notes,
        provenance=evaluation_footnotes(scores),
        headings_before=headings,
    )


def _detail_cells(scores: Scores, row: pd.Series) -> list[TableCell]:
    trained = row["role"] not in (*REFERENCE_ROLES, "untrained")
    deviation = format_points(row["seed_std"]) if pd.notna(row["seed_std"]) else NOT_AVAILABLE
    return [
        _name_cell(scores, row["model"]),
        TableCell(format_with_interval(row["score"], row["low"], row["high"]), bool(row["best"])),
        TableCell(_difference(scores, row, "ce_only")),
        TableCell(_difference(scores, row, "teacher")),
        TableCell(format_retention(row)),
        TableCell(_seeds(row)),
        TableCell(deviation if trained else ""),
        TableCell(format_points(row["document_se"])),
        TableCell(format_points(row["minimum_detectable_effect"])),
    ]


def _difference(scores: Scores, row: pd.Series, who: str) -> str:
    delta = row[f"{who}_delta"]
    if pd.isna(delta):
        return ""
    declared = row["task"] == MACRO_AVERAGE and row["role"] == "distilled"
    mark, level = (HOLM_MARK, scores.analysis.alpha) if declared else (FDR_MARK, scores.analysis.false_discovery_rate)
    mark = mark if row[f"{who}_p_adjusted"] <= level else ""
    digits = scores.results.display.digits(f"delta_{who}", 1)
    return format_with_interval(delta, row[f"{who}_delta_low"], row[f"{who}_delta_high"], digits, signed=True) + mark


def csv_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The score frame with its columns in reading order."""
    first = [
        "task",
        "model",
        "score",
        "low",
        "high",
        "retention",
        "retention_low",
        "retention_high",
        "ce_only_delta",
        "ce_only_delta_low",
        "ce_only_delta_high",
        "ce_only_p_adjusted",
        "metric",
        "num_fewshot",
        "limit",
        "n",
        "chance",
        "teacher_at_chance",
        "role",
        "student",
        "variant",
        "num_seeds",
        "num_planned",
        "status",
        "document_se",
        "seed_std",
        "best",
        "minimum_detectable_effect",
    ]
    rest = [c for c in frame.columns if c not in (*first, *COSTS, "p")]
    return frame[[*first, *rest, *(c for c in COSTS if c in frame)]]
