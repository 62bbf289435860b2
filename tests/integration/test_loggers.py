"""Lightning's loggers in an experiment: TensorBoard, CSV, W&B and MLflow, all of them without a network."""

import csv
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers.distillation import TRAINING, new_student

from distill_lit import data, losses
from distill_lit.config import load_experiment
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.training.curve_axis import CurveAxis
from distill_lit.training.distiller import Distiller
from distill_lit.training.loggers import build_loggers, check_loggers, close_loggers
from distill_lit.training.trainer import TrainingJob, optimizer_settings, train
from distill_lit.utils.exceptions import UserError

FOUR = {"tensorboard": {}, "csv": {}, "wandb": {"project": "colours"}, "mlflow": {"tags": {"why": "a test"}}}


def train_with(folder: Path, teacher: Path, prepared: data.PreparedData, loggers: dict[str, Any]) -> None:
    distiller = Distiller(new_student(teacher), None, losses.CrossEntropy(), **optimizer_settings(TRAINING))
    module = PackedDataModule(prepared.train, prepared.validation, TRAINING, 0)
    job = TrainingJob(folder, distiller, module, TRAINING, 0, lambda *_: None, loggers=loggers)
    job.hyperparameters = {"student": {"num_layers": 1}}
    train(job)


def logged_losses(folder: Path) -> dict[int, float]:
    """{step: training loss} of metrics.jsonl."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


@pytest.mark.skipif(
    not all(importlib.util.find_spec(package) for package in ("wandb", "mlflow")), reason="wandb and mlflow are optional"
)
def test_all_loggers_have_the_same_curve(
    tmp_path: Path,
    tiny_teacher: Path,
    prepared: data.PreparedData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two runs in one process, which W&B keeps apart."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for name in ("first", "second"):
        train_with(tmp_path / "exp" / name, tiny_teacher, prepared, FOUR)
    folder = tmp_path / "exp/first"
    expected = logged_losses(folder)
    assert len(expected) == 6

    with (folder / "csv/from_step_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert {int(row["step"]): float(row["train/loss"]) for row in rows} == pytest.approx(expected)

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"file:{tmp_path / 'exp/mlruns'}")
    runs = client.search_runs([client.get_experiment_by_name("exp").experiment_id])
    assert {run.info.run_name for run in runs} == {"first", "second"}
    run_id = (folder / "mlflow_run_id.txt").read_text()
    history = client.get_metric_history(run_id, "train/loss")
    assert {point.step: point.value for point in history} == pytest.approx(expected)
    run = client.get_run(run_id)
    assert run.data.tags["why"] == "a test"
    assert (run.data.params["student/num_layers"], run.data.params["lr"]) == ("1", "0.01")

    stored = [path for name in ("first", "second") for path in (tmp_path / "exp" / name / "wandb").glob("offline-run-*")]
    assert [path.name.rsplit("-", 1)[1] for path in stored] == ["first", "second"]
    assert wandb_history(stored[0]) == pytest.approx(expected)


def wandb_history(folder: Path) -> dict[int, float]:
    """{step: training loss} of an offline run of W&B."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for piece in leveldb_records(next(folder.glob("*.wandb")).read_bytes()):
        record = Record()
        record.ParseFromString(piece)
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "train/loss" in values:
            found[int(json.loads(values["trainer/global_step"]))] = float(json.loads(values["train/loss"]))
    return found


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after W&B's header of seven bytes; a record may span blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def test_a_resumed_run_goes_on_in_the_same_mlflow_run_and_a_new_csv_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "exp" / "run"
    folder.mkdir(parents=True)
    ids, places = [], []
    for resume_step in (None, 4):
        csv_logger, mlflow, _ = build_loggers({"csv": {}, "mlflow": {}, "tensorboard": None}, folder, resume_step)
        ids.append(mlflow.run_id)
        places.append(Path(csv_logger.log_dir).name)
    assert ids[0] == ids[1]
    assert places == ["from_step_0", "from_step_4"]


@pytest.mark.parametrize(
    ("loggers", "words"),
    [
        ({"wandbb": {}}, "loggers: unknown logger 'wandbb'; did you mean 'wandb'"),
        ({"csv": {"savedir": "x"}}, r"loggers.csv: unknown option 'savedir'; did you mean 'save_dir'"),
        ({"tensorboard": {"flush_sec": 1}}, r"loggers.tensorboard: unknown option 'flush_sec'; did you mean 'flush_secs'"),
        ({"mlflow": {"project": "x"}}, r"loggers.mlflow: unknown option 'project'"),
    ],
)
def test_refusals(loggers: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_loggers(loggers)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else find(package))
    config = load_experiment(ROOT / "experiments/quickstart.yaml", [f"loggers.{name}={{}}"])
    with pytest.raises(UserError) as error:
        check_experiment(config)
    assert str(error.value) == f"loggers.{name}: package {name} is not installed; pip install {name}"
    config = load_experiment(ROOT / "experiments/quickstart.yaml", [f"loggers.{name}=null"])
    check_experiment(config)


def test_a_later_stage_goes_on_with_the_steps_of_the_one_before(tmp_path: Path) -> None:
    table, lines = build_loggers({"csv": {}}, tmp_path, None, CurveAxis(first_step=10))
    for logger in (table, lines):
        logger.log_metrics({"loss": 0.5}, step=2)
    table.save()
    (file,) = tmp_path.rglob("metrics.csv")
    assert [row["step"] for row in csv.DictReader(file.open())] == ["12"]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [2]


def test_a_validation_and_the_training_after_it_are_one_event_file(tmp_path: Path) -> None:
    """Of two files that begin in one second TensorBoard reads number 10 before number 9, and drops what it has read."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    for number in range(11):  # so that this training's would be the ninth and the tenth in one of these
        SummaryWriter(str(tmp_path / f"other{number}")).close()
        folder = tmp_path / str(number)
        tensorboard, *_ = found = build_loggers({"tensorboard": {"axis": "steps"}}, folder, None)
        tensorboard.log_metrics({"validation/loss": 3.0}, 0)
        tensorboard.finalize("success")  # as Lightning ends a validation
        for step in (1, 2, 3):
            tensorboard.log_metrics({"train/loss": 3.0 - step}, step)
        tensorboard.finalize("success")
        close_loggers(found)
        board = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3]
        assert [event.step for event in board.Scalars("validation/loss")] == [0]
        assert len(list(folder.glob("events.out.*"))) == 1
