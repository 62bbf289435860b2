"""What TensorBoard shows beside the curves: hyperparameters with final scores, figures, the config as text, a layout."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

HParamsSession = tuple[dict[str, Any], dict[str, float]]  # a run's fields, its final scores
FINAL_FOLDER = "final"  # of an experiment's runs: a folder for each with its fields and final scores
# what is logged of training and validation beside the terms of the loss
WATCHED = (
    "loss$", "student_", "teacher_", "agreement", "draft_acceptance", "own_", "on_policy", "in_spans", "scored_by",
    "tokens", "gradient_norm",
)  # fmt: skip


class CustomScalarsCallback(L.Callback):
    """Opens the custom scalars on what belongs together: the terms of the loss in one chart."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Writes the layout into the event file of the curves."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(custom_scalars_layout())


def custom_scalars_layout() -> dict[str, dict[str, list[Any]]]:
    """{category: {chart: [kind, patterns of tags]}} for `add_custom_scalars`.

    The same for all runs of all experiments: TensorBoard shows the charts of every layout that differs, and patterns find
    the terms that a run has.
    """

    def chart(*patterns: str) -> list[Any]:
        return ["Multiline", [f"^{pattern}" for pattern in patterns]]

    terms = f"(?!{'|'.join(WATCHED)})"
    return {
        "loss": {
            "terms in training": chart("train/loss$", f"train/{terms}"),
            "terms in validation": chart("validation/loss$", f"validation/{terms}"),
            "weights": chart("weight/"),
            "temperatures": chart("temperature/"),
        },
        "student and teacher": {
            "nats per token": chart("validation/student_nll$", "validation/teacher_nll$", "validation/teacher_kl$"),
            "entropy": chart("train/student_entropy$", "train/teacher_entropy$"),
            "agreement": chart("train/agreement$", "validation/agreement$", "validation/draft_acceptance$"),
        },
        "evaluation": {"score": chart("evaluation/")},
    }


def write_run_summary(folder: Path, session: HParamsSession, config: str) -> None:
    """Adds a run's config (YAML) to the event files in `folder`, and writes its fields and final scores beside them, as a
    run of TensorBoard's of their own below FINAL_FOLDER. Replaces what was there.

    A description of the whole experiment, as `add_hparams` writes it, would hide every column that it does not have:
    TensorBoard takes the first that it finds, of whichever experiment. Without one it takes all fields of all runs, and of
    their scores those of the folder that has the fields. In the folder of the curves these would be all curves.
    """
    for old in [*folder.glob("events.out.*.final"), *final_folder(folder).glob("events.out.*")]:
        old.unlink()
    with SummaryWriter(str(folder), filename_suffix=".final") as writer:
        writer.add_text("config", _verbatim(config))
    with SummaryWriter(str(final_folder(folder))) as writer:
        for summary in hparams(_plain(session[0]), session[1])[1:]:  # the first one is the description
            writer.file_writer.add_summary(summary)
        for name, value in session[1].items():
            writer.add_scalar(name, value)


def final_folder(folder: Path) -> Path:
    """Where the fields and final scores of the run in `folder` are."""
    return folder.parent / FINAL_FOLDER / folder.name


def write_experiment_summary(folder: Path, figures: dict[str, Path], texts: dict[str, str]) -> None:
    """Writes what belongs to a whole experiment as a run of its own: figures ({name: PNG}) and texts ({name: plain text}).
    Replaces what was there."""
    from matplotlib.image import imread

    for old in folder.glob("events.out.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for name, path in figures.items():
            writer.add_image(name, imread(path), dataformats="HWC")
        for name, text in texts.items():
            writer.add_text(name, _verbatim(text))


def _plain(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in parameters.items()}


def _verbatim(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
