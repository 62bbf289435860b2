"""Losses as pure functions of tensors and as objects: the registry, schedules, weighted sums, and the fused lm_head.

Example:
    >>> from distill_lit import losses
    >>> loss = losses.linear(1.0, 0.2) * losses.CrossEntropy() + 0.5 * losses.ForwardKL(temperature=2.0)
"""

from distill_lit.losses.chunks import can_compile, chunk_size_for_budget
from distill_lit.losses.compatibility import check_teacher_supports_objective
from distill_lit.losses.custom import check_loss, register
from distill_lit.losses.functional import FusedLinearDistillationLoss, default_objective, fused_linear_distillation_loss
from distill_lit.losses.fused_linear import (
    LossOutput,
    distillation_loss,
    fused_linear_loss,
    label_logprobs_from_hidden,
)
from distill_lit.losses.hidden_states import FEATURE_LOSSES
from distill_lit.losses.objective import (
    FeatureTerm,
    Objective,
    Term,
    as_objective,
    build_objective,
)
from distill_lit.losses.presets import PRESETS, mix_terms, preset, resolve_preset
from distill_lit.losses.registry import LOGIT_LOSSES, BoolOption, ChoiceOption, NumberOption
from distill_lit.losses.schedules import Schedule, cosine, linear, piecewise
from distill_lit.losses.sparse import sample_tokens, top_k_logprobs
from distill_lit.losses.terms import (
    ALM,
    ULD,
    AdaptiveKL,
    AlphaBeta,
    Attention,
    ContrastiveSkewKL,
    CrossEntropy,
    ForwardKL,
    HiddenStates,
    JensenShannon,
    LogitMSE,
    Loss,
    PairwiseRanking,
    PolicyGradientReverseKL,
    QKVRelations,
    ReverseKL,
    SampledKL,
    SkewForwardKL,
    SkewReverseKL,
    SoftCrossEntropy,
    SymmetricKL,
    TopKKL,
    TopKTailKL,
    TotalVariation,
    TruncatedKL,
)

__all__ = [
    "ALM",
    "FEATURE_LOSSES",
    "LOGIT_LOSSES",
    "PRESETS",
    "ULD",
    "AdaptiveKL",
    "AlphaBeta",
    "Attention",
    "BoolOption",
    "ChoiceOption",
    "ContrastiveSkewKL",
    "CrossEntropy",
    "FeatureTerm",
    "ForwardKL",
    "FusedLinearDistillationLoss",
    "HiddenStates",
    "JensenShannon",
    "LogitMSE",
    "Loss",
    "LossOutput",
    "NumberOption",
    "Objective",
    "PairwiseRanking",
    "PolicyGradientReverseKL",
    "QKVRelations",
    "ReverseKL",
    "SampledKL",
    "Schedule",
    "SkewForwardKL",
    "SkewReverseKL",
    "SoftCrossEntropy",
    "SymmetricKL",
    "Term",
    "TopKKL",
    "TopKTailKL",
    "TotalVariation",
    "TruncatedKL",
    "as_objective",
    "build_objective",
    "can_compile",
    "check_loss",
    "check_teacher_supports_objective",
    "chunk_size_for_budget",
    "cosine",
    "default_objective",
    "distillation_loss",
    "fused_linear_distillation_loss",
    "fused_linear_loss",
    "label_logprobs_from_hidden",
    "linear",
    "mix_terms",
    "piecewise",
    "preset",
    "register",
    "resolve_preset",
    "sample_tokens",
    "top_k_logprobs",
]
