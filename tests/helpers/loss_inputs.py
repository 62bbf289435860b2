"""Inputs for tests over the whole family of losses."""

import torch

from distill_lit.config import TermConfig
from distill_lit.losses import LOGIT_LOSSES, Objective, build_objective
from distill_lit.losses.targets import DenseTarget, SampledTarget, TeacherTarget, TopKTarget

# what reads labels or a whole teacher; losses for another tokenizer have tests of their own
DENSE = [kind for kind, loss in LOGIT_LOSSES.items() if not loss.target_forms or "dense" in loss.target_forms]
# what vanishes where student and teacher agree, and is positive elsewhere
DIVERGENCES = sorted(kind for kind in DENSE if LOGIT_LOSSES[kind].is_divergence)
# no stop-gradient inside and nothing drawn, so that finite differences agree
DIFFERENTIABLE = sorted(set(DENSE) - {"adaptive_kl", "policy_gradient_reverse_kl", "sampled_kl"})


def one_term(kind: str, **changes: object) -> Objective:
    """The objective of one loss, softened where it can be unless `temperature` says otherwise."""
    return build_objective({kind: TermConfig(**changes)})


def softened(kind: str, temperature: float) -> dict[str, TermConfig]:
    """Terms of one loss at a temperature, at 1 where it has none."""
    return {kind: TermConfig(temperature=temperature if LOGIT_LOSSES[kind].softenable_forms else 1.0)}


def authors(count: int) -> torch.Tensor:
    """Every other token written by the student."""
    return torch.arange(count) % 2 == 0


def sparse_targets(target: DenseTarget, labels: torch.Tensor, k: int = 5, num_samples: int = 7) -> dict[str, TeacherTarget]:
    """The dense target itself, and its k best tokens and some draws."""
    log_p = target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)
    best, drawn = log_p.topk(k), torch.multinomial(log_p.exp(), num_samples, replacement=True)
    label_log_probs = log_p.gather(-1, labels[:, None])[:, 0]
    weights = torch.full_like(drawn, 1, dtype=log_p.dtype) / num_samples
    return {
        "dense": target,
        "top_k": TopKTarget(best.indices, best.values, label_log_probs),
        "sampled": SampledTarget(drawn, log_p.gather(-1, drawn), weights, label_log_probs),
    }
