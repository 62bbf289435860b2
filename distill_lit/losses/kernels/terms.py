"""Which objectives the Triton kernel computes, and as what: every loss is a weighted sum of a few parts.

The kernel knows nine parts, `KernelPart`. Divergences may be softened, all by one temperature; those against a mixture of
teacher and student share one mixture. An objective of anything else is left to PyTorch.
"""

import functools
import inspect
from enum import IntEnum
from typing import Any, NamedTuple

from distill_lit.losses.objective import Objective, Term


class KernelPart(IntEnum):
    """What the kernel sums for every token; q is the student, p the teacher, m = share · p + (1 − share) · q.

    The first two and the last are of the logits as they are, the others of the softened ones.
    """

    NLL = 0  # −log q of the label
    UNIFORM_NLL = 1  # mean of −log q over the vocabulary
    FORWARD_KL = 2  # KL(p ‖ q)
    SOFT_CROSS_ENTROPY = 3  # −Σ p log q
    REVERSE_KL = 4  # KL(q ‖ p)
    TEACHER_TO_MIXTURE = 5  # KL(p ‖ m)
    STUDENT_TO_MIXTURE = 6  # KL(q ‖ m)
    TOTAL_VARIATION = 7  # ½ Σ |p − q|
    LOGIT_MSE = 8  # mean of (z_p − z_q)² over the vocabulary


class KernelTerms(NamedTuple):
    """An objective of K terms from logits as the kernel computes it.

    coefficients: (K, parts), how much of each part a term is; softened: the number of a term whose temperature softens the
    divergences, None for T = 1; share: of the teacher in the mixture, None without one; is_contrastive: where the student
    wrote the text, share is that of the student, and KL(q ‖ m) counts in place of KL(p ‖ m); centers: whether the mean of
    each row of logits is taken away before they are compared.
    """

    coefficients: tuple[tuple[float, ...], ...]
    softened: int | None
    share: float | None
    is_contrastive: bool
    centers: bool

    @property
    def parts(self) -> frozenset[KernelPart]:
        """Those that any term is made of."""
        return frozenset(part for part in KernelPart if any(row[part] for row in self.coefficients))

    @property
    def needs_teacher(self) -> bool:
        """Whether any part compares with the teacher."""
        return any(part > KernelPart.UNIFORM_NLL for part in self.parts)


class _TermParts(NamedTuple):
    """One term: how much of which parts, and what all terms must have in common."""

    parts: dict[KernelPart, float]
    mixture: tuple[float, bool] | None = None  # (share, is_contrastive)
    centers: bool | None = None


@functools.lru_cache(maxsize=64)  # asked in every micro-batch
def kernel_terms(objective: Objective) -> KernelTerms | None:
    """The objective as the kernel computes it; None where it cannot."""
    terms = objective.logit_terms
    found = [_parts_of(term) for term in terms]
    known = [term_parts for term_parts in found if term_parts is not None]
    if not terms or len(known) < len(found):
        return None
    softenable = [number for number, term in enumerate(terms) if term.loss_spec.softenable_forms]
    temperatures = [terms[number].temperature if terms[number].uses_temperature else None for number in softenable]
    mixtures = {term_parts.mixture for term_parts in known if term_parts.mixture is not None}
    centers = {term_parts.centers for term_parts in known if term_parts.centers is not None}
    if any(one != temperatures[0] for one in temperatures) or len(mixtures) > 1 or len(centers) > 1:
        return None
    share, is_contrastive = next(iter(mixtures), (None, False))
    softened = softenable[0] if softenable and temperatures[0] is not None else None
    coefficients = tuple(tuple(term_parts.parts.get(part, 0.0) for part in KernelPart) for term_parts in known)
    return KernelTerms(coefficients, softened, share, is_contrastive, True in centers)


def _parts_of(term: Term) -> _TermParts | None:
    option = _options(term)
    match term.kind:
        case "ce":
            smoothing = option["label_smoothing"]
            return _TermParts({KernelPart.NLL: 1 - smoothing, KernelPart.UNIFORM_NLL: smoothing})
        case "forward_kl":
            return _TermParts({KernelPart.FORWARD_KL: 1.0})
        case "soft_cross_entropy":
            return _TermParts({KernelPart.SOFT_CROSS_ENTROPY: 1.0})
        case "reverse_kl":
            return _TermParts({KernelPart.REVERSE_KL: 1.0})
        case "symmetric_kl":
            forward = option["forward_weight"]
            return _TermParts({KernelPart.FORWARD_KL: forward, KernelPart.REVERSE_KL: 1 - forward})
        case "total_variation":
            return _TermParts({KernelPart.TOTAL_VARIATION: 1.0})
        case "logit_mse":
            return _TermParts({KernelPart.LOGIT_MSE: 1.0}, centers=option["center"])
    return _parts_with_mixture(term.kind, option)


def _parts_with_mixture(kind: str, option: dict[str, Any]) -> _TermParts | None:
    teacher, student = KernelPart.TEACHER_TO_MIXTURE, KernelPart.STUDENT_TO_MIXTURE
    match kind:
        case "jensen_shannon":
            beta = option["beta"]
            return _TermParts({teacher: beta, student: 1 - beta}, (beta, False))
        case "skew_forward_kl":
            return _TermParts({teacher: 1.0}, (option["skew"], False))
        case "skew_reverse_kl":
            return _TermParts({student: 1.0}, (1 - option["skew"], False))
        case "contrastive_skew_kl":
            return _TermParts({teacher: 1.0, student: 1.0}, (option["skew"], True))
    return None


def _options(term: Term) -> dict[str, Any]:
    """All of its options: those left out have the default of the loss."""
    parameters = inspect.signature(term.loss_spec.function).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters if parameter.default is not parameter.empty}
    return {**defaults, **term.options}
