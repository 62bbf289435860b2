"""faults.md, resume and durability: lines 1 to 8. Real kill -9, real SIGTERM, real damage."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny_models, training_processes
from helpers.training_processes import STEPS, WINDOW, cli, finish, kill_after, lines, log_of, run_folder, start, weights
from helpers.warm_processes import MAY_BE_WARM

from distill_lit.experiment.state.claims import claim_folder
from distill_lit.training.checkpoint import (
    CHECKPOINT_KEY,
    SafeCheckpointIO,
    checkpoint_step,
    fingerprint_mismatches,
    is_checkpoint_intact,
    list_checkpoints,
    read_best,
    rotate_checkpoints,
    update_best_checkpoint,
)
from distill_lit.training.json_lines_logger import JSONLinesLogger
from distill_lit.training.trainer import final_metrics
from distill_lit.utils.files import read_json


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
    assert (run_folder(whole) / "student").is_dir(), log_of(whole)
    steps = [line["step"] for line in lines(whole) if "train/loss" in line]
    validated = [line["step"] for line in lines(whole) if "validation/loss" in line]
    assert steps == list(range(STEPS))
    assert validated == [0, 4, 8, 12, 16, 20, 24]


@pytest.mark.slow
def test_01_kill_9_at_ten_random_points_resumes_bitwise(experiment: Path, whole: Path, tmp_path: Path) -> None:
    longest = training_processes.seconds(lambda: finish(start(experiment, tmp_path / "timed")))
    pauses = iter(training_processes.random_seconds(0, longest, 60))
    killed = finished = 0
    while killed < 10:
        root = tmp_path / str(finished)
        code = kill_after(start(experiment, root), next(pauses))
        killed += code == -signal.SIGKILL
        if code == 0:
            assert same(root, whole)
            finished += 1
    assert finish(start(experiment, root)) == 0
    assert same(root, whole)


@pytest.mark.parametrize("point", ["train 20", pytest.param("train 71", marks=pytest.mark.slow), "validate 11", "export 1"])
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


def checkpoints(root: Path) -> list[Path]:
    """The newest first."""
    return list_checkpoints(run_folder(root) / "checkpoints")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_02_killed_while_a_checkpoint_is_written_keeps_the_one_before(
    experiment: Path, whole: Path, tmp_path: Path
) -> None:
    assert finish(start(experiment, tmp_path, patch="half_written_checkpoint")) == -signal.SIGKILL
    assert [path.stem for path in checkpoints(tmp_path)] == ["step=5", "step=4"]
    assert all(is_checkpoint_intact(path) for path in checkpoints(tmp_path))
    folder = run_folder(tmp_path) / "checkpoints"
    assert list(folder.glob(".writing-*")), "the torn file should still be there"
    assert finish(start(experiment, tmp_path)) == 0
    assert same(tmp_path, whole)
    assert not list(folder.glob(".writing-*"))


@pytest.mark.slow
def test_02_a_failed_write_keeps_the_one_before(experiment: Path, whole: Path, tmp_path: Path) -> None:
    assert finish(start(experiment, tmp_path, "SIGKILL train 20")) == -signal.SIGKILL
    before = [(path.name, path.stat().st_mtime_ns) for path in checkpoints(tmp_path)]
    assert finish(start(experiment, tmp_path, patch="small_files")) == 1
    assert [(path.name, path.stat().st_mtime_ns) for path in checkpoints(tmp_path)] == before
    assert not list((run_folder(tmp_path) / "checkpoints").glob(".writing-*"))
    assert "File too large" in json.loads((run_folder(tmp_path) / "state.json").read_text())["reason"]
    assert finish(start(experiment, tmp_path)) == 0
    assert same(tmp_path, whole)


def test_02_no_room_is_noticed_before_anything_is_written(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    target = tmp_path / "step=1.ckpt"
    with pytest.raises(OSError, match="needs 4 MB and .* has 0 MB free"):
        SafeCheckpointIO().save_checkpoint({"state": [torch.zeros(10**6)]}, target)
    assert not list(tmp_path.iterdir())


def test_02_a_budget_keeps_the_newest_then_the_best_then_the_one_before(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, float("nan")), (4, 2.0), (5, float("nan"))):
        SafeCheckpointIO().save_checkpoint({"state": torch.zeros(250_000)}, tmp_path / f"step={step}.ckpt")
        update_best_checkpoint(tmp_path, step, loss)
    assert read_best(tmp_path) == {"step": 2, "loss": 1.0}
    left = []
    for budget in (1.0, 0.0025, 0.0011):
        rotate_checkpoints(tmp_path, budget)
        left.append([checkpoint_step(path) for path in list_checkpoints(tmp_path)])
        assert len(list(tmp_path.glob("*.sha256.json"))) == len(left[-1])
    assert left == [[5, 4, 2], [5, 2], [5]]


@pytest.mark.parametrize("damage", [pytest.param(truncate, marks=pytest.mark.slow), flip_a_bit])
def test_03_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(
    experiment: Path, whole: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    assert finish(start(experiment, tmp_path, "SIGKILL train 47")) == -signal.SIGKILL
    newest, older, *_ = checkpoints(tmp_path)
    damage(newest)
    assert finish(start(experiment, tmp_path)) == 0
    assert f"{newest} does not have its checksum; {older.name} is used" in log_of(tmp_path)
    assert same(tmp_path, whole)


def test_03_no_intact_checkpoint_is_exit_code_2(experiment: Path, tmp_path: Path) -> None:
    assert finish(start(experiment, tmp_path, "SIGKILL train 47")) == -signal.SIGKILL
    for path in checkpoints(tmp_path):
        flip_a_bit(path)
    code, said = cli("run", experiment, "--root", tmp_path)
    assert code == 2
    assert "no checkpoint is intact; remove this folder to start its run again" in said


@pytest.mark.parametrize("point", ["train 20", "validate 8"])
def test_04_sigterm_leaves_a_checkpoint_within_a_step_and_exits_143(
    experiment: Path, whole: Path, tmp_path: Path, point: str
) -> None:
    assert finish(start(experiment, tmp_path, f"SIGTERM {point}")) == 143
    state = read_json(run_folder(tmp_path) / "state.json")
    step = {"train 20": 7, "validate 8": 8}[point]  # the 20th micro-batch is in the seventh step
    assert state == {"state": "preempted", "reason": f"SIGTERM at step {step}"}
    assert checkpoints(tmp_path)[0].stem == f"step={step}"
    assert finish(start(experiment, tmp_path)) == 0
    assert same(tmp_path, whole)
    assert not (run_folder(tmp_path) / "state.json").exists()


@pytest.mark.slow
def test_04_sigterm_in_a_validation_that_no_checkpoint_stands_before(experiment: Path, whole: Path, tmp_path: Path) -> None:
    """Without `keep_checkpoints` there is none before a validation: the step is saved in the middle of it."""
    plain = ("training.keep_checkpoints=false",)
    assert finish(start(experiment, tmp_path, "SIGTERM validate 8", plain)) == 143
    assert [path.stem for path in checkpoints(tmp_path)] == ["step=8", "step=5"]
    assert finish(start(experiment, tmp_path, "SIGTERM validate 2", plain)) == 143  # in the one that is made up for
    assert finish(start(experiment, tmp_path, "SIGKILL validate 8", plain)) == -signal.SIGKILL
    assert finish(start(experiment, tmp_path, overrides=plain)) == 0
    assert same(tmp_path, whole)


@pytest.mark.slow
def test_05_a_checkpoint_of_another_model_data_or_objective_is_refused(
    experiment: Path, whole: Path, tmp_path: Path
) -> None:
    """The run's name stays, as its config does; what is behind a path has changed."""
    root, teacher, corpus = tmp_path / "root", tmp_path / "teacher", tmp_path / "text.jsonl"
    tiny_models.make_model(teacher, attention_dropout=0.2)
    tiny_models.make_corpus(corpus)
    overrides = (f"teacher.model=file:{teacher}", f"data.corpora.text.path=file:{corpus}")
    assert finish(start(experiment, root, "SIGKILL train 47", overrides)) == -signal.SIGKILL
    tiny_models.make_model(teacher, seed=1, attention_dropout=0.2)
    assert finish(start(experiment, root, overrides=overrides)) == 1
    reason = read_json(run_folder(root) / "state.json")["reason"]
    assert "does not belong to this run: teacher was" in reason
    assert "data was" not in reason
    tiny_models.make_corpus(corpus, seed=5)
    assert finish(start(experiment, root, overrides=overrides)) == 1
    assert "data was" in read_json(run_folder(root) / "state.json")["reason"]
    assert finish(start(experiment, root, overrides=(*overrides, "launcher.on_mismatch=restart"))) == 0
    assert [line["step"] for line in lines(root) if "train/loss" in line] == list(range(STEPS))
    assert not same(root, whole)


