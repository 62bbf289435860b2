"""Student and teacher matched inside: which layers are compared, projectors between widths, the losses of a batch."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill_lit.data.loader import Batch
from distill_lit.losses import Objective
from distill_lit.losses.hidden_states import (
    ATTENTION_LOSSES,
    HIDDEN_LOSSES,
    RELATIONS,
    Pair,
    RepresentationTerm,
    relation_kl,
)
from distill_lit.losses.layer_mapping import fixed_pairs, similar_pairs
from distill_lit.models.activations import ATTENTION, HIDDEN, Shape, States, Wanted, shape_of, watching
from distill_lit.models.packed_forward import attention_mask
from distill_lit.models.packing_check import last_hidden
from distill_lit.utils.exceptions import UserError

Matched = Sequence[tuple[RepresentationTerm, list[Pair]]]


def check_source(objective: Objective, source: str, compiled: bool = False, cached: Collection[int] = ()) -> None:
    """Raises UserError for a term that a teacher of this source cannot feed: a live one has all inner states, a cached one
    the hidden states of the layers `cached`; and for a compiled student, whose layers cannot be watched."""
    for term in objective.representations:
        if compiled:
            raise UserError(f"training.compile: {term.key} watches inner states, which a compiled body does not show")
        if source == "live" or (cached and term.kind == HIDDEN and term.options["layers"] != "similar"):
            continue
        other = ", or let teacher.layers name the layers to cache" if source == "cached" and term.kind == HIDDEN else ""
        if cached and other:
            raise UserError(
                f"{term.key}.options.layers: similar looks at all layers of a live teacher; give uniform, last or pairs"
            )
        raise UserError(
            f"{term.key}: {term.kind} compares inner states, which teacher.source {source} lacks; use live{other}"
        )


def check_fit(objective: Objective, student: Any, teacher: Any, cached: Collection[int] | None = None) -> None:
    """Raises UserError for a term that does not fit two models with these transformers configs, or that compares a layer
    of the teacher that is not among the `cached` ones (None: it is live)."""
    ours, theirs = shape_of(student), shape_of(teacher)
    for term in objective.representations:
        for _, layer in fixed_pairs(term, ours.layers, theirs.layers):
            if cached is not None and layer not in cached:
                raise UserError(f"teacher.layers: layer {layer} is not among them, and {term.key} compares with it")
        options, key = term.options, f"{term.key}.options"
        if term.kind == HIDDEN and ours.hidden != theirs.hidden and not options["projector"]:
            raise UserError(
                f"{key}.projector: hidden states are {ours.hidden} wide in the student and {theirs.hidden} in the teacher; "
                "set projector: true"
            )
        if term.kind != HIDDEN and not (ours.heads and theirs.heads):
            raise UserError(f"{term.key}: {term.kind} compares attention, and one of the two models has no attention heads")
        if term.kind == ATTENTION and ours.heads != theirs.heads and options["heads"] == "each":
            raise UserError(
                f"{key}.heads: the student has {ours.heads} heads and the teacher {theirs.heads}; set heads: mean"
            )
        if term.kind == "relations":
            _check_relation_heads(term, ours, theirs)


def _check_relation_heads(term: RepresentationTerm, ours: Shape, theirs: Shape) -> None:
    heads = relation_heads(term, ours, theirs)
    for relation in term.options["relations"]:
        for owner, shape in (("student", ours), ("teacher", theirs)):
            width = shape.queries if relation == "q" else shape.keys
            if width % heads:
                raise UserError(
                    f"{term.key}.options.relation_heads: {heads} does not divide the {width} channels of the {owner}'s "
                    f"{RELATIONS[relation]}"
                )


def relation_heads(term: RepresentationTerm, ours: Shape, theirs: Shape) -> int:
    """Its relation heads; where it does not say, as many as divide the key-value heads of both."""
    return term.options["relation_heads"] or math.gcd(ours.key_value_heads, theirs.key_value_heads)


def build_matching(
    objective: Objective, student: Any, teacher_config: Any, teacher: Any, calibration: list[Batch], seed: int
) -> "Matching | None":
    """What the representation terms of an objective need between these models; None where there are none.

    teacher: the live model, or None where its states are cached; calibration: batches for maps by similarity; seed: for
    the projectors. Terms on attention maps switch both models to eager attention, which alone has maps.
    """
    if not objective.representations:
        return None
    check_fit(objective, student.config, teacher_config)
    ours, theirs = shape_of(student.config), shape_of(teacher_config)
    similar: list[Pair] = []
    if any(term.options["layers"] == "similar" for term in objective.representations):
        similar = similar_pairs(layer_outputs(student, calibration[:1]), layer_outputs(teacher, calibration[:1]))
    matched = [(term, fixed_pairs(term, ours.layers, theirs.layers) or similar) for term in objective.representations]
    if any(term.kind == ATTENTION for term in objective.representations):
        for model in (student, teacher):
            model.set_attn_implementation("eager")
    torch.manual_seed(seed)
    return Matching(matched, ours, theirs)


@torch.inference_mode()
def layer_outputs(model: Any, batches: list[Batch]) -> list[Tensor]:
    """The output (N, D) of every layer for the tokens of packed batches, without padding, in float32."""
    count = model.config.get_text_config().num_hidden_layers
    found: list[list[Tensor]] = [[] for _ in range(count)]
    for batch in batches:
        with watching(model, {HIDDEN: set(range(count))}) as states:
            last_hidden(model, batch, states)
        for layer in range(count):
            found[layer].append(states[HIDDEN, layer][batch["document_ids"] > 0].float())
    return [torch.cat(parts) for parts in found]


class Matching(nn.Module):
    """The representation terms between a student and its teacher. Its projectors train with the student and are no part
    of it."""

    def __init__(self, matched: Matched, student: Shape, teacher: Shape) -> None:
        """matched: each term with its pairs of layers."""
        super().__init__()
        self.matched, self.student, self.teacher = matched, student, teacher
        self.projectors = nn.ModuleDict()
        for term, pairs in matched:
            if term.kind == HIDDEN and term.options["projector"]:
                self.projectors[term.name] = nn.ModuleList(_projector(student.hidden, teacher.hidden) for _ in pairs)

    @property
    def wanted(self) -> tuple[Wanted, Wanted]:
        """What to watch in the student and in the teacher."""
        sides: tuple[dict[str, set[int]], dict[str, set[int]]] = ({}, {})
        for term, pairs in self.matched:
            for what in _states_of(term):
                for side, wanted in enumerate(sides):
                    wanted.setdefault(what, set()).update(pair[side] for pair in pairs)
        return sides

    def forward(self, ours: States, theirs: States, document_ids: Tensor, chosen: Tensor) -> Tensor:
        """The (K,) sums of the K terms over the chosen positions, unweighted, in float32.

        ours, theirs: the watched states of student and teacher; document_ids: (B, T); chosen: (B, T − 1), True where the
        next token is supervised.
        """
        return torch.stack([self._sum(term, pairs, ours, theirs, document_ids, chosen) for term, pairs in self.matched])

    def _sum(
        self,
        term: RepresentationTerm,
        pairs: list[Pair],
        ours: States,
        theirs: States,
        document_ids: Tensor,
        chosen: Tensor,
    ) -> Tensor:
        """Sum over chosen tokens of the mean over pairs of layers, and over q, k, v."""
        losses = []
        for number, (mine, other) in enumerate(pairs):
            for what in _states_of(term):
                s, t = _numbers(ours[what, mine]), _numbers(theirs[what, other])
                if term.kind == HIDDEN:
                    losses.append(self._hidden(term, number, s[:, :-1][chosen], t[:, :-1][chosen]))
                elif term.kind == ATTENTION:
                    losses.append(_attention(term, *(maps.transpose(1, 2)[:, :-1][chosen] for maps in (s, t))))
                else:
                    heads = relation_heads(term, self.student, self.teacher)
                    losses.append(relation_kl(s, t, heads, attention_mask(document_ids))[:, :-1][chosen])
        return torch.stack(losses).mean(0).sum()

    def _hidden(self, term: RepresentationTerm, pair: int, student: Tensor, teacher: Tensor) -> Tensor:
        if term.name in self.projectors:
            student = self.projectors[term.name][pair](student)  # type: ignore[index]
        return HIDDEN_LOSSES[term.options["loss"]](student, teacher)


def _states_of(term: RepresentationTerm) -> list[str]:
    return [RELATIONS[name] for name in term.options["relations"]] if term.kind == "relations" else [term.kind]


def _attention(term: RepresentationTerm, student: Tensor, teacher: Tensor) -> Tensor:
    """student, teacher: (N, heads, T)."""
    if term.options["heads"] == "mean":
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    return ATTENTION_LOSSES[term.options["loss"]](student, teacher)


def _numbers(states: Tensor) -> Tensor:
    """Float32; float64 stays."""
    return states if states.dtype == torch.float64 else states.float()


def _projector(student: int, teacher: int) -> nn.Linear:
    """From the student's width to the teacher's: the identity where they are equal, else it keeps lengths."""
    projector = nn.Linear(student, teacher, bias=False)
    nn.init.eye_(projector.weight) if student == teacher else nn.init.orthogonal_(projector.weight)
    return projector
