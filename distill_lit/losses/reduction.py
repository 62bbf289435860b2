"""Sums over tokens of every term and of what is watched, from logits: each softmax once, whoever reads it."""

from typing import NamedTuple

import torch
from torch import Tensor

from distill_lit.losses.divergences import entropy, forward_kl, reverse_kl
from distill_lit.losses.objective import Objective, Term
from distill_lit.losses.sparse import label_log_probs, pick
from distill_lit.losses.targets import Draws, Foreign, Sparse, TopK

# measures of some of the tokens, and the measure that counts these where there is one
COUNTED_BY = {"teacher_nll": "in_spans", "student_span_nll": "in_spans", "own_reverse_kl": "by_student"}


class Tokens(NamedTuple):
    """N predicted tokens. student: logits (N, V) in float32 or float64; teacher: logits (N, V), a sparse target, or None;
    labels: (N,) ids; by_student: (N,) bool, whether the student wrote the text, or None where nobody says."""

    student: Tensor
    teacher: Tensor | Sparse | Foreign | None
    labels: Tensor
    by_student: Tensor | None = None


class View(NamedTuple):
    """What losses read of some tokens at one temperature: log_q (N, V), and the teacher's log-probabilities or k tokens."""

    log_q: Tensor
    teacher: Tensor | Sparse | Foreign | None
    labels: Tensor
    by_student: Tensor | None
    student_logits: Tensor
    teacher_logits: Tensor | Sparse | Foreign | None


def term_sums(
    objective: Objective, tokens: Tokens, temperatures: Tensor, measure: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """((K,) sums over tokens of the K terms, unweighted, in the unit of each; {measure: sum over tokens}, or {}).

    temperatures: (K,), read where a term has one.
    """
    views: dict[object, View] = {}  # by the temperature's schedule, None for T = 1

    def view(term: Term | None, index: int) -> View:
        key = term.temperature if term is not None and term.is_softened else None
        if key not in views:
            views[key] = soften(tokens, None if key is None else temperatures[index])
        return views[key]

    sums = [
        term.loss.function(*(getattr(view(term, i), name) for name in term.loss.reads), **term.options).sum()
        for i, term in enumerate(objective.terms)
    ]
    with torch.no_grad():
        measures = measure_sums(view(None, 0)) if measure else {}
    return torch.stack(sums) if sums else tokens.student.new_zeros(0), measures


def soften(tokens: Tokens, temperature: Tensor | None) -> View:
    """What losses read at a temperature; None: 1."""
    student, teacher = tokens.student, tokens.teacher
    if temperature is not None:
        student = student / temperature
        if isinstance(teacher, Tensor):
            teacher = teacher / temperature
        elif isinstance(teacher, TopK):
            teacher = teacher._replace(log_probs=teacher.log_probs / temperature)
    if isinstance(teacher, Tensor):
        teacher = teacher.log_softmax(-1)
    return View(student.log_softmax(-1), teacher, tokens.labels, tokens.by_student, tokens.student, tokens.teacher)


def measure_sums(view: View) -> dict[str, Tensor]:
    """Sums over tokens of what is watched and not trained on, at T = 1, in nats; agreement counts equal best tokens.

    Of a sparse teacher only what it can tell. The teacher's own NLL shows whether it fits the data at all; of a teacher
    with another tokenizer it is known in spans only, and so is the student's that is comparable with it. Where it is said
    who wrote the text, the reverse KL on the student's own is measured too, from whole distributions.
    """
    log_q, teacher, labels = view.log_q, view.teacher, view.labels
    sums = {"student_nll": -pick(log_q, labels).sum(), "student_entropy": entropy(log_q).sum()}
    if teacher is None:
        return sums
    sums["teacher_nll"] = -label_log_probs(teacher, labels).sum()
    if isinstance(teacher, Foreign):
        inside = teacher.size > 0
        sums["student_span_nll"] = -torch.where(inside, pick(log_q, labels), 0.0).sum()
        sums["in_spans"] = inside.sum().to(log_q.dtype)
    if isinstance(teacher, Tensor):
        sums["teacher_entropy"] = entropy(teacher).sum()
        sums["teacher_kl"] = forward_kl(log_q, teacher).sum()
    if isinstance(teacher, Tensor) and view.by_student is not None:
        sums["own_reverse_kl"] = torch.where(view.by_student, reverse_kl(log_q, teacher), 0.0).sum()
        sums["by_student"] = view.by_student.sum().to(log_q.dtype)
    if not isinstance(teacher, (Draws, Foreign)):
        best = teacher.ids[:, 0] if isinstance(teacher, TopK) else teacher.argmax(-1)
        sums["agreement"] = (log_q.argmax(-1) == best).sum().to(log_q.dtype)
    return sums
