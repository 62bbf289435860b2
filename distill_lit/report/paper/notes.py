"""What stands below a paper's table: how to read it, what does not compare; and, apart, where its numbers are from."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_lit.analysis.model_groups import NAMED_ROLES
from distill_lit.analysis.results import has_different_validation_data
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.config import ExperimentConfig, to_dict
from distill_lit.report.number_format import format_points, join_words
from distill_lit.report.paper.build import CONTESTED, PaperTable
from distill_lit.report.paper.quantities import ABOVE_CHANCE, QUANTITIES, RETAINED, SCORE
from distill_lit.report.paper.request import MODEL
from distill_lit.report.paper.values import value_of
from distill_lit.report.tables.footnotes import (
    evaluation_settings_notes,
    excluded_task_notes,
    exported_step_notes,
    training_text_notes,
)
from distill_lit.report.tables.score_notes import FDR_MARK, HOLM_MARK
from distill_lit.utils.files import read_mapping

EXPLAINED = ("margin", "p_gold", "bits_per_byte", "probe_bits_per_byte", "probe_kl", "val_kl", "val_ce")
BESIDE = ("ce_only", "untrained")  # roles that a table of grid keys is compared with
MAX_KEYS_NAMED = 6  # in which experiments differ
# sections that decide no student, or that the rows of a table name
NEUTRAL_SECTIONS = ("name", "question", "grid", "variants", "variant", "student", "seed", "baselines", "external_models",
                    "evaluation", "cost", "analysis", "report", "hypotheses", "launcher", "loggers", "plugins")  # fmt: skip
NEUTRAL_KEYS = ("training.keep_checkpoints", "training.checkpoint_interval", "training.checkpoint_budget",
                "training.log_every_n_steps", "training.val_check_interval", "training.strategy",
                "training.teacher_shards", "training.checkpoint")  # fmt: skip
WHOLE_SECTIONS = ("models", "stages", "data.corpora", "data.validation", "objective.terms")
FIRST_KEYS = ("teacher.model", "data.corpora", "training.max_tokens", "objective.terms", "training.learning_rate")


def reading_notes(paper: PaperTable, frame: Any) -> list[str]:
    """Footnotes of the table, for whoever has only the paper."""
    quantities = {column.quantity.name: column for column in paper.layout.columns}
    notes = [*_value_notes(paper, list(quantities)), *_bold_note(paper), *_comparison_note(paper, frame)]
    if any(column.task in paper.scores.excluded_tasks for column in paper.layout.columns):
        notes += excluded_task_notes(paper.scores)
    notes += exported_step_notes(paper.scores, dict.fromkeys(paper.layout.cells.values()))
    runs = paper.scores.results.runs
    if {"val_kl", "val_ce", "val_agreement"} & set(quantities) and has_different_validation_data(runs):
        notes.append("Validation: each student on held-out rows of its own text; on other text it is another measure.")
    return [*notes, *_missing_notes(paper)]


def _value_notes(paper: PaperTable, names: list[str]) -> list[str]:
    """Units, and what ± and brackets are."""
    scores, notes = paper.scores, []
    metrics: dict[str, list[str]] = {}
    shown = [column.task for column in paper.layout.columns if column.task != MACRO_AVERAGE]
    for task in scores.responses.tasks:
        if task.task in shown:
            metrics.setdefault(task.metric, []).append(scores.results.display.label(task.task))
    if SCORE in names:
        kinds = "; ".join(f"{metric} on {join_words(tasks)}" for metric, tasks in metrics.items())
        notes.append(f"Scores in points: {kinds}.")
    if {ABOVE_CHANCE, RETAINED} & set(names):
        averaged = join_words([scores.results.display.label(scores.tasks[t]) for t in scores.averaged])
        of = " Retained: that as a share of the teacher's." if RETAINED in names else ""
        notes.append(f"Above chance: mean of (score − chance) / (1 − chance) over {averaged}, in points.{of}")
    for name in [name for name in names if name in EXPLAINED]:
        quantity = QUANTITIES[name]
        notes.append(f"{scores.results.display.labels.get(name, quantity.label)}: {quantity.about}.")
    cells = [paper.text(r, c) for r, row in enumerate(paper.values) for c, value in enumerate(row) if value is not None]
    seeds = sorted(
        {len(group.models) for group in scores.groups if group.role in ("ce_only", "distilled") and group.models}
    )
    if any(" ± " in text for text in cells):
        notes.append(f"±: standard deviation over {' or '.join(map(str, (n for n in seeds if n > 1)))} seeds.")
    if any(" [" in text for text in cells):
        together = " and seeds" if seeds and seeds[-1] > 1 else "; one seed each, another may differ by more"
        notes.append(f"[a, b]: {scores.analysis.confidence_level:.0%} interval over documents{together}.")
    for mark, words in ((HOLM_MARK, "Holm, declared comparisons"), (FDR_MARK, "Benjamini–Hochberg")):
        if any(text.endswith(mark) for text in cells):
            notes.append(f"{mark} significant after correction ({words}).")
    return notes


def _bold_note(paper: PaperTable) -> list[str]:
    contested = [column for column in paper.layout.columns if column.quantity.name in CONTESTED]
    students = {g for g in paper.layout.cells.values() if paper.scores.groups[g].role not in NAMED_ROLES}
    if not contested or len(students) < 2:
        return []
    where = "panel" if paper.is_pivot and len(paper.layout.down) > 1 else "table" if paper.layout.across else "column"
    if any(value is not None and value.bold for row in paper.values for value in row):
        return [f"Bold: the best student of a {where} and those not significantly behind it (Holm), where others are."]
    return [f"No student of a {where} is significantly behind its best one (Holm), so none is bold."]


def _comparison_note(paper: PaperTable, frame: Any) -> list[str]:
    """The scores of those whom a table of grid keys has no place for: teacher, without teacher, before training."""
    layout, scores = paper.layout, paper.scores
    columns = {column.task: column for column in layout.columns if column.quantity.name in (SCORE, ABOVE_CHANCE)}
    if not layout.across or len(columns) != 1:
        return []
    ((task, column),) = columns.items()
    inside = set(layout.cells.values())
    shown = {scores.groups[g].student for g in inside}
    by_model, found = frame.set_index(["model", "task"]), []
    for g, group in enumerate(scores.groups):
        is_beside = group.role == "teacher" or (group.student in shown and group.role in BESIDE)
        if is_beside and g not in inside and group.models:
            value = value_of(scores, by_model, g, column.quantity, task)
            found.append(f"{layout.keys.at[g, MODEL]} {format_points(value.value)}")
    return [f"For comparison: {', '.join(found)}."] if 0 < len(found) <= MAX_KEYS_NAMED else []


def _missing_notes(paper: PaperTable) -> list[str]:
    notes = []
    for g in dict.fromkeys(paper.layout.cells.values()):
        group = paper.scores.groups[g]
        if len(group.models) < group.num_planned:
            label = paper.layout.keys.at[g, MODEL]
            notes.append(f"{label}: {len(group.models)} of {group.num_planned} seeds ({group.reason or 'missing'}).")
    return notes


def merging_notes(configs: Mapping[str, ExperimentConfig], left_out: Mapping[str, list[str]]) -> list[str]:
    """A line for each thing that keeps several experiments from being one."""
    if len(configs) < 2:
        return []
    notes = []
    for names in dict.fromkeys(map(tuple, left_out.values())):
        tasks = [task for task, lacking in left_out.items() if tuple(lacking) == names]
        verb = "lacks" if len(names) == 1 else "lack"
        notes.append(f"Left out: {join_words(tasks)}, which {join_words(list(names))} {verb}.")
    teachers = {name: config.teacher.model for name, config in configs.items()}
    reference, *others = teachers
    differing = [name for name in others if teachers[name] != teachers[reference]]
    if differing:
        notes.append(
            f"The teacher of {join_words(differing)} is another model than that of {reference}, of whose score all shares "
            "and differences are."
        )
    keys = config_differences(list(configs.values()))
    if keys:
        more = f" and {len(keys) - MAX_KEYS_NAMED} more" if len(keys) > MAX_KEYS_NAMED else ""
        notes.append(
            f"Beside what rows name, the experiments differ in {', '.join(keys[:MAX_KEYS_NAMED])}{more}: a difference "
            "between rows of two experiments may be due to any of it."
        )
    return notes


def config_differences(configs: list[ExperimentConfig]) -> list[str]:
    """Dotted keys that can change a student and are not the same in all configs, with their values where these are numbers:
    text, tokens and objective first."""
    flat = [_leaves(to_dict(config)) for config in configs]
    shared = set.intersection(*({key for key in leaves if key.startswith("students.")} for leaves in flat))
    found = {}
    for key in dict.fromkeys(key for leaves in flat for key in leaves):
        values = [leaves.get(key) for leaves in flat]
        is_neutral = key.split(".")[0] in NEUTRAL_SECTIONS or key in NEUTRAL_KEYS
        is_elsewhere = key.startswith("students.") and key not in shared  # a student that only one of them has
        if is_neutral or is_elsewhere or all(value == values[0] for value in values):
            continue
        is_number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        found[key] = f"{key} ({' / '.join(f'{value:,}' for value in values)})" if is_number else key
    first = [key for key in FIRST_KEYS if key in found]
    return [found[key] for key in dict.fromkeys([*first, *found])]


def _leaves(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{dotted key: value}; a student, and a section below which names are free, is one value."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{path}{name}"
        if isinstance(value, dict) and value and key not in WHOLE_SECTIONS and path != "students.":
            found |= _leaves(value, f"{key}.")
        else:
            found[key] = value
    return found


def provenance_lines(folders: Mapping[str, Path], paper: PaperTable, command: str) -> list[str]:
    """Where the numbers come from: folders and the command, how tasks were asked, with hashes, versions and machines."""
    places = join_words([str(folder) for folder in folders.values()])
    lines = [f"Drawn from {places} by: {command}", *_training_texts(folders, paper.scores)]
    lines += evaluation_settings_notes(paper.scores)
    for name, folder in folders.items():
        for fact, values in provenance_facts(folder).items():
            whose = f"{name}: {fact}" if len(folders) > 1 else fact.capitalize()
            lines.append(f"{whose} {' / '.join(values)}.")
    return lines


def _training_texts(folders: Mapping[str, Path], scores: Scores) -> list[str]:
    """What the students of each experiment read, as its own plan says."""
    lines = []
    for name, folder in folders.items():
        own = replace(scores, results=replace(scores.results, folder=folder))
        lines += [f"{name}: {line}" if len(folders) > 1 else line for line in training_text_notes(own)]
    return lines


def provenance_facts(folder: Path) -> dict[str, list[str]]:
    """{commit, changes, versions or hardware: what the runs of an experiment recorded}; empty where that is unknown."""
    entries = [entry for entry in read_mapping(folder / "provenance.json").values() if isinstance(entry, dict)]
    facts = {
        name: list(dict.fromkeys(_flat(entry[name]) for entry in entries if entry.get(name)))
        for name in ("commit", "changes", "versions", "hardware")
    }
    return {name: values for name, values in facts.items() if values}


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items() if v) if isinstance(value, dict) else str(value)
