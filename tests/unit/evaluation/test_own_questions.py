"""What stands in the user's own task files, their data and their probes."""

from pathlib import Path

import pytest

from distill_lit.config import EvaluationConfig, ProbeConfig
from distill_lit.evaluation.own_questions import own_questions_fingerprint
from distill_lit.experiment.execution.run_data import _hashes_below

TASK = """
include: ../shared/base.yaml
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: ["{folder}/data/*.jsonl"], train: "{folder}/train.jsonl"}}}}
doc_to_text: !function utils.text
"""


@pytest.fixture
def settings(tmp_path: Path) -> EvaluationConfig:
    for name, text in {
        "tasks/colours.yaml": TASK.format(folder=tmp_path),
        "tasks/deep/utils.py": "def text(doc): return doc['a']\n",
        "tasks/notes.txt": "notes",
        "shared/base.yaml": "output_type: multiple_choice\n",
        "data/one.jsonl": "{}\n",
        "train.jsonl": "{}\n",
        "probe.txt": "a passage\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    probes = {"own": ProbeConfig(path=f"file:{tmp_path}/probe.txt"), "other": ProbeConfig(dataset="a/b")}
    return EvaluationConfig(tasks=["colours"], include_path=str(tmp_path / "tasks"), probes=probes)


@pytest.mark.parametrize(
    ("name", "is_asked"),
    [
        ("tasks/colours.yaml", True),
        ("tasks/more.yaml", True),
        ("tasks/deep/utils.py", True),
        ("shared/base.yaml", True),
        ("data/one.jsonl", True),
        ("data/two.jsonl", True),
        ("train.jsonl", True),
        ("probe.txt", True),
        ("tasks/notes.txt", False),
        ("tasks/deep/__pycache__/utils.cpython-312.pyc", False),
        ("shared/other.yaml", False),
    ],
)
def test_it_changes_with_what_is_asked_and_with_nothing_else(
    settings: EvaluationConfig, tmp_path: Path, name: str, is_asked: bool
) -> None:
    known, file = own_questions_fingerprint(settings), tmp_path / name
    assert known and own_questions_fingerprint(settings) == known
    file.parent.mkdir(exist_ok=True)
    text = file.read_text() if file.is_file() else ""
    file.write_text(f"{text}# more\n")
    assert (own_questions_fingerprint(settings) != known) == is_asked


@pytest.mark.parametrize("template", ["_default_template_yaml", "../shared/_default_template_yaml"])
def test_data_that_an_included_template_names_are_those_beside_the_task(tmp_path: Path, template: str) -> None:
    """lm-eval's templates have no suffix, may include others, and are merged into the task, whose own keys win."""
    for name, text in {
        f"tasks/{template}": "include: deeper_yaml\ndataset_path: json\n",
        f"tasks/{Path(template).parent}/deeper_yaml": "dataset_kwargs: {data_files: {test: test.jsonl}}\n",
        "tasks/one.yaml": f"include: {template}\ntask: one\n",
        "tasks/two/two.yaml": f"include: ../{template}\ntask: two\n",
        "tasks/own/own.yaml": f"include: ../{template}\ntask: own\ndataset_kwargs: {{data_files: other.jsonl}}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    asked = ["tasks/test.jsonl", "tasks/two/test.jsonl", "tasks/own/other.jsonl"]
    others = ["tasks/own/test.jsonl", "shared/test.jsonl", "tasks/other.jsonl"]
    (tmp_path / "shared").mkdir(exist_ok=True)
    for name in (*asked, *others):
        (tmp_path / name).write_text("{}\n")
    settings = EvaluationConfig(tasks=["one"], include_path=str(tmp_path / "tasks"))
    templates = [f"tasks/{template}", f"tasks/{Path(template).parent}/deeper_yaml"]
    for name in (*asked, *templates, *others):
        known = own_questions_fingerprint(settings)
        with (tmp_path / name).open("a") as file:
            file.write("# more\n")
        assert (own_questions_fingerprint(settings) != known) == (name not in others), name


def test_packages_and_what_is_gone_say_nothing(settings: EvaluationConfig, tmp_path: Path) -> None:
    packages = EvaluationConfig(tasks=["sciq"], probes={"books": ProbeConfig(dataset="EleutherAI/lambada_openai")})
    assert own_questions_fingerprint(packages) == ""
    (tmp_path / "probe.txt").unlink()
    assert own_questions_fingerprint(settings) == ""


def test_code_that_was_imported_is_the_same_code(settings: EvaluationConfig, tmp_path: Path) -> None:
    """A generated corpus is filtered by the questions: it would be another one once they have been asked."""
    known = _hashes_below(settings.include_path)
    (tmp_path / "tasks/deep/__pycache__").mkdir()
    (tmp_path / "tasks/deep/__pycache__/utils.cpython-312.pyc").write_bytes(b"x")
    assert _hashes_below(settings.include_path) == known
    assert set(known) == {"colours.yaml", "deep/utils.py", "notes.txt"}
