"""Which layer of the student learns from which of the teacher. Layers count from 0."""

from typing import NamedTuple

import torch
from torch import Tensor

from distill_lit.losses.hidden_states import LayerPair
from distill_lit.losses.objective import FeatureTerm
from distill_lit.utils.exceptions import UserError


def fixed_layer_pairs(term: FeatureTerm, num_student_layers: int, num_teacher_layers: int) -> list[LayerPair]:
    """The (student layer, teacher layer) pairs of a term whose map needs no measuring; [] for `cka`.

    num_student_layers, num_teacher_layers: their numbers of layers. uniform: each student layer with the teacher's at the
    same share of the depth, as TinyBERT, 1909.10351 §3.1; last: the last of both. Raises UserError for layers beyond a
    model.
    """
    layers = term.options["layers"]
    if layers == "cka":
        return []
    if layers == "last":
        return [(num_student_layers - 1, num_teacher_layers - 1)]
    if layers == "uniform":
        return [(i, max(0, (i + 1) * num_teacher_layers // num_student_layers - 1)) for i in range(num_student_layers)]
    for number, owner, count in ((0, "student", num_student_layers), (1, "teacher", num_teacher_layers)):
        beyond = [pair[number] for pair in layers if pair[number] >= count]
        if beyond:
            raise UserError(f"{term.option_key('layers')}: {beyond[0]} is beyond the {owner}'s last layer {count - 1}")
    return list(layers)


def cka_layer_pairs(student_features: list[Tensor], teacher_features: list[Tensor]) -> list[LayerPair]:
    """Each student layer with a teacher layer, so that the sum of their similarities is largest and no two pairs cross.

    student_features, teacher_features: outputs (N, D) of each layer for the same N tokens.
    """
    ours, theirs = ([_Features.of(states) for states in layers] for layers in (student_features, teacher_features))
    scores = torch.stack([torch.stack([_cka(a, b) for b in theirs]) for a in ours])
    best, backpointers = scores[0], []
    for row in scores[1:]:
        # best[t]: largest sum of the layers so far, the last of them with teacher layer t
        highest, argmax = torch.cummax(best, 0)
        backpointers.append(argmax)
        best = highest + row
    last = int(best.argmax())
    path = [last]
    for argmax in reversed(backpointers):
        path.append(int(argmax[path[-1]]))
    return list(enumerate(reversed(path)))


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centered kernel alignment of two sets of features for the same tokens, between 0 and 1, 1 for equal up to
    rotation and scale. a: (N, D_a), b: (N, D_b). Kornblith et al. 2019, 1905.00414 §3.

    Tokens are brought to length 1 first: else the few of enormous norm that language models have decide alone.
    """
    return _cka(_Features.of(a), _Features.of(b))


class _Features(NamedTuple):
    """Centered features (N, D) and the norm of their own covariance."""

    values: Tensor
    size: Tensor

    @classmethod
    def of(cls, states: Tensor) -> "_Features":
        values = torch.nn.functional.normalize(states.float(), dim=-1)
        values = values - values.mean(0)
        return cls(values, (values.T @ values).norm())


def _cka(a: _Features, b: _Features) -> Tensor:
    overlap: Tensor = (b.values.T @ a.values).square().sum()
    return overlap / (a.size * b.size).clamp(min=1e-12)
