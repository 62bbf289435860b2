"""Number formats of this machine for every auto, and presets spelled out."""

from dataclasses import replace

from distill_lit.config import Dtype, ExperimentConfig
from distill_lit.utils import hardware


def resolve_auto(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with every `auto` that can change a result replaced by this machine's choice."""
    training, teacher, evaluation = replace(config.training), replace(config.teacher), replace(config.evaluation)
    for section, field in ((training, "precision"), (teacher, "dtype"), (evaluation, "dtype")):
        setattr(section, field, resolve_dtype(getattr(section, field), training.accelerator))
    return replace(config, training=training, teacher=teacher, evaluation=evaluation)


def resolve_dtype(dtype: Dtype, accelerator: str = "auto") -> Dtype:
    """The number format itself, or for `auto` the fastest measured on this machine."""
    return hardware.fastest_dtype(hardware.device_for(accelerator)) if dtype == "auto" else dtype
