"""What TensorBoard shows beside the curves: hyperparameters with final scores, figures, the config as text, a layout."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

HParamsSession = tuple[dict[str, Any], dict[str, float]]  # a run's fields, its final scores


class CustomScalarsCallback(L.Callback):
    """Opens the custom scalars on what belongs together: the terms of the loss in one chart."""

    def __init__(self, term_names: list[str]) -> None:
        """`term_names`: names of the objective's terms."""
        self.term_names = term_names

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes the layout into the event file of the curves."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(custom_scalars_layout(self.term_names))


def custom_scalars_layout(term_names: list[str]) -> dict[str, dict[str, list[Any]]]:
    """{category: {chart: [kind, tags]}} for `add_custom_scalars`."""

    def chart(*tags: str) -> list[Any]:
        return ["Multiline", [f"^{tag}$" for tag in tags]]

    return {
        "loss": {
            "terms in training": chart("train/loss", *(f"train/{term}" for term in term_names)),
            "terms in validation": chart("validation/loss", *(f"validation/{term}" for term in term_names)),
            "weights": chart(*(f"weight/{term}" for term in term_names)),
            "temperatures": chart(*(f"temperature/{term}" for term in term_names)),
        },
        "student and teacher": {
            "nats per token": chart("validation/student_nll", "validation/teacher_nll", "validation/teacher_kl"),
            "entropy": chart("train/student_entropy", "train/teacher_entropy"),
            "agreement": chart("train/agreement", "validation/agreement", "validation/draft_acceptance"),
        },
        "evaluation": {"score": ["Multiline", ["^evaluation/"]]},
    }


def write_run_summary(folder: Path, session: HParamsSession, config: str, has_validation_curves: bool) -> None:
    """Adds a run's fields, final scores and config (YAML) to the event files in `folder`. `has_validation_curves`: its
    validation is there already, as curves, whose last points count.

    `add_hparams` of the writer would make a run of its own for them, beside the one with the curves.
    """
    parameters, scores = _plain(session[0]), session[1]
    with SummaryWriter(str(folder), filename_suffix=".final") as writer:
        # without the description of an experiment: TensorBoard takes the first it finds, and columns that only other
        # runs have would never be seen; `write_experiment_summary` describes all of them
        for summary in hparams(parameters, scores)[1:]:
            writer.file_writer.add_summary(summary)
        for name, value in scores.items():
            if not (has_validation_curves and name.startswith("validation/")):
                writer.add_scalar(name, value)
        writer.add_text("config", _verbatim(config))


def write_experiment_summary(
    folder: Path, sessions: list[HParamsSession], figures: dict[str, Path], texts: dict[str, str]
) -> None:
    """Writes what belongs to a whole experiment as a run of its own: the columns of all runs' hyperparameters,
    figures ({name: PNG}) and texts ({name: plain text}). Replaces what was there."""
    from matplotlib.image import imread

    for old in folder.glob("events.out.*"):
        old.unlink()
    parameters = {name: value for session in sessions for name, value in _plain(session[0]).items()}
    metrics = {name: 0.0 for session in sessions for name in session[1]}
    with SummaryWriter(str(folder)) as writer:
        if sessions:
            writer.file_writer.add_summary(hparams(parameters, metrics)[0])
        for name, path in figures.items():
            writer.add_image(name, imread(path), dataformats="HWC")
        for name, text in texts.items():
            writer.add_text(name, _verbatim(text))


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in parameters.items()}


def _verbatim(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
