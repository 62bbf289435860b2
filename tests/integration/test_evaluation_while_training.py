"""TensorBoard: scores while a student trains that leave the training alone, a layout, runs that can be compared."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tasks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill_lit.config import load_experiment
from distill_lit.experiment.execution import run as run_module
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.fingerprint import evaluation_fingerprint
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.training.curve_axis import CurveAxis
from distill_lit.training.loggers import build_loggers, check_loggers
from distill_lit.training.tensorboard_summary import custom_scalars_layout, write_experiment_summary, write_run_summary
from distill_lit.training.timer import PausableTimer
from distill_lit.utils.exceptions import UserError

EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 2048, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{compile: never, terms: {{ce: {{weight: 0.5}}, kl: {{kind: forward_kl}}}}}}
training: {{max_tokens: 2304, micro_batch_size: 2, gradient_accumulation_steps: 3, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [colours, shapes], include_path: "{tasks}", interval_limit: 5}}
baselines: []
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("midway")
    tasks = tiny_tasks.make_tasks(folder / "tasks", "colours", "shapes")
    path = folder / "tiny.yaml"
    path.write_text(EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus, tasks=tasks))
    return path


def build(file: Path, folder: Path, *changes: str) -> tuple[Run, Path]:
    run = plan_runs(load_experiment(file, list(changes)))[0]
    run_module.build_run(run, folder, lambda *_: None)
    return run, folder


def lines(folder: Path) -> list[dict[str, Any]]:
    """Logged points without clocks, and without those of evaluations."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if "per_second" not in k and "evaluation/" not in k} for line in found]
    return [line for line in kept if set(line) != {"step"}]


@pytest.fixture(scope="module")
def with_and_without(file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    asked, watched = build(file, folder / "with", "evaluation.interval=0.5")
    plain, alone = build(file, folder / "without")
    assert (asked.fingerprint, asked.name) == (plain.fingerprint, plain.name)
    assert evaluation_fingerprint(asked.config) == evaluation_fingerprint(plain.config)
    return watched, alone


def test_scores_over_steps(with_and_without: tuple[Path, Path]) -> None:
    events = EventAccumulator(str(with_and_without[0])).Reload()
    per_step = 2 * 3 * 32
    assert [event.step for event in events.Scalars("evaluation/colours")] == [0, 6 * per_step, 12 * per_step]
    assert all(0 <= event.value <= 1 and event.value * 5 == pytest.approx(round(event.value * 5), abs=1e-5)
               for task in ("colours", "shapes") for event in events.Scalars(f"evaluation/{task}"))  # fmt: skip


def test_the_training_is_the_same_to_the_bit(with_and_without: tuple[Path, Path]) -> None:
    watched, alone = with_and_without
    assert lines(watched) == lines(alone)
    name = "student/model.safetensors"
    assert (watched / name).read_bytes() == (alone / name).read_bytes()


def test_layout_has_every_term_in_one_chart(with_and_without: tuple[Path, Path]) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    events = EventAccumulator(str(with_and_without[1])).Reload()
    tensor = events.Tensors(metadata.CONFIG_SUMMARY_TAG)[0].tensor_proto
    layout = layout_pb2.Layout.FromString(tensor.string_val[0])
    charts = {chart.title: chart.multiline.tag for category in layout.category for chart in category.chart}
    written = events.Tags()["scalars"]

    def shown(title: str) -> set[str]:
        return {tag for tag in written for pattern in charts[title] if re.match(pattern, tag)}

    assert shown("terms in training") == {"train/loss", "train/ce", "train/kl"}
    assert shown("terms in validation") == {"validation/loss", "validation/ce", "validation/kl"}
    assert shown("weights") == {"weight/ce", "weight/kl"}
    assert all(shown(title) for title in charts if title != "score")  # this one is not evaluated on the way


def test_every_chart_is_there_once_whatever_is_served(tmp_path: Path) -> None:
    """Through TensorBoard's own backend: runs of two experiments, with and without a teacher."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from torch.utils.tensorboard import SummaryWriter

    for name in ("one/d12", "one/d12-ce_only", "two/d6"):
        with SummaryWriter(str(tmp_path / name)) as writer:
            writer.add_custom_scalars(custom_scalars_layout())
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = base_plugin.TBContext(logdir=str(tmp_path), multiplexer=multiplexer, data_provider=provider)
    layout = json.loads(CustomScalarsPlugin(context).layout_impl(RequestContext(), ""))
    found = [(category["title"], chart["title"]) for category in layout["category"] for chart in category["chart"]]
    assert len(found) == len(set(found)) == sum(len(charts) for charts in custom_scalars_layout().values())


def test_curves_are_over_tokens_and_constants_are_written_once(tmp_path: Path) -> None:
    """A second stage of 64 tokens a step, after one of 3 steps and 300 tokens, that goes on from its own step 2."""
    for resume_step in (None, 2):
        start = CurveAxis("steps", first_step=3, first_tokens=300, tokens_per_step=64)
        (logger, _) = build_loggers({"tensorboard": {}}, tmp_path, resume_step, start)
        for step in range(resume_step or 0, 4):
            values = {"weight/ce": 0.5, "temperature/kl": 4.0 - step, "train/tokens": 9.0, "epoch": 0}
            logger.log_metrics({"train/loss": float(step), **values}, step)
        logger.experiment.close()
    board = EventAccumulator(str(tmp_path)).Reload()
    assert set(board.Tags()["scalars"]) == {"train/loss", "weight/ce", "temperature/kl"}
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(300 + 64 * n, n) for n in range(4)]
    assert [event.step for event in board.Scalars("temperature/kl")] == [300, 364, 428, 492]
    assert [event.step for event in board.Scalars("weight/ce")] == [300, 428]  # once more by the process that went on


def test_curves_may_be_over_steps(tmp_path: Path) -> None:
    (logger, _) = build_loggers({"tensorboard": {"axis": "steps"}}, tmp_path, None, CurveAxis("steps", 3, 300, 64))
    logger.log_metrics({"train/loss": 1.0}, 1)
    logger.experiment.close()
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")] == [4]
    with pytest.raises(UserError, match=r"loggers\.tensorboard\.axis: unknown value 'token'; did you mean 'tokens'"):
        check_loggers({"tensorboard": {"axis": "token"}})


def test_runs_of_several_experiments_can_be_compared(tmp_path: Path) -> None:
    """Through TensorBoard's own backend: the columns of all runs, though no run has all of them, and final scores alone."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
    from torch.utils.tensorboard import SummaryWriter

    sessions = {
        "one/teacher": ({"role": "teacher", "seed": 0}, {"final/sciq": 0.7}),
        "one/warm": ({"role": "distilled", "seed": 0, "temperature": 2.0}, {"final/sciq": 0.5, "final/teacher_kl": 0.3}),
        "two/deep": ({"role": "distilled", "seed": 1, "layers": 6}, {"final/piqa": 0.4, "final/teacher_kl": 0.4}),
    }
    for name, session in sessions.items():
        with SummaryWriter(str(tmp_path / name)) as writer:
            writer.add_scalar("train/loss", 1.0)
        for _ in range(2):
            write_run_summary(tmp_path / name, session, "a: 1\n")
    for name in ("one", "two"):
        write_experiment_summary(tmp_path / name / "report", {}, {"verdict": "so so"})
    assert len(list((tmp_path / "one/final/warm").iterdir())) == 1
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(
        base_plugin.TBContext(logdir=str(tmp_path), multiplexer=multiplexer, data_provider=provider)
    )
    known = context.hparams_metadata(RequestContext(), "")
    found = context.experiment_from_metadata(RequestContext(), "", True, known, None)
    assert {info.name for info in found.hparam_infos} == {"role", "seed", "temperature", "layers"}
    assert {info.name.tag for info in found.metric_infos} == {"final/sciq", "final/piqa", "final/teacher_kl"}
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN]
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    values = {g.sessions[0].name: {m.name.tag: round(m.value, 3) for m in g.metric_values} for g in groups}
    assert values["one/final/warm"] == {"final/sciq": 0.5, "final/teacher_kl": 0.3}
    assert values["two/final/deep"] == {"final/piqa": 0.4, "final/teacher_kl": 0.4}
    assert values["one/final/teacher"] == {"final/sciq": 0.7}


