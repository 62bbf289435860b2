"""Typed configuration: YAML, `defaults`, `key=value` overrides, grid. The only room that knows OmegaConf."""

from distill_lit.config.generated import (
    FiltersConfig,
    GeneratedConfig,
    PriceConfig,
    PromptsConfig,
    RemoteConfig,
    RowsConfig,
)
from distill_lit.config.load import decisive, expand, find_configs, load_experiment, load_section, to_dict, to_yaml
from distill_lit.config.schema import (
    AnalysisConfig,
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LauncherConfig,
    ObjectiveConfig,
    StudentConfig,
    TeacherConfig,
    TermConfig,
    TrainingConfig,
)

__all__ = [
    "AnalysisConfig",
    "CorpusConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FiltersConfig",
    "GeneratedConfig",
    "LauncherConfig",
    "ObjectiveConfig",
    "PriceConfig",
    "PromptsConfig",
    "RemoteConfig",
    "RowsConfig",
    "StudentConfig",
    "TeacherConfig",
    "TermConfig",
    "TrainingConfig",
    "decisive",
    "expand",
    "find_configs",
    "load_experiment",
    "load_section",
    "to_dict",
    "to_yaml",
]
