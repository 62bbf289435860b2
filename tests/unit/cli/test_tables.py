"""The tables of `plan` and `status`, from made-up runs."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from distill_lit.cli.commands.status import status_table
from distill_lit.cli.errors import PipeSafeConsole
from distill_lit.cli.main import build_parser
from distill_lit.cli.run_table import memory_table, plan_axes, plan_table, print_plan, time_lines
from distill_lit.config import load_experiment
from distill_lit.experiment.estimates.memory_estimate import Memory
from distill_lit.experiment.estimates.run_estimate import Estimate
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.status import RunResults
from distill_lit.utils.exceptions import UserError

EXPERIMENT = """
name: tiny
teacher: {{model: "file:{folder}", dtype: float32}}
students: {{d12: {{layers: [0]}}, d6: {{layers: [1]}}}}
data: {{corpora: {{text: {{path: "file:{folder}"}}}}}}
objective: {{terms: {{kl: {{kind: forward_kl, temperature: 1.0}}}}}}
training: {{precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], dtype: float32}}
launcher: {{workers: 2}}
grid: {{student: [d12, d6], objective.terms.kl.temperature: [1.0, 2.0], training.max_tokens: [1000], seed: [0, 1]}}
"""


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT.format(folder=tmp_path))
    return plan_runs(load_experiment(file))


def cells(table: Table) -> list[list[str]]:
    """The header and all rows."""
    columns = [[str(column.header), *(str(cell) for cell in column._cells)] for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


MEMORY = Memory(weights=2 * 10**9, moments=2 * 10**9, activations=10**8, teacher=5 * 10**8, process=10**9)


def estimate_of(run: Run) -> Estimate:
    memory = MEMORY if run.is_trained else Memory(weights=10**9, process=10**9)
    return Estimate(1000, 2e15, 3_000_000, 3_000_000, 2.0, memory, {"training": 1.5, "start": 0.5})


def test_a_plan_has_a_column_for_each_axis_that_has_several_values(runs: list[Run]) -> None:
    assert list(plan_axes(runs).values()) == ["temperature", "seed"]
    header, *rows = cells(plan_table([(run, estimate_of(run)) for run in runs], True))
    assert header == ["run", "role", "temperature", "seed", "tokens", "PFLOPs", "memory\nGB", "disk\nMB", "minutes"]
    assert rows[0][:4] == ["teacher", "teacher", "", ""]
    assert ["d12", "distilled", "2.0", "1", "1,000", "2.00", "5.6", "3", "2.0"] in rows
    # without a teacher one run stands for both temperatures
    assert [row[2:4] for row in rows if row[:2] == ["d6", "ce_only"]] == [["", "0"], ["", "1"]]
    assert rows[-1][0] == f"{len(runs)} runs"
    assert rows[-1][-1] == f"{2.0 * len(runs):.1f}"
    unknown = cells(plan_table([(run, None) for run in runs], False))
    assert set(unknown[1][4:]) == {"–"}


def test_a_plan_fits_a_terminal_and_no_number_is_cut(runs: list[Run]) -> None:
    text = io.StringIO()
    large = Estimate(123_456_789_012, 123e15, 123_456_000_000, 0, 1234.5)
    long = [replace(run, student=run.student and f"{run.student}-with-a-very-long-name") for run in runs]
    Console(width=100, file=text).print(plan_table([(run, large) for run in long], True))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("123,456,789,012" in line for line in lines) == len(runs)
    assert sum("1234.5" in line for line in lines) == len(runs)


def test_memory_is_shown_once_for_runs_that_need_the_same(runs: list[Run]) -> None:
    planned = [(run, estimate_of(run)) for run in runs]
    last, estimate = planned[-1]  # the cache of another variant takes a megabyte less, which two digits do not show
    less = replace(estimate, memory=replace(estimate.memory, weights=estimate.memory.weights - 1_000_000))
    header, *rows = cells(memory_table([*planned[:-1], (last, less)]))
    assert header[1:] == ["weights", "moments", "activations", "teacher", "process", "total"]
    assert len(rows) == 2
    assert rows[0] == ["d12 ce_only, d6 ce_only, d12 distilled, d6 distilled",
                       "2.00", "2.00", "0.10", "0.50", "1.00", "5.60"]  # fmt: skip
    assert rows[1][0].startswith("teacher, d12 untrained") and rows[1][-1] == "2.00"


def test_the_time_of_all_is_that_of_the_workers(runs: list[Run]) -> None:
    planned: Any = [(run, estimate_of(run)) for run in runs[:4]]
    (line,) = time_lines(planned, 0.1)
    # four runs of two minutes, two at a time, and a third of a minute to import libraries
    assert line.startswith("about 4.3 minutes with 2 workers on an idle machine")
    assert line.endswith("training 6.0, start 2.0")
    busy = time_lines(planned, 2.0)
    assert "2.0 for each core" in busy[1] and "3.0 times as long" in busy[1]
    assert time_lines([(runs[0], None)], 0.0) == []


def test_status_has_the_results_so_far() -> None:
    planned: Any = [SimpleNamespace(name=name, label=f"label of {name}") for name in "abc"]
    statuses = {"a": ("done", ""), "b": ("failed", "out of memory"), "c": ("missing", "")}
    results = {"a": RunResults(0.123, 0.456, 0.8, 75.0), "b": RunResults(seconds=5.0), "c": RunResults()}
    assert cells(status_table(planned, statuses, results)) == [
        ["run", "status", "score %", "above chance %, all tasks", "val KL", "time", "note"],
        ["label of a", "done", "45.6", "12.3", "0.800", "1:15", ""],
        ["label of b", "failed", "", "", "", "0:05", "out of memory"],
        ["label of c", "missing", "", "", "", "", ""],
    ]
    nothing = dict.fromkeys("abc", ("missing", ""))
    assert cells(status_table(planned, nothing, dict.fromkeys("abc", RunResults())))[0] == ["run", "status"]


@pytest.mark.parametrize(("columns", "width"), [(None, 200), ("90", 90)])
def test_no_table_is_cut_where_the_output_is_a_pipe(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    assert not sys.stdout.isatty()
    assert PipeSafeConsole.of_output().width == width


@pytest.mark.parametrize("text", ["Does a [/INST] token matter?", "/data/exp[v2]/report.html", "a ratio of 1:100:1"])
def test_text_is_shown_as_it_is(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, console = tmp_path / "tiny.yaml", PipeSafeConsole(file=io.StringIO(), width=200)
    file.write_text(EXPERIMENT.format(folder=tmp_path))
    config = load_experiment(file, [f"question={text}"])
    experiment: Any = SimpleNamespace(
        name="tiny", config=config, notes=[], required_assets=[], has_models=False, check_gpus=lambda _: None
    )
    planned = [(run, None) for run in plan_runs(config)]
    print_plan(experiment, planned, console)
    console.print(f"  {text}", highlight=False)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"tiny: {text}\n" in said and f"  {text}\n" in said


def test_an_override_of_a_table_may_be_longer_than_a_file_name() -> None:
    options = build_parser().parse_args(["table", f"report.labels={{a: {'x' * 300}}}"])
    with pytest.raises(UserError, match="^name one results folder"):
        options.run(options, PipeSafeConsole(file=io.StringIO()))


def test_the_file_of_an_experiment_that_is_called_like_the_placeholder_says_so(tmp_path: Path) -> None:
    options = build_parser().parse_args(["init", "MY_NAME", "--folder", str(tmp_path)])
    assert options.run(options, PipeSafeConsole(file=io.StringIO())) == 0
    assert load_experiment(tmp_path / "MY_NAME.yaml").name == "MY_NAME"
