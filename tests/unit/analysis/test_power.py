"""What can be decided before a run, and what tasks can tell: by hand, and recovered from made-up records."""

import json
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from distill_lit.analysis.power import (
    TaskVariances,
    detectable_difference,
    variances_from_json,
    variances_to_json,
)
from distill_lit.analysis.task_signal import task_signals
from distill_lit.analysis.task_variances import task_variances

Z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)


def test_one_seed_is_decided_by_documents_alone() -> None:
    found = detectable_difference({"a": TaskVariances(0.3, 0.1, 0.001)}, {"a": 1000}, num_seeds=1)
    assert found.difference == pytest.approx(Z * (0.4 / 1000) ** 0.5, rel=0.01)
    assert not found.covers_seeds


def test_documents_and_seeds_by_hand() -> None:
    variances = {"a": TaskVariances(0.3, 0.1, 0.0008), "b": TaskVariances(0.5, 0.1, 0.0008)}
    found = detectable_difference(variances, {"a": 100, "b": 400}, num_seeds=50)
    total = (0.302 / 100 + 0.502 / 400 + 2 * 0.0008 / 50) / 4
    assert found.difference == pytest.approx(Z * total**0.5, rel=0.02)  # so many seeds are nearly normal


def test_many_more_seeds_leave_what_all_of_them_have_of_a_document() -> None:
    variances = {"a": TaskVariances(0.3, 0.6, 0.0008), "b": TaskVariances(0.5, 0.6, 0.0008)}
    found = detectable_difference(variances, {"a": 100, "b": 400}, num_seeds=2)
    assert found.documents_only == pytest.approx(Z * ((0.3 / 100 + 0.5 / 400) / 4) ** 0.5)
    more = detectable_difference(variances, {"a": 100, "b": 400}, num_seeds=100_000)
    assert found.documents_only == pytest.approx(more.difference, rel=0.02)  # which has Student's quantiles


def test_twenty_documents_decide_nothing_and_more_comparisons_need_more() -> None:
    variances = {"a": TaskVariances(0.35, 0.2, float("nan"))}
    few = detectable_difference(variances, {"a": 20, "b": 20}, num_seeds=1)
    assert few.difference > 0.2 and few.decides_nothing
    assert few.unknown == ("b",)
    assert not detectable_difference(variances, {"a": 2000, "b": 2000}, num_seeds=1).decides_nothing
    assert detectable_difference(variances, {"a": 20, "b": 20}, 1, comparisons=4).difference > few.difference


def test_variances_are_recovered_and_written_and_read(simulation: ModuleType) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(30):
        level = np.repeat([0.55, 0.5], 3) + 0.05 * rng.normal(size=6)
        document = rng.normal(size=(400, 1))
        own = np.repeat(rng.normal(size=(400, 2)), 3, axis=1)
        latent = 0.5**0.5 * document + 0.3**0.5 * own + 0.2**0.5 * rng.normal(size=(400, 6))
        right = (latent < stats.norm.ppf(level)).astype(float)
        scores = simulation.simulated_scores([right], [("ce_only", "", 3), ("distilled", "", 3)], chance=0.0)
        found.append(task_variances(scores)["task0"])
    assert np.mean([one.seeds for one in found]) == pytest.approx(2 * 0.05**2, rel=0.35)
    # a difference of two answers: what documents and seeds of one document have together
    total = np.mean([one.documents + one.interaction for one in found])
    assert total == pytest.approx(np.mean([(right[:, :3] - right[:, 3:]).var()]), rel=0.15)
    written = json.loads(json.dumps(variances_to_json({"a": found[0], "b": TaskVariances(1.0, 0.0, float("nan"))})))
    read = variances_from_json(written)
    assert read["a"] == found[0]
    assert np.isnan(read["b"].seeds)


def test_signal_and_noise_of_a_task_by_hand(simulation: ModuleType) -> None:
    right = np.zeros((10, 5))
    for model, count in enumerate([9, 2, 4, 5, 7]):
        right[:count, model] = 1
    scores = simulation.simulated_scores([right], [("teacher", "", 1), ("ce_only", "", 2), ("distilled", "", 2)])
    (signal,) = task_signals(scores)
    assert signal.teacher.value == pytest.approx(0.9)
    assert signal.above_chance
    assert signal.signal == pytest.approx(np.std([0.9, 0.3, 0.6], ddof=1))
    assert signal.noise == pytest.approx(((0.1**2 * 2 + 0.1**2 * 2) / 2) ** 0.5)
    assert signal.signal_to_noise == pytest.approx(signal.signal / signal.noise)


def test_two_seeds_of_many_students_tell_more_of_their_spread() -> None:
    variances = {"a": TaskVariances(0.3, 0.1, 0.01)}
    pair, many = (detectable_difference(variances, {"a": 500}, 2, students=students) for students in (2, 6))
    error = (0.01 / 2) ** 0.5
    assert many.seeds_only == pytest.approx((stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)) * error, rel=1e-4)
    assert many.difference < pair.difference / 2
    assert detectable_difference(variances, {"a": 500}, 3, students=6) == detectable_difference(variances, {"a": 500}, 3)
