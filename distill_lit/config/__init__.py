"""Typed configuration: YAML, `defaults`, `key=value` overrides, grid. Checked by pydantic."""

from distill_lit.config.data import CorpusConfig, DataConfig, MessageConfig
from distill_lit.config.evaluation import AnalysisConfig, CostConfig, EvaluationConfig
from distill_lit.config.fields import Dtype
from distill_lit.config.generation import (
    DatasetConfig,
    FiltersConfig,
    GeneratedConfig,
    GenerationBackendConfig,
    PromptsConfig,
    RemoteConfig,
)
from distill_lit.config.launcher import LauncherConfig, SlurmConfig
from distill_lit.config.loading import expand_grid, load_experiment, load_section, non_default_fields, to_dict, to_yaml
from distill_lit.config.mixture import MixtureConfig, MixtureMemberConfig
from distill_lit.config.models import LoraConfig, StudentConfig, TeacherConfig, TeacherPromptConfig, WidthConfig
from distill_lit.config.on_policy import OnPolicyConfig
from distill_lit.config.probes import ProbeConfig
from distill_lit.config.report import ReportConfig
from distill_lit.config.schema import ExperimentConfig
from distill_lit.config.server import PriceConfig, ServerConfig, ServiceConfig, TeacherServerConfig
from distill_lit.config.training import ObjectiveConfig, TermConfig, TrainingConfig

__all__ = [
    "AnalysisConfig",
    "CorpusConfig",
    "CostConfig",
    "DataConfig",
    "DatasetConfig",
    "Dtype",
    "EvaluationConfig",
    "ExperimentConfig",
    "FiltersConfig",
    "GeneratedConfig",
    "GenerationBackendConfig",
    "LauncherConfig",
    "LoraConfig",
    "MessageConfig",
    "MixtureConfig",
    "MixtureMemberConfig",
    "ObjectiveConfig",
    "OnPolicyConfig",
    "PriceConfig",
    "ProbeConfig",
    "PromptsConfig",
    "RemoteConfig",
    "ReportConfig",
    "ServerConfig",
    "ServiceConfig",
    "SlurmConfig",
    "StudentConfig",
    "TeacherConfig",
    "TeacherPromptConfig",
    "TeacherServerConfig",
    "TermConfig",
    "TrainingConfig",
    "WidthConfig",
    "expand_grid",
    "load_experiment",
    "load_section",
    "non_default_fields",
    "to_dict",
    "to_yaml",
]
