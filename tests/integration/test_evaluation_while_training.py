"""TensorBoard: scores while a student trains that leave the training alone, a layout, runs that can be compared."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_tasks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill_lit.config import load_experiment
from distill_lit.experiment import run as run_module
from distill_lit.experiment.fingerprint import evaluation_fingerprint
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planned_run import Run
from distill_lit.training.tensorboard_summary import write_experiment_summary, write_run_summary
from distill_lit.training.timer import PausableTimer

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
    assert [event.step for event in events.Scalars("evaluation/colours")] == [0, 6, 12]
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
    first = layout.category[0].chart[0]
    assert list(first.multiline.tag) == ["^train/loss$", "^train/ce$", "^train/kl$"]
    written = {f"^{tag}$" for tag in events.Tags()["scalars"]}
    assert set(first.multiline.tag) <= written


def test_runs_of_a_grid_can_be_compared(tmp_path: Path) -> None:
    """Through TensorBoard's own backend: the columns of all runs, though no run has all of them."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    sessions = {
        "teacher": ({"role": "teacher", "seed": 0}, {"final/sciq": 0.7}),
        "warm": ({"role": "distilled", "seed": 0, "temperature": 2.0}, {"final/sciq": 0.5, "validation/teacher_kl": 0.3}),
        "cold": ({"role": "distilled", "seed": 1, "temperature": 1.0}, {"final/sciq": 0.4, "validation/teacher_kl": 0.4}),
    }
    for name, session in sessions.items():
        write_run_summary(tmp_path / name, session, "a: 1\n", has_validation_curves=False)
    write_experiment_summary(tmp_path / "report", list(sessions.values()), {}, {"verdict": "so so"})
    write_experiment_summary(tmp_path / "report", list(sessions.values()), {}, {"verdict": "so so"})
    assert len(list((tmp_path / "report").iterdir())) == 1
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(
        base_plugin.TBContext(logdir=str(tmp_path), multiplexer=multiplexer, data_provider=provider)
    )
    known = context.hparams_metadata(RequestContext(), "")
    found = context.experiment_from_metadata(RequestContext(), "", True, known, None)
    assert {info.name for info in found.hparam_infos} == {"role", "seed", "temperature"}
    assert {info.name.tag for info in found.metric_infos} == {"final/sciq", "validation/teacher_kl"}
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=10, allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN]
    )
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    values = {g.sessions[0].name: {m.name.tag: round(m.value, 3) for m in g.metric_values} for g in groups}
    assert values["warm"] == {"final/sciq": 0.5, "validation/teacher_kl": 0.3}
    assert values["teacher"] == {"final/sciq": 0.7}


def test_figures_are_images(tmp_path: Path) -> None:
    from matplotlib.image import imsave

    picture = [[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]
    imsave(tmp_path / "frontier.png", picture)
    write_experiment_summary(tmp_path / "report", [], {"frontier": tmp_path / "frontier.png"}, {})
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
    # steps of 3 batches of 2 rows of 32 tokens, 0.05 s a batch and hardly more; a second more would leave a quarter
    assert speeds.keys() == {0, 4, 8}
    assert all(0.5 * 64 / 0.05 < speed <= 64 / 0.05 for speed in speeds.values()), speeds


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
