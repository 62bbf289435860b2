"""What is written is what is read: configs hold any text and any name, from the file to the worker and back."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distill_lit.config import (
    CorpusConfig,
    DataConfig,
    ExperimentConfig,
    ObjectiveConfig,
    StudentConfig,
    TeacherConfig,
    TermConfig,
    expand_grid,
    load_experiment,
    to_dict,
    to_yaml,
)
from distill_lit.utils.exceptions import UserError

EXPLORE = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
ODD = [*"1e3 1e-4 0x10 1_000 010 1:30 1. .5 +.5e1 .inf 0o7 yes no On null ~ 2024-01-01 a.b from from_ defaults".split(),
       "", " ", " blank ", "two\nlines", "line \nend", "a\n\n  b\n", "\r\n", "\x85", "\u2028x", "\ufeff", "\x00", "\x7f",
       "\ud800", "\ue000", "\ue0001", "漢字", "💥", "'", '"', "\\", "\\\\", "$", "${", "${name}", r"\${name}", r"\\${name}",
       "${name", "${a.${b}}", "${oc.env:HOME}", "${{ price }}", "${5}", r"\${5}", "{{ text }}", "???", "*a", "&a", "!tag",
       "!!int 5", "a: b", "- x", "#", "a #b", "=", "<<", "%", "@x", "`x`", "|", ">", "?", "? a", "---"]  # fmt: skip
TEXT = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.lists(st.sampled_from(ODD), max_size=4).map("".join))
VALUES = st.recursive(
    st.one_of(TEXT, st.integers(-(10**18), 10**18), st.floats(allow_nan=False), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)


def config_of(text: str, name: str, value: Any) -> ExperimentConfig:
    """An experiment that holds a text, a name and a value wherever there is room for them; nothing of it was ever read."""
    return ExperimentConfig(
        name="x",
        question=text,
        teacher=TeacherConfig(model=text),
        students={"1e3": StudentConfig(from_=text, config={name: value})},
        student="1e3",
        data=DataConfig(corpora={name: CorpusConfig(path=text, text=text)}),
        objective=ObjectiveConfig(terms={name: TermConfig(kind=text, options={name: value}), "off": None}),
        variants={name: {"objective.chunk_size": 1, "question_": value}},
    )


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not EXPLORE)
@given(text=TEXT, name=TEXT, value=VALUES)
@example(text="${{ price }}", name="1e-4", value="${5}")
@example(text="???", name="???", value="???")
@example(text=r"\${name}", name="${name}", value={"from_": "???"})
def test_what_is_written_is_what_is_read(tmp_path: Path, text: str, name: str, value: Any) -> None:
    config = config_of(text, name, value)
    (tmp_path / "x.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert to_dict(load_experiment(tmp_path / "x.yaml")) == to_dict(config)
    ((_, point),) = expand_grid(config)
    assert to_dict(point) == to_dict(config)


BASE = "name: x\nteacher: {model: 'file:x'}\nstudents: {one: {layers: [0]}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x.yaml").write_text(BASE)
    return tmp_path / "x.yaml"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("costs ${{ price }}, not ${5}", "costs ${{ price }}, not ${5}"),
        (r"costs \${{ price }}", "costs ${{ price }}"),
        (r"\${5}", "${5}"),
        ("$5 and $x", "$5 and $x"),
        ("of ${name}", "of x"),
        (r"of \${name}", "of ${name}"),
        (r"of \\${name}", r"of \x"),
        (r"C:\temp\x", r"C:\temp\x"),
        ("${data.sequence_length} tokens", "256 tokens"),
        ("???", "???"),
    ],
)
def test_a_dollar_sign_is_itself_unless_it_stands_before_a_key(file: Path, written: str, meant: str) -> None:
    file.write_text(BASE + "question: '" + written + "'\ndata: {corpora: {a: {path: 'file:x', text: '" + written + "'}}}\n")
    config = load_experiment(file)
    ((_, point),) = expand_grid(config)
    for found in (config, point):
        assert (found.question, found.data.corpora["a"].text) == (meant, meant)
    assert load_experiment(file, [f"question={written}"]).question == meant


@pytest.mark.parametrize("written", ["${oc.env:HOME}", "${x + y}", "${name", "${a.${b}}"])
def test_what_is_no_key_is_refused_with_the_way_to_write_it(file: Path, written: str) -> None:
    with pytest.raises(UserError, match=r"question: .* is not the name of a key.*write ..\{ for the characters"):
        load_experiment(file, [f"question={written}"])


def test_names_that_look_like_numbers_need_no_quotes(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "name: 1e3\nteacher: {model: 'file:x'}\nstudents: {1e3: {layers: [0]}, "
        "007: {num_layers: 1}, yes: {num_layers: 2}}\n"
        "objective: {terms: {1e-4: {kind: forward_kl, weight: 1e-4}}}\nvariants: {1_0: {seed: 1}}\n"
        "grid: {student: [1e3, 007, yes], variant: [1_0]}\nexternal_models: {llama-3.1: 'file:y'}\n"
    )
    overrides = ["objective.terms.1e-4.weight=5e-1", "external_models.qwen-2.5=file:a=b", "question=1e3"]
    config = load_experiment(tmp_path / "x.yaml", overrides)
    assert (config.name, list(config.students), config.question) == ("1e3", ["1e3", "007", "yes"], "1e3")
    assert config.objective.terms["1e-4"].weight == 0.5
    assert config.external_models == {"llama-3.1": "file:y", "qwen-2.5": "file:a=b"}
    assert [(at["student"], point.student, point.seed) for at, point in expand_grid(config)] == [
        ("1e3", "1e3", 1), ("007", "007", 1), ("yes", "yes", 1)]  # fmt: skip
    (tmp_path / "y.yaml").write_text(to_yaml(config))
    assert load_experiment(tmp_path / "y.yaml") == config


@pytest.mark.parametrize("said", ["{{ text }}", "a: b", "- x", "*a", "[x", "%x", "{{ a }}: {{ b }}"])
def test_an_override_of_a_text_needs_no_quotes(file: Path, said: str) -> None:
    config = load_experiment(file, ["data.corpora.a.path=file:x", f"data.corpora.a.text={said}"])
    assert config.data.corpora["a"].text == said


def test_a_few_lines_do_not_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="more than 200,000 values"):
        load_experiment(tmp_path / "x.yaml")


def test_json_is_yaml(tmp_path: Path, file: Path) -> None:
    """JSON writes what is beyond 16 bits in two halves."""
    file.write_text(json.dumps({**yaml.safe_load(BASE), "question": "💥 ${5}", "variants": {"💥": {"seed": 1}}}))
    config = load_experiment(file)
    assert (config.question, config.variants) == ("💥 ${5}", {"💥": {"seed": 1}})