def test_05_unless_asked_for(experiment: Path, whole: Path, tmp_path: Path) -> None:
    root, teacher = tmp_path / "root", tmp_path / "teacher"
    tiny_models.make_model(teacher, attention_dropout=0.2)
    overrides = (f"teacher.model=file:{teacher}",)
    assert finish(start(experiment, root, "SIGKILL train 47", overrides)) == -signal.SIGKILL
    tiny_models.make_model(teacher, seed=1, attention_dropout=0.2)
    assert finish(start(experiment, root, overrides=(*overrides, "launcher.on_mismatch=resume"))) == 0
    assert "launcher.on_mismatch=resume" in log_of(root)
    assert lines(root)[10] == lines(whole)[10]
    assert lines(root)[-1] != lines(whole)[-1]


def test_05_an_objective_is_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "step=1.ckpt"
    SafeCheckpointIO().save_checkpoint({CHECKPOINT_KEY: {"origin": {"objective": "kl", "data": "a"}}}, path)
    assert fingerprint_mismatches(path, {"objective": "ce", "data": "a"}) == ["objective was kl and is ce"]
    assert fingerprint_mismatches(path, {"objective": "kl", "data": "a"}) == []


@pytest.mark.slow
def test_07_tensorboard_shows_one_curve_with_rising_steps(experiment: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for point in ("train 8", "train 47", "validate 5", "train 8"):  # the first before any checkpoint
        assert finish(start(experiment, tmp_path, f"SIGKILL {point}")) == -signal.SIGKILL
    assert finish(start(experiment, tmp_path)) == 0
    board = EventAccumulator(str(run_folder(tmp_path)), size_guidance={"scalars": 0}).Reload()
    per_step = 2 * WINDOW * 32  # over tokens
    assert [event.step for event in board.Scalars("train/loss")] == [per_step * step for step in range(STEPS)]
    assert [event.step for event in board.Scalars("validation/loss")] == [4 * per_step * n for n in range(7)]
    losses = {line["step"]: line["train/loss"] for line in lines(tmp_path) if "train/loss" in line}
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(list(losses.values()), rel=1e-6)


def test_08_two_processes_on_one_run_folder(experiment: Path, tmp_path: Path) -> None:
    """The second driver is refused at once; the lock of a dead one does not count."""
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    with claim_folder(folder, timeout=0):
        code, said = cli("run", experiment, "--root", tmp_path)
        assert code == 2
        assert f"{folder} is in use by process {os.getpid()} on" in said
        assert {path.name for path in folder.iterdir()} == {"lease", "lease.json"}
    owner = training_processes.call("hold_folder", str(folder))
    training_processes.wait_until(lambda: (folder / "held").exists())
    owner.kill()
    owner.wait()
    with claim_folder(folder, timeout=0):
        pass


def test_01_a_damaged_curve_loses_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps({"step": step, "train/loss": float(step)}).encode() for step in range(4)]
    odd = [
        b"null",
        b"7",
        b"[1]",
        b'"step"',
        b"{}",
        b'{"step": null}',
        b'{"step": "1"}',
        b'{"step": 1, "a": \xff}',
        b"\x00",
        b'{"s',
    ]
    path.write_bytes(b"\n".join([good[0], *odd[:5], good[1], *odd[5:], good[2], good[3], odd[-1]]))
    assert final_metrics(path)["train/loss"] == 3.0
    JSONLinesLogger(path, 3)
    assert path.read_bytes().splitlines() == good[:3]


def test_01_killed_while_the_curve_is_rewritten_keeps_the_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "train/loss": 1.0}) + "\n" for step in range(50_000)))
    before = path.read_bytes()
    code, _ = training_processes.python(f"""{MAY_BE_WARM}
import os, pathlib, signal
from distill_lit.training.json_lines_logger import JSONLinesLogger
write = pathlib.Path.write_text
def cut(path, text, *rest, **more):
    write(path, text[: len(text) // 2], *rest, **more)
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_text = cut
JSONLinesLogger(pathlib.Path({str(path)!r}), 40_000)
""")
    assert code == -signal.SIGKILL
    assert path.read_bytes() == before
    JSONLinesLogger(path, 40_000)
    assert len(path.read_text().splitlines()) == 40_000
