"""Leases on folders."""

import json
from dataclasses import asdict
from pathlib import Path

from distill_lit.experiment.state.claims import HOLDER_NAME, Holder, claim_folder
from distill_lit.utils.files import read_json


def test_who_has_lost_a_lease_leaves_the_name_of_its_new_holder(tmp_path: Path) -> None:
    """Without it `status` and `stop` would not know who works there."""
    other = asdict(Holder("elsewhere", "pid:[1]", 7, "123"))
    with claim_folder(tmp_path, 0):
        (tmp_path / HOLDER_NAME).write_text(json.dumps(other))
    assert read_json(tmp_path / HOLDER_NAME) == other
    with claim_folder(tmp_path, 0):
        pass
    assert not (tmp_path / HOLDER_NAME).exists()