def test_figures_are_images(tmp_path: Path) -> None:
    from matplotlib.image import imsave

    picture = [[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    imsave(tmp_path / "frontier.png", picture)
    write_experiment_summary(tmp_path / "report", {"frontier": tmp_path / "frontier.png"}, {})
    events = EventAccumulator(str(tmp_path / "report")).Reload()
    image = events.Images("frontier")[0]
    assert (image.width, image.height) == (2, 1)
    assert "_hparams_/experiment" not in events.summary_metadata


@pytest.mark.slow
def test_training_speed_leaves_out_whatever_is_done_between_two_steps(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations, validations and checkpoints that take a second each, also where it goes on from a checkpoint."""
    from distill_lit.training import distiller
    from distill_lit.training.callbacks import checkpoints
    from distill_lit.training.callbacks import evaluation as midway

    def slowly(place: Any, name: str) -> None:
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *arguments: (time.sleep(1), real(*arguments))[1])

    changes = (
        "evaluation.interval=0.5",
        "training.checkpoint_interval=4",
        "training.keep_checkpoints=true",
        "training.log_every_n_steps=4",
    )
    slowly(midway, "evaluate_loaded")
    slowly(distiller.Distiller, "validation_step")
    slowly(checkpoints, "rotate_checkpoints")
    real, calls = distiller.Distiller.training_step, []

    def step(*arguments: Any) -> Any:
        calls.append(1)
        time.sleep(0.05)
        if len(calls) == 20:
            raise RuntimeError("power cut")
        return real(*arguments)

    monkeypatch.setattr(distiller.Distiller, "training_step", step)
    with pytest.raises(RuntimeError, match="power cut"):
        build(file, tmp_path, *changes)
    build(file, tmp_path, *changes)
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    speeds = {line["step"]: line["train/tokens_per_second"] for line in found if "train/loss" in line}
    # steps of 3 batches of 2 rows of 32 tokens, 0.05 s a batch and little more; a second more would leave an eighth of the
    # first one's, which is slower, and three eighths of four steps'
    assert speeds.keys() == {0, 4, 8}
    assert all(share * 64 / 0.05 < speeds[step] <= 64 / 0.05 for step, share in ((0, 0.2), (4, 0.5), (8, 0.5))), speeds


def test_a_clock_that_is_paused_stands() -> None:
    clock = PausableTimer()
    with clock.paused():
        pass  # before its start
    assert clock.lap() == 0
    clock.start()
    with clock.paused(), clock.paused():
        time.sleep(0.2)
    assert clock.lap() < 0.1
    time.sleep(0.1)
    clock.pause()
    time.sleep(0.2)
    assert 0.1 <= clock.lap() < 0.2
    assert clock.lap() == 0
    clock.resume()
