"""Where a run's curves go: `metrics.jsonl` always, and any of Lightning's loggers that the config names."""

import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_lit.training.curve_axis import AXES, CurveAxis
from distill_lit.utils.distributed.ranks import get_rank
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.files import write_text

LoggerOptions = Mapping[str, Mapping[str, Any] | None]  # {logger: options of its class}; None: not this one
LOGGER_CLASSES = {"tensorboard": "TensorBoardLogger", "csv": "CSVLogger", "wandb": "WandbLogger", "mlflow": "MLFlowLogger"}
BEGINNING = CurveAxis()
AXIS_OPTION = "axis"  # ours, of tensorboard: what its curves are drawn over
# of SummaryWriter, to which Lightning's TensorBoardLogger hands whatever it does not know
SUMMARY_WRITER_OPTIONS = ("comment", "filename_suffix", "flush_secs", "max_queue")
LOGGER_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}  # optional


def check_loggers(loggers: LoggerOptions) -> None:
    """Raises UserError for a logger that is unknown, whose package is missing, or that has no such option."""
    for name, options in loggers.items():
        if name not in LOGGER_CLASSES:
            raise UserError(f"loggers: unknown logger {name!r}{suggest(name, LOGGER_CLASSES)}")
        package = LOGGER_PACKAGES.get(name)
        if options is not None and package and importlib.util.find_spec(package) is None:
            raise UserError(f"loggers.{name}: package {package} is not installed; pip install {package}")
        if options and name == "tensorboard" and options.get(AXIS_OPTION, AXES[0]) not in AXES:
            value = options[AXIS_OPTION]
            raise UserError(f"loggers.{name}.{AXIS_OPTION}: unknown value {value!r}{suggest(str(value), AXES)}")
        if options:
            _check_options(name, options)


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(_logger_class(name)).parameters
    known = [key for key, parameter in parameters.items() if parameter.kind != inspect.Parameter.VAR_KEYWORD]
    if name == "tensorboard":
        known += [AXIS_OPTION, *SUMMARY_WRITER_OPTIONS]
    elif len(known) < len(parameters):  # it takes any
        return
    for option in options:
        if option not in known:
            raise UserError(f"loggers.{name}: unknown option {option!r}{suggest(option, known)}")


def _logger_class(name: str) -> Callable[..., Any]:
    import lightning.pytorch.loggers  # takes seconds, and bad input is refused without it

    logger_class: Callable[..., Any] = getattr(lightning.pytorch.loggers, LOGGER_CLASSES[name])
    return logger_class


def build_loggers(
    loggers: LoggerOptions, folder: Path, resume_step: int | None, curve_start: CurveAxis = BEGINNING
) -> list[Any]:
    """The loggers of a run, `metrics.jsonl` last.

    Each writes into the run's folder, MLflow beside it, unless its options name another place. A run that goes on from
    `resume_step` drops the TensorBoard events of steps that it repeats, writes a new CSV file, and goes on in the same run
    of W&B and MLflow.

    Args:
        loggers: {tensorboard, csv, wandb or mlflow: options of Lightning's class}.
        folder: the run's.
        resume_step: optimizer steps of the checkpoint that training goes on from; None: it begins.
        curve_start: steps and tokens of the stages before this one, from which on curves are drawn, and tokens of a step.
            TensorBoard's are drawn over tokens, with `axis: steps` over steps; the others' over steps; `metrics.jsonl`
            counts those of this stage alone.
    """
    found = [
        _build_logger(name, options, folder, resume_step, curve_start)
        for name, options in loggers.items()
        if options is not None
    ]
    from distill_lit.training.json_lines_logger import JSONLinesLogger  # brings Lightning, which takes seconds

    return [*found, JSONLinesLogger(folder / "metrics.jsonl", resume_step)]


def _build_logger(
    name: str, options: Mapping[str, Any], folder: Path, resume_step: int | None, curve_start: CurveAxis
) -> Any:
    experiment, run = folder.parent.name, folder.name
    axis = replace(curve_start, kind=options.get(AXIS_OPTION, AXES[0]) if name == "tensorboard" else "steps")
    options = {key: value for key, value in options.items() if (name, key) != ("tensorboard", AXIS_OPTION)}
    defaults: dict[str, dict[str, Any]] = {
        "tensorboard": {
            "save_dir": folder,
            "name": "",
            "version": "",
            "default_hp_metric": False,
            "purge_step": axis.position(resume_step or 0),
            "curve_axis": axis,
        },
        "csv": {"save_dir": folder, "name": "csv", "version": f"from_step_{resume_step or 0}"},
        "wandb": {"save_dir": folder, "project": experiment, "name": run, "id": run[-64:], "resume": "allow"},
        "mlflow": {"save_dir": folder.parent / "mlruns", "experiment_name": experiment, "run_name": run},
    }
    if name == "mlflow":  # which refuses to write files without this
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    if name == "mlflow" and resume_step is not None:
        defaults["mlflow"]["run_id"] = _mlflow_run_id(folder)
    logger_class = _curves_logger_class() if name == "tensorboard" else _with_axis(_logger_class(name), axis)
    logger = logger_class(**{**defaults[name], **options})
    if name == "mlflow" and get_rank() == 0:
        write_text(folder / MLFLOW_RUN_FILE, str(logger.run_id))
    return logger


def _curves_logger_class() -> Any:
    from distill_lit.training.tensorboard_logger import CurvesLogger  # brings Lightning, which takes seconds

    return CurvesLogger


def _with_axis(logger_class: Any, axis: CurveAxis) -> Any:
    """A logger whose steps count on from those of the stages before."""
    if not axis.first_step:
        return logger_class

    class ContinuedLogger(logger_class):  # type: ignore[misc]
        """Goes on with the curves of the stage before."""

        curve_axis = axis

        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            super().log_metrics(metrics, None if step is None else axis.position(step))

    return ContinuedLogger


def position_on_curves(logger: Any, step: int) -> int:
    """Where on a logger's curves optimizer step `step` of this stage is."""
    return CurveAxis.position(getattr(logger, "curve_axis", CurveAxis()), step)


MLFLOW_RUN_FILE = "mlflow_run_id.txt"  # in a run's folder


def _mlflow_run_id(folder: Path) -> str | None:
    path = folder / MLFLOW_RUN_FILE
    return path.read_text().strip() if path.is_file() else None


def flush_loggers(loggers: Iterable[Any]) -> None:
    """Makes what was logged as durable as each logger can."""
    for logger in loggers:
        if hasattr(logger.experiment, "flush"):
            logger.experiment.flush()
        else:
            logger.save()


def close_loggers(loggers: Iterable[Any]) -> None:
    """Closes files, and ends the runs that are open in this process: W&B would log the next one into them."""
    for logger in loggers:
        if hasattr(logger, "close"):
            logger.close()
        elif hasattr(logger.experiment, "finish"):
            logger.experiment.finish()
