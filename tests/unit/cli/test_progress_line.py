"""The line of a run at work: one line at every width, and times from an injected clock."""

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from distill_lit.cli.progress import RunDisplay
from distill_lit.cli.progress_line import Work, fit, progress_line, short_count
from distill_lit.experiment.state.status import RunResults

LABEL = "d12-temperature=2.0-weight=0.5-teacher=corrected-seed=0"
METRICS = {
    "train/loss": 2.86314,
    "train/teacher_kl": 0.9,
    "validation/teacher_kl": 0.81512,
    "train/tokens_per_second": 120.0,
}


def work(label: str = LABEL) -> Work:
    found = Work(label, 0.0)
    found.update("train", 1_000_000, 4_096_000_000, "tokens", {}, 10.0)
    found.update("train", 1_002_000, 4_096_000_000, "tokens", METRICS, 12.0)
    return found


def test_at_100_columns_everything_is_there() -> None:
    line = progress_line(work(), 100, 12.0).plain
    assert len(line) <= 100
    parts = line.split("  ")
    assert parts[0].startswith("d12-temp") and parts[0].endswith("seed=0") and "…" in parts[0]
    # 4,094,998,000 tokens are left, at 1,000 a second
    assert parts[1:] == ["train", "━" * parts[2].count("━"), "1M/4.1G", "1137:29:58 left", "loss 2.86", "val KL 0.815"]
    assert parts[2]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("label", ["d12", LABEL, "学生-温度=2-" * 6])
def test_no_width_wraps(width: int, label: str) -> None:
    line = progress_line(work(label), width, 12.0)
    assert cell_len(line.plain) <= width
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(line)
    assert console.file.getvalue().count("\n") == 1  # type: ignore[attr-defined]
    assert "train" in line.plain


def test_before_there_is_a_validation_the_kl_of_training_is_shown() -> None:
    one = Work("a", 0.0)
    one.update("train", 1, 2, "tokens", {"train/teacher_kl": 0.5}, 1.0)
    assert one.losses() == ["KL 0.5"]
    one.update("validate", 1, 2, "batches", {}, 2.0)
    assert "KL 0.5" in progress_line(one, 100, 2.0).plain  # the latest, in whatever stage


def test_time_left_is_that_of_the_stage_and_knows_no_pauses_of_others() -> None:
    """100 tokens a second; the validation between takes a minute that is not training's."""
    one = Work("a", 0.0)
    one.update("train", 0, 1000, "tokens", {}, 0.0)
    assert one.seconds_left(0.0) is None
    one.update("train", 200, 1000, "tokens", {}, 2.0)
    assert one.seconds_left(2.0) == 8.0
    assert one.seconds_left(5.0) == 5.0  # a report is late
    one.update("validate", 1, 4, "batches", {}, 20.0)
    one.update("validate", 3, 4, "batches", {}, 60.0)
    assert one.seconds_left(60.0) == 20.0
    one.update("train", 300, 1000, "tokens", {}, 62.0)
    one.update("train", 400, 1000, "tokens", {}, 63.0)
    assert one.seconds_left(63.0) == pytest.approx(600 / 100)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (9_999, "9999"), (10_000, "10k"), (13_312, "13.3k"), (999_949, "999.9k"),
                        (999_950, "1M"), (2.5e6, "2.5M"), (4.096e9, "4.1G")]
)  # fmt: skip
def test_counts_are_short(value: float, text: str) -> None:
    assert short_count(value) == text


def test_a_label_loses_its_middle() -> None:
    assert fit("d12-beta=0.1-seed=0", 12) == "d12-b…seed=0"
    assert fit("short", 12) == "short"
    assert cell_len(fit("学生学生学生学生", 9)) <= 9


# ---------------------------------------------------------------- the display of all runs


def run(name: str) -> Any:
    return SimpleNamespace(name=name, label=name)


def event(stage: str, done: float, total: float, **metrics: float) -> dict[str, Any]:
    return {"stage": stage, "done": done, "total": total, "unit": "tokens", "metrics": metrics}


def test_time_left_of_all_runs_learns_from_those_that_are_done() -> None:
    now = [0.0]
    display = RunDisplay(Console(file=io.StringIO()), {"a": 1.0, "b": 2.0, "c": 3.0}, 1, lambda: now[0])
    runs = [run(name) for name in "abc"]
    display.start(runs, runs)
    assert display.seconds_left() == 360
    display.start_run(runs[0])
    now[0] = 40.0
    assert display.seconds_left() == 320
    now[0] = 120.0  # planned as one minute, done in two
    display.finish_run(runs[0], "", RunResults())
    assert display.seconds_left() == 2 * (120 + 180)
    assert RunDisplay(Console(file=io.StringIO())).seconds_left() is None


def test_a_finished_run_says_score_kl_and_time() -> None:
    text = io.StringIO()
    display = RunDisplay(Console(file=text, width=40))
    display.start([run("a"), run("b")], [run("a"), run("b")])
    display.start_run(run("a"))
    display.finish_run(run("a"), "", RunResults(0.1234, 0.4567, 0.81512, 3723.0))
    display.start_run(run("b"))
    display.finish_run(run("b"), "killed by SIGKILL", RunResults())
    lines = text.getvalue().splitlines()
    assert "  done  a  score 45.7% (12.3% above chance, all tasks)  val KL 0.815  in 1:02:03" in lines
    assert "failed  b: killed by SIGKILL" in lines


def test_lines_of_a_log_do_not_wrap_at_its_width() -> None:
    text, now = io.StringIO(), [100.0]
    display = RunDisplay(Console(file=text, width=40), clock=lambda: now[0])
    display.start([run(LABEL)], [run(LABEL)])
    display.start_run(run(LABEL))
    display.update_run(run(LABEL), event("train", 13_312, 40_960, **METRICS))
    assert "    train 13.3k/41k tokens  loss 2.86  val KL 0.815" in text.getvalue().splitlines()


def test_a_terminal_shows_a_line_for_each_run_and_one_for_all() -> None:
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True, color_system=None, legacy_windows=False)
    runs = [run(LABEL), run("teacher")]
    with RunDisplay(console, {LABEL: 2.0, "teacher": 1.0}) as display:
        display.start(runs, runs)
        for one in runs:
            display.start_run(one)
            display.update_run(one, event("train", 13_312, 40_960, **METRICS))
        display.live.refresh()
        display.finish_run(runs[1], "", RunResults(score=0.5))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n").splitlines()
    assert max(cell_len(line) for line in shown) <= 100
    lines = [line for line in shown if "13.3k/41k" in line]
    assert any(line.startswith("teacher") and line.endswith("loss 2.86  val KL 0.815") for line in lines)
    assert any(line.startswith("d12-temp") and line.endswith("loss 2.86  val KL 0.815") for line in lines)
    assert any(line.startswith("0 of 2 runs done  about ") for line in shown)
    assert "  done  teacher  score 50.0%" in shown
