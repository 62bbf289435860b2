"""Relative paths in a file: below the current folder, else beside the file that names them; one rule for every key."""

from pathlib import Path

import pytest
from helpers import tiny_tasks

from distill_lit.config import expand_grid, load_experiment
from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.data import check_data_config
from distill_lit.data.templates import read_template
from distill_lit.evaluation.tasks import resolve_tasks
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.plugins import plugin_hash

FILE = """
name: x
teacher: {model: big/teacher, mixture: {teachers: {second: {model: 'file:big/teacher', weight: 0.5}}}}
students: {one: {num_layers: 1}, own: {from: org/hub}}
data:
  chat_template: chat.jinja
  corpora:
    here: {path: here.jsonl}
    beside: {path: beside.jsonl, text: beside.jsonl}
    both: {path: both.jsonl}
    gone: {path: gone.jsonl}
    away: {path: '$SCRATCH/beside.jsonl'}
  validation: {v: {path: 'file:beside.jsonl'}}
objective: {terms: {ce: {}}}
evaluation: {tasks: [x], include_path: tasks, probes: {p: {path: beside.jsonl}}}
external_models: {other: big/teacher}
variants: {far: {data.corpora.here.path: beside.jsonl}}
plugins: [losses.py]
student: one
grid:
  variant: [far]
  'data.corpora.both.path, data.corpora.both.text': [[beside.jsonl, beside.jsonl], [here.jsonl, b]]
  seed: [0, 1]
  exclude: [{data.corpora.both.path: beside.jsonl, seed: 1}]
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment in `folder`, below the current folder."""
    folder = tmp_path / "folder"
    for name in ("beside.jsonl", "both.jsonl", "chat.jinja", "losses.py", "big/teacher/config.json", "tasks/a.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    for name in ("here.jsonl", "both.jsonl"):
        (tmp_path / name).write_text("{}")
    (folder / "x.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return folder / "x.yaml"


def test_one_rule_for_every_key(file: Path) -> None:
    config = load_experiment(file)
    corpora = config.data.corpora
    found = {name: corpus.path for name, corpus in corpora.items()}
    assert found == {
        "here": "here.jsonl", "beside": "folder/beside.jsonl", "both": "both.jsonl", "gone": "gone.jsonl",
        "away": "$SCRATCH/beside.jsonl",
    }  # fmt: skip
    assert corpora["beside"].text == "beside.jsonl"
    assert config.data.validation["v"].path == "file:folder/beside.jsonl"
    assert config.data.chat_template == "folder/chat.jinja"
    assert config.evaluation.include_path == "folder/tasks"
    assert config.evaluation.probes["p"].path == "folder/beside.jsonl"
    assert config.teacher.model == config.external_models["other"] == "folder/big/teacher"
    assert config.teacher.mixture.teachers["second"].model == "file:folder/big/teacher"
    assert config.students["own"].from_ == "org/hub"
    assert config.plugins == ["folder/losses.py"]
    points = [(p["data.corpora.both.path"], p["data.corpora.both.text"], p["seed"]) for p, _ in expand_grid(config)]
    assert points == [("folder/beside.jsonl", "beside.jsonl", 0), ("here.jsonl", "b", 0), ("here.jsonl", "b", 1)]
    assert next(expand_grid(config))[1].data.corpora["here"].path == "folder/beside.jsonl"  # of the variant


NAMES = """
name: x
defaults: [begins_as_teacher]
teacher: {model: big/teacher, mixture: {teachers: {main: {weight: 0.5}}}}
models:
  questions: {from: teacher, data.corpora: {a: {path: questions}}}
  both: {from: questions, stages: {warm_up: {}, then: {teacher: warm_up}}}
students: {own: {from: questions}}
data: {corpora: {a: {path: questions, text: text}}}
objective: {terms: {ce: {}}}
evaluation: {tasks: [x]}
variants: {far: {teacher.model: questions}, near: {students.own.from: folder_of_none}}
student: own
grid: {teacher.model: [teacher, questions, models/questions]}
"""


def test_names_of_models_are_no_paths(file: Path) -> None:
    """Though folders of the same names are beside the file; those are meant where a key holds a path alone."""
    folder = file.parent
    for name in ("teacher", "questions", "warm_up", "models/questions", "configs"):
        (folder / name).mkdir(parents=True)
    (folder / "configs/begins_as_teacher.yaml").write_text(
        "students: {first: {from: teacher}, second: {from: questions}}\n"
    )
    (folder / "names.yaml").write_text(NAMES)
    config = load_experiment(folder / "names.yaml")
    assert {name: student.from_ for name, student in config.students.items()} == {
        "own": "questions", "first": "teacher", "second": "questions",
    }  # fmt: skip
    assert config.models["questions"]["from"] == "teacher"
    assert config.models["both"] == {"from": "questions", "stages": {"warm_up": {}, "then": {"teacher": "warm_up"}}}
    assert config.variants["far"] == {"teacher.model": "questions"}
    assert config.grid["teacher.model"] == ["teacher", "questions", "folder/models/questions"]
    assert config.teacher.model == "folder/big/teacher"
    assert config.data.corpora["a"].path == "folder/questions"


def test_by_any_name_of_the_file_and_in_its_own_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        load_experiment(file) == load_experiment(Path("folder/x.yaml")) == load_experiment(Path("folder/../folder/x.yaml"))
    )
    monkeypatch.chdir(file.parent)
    assert load_experiment(Path("x.yaml")).data.corpora["beside"].path == "beside.jsonl"
    # an override is of the current folder
    assert load_experiment(Path("x.yaml"), ["data.corpora.gone.path=gone.txt"]).data.corpora["gone"].path == "gone.txt"


def test_what_is_in_neither_folder_is_told_with_the_rule() -> None:
    rule = r": no such file or folder; a relative path is looked for in the current folder, then beside the file that"
    for name in ("gone.jsonl", "gone.bin"):
        with pytest.raises(UserError, match=rf"data\.corpora\.a\.path: {name}{rule}"):
            check_data_config(DataConfig(corpora={"a": CorpusConfig(path=name)}), "pypi")
    with pytest.raises(UserError, match=rf"data\.chat_template: gone\.jinja{rule}"):
        read_template("gone.jinja")
    with pytest.raises(UserError, match=rf"plugins: gone\.py{rule}"):
        plugin_hash("gone.py")


def test_data_files_of_a_task_may_be_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "mine", "words")
    task = folder / "words.yaml"
    task.write_text(task.read_text().replace(f"{folder}/", ""))
    assert str(folder) not in task.read_text()
    monkeypatch.chdir(tmp_path)
    (spec,) = resolve_tasks(EvaluationConfig(tasks=["words"], include_path="mine"), "pypi")
    data_files = spec.data_source.task_overrides["dataset_kwargs"]["data_files"]
    assert str(folder / "words.jsonl") in str(data_files)
