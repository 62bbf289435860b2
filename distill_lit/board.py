"""What TensorBoard shows beside the curves: hyperparameters with final scores, and the resolved config as text."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams


def write_final(folder: Path, parameters: dict[str, Any], scores: dict[str, float], config: str) -> None:
    """Adds a cell's knobs, final scores and config (YAML) to the event files in `folder`.

    `add_hparams` of the writer would make a run of its own for them, beside the one with the curves.
    """
    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in parameters.items()
    }
    with SummaryWriter(str(folder), filename_suffix=".final") as writer:
        for summary in hparams(plain, scores):
            writer.file_writer.add_summary(summary)
        for name, value in scores.items():
            writer.add_scalar(name, value)
        writer.add_text("config", "".join(f"    {line}\n" for line in config.splitlines()))
