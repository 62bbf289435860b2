"""What every `auto` that can change a result means: number formats by the fastest of the machine on which runs happen, and
what writes text."""

from typing import TYPE_CHECKING, Any

from distill_lit.config import Dtype, ExperimentConfig
from distill_lit.config.fields import with_values
from distill_lit.generation.backend import resolve_backend
from distill_lit.utils import hardware

if TYPE_CHECKING:
    from distill_lit.experiment.launcher.slurm.node import ClusterDtypes

AUTO_FIELDS = (("training", "precision"), ("teacher", "dtype"), ("evaluation", "dtype"))


def has_auto(config: ExperimentConfig) -> bool:
    """Whether a number format is to be measured."""
    return any(getattr(getattr(config, section), field) == "auto" for section, field in AUTO_FIELDS)


def resolve_auto(config: ExperimentConfig, cluster_dtypes: "ClusterDtypes | None" = None) -> ExperimentConfig:
    """The same experiment with every `auto` that can change a result replaced by the choice of the machine on which its
    runs happen: this one, or a compute node that has been asked (`Experiment.measure_cluster`), whose answers are
    `cluster_dtypes`."""
    config = resolve_backend(config)
    if not has_auto(config):
        return config
    fastest = cluster_dtypes.of(config) if cluster_dtypes is not None and config.launcher.engine == "slurm" else ""
    sections: dict[str, Any] = {}
    for section, field in AUTO_FIELDS:
        value = getattr(getattr(config, section), field)
        if value == "auto":
            resolved = fastest or resolve_dtype(value, config.training.accelerator)
            sections[section] = with_values(getattr(config, section), **{field: resolved})
    return with_values(config, **sections)


def resolve_dtype(dtype: Dtype, accelerator: str = "auto") -> Dtype:
    """The number format itself, or for `auto` the fastest measured on this machine."""
    return hardware.fastest_dtype(hardware.device_for(accelerator)) if dtype == "auto" else dtype
