"""Which models of another experiment a reference may name."""

from pathlib import Path

import pytest

from distill_lit.experiment.planning.run_references import _folder_of
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_json


@pytest.mark.parametrize("damaged", ["{", "[1]", ""])
def test_a_damaged_manifest_is_passed_over(tmp_path: Path, damaged: str) -> None:
    runs = tmp_path / "runs/other"
    for name in ("half-12345678", "whole-12345678"):
        (runs / name / "student").mkdir(parents=True)
        write_json(runs / name / "manifest.json", {"fingerprint": {}})
    (runs / "half-12345678/manifest.json").write_text(damaged)
    assert _folder_of("run:other/whole", tmp_path, 0) == runs / "whole-12345678/student"
    with pytest.raises(UserError, match="no finished model is called so"):
        _folder_of("run:other/half", tmp_path, 0)
