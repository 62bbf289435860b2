"""The tables of papers' terms and of other libraries' keys: every key, value and file in them is there."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from distill_lit.cli.paper_terms import paper_terms
from distill_lit.config import load_experiment
from distill_lit.config.json_schema import describe_fields
from distill_lit.losses import FEATURE_LOSSES, LOGIT_LOSSES


def rows(page: str) -> list[list[str]]:
    """The cells of all rows of a page's tables that are about keys."""
    lines = [line.strip("| ").split(" | ") for line in (ROOT / page).read_text().splitlines() if line.startswith("| ")]
    return [cells for cells in lines if cells[0] != "there"]


TERMS = [list(term) for term in paper_terms()]
ELSEWHERE = [cells[:2] for cells in rows("docs/how_to/come_from_trl.md") if not cells[1].startswith(("where", "project"))]
KINDS = LOGIT_LOSSES | FEATURE_LOSSES
FIELDS = [field.key for field in describe_fields()]
KEY = re.compile(r"(?:\w+\.)+\w+(?:: .+)?|(?:kind|options|stages|models|grid|loggers|seed|baselines)(?:: .+)?")
NO_KEYS = {"longtail.md", "calibration.png"}
EXPERIMENT = {
    "name": "terms",
    "teacher": {"model": "hf:org/name"},
    "students": {"one": {}},
    "data": {"corpora": {"one": {"generated": {"prompts": {"path": "file:one.jsonl"}}}}},
    "objective": {"terms": {"one": {"kind": "ce"}}},
}


def check_keys(cell: str, folder: Path) -> None:
    """Each key in a cell is one of an experiment, and takes the value that stands behind it."""
    for text in filter(KEY.fullmatch, set(re.findall(r"`([^`]+)`", cell)) - NO_KEYS):
        key, _, value = text.partition(": ")
        if key == "kind":
            assert not value or value in KINDS
        elif key.startswith("options."):
            assert any(key.removeprefix("options.") in kind.options for kind in KINDS.values()), key
        else:
            assert any(field == key or field.startswith(f"{key}.") for field in FIELDS), key
            if value:
                (folder / "terms.yaml").write_text(yaml.safe_dump(EXPERIMENT))
                load_experiment(folder / "terms.yaml", [f"{key.replace('NAME', 'one')}={value}"])


def test_wheels_carry_the_table() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "docs/reference/paper_terms.md" in wheel["only-include"]
    assert wheel["sources"]["docs"] == "distill_lit/shipped/docs"


def test_terms_are_in_order_and_each_is_there_once() -> None:
    terms = [row[0].lower() for row in TERMS]
    assert len(terms) > 60 and terms == sorted(set(terms))


@pytest.mark.parametrize("row", TERMS, ids=lambda row: row[0])
def test_keys_values_and_files_of_terms_are_there(row: list[str], tmp_path: Path) -> None:
    _, keys, files = row
    check_keys(keys, tmp_path)
    for name in re.findall(r"`([^`]+)`", files):
        assert (ROOT / name).is_file() or (ROOT / "distill_lit" / name).is_file(), name


def defined_in(kind: str) -> str:
    """The file that holds a loss, below the package."""
    module = LOGIT_LOSSES[kind].function.__module__ if kind in LOGIT_LOSSES else FEATURE_LOSSES[kind].__class__.__module__
    return f"{module.removeprefix('distill_lit.').replace('.', '/')}.py"


@pytest.mark.parametrize("row", TERMS, ids=lambda row: row[0])
def test_a_file_named_for_a_kind_defines_it(row: list[str]) -> None:
    _, keys, files = row
    kinds, named = re.findall(r"`kind: (\w+)`", keys), re.findall(r"`([^`]+)`", files)
    if keys.startswith("`kind: ") or set(named) & {defined_in(kind) for kind in KINDS}:
        assert {defined_in(kind) for kind in kinds} <= set(named)
    for option in re.findall(r"`options\.(\w+)", keys):
        assert any(option in KINDS[kind].options for kind in kinds), option


@pytest.mark.parametrize("row", ELSEWHERE, ids=lambda row: row[0])
def test_keys_beside_those_of_other_libraries_are_there(row: list[str], tmp_path: Path) -> None:
    check_keys(row[1], tmp_path)
