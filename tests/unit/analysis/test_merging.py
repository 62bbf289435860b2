"""Several experiments as one: the same numbers as apart, paired over experiments; what does not compare is refused."""

from pathlib import Path

import numpy as np
import pytest
from helpers.synthetic_results import TASKS, add_probe, build, edit_model, edited_records

from distill_lit.analysis.endpoints import BITS_PER_BYTE, probe_scores
from distill_lit.analysis.merging import EXPERIMENT_AXIS, left_out_tasks, merge_results, restrict_tasks
from distill_lit.analysis.results import Results, load_results
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import compute_scores, macro_difference
from distill_lit.config import AnalysisConfig, load_experiment
from distill_lit.report.paper.build import build_paper_table
from distill_lit.report.paper.notes import config_differences, merging_notes, provenance_lines
from distill_lit.report.paper.request import TableRequest
from distill_lit.utils.exceptions import UserError

FAST = AnalysisConfig(n_resamples=200)
TEACHERS = {"a": "file:x", "b": "file:x"}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two experiments with one teacher, on the same documents; both have a student that is called alike."""
    students: dict[str, dict[str, float]] = {"a": {"deep": 0.8}, "b": {"deep": 1.2, "shallow": 1.4}}
    return {name: build(tmp_path / name, documents=60, students=found) for name, found in students.items()}


def load(folders: dict[str, Path]) -> dict[str, Results]:
    return {name: load_results(folder) for name, folder in folders.items()}


def test_merged_models_have_the_scores_that_they_have_apart(folders: dict[str, Path]) -> None:
    parts = load(folders)
    merged = compute_scores(merge_results(parts, TEACHERS), FAST)
    labels = {group.label: g for g, group in enumerate(merged.groups)}
    assert [label for label in labels if label.startswith("teacher")] == ["teacher"]
    assert len(labels) == 1 + 3 + 6
    for name, part in parts.items():
        alone = compute_scores(part, FAST)
        frame = score_frame(alone).set_index(["model", "task"])
        for g, group in enumerate(alone.groups):
            label = group.label if group.role == "teacher" else f"{group.label} (experiment={name})"
            assert merged.macro(labels[label]) == pytest.approx(alone.macro(g))
            assert merged.raw[:, labels[label]] == pytest.approx(alone.raw[:, g])
            if group.role == "distilled":
                kept = score_frame(merged).set_index(["model", "task"]).loc[(label, "macro average"), "retention"]
                assert kept == pytest.approx(frame.loc[(group.label, "macro average"), "retention"])


def test_models_of_two_experiments_are_paired(folders: dict[str, Path]) -> None:
    parts = load(folders)
    merged = compute_scores(merge_results(parts, TEACHERS), FAST)
    one, two = (merged.group_index(f"deep distilled (experiment={name})") for name in "ab")
    by_task = []
    for task, (choices, metric) in TASKS.items():
        column = "correct_norm" if metric == "acc_norm" else "correct"
        right = [parts[name].records["deep-distilled-0"].loc[task, column] for name in "ab"]
        by_task.append((right[0] - right[1]).mean() / (1 - 1 / choices))
    assert macro_difference(merged, one, two)[0].value == pytest.approx(np.mean(by_task))


def test_probes_are_merged_where_they_were_scored_alike(folders: dict[str, Path]) -> None:
    for folder, seed in zip(folders.values(), (1, 2), strict=True):
        add_probe(folder)
        add_probe(folder, "other", seed=seed)
    parts = load(folders)
    merged = merge_results(parts, TEACHERS)
    assert merged.probes is not None
    assert merged.probes.tasks == ["stories"]  # the other was drawn by two seeds
    assert list(merged.probes.records) == list(merged.records)
    together = probe_scores(compute_scores(merged, FAST), BITS_PER_BYTE)
    alone = {name: probe_scores(compute_scores(part, FAST), BITS_PER_BYTE) for name, part in parts.items()}
    assert together is not None
    for name, scores in alone.items():
        assert scores is not None
        value = together.raw[0, together.group_index(f"deep distilled (experiment={name})")]
        assert value == pytest.approx(scores.raw[scores.tasks.index("stories"), scores.group_index("deep distilled")])
    parts = load(folders)
    parts["b"].probes = None
    assert merge_results(parts, TEACHERS).probes is None


def test_a_student_is_compared_with_the_baseline_of_its_own_experiment(folders: dict[str, Path]) -> None:
    parts = load(folders)
    merged = score_frame(compute_scores(merge_results(parts, TEACHERS), FAST)).set_index(["model", "task"])
    for name, part in parts.items():
        alone = score_frame(compute_scores(part, FAST)).set_index(["model", "task"])
        known = alone.loc[("deep distilled", "macro average"), "ce_only_delta"]
        assert merged.loc[(f"deep distilled (experiment={name})", "macro average"), "ce_only_delta"] == pytest.approx(known)


def test_another_limit_or_other_documents_are_refused(folders: dict[str, Path]) -> None:
    with edited_records(folders["b"]) as content:
        for settings in content.settings.values():
            settings["piqa"]["limit"] = 20
    with pytest.raises(UserError) as error:
        merge_results(load(folders), TEACHERS)
    assert "piqa: limit is 0 for 'teacher (a)' and 20 for" in str(error.value)
    assert "--where task=arc_easy,hellaswag,sciq" in str(error.value)
    parts = {name: restrict_tasks(part, ["sciq", "arc_*"]) for name, part in load(folders).items()}
    assert merge_results(parts, TEACHERS).tasks == ["arc_easy", "sciq"]


def test_experiments_that_share_no_task_are_refused(tmp_path: Path) -> None:
    folders = {name: build(tmp_path / name, documents=20, tasks={task: TASKS[task]}, students={"deep": 0.8})
               for name, task in (("a", "piqa"), ("b", "sciq"))}  # fmt: skip
    with pytest.raises(UserError, match=r"share no task.*a: piqa; b: sciq"):
        merge_results(load(folders), TEACHERS)


def test_tasks_that_one_lacks_are_left_out(folders: dict[str, Path]) -> None:
    parts = load(folders)
    parts["b"] = restrict_tasks(parts["b"], ["sciq", "piqa"])
    assert left_out_tasks(parts) == {"arc_easy": ["b"], "hellaswag": ["b"]}
    assert merge_results(parts, TEACHERS).tasks == ["piqa", "sciq"]
    with pytest.raises(UserError, match="did you mean 'piqa'"):
        restrict_tasks(parts["a"], ["piqua"])
    with pytest.raises(UserError, match="tasks: .sciq. is one text; give a list"):
        restrict_tasks(parts["a"], "sciq")


def test_another_teacher_is_an_external_model(folders: dict[str, Path]) -> None:
    edit_model(folders["b"], "teacher", lambda frame: frame.assign(correct=0.0, correct_norm=0.0))
    merged = merge_results(load(folders), {"a": "file:x", "b": "file:y"})
    assert merged.teacher() == "teacher (a)"
    other = merged.runs.set_index("model").loc["teacher (b)"]
    assert (other["role"], other[EXPERIMENT_AXIS]) == ("external", "b")
    frame = score_frame(compute_scores(merged, FAST)).set_index(["model", "task"])
    assert frame.loc[("deep distilled (experiment=b)", "macro average"), "teacher_delta"] > -0.9  # less the first one's


def test_what_else_differs_is_said_in_a_line(tmp_path: Path) -> None:
    base = (
        "name: {}\nteacher: file:{}\nstudent: deep\nstudents: {}\ndata: {{corpora: {}}}\n"
        "training: {{max_tokens: {}}}\nanalysis: {{}}\n"
    )
    texts = {
        "a": base.format("a", "x", "{deep: {num_layers: 6}}", "{t: {path: t.txt}}", 1000),
        "b": base.format("b", "y", "{deep: {num_layers: 3}, d9: {num_layers: 9}}", "{u: {path: t.txt}}", 2000),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text + f"question: {name}?\nlauncher: {{workers: {len(name)}}}\n")
    configs = {name: load_experiment(tmp_path / f"{name}.yaml") for name in texts}
    assert config_differences(list(configs.values())) == [
        "teacher.model", "data.corpora", "training.max_tokens (1,000 / 2,000)", "students.deep"
    ]  # fmt: skip
    notes = merging_notes(configs, {"piqa": ["b"], "sciq": ["b"]})
    assert notes[0] == "Left out: piqa and sciq, which b lacks."
    assert notes[1].startswith("The teacher of b is another model than that of a")
    assert "differ in teacher.model, data.corpora, training.max_tokens (1,000 / 2,000), students.deep: " in notes[2]
    assert merging_notes({"a": configs["a"]}, {}) == []


def test_the_provenance_names_the_training_text_of_each_experiment(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        text = f"data: {{corpora: {{of_{name}: {{dataset: hub/{name}, split: train}}}}}}\n"
        (folder / "plan.yaml").write_text(text)
    scores = compute_scores(merge_results(load(folders), TEACHERS), FAST)
    paper = build_paper_table(scores, score_frame(scores), TableRequest())
    lines = provenance_lines(folders, paper, "table a b")
    told = [line for line in lines if "Training text" in line]
    assert told == [f"{name}: Training text: of_{name} (hub/{name}, train)." for name in "ab"]
    (alone,) = provenance_lines({"a": folders["a"]}, paper, "table a")[1:2]
    assert alone == "Training text: of_a (hub/a, train)."
