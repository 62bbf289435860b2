"""distill-lit: distill causal language models, benchmark students against teachers, and say what was lost.

What stands in `__all__` is the public API. It is imported when it is first used: `import distill_lit` costs nothing.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_lit import losses
    from distill_lit.analysis.results import Results, load_results
    from distill_lit.data.datamodule import PackedDataModule
    from distill_lit.evaluation.evaluator import evaluate
    from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM
    from distill_lit.experiment.experiment import Experiment
    from distill_lit.generation.filters import register_filter
    from distill_lit.losses.functional import FusedLinearDistillationLoss, fused_linear_distillation_loss
    from distill_lit.losses.lm_head import get_lm_head
    from distill_lit.models.initializers import register_initializer
    from distill_lit.models.pruning import prune_depth, prune_width
    from distill_lit.teachers import (
        CrossTokenizerTeacher,
        OfflineTeacher,
        OnlineTeacher,
        TeacherCacheFormat,
        register_teacher,
        write_teacher_cache,
    )
    from distill_lit.training.distiller import Distiller
    from distill_lit.training.feature_alignment import align_features
    from distill_lit.training.loss import DistillationLoss
    from distill_lit.training.on_policy import OnPolicyGenerator
    from distill_lit.utils.exceptions import UserError

__all__ = [
    "CrossTokenizerTeacher",
    "DistillationLoss",
    "Distiller",
    "Experiment",
    "FusedLinearDistillationLoss",
    "OfflineTeacher",
    "OnPolicyGenerator",
    "OnlineTeacher",
    "PackedDataModule",
    "PrefixTreeLM",
    "Results",
    "TeacherCacheFormat",
    "UserError",
    "align_features",
    "evaluate",
    "fused_linear_distillation_loss",
    "get_lm_head",
    "load_results",
    "losses",
    "prune_depth",
    "prune_width",
    "register_filter",
    "register_initializer",
    "register_teacher",
    "write_teacher_cache",
]

_LAZY_IMPORTS = {
    "CrossTokenizerTeacher": "teachers",
    "DistillationLoss": "training.loss",
    "Distiller": "training.distiller",
    "Experiment": "experiment.experiment",
    "FusedLinearDistillationLoss": "losses.functional",
    "OfflineTeacher": "teachers",
    "OnPolicyGenerator": "training.on_policy",
    "OnlineTeacher": "teachers",
    "PackedDataModule": "data.datamodule",
    "PrefixTreeLM": "evaluation.prefix_tree_lm",
    "Results": "analysis.results",
    "TeacherCacheFormat": "teachers",
    "UserError": "utils.exceptions",
    "align_features": "training.feature_alignment",
    "evaluate": "evaluation.evaluator",
    "fused_linear_distillation_loss": "losses.functional",
    "get_lm_head": "losses.lm_head",
    "load_results": "analysis.results",
    "prune_depth": "models.pruning",
    "prune_width": "models.pruning",
    "register_filter": "generation.filters",
    "register_initializer": "models.initializers",
    "register_teacher": "teachers",
    "write_teacher_cache": "teachers",
}

# torchao, where it is installed, complains on import of each CUDA library that a CPU machine lacks
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module(f"{__name__}.losses")
    if name in _LAZY_IMPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY_IMPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
