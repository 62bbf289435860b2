"""Environment variables: in paths and references, and nowhere else; what is written down is what the user wrote."""

import json
from pathlib import Path

import pytest
from helpers import tiny_models
from helpers.tiny_data import save_tokenizer, write_lines

from distill_lit import assets
from distill_lit.config import ExperimentConfig, expand_grid, load_experiment, to_dict, to_yaml
from distill_lit.config.data import CorpusConfig, DataConfig
from distill_lit.config.key_paths import holds_paths
from distill_lit.data import check_data_config, prepare_datasets
from distill_lit.data.templates import read_template
from distill_lit.evaluation.task_index import user_index
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.execution.provenance import collect_provenance
from distill_lit.experiment.plan import plan_runs
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.path_variables import expand_path
from distill_lit.utils.plugins import plugin_hash

BASE = """
name: x
teacher: {model: 'file:${SCRATCH}/teacher'}
student: one
students: {one: {num_layers: 1}, own: {from: "file:$SCRATCH/own"}}
data: {corpora: {a: {path: '${SCRATCH}/a.txt', text: '$SCRATCH {{ text }}'}}}
objective: {terms: {ce: {}}}
variants:
  plain: {students.own.from: 'file:${SCRATCH}/other'}
  text: {b: {data.corpora.a.path: '${SCRATCH}/${name}.txt'}}
grid: {variant: [plain]}
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv("SCRATCH", str(place))
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    return place


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x.yaml").write_text(BASE)
    return tmp_path / "x.yaml"


def test_a_config_keeps_what_was_written(file: Path, tmp_path: Path, scratch: Path) -> None:
    config = load_experiment(file)
    assert config.teacher.model == "file:${SCRATCH}/teacher"
    assert config.data.corpora["a"].path == "${SCRATCH}/a.txt"
    ((_, point),) = expand_grid(config)
    assert point.students["own"].from_ == "file:${SCRATCH}/other"
    ((_, other),) = expand_grid(load_experiment(file, ["grid={variant.text: [b]}"]))
    assert other.data.corpora["a"].path == "${SCRATCH}/x.txt"  # a name in small letters is a key
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert to_dict(load_experiment(tmp_path / "again.yaml")) == to_dict(config)


ELSEWHERE = ("question=${SCRATCH}", "data.corpora.a.text=${SCRATCH}", "variants={a: {b: '${SCRATCH}'}}")


@pytest.mark.parametrize("change", ELSEWHERE)
def test_a_variable_elsewhere_is_refused(file: Path, scratch: Path, change: str) -> None:
    with pytest.raises(UserError, match=r"key 'SCRATCH' not found; environment variables stand in paths only"):
        load_experiment(file, [change])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\0b", r"^plugins: 'a\\x00b': no path has a null character$"),
        (
            "~nobody-of-this-name/x",
            r"^plugins: '~nobody-of-this-name/x': nobody knows a home folder for its ~; write it out$",
        ),
        ("x" * 256, r"^plugins: 'x{120}…': longer than a path can be$"),
        ("x/" * 2001, r"^plugins: '(x/){60}…': longer than a path can be$"),
    ],
)
def test_what_no_path_can_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        expand_path(text, "plugins")


@pytest.mark.parametrize(
    ("key", "is_path"),
    [
        ("teacher.model", True),
        ("students.a.from", True),
        ("data.corpora.a.b.path", True),
        ("data.validation.v.path", True),
        ("data.corpora.a.generated.prompts.path", True),
        ("data.corpora.a.generated.filters.perplexity_model", True),
        ("data.chat_template", True),
        ("evaluation.include_path", True),
        ("external_models.a.b", True),
        ("plugins", True),
        ("grid.student, students.a.from", True),
        ("grid.include.students.a.from", True),
        ("variants.a.students.b.from", True),
        ("variants.axis.a.students.b.from", True),
        ("teacher.mixture.teachers.a.model", True),
        ("models.a.from", True),
        ("models.a.teacher", True),
        ("stages.a.teacher.model", True),
        ("grid.teacher", True),
        ("grid.models.a.from", True),
        ("models.a.teacher.source", False),
        ("stages.a.objective.preset", False),
        ("question", False),
        ("data.corpora.a.text", False),
        ("data.corpora.path", False),
        ("grid.student", False),
        ("variants.a.data.corpora.b.text", False),
        ("loggers.wandb.dir", False),
    ],
)
def test_which_keys_hold_paths(key: str, is_path: bool) -> None:
    assert holds_paths(ExperimentConfig, key) == is_path


def test_paths_are_found_through_variables(scratch: Path) -> None:
    tiny_models.make_model(scratch / "teacher")
    for reference in ("file:$SCRATCH/teacher", "file:${SCRATCH}/teacher", "$SCRATCH/teacher"):
        assert assets.fetch(reference) == (scratch / "teacher").resolve()
        assert assets.is_fetched(reference)
    (scratch / "plugin.py").write_text("x = 1")
    assert plugin_hash("$SCRATCH/plugin.py") == plugin_hash(str(scratch / "plugin.py"))
    (scratch / "chat.jinja").write_text("{{ messages }}")
    assert read_template("$SCRATCH/chat.jinja") == read_template("file:$SCRATCH/chat.jinja") == "{{ messages }}"
    (scratch / "tasks").mkdir()
    assert user_index("${SCRATCH}/tasks") == {}
    assert expand_path("a$5/$scratch") == Path("a$5/$scratch")


def test_rows_are_known_by_what_is_written_and_by_the_content(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file behind another value is the same data, and another file behind the same value is not."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    config = DataConfig(corpora={"a": CorpusConfig(path="$SCRATCH/a.jsonl")}, sequence_length=32, validation_sequences=1)
    rows = [{"text": f"sentence number {i}"} for i in range(20)]
    write_lines(scratch / "a.jsonl", rows)
    first = prepare_datasets(config, tokenizer, "pypi").fingerprint
    (tmp_path / "moved").mkdir()
    write_lines(tmp_path / "moved/a.jsonl", rows)
    monkeypatch.setenv("SCRATCH", str(tmp_path / "moved"))
    assert prepare_datasets(config, tokenizer, "pypi").fingerprint == first
    write_lines(tmp_path / "moved/a.jsonl", rows[1:])
    assert prepare_datasets(config, tokenizer, "pypi").fingerprint != first


def test_a_variable_that_is_not_set_or_secret_is_refused_before_anything_is_loaded(
    file: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf_0123456789abcdef")
    data = DataConfig(corpora={"a": CorpusConfig(path="$MY_TOKEN/a.jsonl")})
    with pytest.raises(UserError, match=r"^data\.corpora\.a\.path: .* MY_TOKEN is called like a secret") as refused:
        check_data_config(data, "pypi")
    assert "0123" not in str(refused.value)
    for value in (None, ""):
        monkeypatch.delenv("SCRATCH") if value is None else monkeypatch.setenv("SCRATCH", value)
        with pytest.raises(UserError, match=r"^teacher\.model: reference: '\$\{SCRATCH\}/teacher': .* SCRATCH is not set$"):
            check_experiment(load_experiment(file))


def test_fingerprints_and_provenance_hold_no_value_of_a_variable(
    file: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_lines(scratch / "a.txt", [])
    before = [run.name for run in plan_runs(load_experiment(file))]
    provenance = collect_provenance(load_experiment(file), ["file:${SCRATCH}/a.txt"], tmp_path)
    assert "file:${SCRATCH}/a.txt" in provenance["revisions"] and str(scratch) not in json.dumps(provenance)
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert [run.name for run in plan_runs(load_experiment(file))] == before
