"""Typed configuration: YAML, `defaults`, `key=value` overrides, grid. The only room that knows OmegaConf."""

from distill_lit.config.generation import (
    FiltersConfig,
    GeneratedConfig,
    PriceConfig,
    PromptsConfig,
    RemoteConfig,
    RowsConfig,
)
from distill_lit.config.loading import decisive, expand, find_configs, load_experiment, load_section, to_dict, to_yaml
from distill_lit.config.on_policy import OnPolicyConfig
from distill_lit.config.schema import (
    AnalysisConfig,
    CorpusConfig,
    CostConfig,
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LauncherConfig,
    LoraConfig,
    ObjectiveConfig,
    StudentConfig,
    TeacherConfig,
    TermConfig,
    TrainingConfig,
    WidthConfig,
)

__all__ = [
    "AnalysisConfig",
    "CorpusConfig",
    "CostConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FiltersConfig",
    "GeneratedConfig",
    "LauncherConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "OnPolicyConfig",
    "PriceConfig",
    "PromptsConfig",
    "RemoteConfig",
    "RowsConfig",
    "StudentConfig",
    "TeacherConfig",
    "TermConfig",
    "TrainingConfig",
    "WidthConfig",
    "decisive",
    "expand",
    "find_configs",
    "load_experiment",
    "load_section",
    "to_dict",
    "to_yaml",
]
