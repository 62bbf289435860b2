"""faults.md, resume and durability: lines 1 to 8. Real kill -9, real SIGTERM, real damage."""

import json
import signal
from pathlib import Path

import pytest
import trainings
from trainings import STEPS, cell_folder, finish, kill_after, lines, log_of, start, weights

from distill_lit.files import read_json


@pytest.fixture(scope="module")
def experiment(
    tmp_path_factory: pytest.TempPathFactory, dropping_teacher: Path, tiny_corpus: Path, tasks_folder: Path
) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    return trainings.write_experiment(folder, dropping_teacher, tiny_corpus, tasks_folder)


@pytest.fixture(scope="module")
def whole(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("whole")
    assert finish(start(experiment, root)) == 0
    return root


def same(root: Path, whole: Path) -> bool:
    """Whether losses and weights of two runs are bitwise equal."""
    return lines(root) == lines(whole) and weights(root) == weights(whole)


def test_01_the_undisturbed_run_is_what_it_should_be(whole: Path) -> None:
    assert (cell_folder(whole) / "student").is_dir(), log_of(whole)
    steps = [line["step"] for line in lines(whole) if "train/loss" in line]
    validated = [line["step"] for line in lines(whole) if "validation/loss" in line]
    assert steps == list(range(STEPS))
    assert validated == [0, 4, 8, 12, 16, 20, 24]


def test_01_kill_9_at_ten_random_points_resumes_bitwise(experiment: Path, whole: Path, tmp_path: Path) -> None:
    longest = trainings.seconds(lambda: finish(start(experiment, tmp_path / "timed")))
    killed = 0
    for pause in trainings.random_seconds(0, longest, 10):
        killed += kill_after(start(experiment, tmp_path), pause) == -signal.SIGKILL
        if (cells := list((tmp_path / "runs/tiny").glob("one-*/student"))) and cells:
            break
    assert finish(start(experiment, tmp_path)) == 0
    assert killed
    assert same(tmp_path, whole)


@pytest.mark.parametrize("point", ["train 20", "train 47", "train 71", "validate 4", "validate 11", "validate 21", "export 1"])
def test_01_kill_9_within_a_window_or_a_validation_resumes_bitwise(
    experiment: Path, whole: Path, tmp_path: Path, point: str
) -> None:
    assert finish(start(experiment, tmp_path, f"SIGKILL {point}")) == -signal.SIGKILL
    assert finish(start(experiment, tmp_path)) == 0
    assert same(tmp_path, whole)


def test_01_the_comparison_would_notice_forgotten_generators(experiment: Path, whole: Path, tmp_path: Path) -> None:
    assert finish(start(experiment, tmp_path, "SIGKILL train 47")) == -signal.SIGKILL
    assert finish(start(experiment, tmp_path, patch="forgotten_generators")) == 0
    assert not same(tmp_path, whole)
