"""Where an experiment's runs and results are."""

from pathlib import Path

from distill_lit.config import ExperimentConfig


def runs_folder(root: Path, config: ExperimentConfig) -> Path:
    """Where runs keep checkpoints, event files and students."""
    return root / "runs" / config.name


def results_folder(root: Path, config: ExperimentConfig) -> Path:
    """Where tables, figures and records go."""
    return root / "results" / config.name
