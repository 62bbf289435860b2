"""What a server has cost, as every process that asks it sees."""

from pathlib import Path

import numpy as np
import pytest

from distill_lit.teachers.score_store import COSTS, ScoreStore
from distill_lit.teachers.server_api import TopKScores

SCORES = TopKScores(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32))


def test_each_of_two_processes_counts_what_both_have_paid(tmp_path: Path) -> None:
    first, second = ScoreStore(tmp_path), ScoreStore(tmp_path)
    for number, store in enumerate([first, second, first]):
        store.add({"key": f"{number}0", "scores": SCORES, "cost": 2.0**number})
        assert first.total_cost == second.total_cost == 2.0 ** (number + 1) - 1
    second.add({"key": "", "cost": 8.0})  # nothing usable, and charged all the same
    assert first.total_cost == ScoreStore(tmp_path).total_cost == 15.0


def test_a_line_that_is_on_its_way_counts_once_it_is_whole(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path)
    assert store.total_cost == 0.0
    store.add({"key": "", "cost": 1.0})
    with (tmp_path / COSTS).open("ab", buffering=0) as file:
        file.write(b'{"key": "", "cos')
        assert store.total_cost == 1.0
        file.write(b't": 2.0}\n')
        assert store.total_cost == 3.0
        file.write(b'{"key": "", "co')  # and its writer is killed
    assert store.total_cost == 3.0
    ScoreStore(tmp_path).add({"key": "", "cost": 4.0})
    assert store.total_cost == pytest.approx(ScoreStore(tmp_path).total_cost) == 7.0
