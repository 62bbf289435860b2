"""The JSON schema of experiment files: what is committed is what is printed, and it takes what the loader takes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from helpers import ROOT

from distill_lit.cli.main import main
from distill_lit.config import ExperimentConfig, load_experiment, to_dict
from distill_lit.config.json_schema import describe_fields, experiment_json_schema
from distill_lit.config.yaml_text import YamlScalar, parse_yaml
from distill_lit.utils.exceptions import UserError

FILE = ROOT / "configs/experiment.schema.json"
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def as_editors_read(value: Any) -> Any:
    """A YAML tree with plain numbers."""
    if isinstance(value, dict):
        return {key: as_editors_read(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_editors_read(item) for item in value]
    return value.value if isinstance(value, YamlScalar) else value


def test_the_committed_schema_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["schema"])
    assert end.value.code == 0
    assert capsys.readouterr().out == FILE.read_text(encoding="utf-8"), (
        "distill-lit schema > configs/experiment.schema.json"
    )


@pytest.mark.parametrize("path", [*EXPERIMENTS, *CONFIGS], ids=lambda path: path.stem)
def test_shipped_files_are_valid(validator: Any, path: Path) -> None:
    validator.validate(as_editors_read(parse_yaml(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_name_the_schema(path: Path) -> None:
    (line,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "yaml-language-server" in line]
    assert (path.parent / line.removeprefix("# yaml-language-server: $schema=")).resolve() == FILE


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("training: {micro_batch_size: 8, learning_rate: 1e-4, keep_checkpoints: true}", True),
        ("training: {micro_batch_size: '${cost.requests}', precision: '${teacher.dtype}'}", True),
        ("data: {corpora: {a: null, b: {generated: {prompts: {text: [x, y]}}}}}", True),
        ("objective: {terms: {kl: null, ce: {weight: {shape: linear, start: 1, end: 0.5}, temperature: 2}}}", True),
        ("students: {two: {layers: [0, 2], from: '', lora: {target_modules: [q_proj]}}}", True),
        ("evaluation: {num_fewshot: null}", True),
        ("evaluation: {probes: {a: null}}", True),
        ("hypotheses: {a: null}", True),
        ("models: {a: null}", False),
        ("teacher: 'file:x'", True),
        ("teacher: [x]", False),
        ("on_policy: {fraction: adaptive}", True),
        ("variants: {a: {data.seed: 1}}", True),
        ("training: {micro_batch_size: '8'}", False),
        ("training: {micro_batch_size: 0}", False),
        ("training: {micro_batch_size: 2.5}", False),
        ("training: {micro_batchsize: 8}", False),
        ("training: {learning_rate: 0}", False),
        ("training: {precision: float23}", False),
        ("training: 3", False),
        ("objective: {terms: {ce: {weight: {shape: linear, begin: 1}}}}", False),
        ("objective: {terms: {ce: {temperature: 0}}}", False),
        ("students: {two: {layers: all}}", False),
        ("students: {two: {from_: x}}", False),
        ("on_policy: {fraction: 1.5}", False),
        ("evaluation: {tasks: sciq}", False),
        ("baselines: [nobody]", False),
        ("grid: {seed: 1}", False),
    ],
)
def test_the_schema_takes_what_the_loader_takes(validator: Any, tmp_path: Path, text: str, is_right: bool) -> None:
    file = tmp_path / "x.yaml"
    students = "" if text.startswith("students") else "students: {one: {}}\n"
    teacher = "" if text.startswith("teacher") else "teacher: {model: 'file:x'}\n"
    file.write_text(f"name: x\n{teacher}{students}{text}\n")
    if "a: null" in text:  # is what takes away what is inherited
        (tmp_path / "configs").mkdir()
        inherited = "data: {corpora: {a: {path: 'file:a'}}}\nevaluation: {probes: {a: {path: 'file:a'}}}\n"
        (tmp_path / "configs/base.yaml").write_text(f"{inherited}hypotheses: {{a: {{claim: c, endpoint: val_ce}}}}\n")
        file.write_text(f"defaults: [base]\n{file.read_text()}")
    assert validator.is_valid(as_editors_read(parse_yaml(file.read_text()))) == is_right
    if is_right:
        load_experiment(file)
    else:
        with pytest.raises(UserError):
            load_experiment(file)


def test_listed_fields_are_all_fields_with_their_defaults() -> None:
    listed = {field.key: field.default for field in describe_fields()}
    plain = flat(to_dict(ExperimentConfig()), set(listed))
    assert {key: listed[key] for key in plain} == plain
    assert set(listed) - set(plain) == {"defaults", *(key for key in listed if ".NAME" in key)}
    assert listed["objective.terms.NAME.weight"] is None
    assert listed["data.corpora.NAME.generated.remote.price.input"] == 0.0


def flat(tree: dict[str, Any], fields: set[str], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} down to the keys that are fields."""
    values = {}
    for key, value in tree.items():
        is_section = isinstance(value, dict) and f"{prefix}{key}" not in fields
        values |= flat(value, fields, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return values


def test_listed_ranges_are_those_that_are_checked() -> None:
    allowed = {field.key: field.allowed for field in describe_fields()}
    assert allowed["training.micro_batch_size"] == "≥ 1, ≤ 1048576"
    assert allowed["training.learning_rate"] == "> 0"
    assert allowed["seed"] == "≥ 0"
    assert allowed["cost.output_lengths"] == "≥ 2"
    assert allowed["analysis.num_strata"] == "≥ 2, ≤ 20"
    assert allowed["on_policy.fraction"] == "≥ 0, ≤ 1, adaptive"
    assert allowed["teacher.dtype"] == "auto, float32, bfloat16, float16"
    assert allowed["question"] == ""


def test_every_field_is_described_in_the_schema() -> None:
    schema = experiment_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert field.get("description"), name
