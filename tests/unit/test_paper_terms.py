"""The table of papers' terms: every key, value and file in it is there."""

import re
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from distill_lit.config import load_experiment
from distill_lit.config.json_schema import describe_fields
from distill_lit.losses import FEATURE_LOSSES, LOGIT_LOSSES

PAGE = ROOT / "docs/reference/paper_terms.md"
ROWS = [row.strip("| \n").split(" | ") for row in PAGE.read_text().splitlines() if row.startswith("| ")][1:]
KINDS = LOGIT_LOSSES | FEATURE_LOSSES
FIELDS = [field.key for field in describe_fields()]
NO_KEYS = {"longtail.md", "calibration.png", "val_ce", "distill-lit scaling", "validation/draft_acceptance", "num_layers",
           "student", "teacher", "from: teacher", "probe_bits_per_byte"}  # fmt: skip
EXPERIMENT = {
    "name": "terms",
    "teacher": {"model": "hf:org/name"},
    "students": {"one": {}},
    "data": {"corpora": {"one": {"generated": {"prompts": {"path": "file:one.jsonl"}}}}},
    "objective": {"terms": {"one": {"kind": "ce"}}},
}


def test_rows_are_in_order_and_each_term_is_there_once() -> None:
    terms = [row[0].lower() for row in ROWS]
    assert len(terms) > 60 and terms == sorted(set(terms))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_keys_values_and_files_are_there(row: list[str], tmp_path: Path) -> None:
    _, keys, files = row
    for name in re.findall(r"`([^`]+)`", files):
        assert (ROOT / name).is_file() or (ROOT / "distill_lit" / name).is_file(), name
    for text in set(re.findall(r"`([^`]+)`", keys)) - NO_KEYS:
        key, _, value = text.partition(": ")
        if key == "kind":
            assert not value or value in KINDS
        elif key.startswith("options."):
            assert any(key.removeprefix("options.") in kind.options for kind in KINDS.values()), key
        else:
            assert any(field == key or field.startswith(f"{key}.") for field in FIELDS), key
            if value:
                (tmp_path / "terms.yaml").write_text(yaml.safe_dump(EXPERIMENT))
                load_experiment(tmp_path / "terms.yaml", [f"{key.replace('NAME', 'one')}={value}"])
