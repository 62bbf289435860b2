"""Feature alignment of student and teacher: pairs of layers, projectors between widths, hidden-state losses of a batch."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill_lit.config import TeacherConfig
from distill_lit.losses import FEATURE_LOSSES, FeatureTerm, Objective, as_objective
from distill_lit.losses.hidden_states import ATTENTION, HIDDEN_STATES, ActivationDims, FeatureInputs, LayerPair
from distill_lit.losses.layer_mapping import cka_layer_pairs, fixed_layer_pairs
from distill_lit.models.activations import Activations, LayersByKind, activation_dims, capture_activations
from distill_lit.models.document_spans import document_ids_of
from distill_lit.models.packed_forward import PackedBatch, block_causal_mask
from distill_lit.models.packing_check import last_hidden_state
from distill_lit.teachers import TeacherCapabilities, sources_supporting, teacher_capabilities, teacher_sources
from distill_lit.teachers.base import ALL_LAYERS, HiddenLayers
from distill_lit.utils.exceptions import UserError

TermLayerPairs = Sequence[tuple[FeatureTerm, list[LayerPair]]]


def check_teacher_supports_features(
    objective: Objective, teacher: TeacherCapabilities, described: str, student_compiled: bool = False
) -> None:
    """Raises UserError for a term whose inner states this teacher, `described` as users call it, does not show; and for a
    compiled student, whose layers cannot be watched."""
    for term in objective.feature_terms:
        if student_compiled:
            raise UserError(f"training.compile: {term.key} compares inner states, which a compiled backbone does not show")
        is_hidden = not term.loss_spec.reads_inside_layers
        if _shows_all(term.kind, teacher):
            continue
        able = sources_supporting(partial(_shows_all, term.kind))
        if is_hidden and teacher.hidden_layers:
            if term.options["layers"] != "cka":
                continue
            raise UserError(
                f"{term.option_key('layers')}: cka looks at all layers, and {described} shows some; "
                "give uniform, last or pairs"
            )
        key = teacher.hidden_layers_key if is_hidden else ""
        remedy = f", or let {key} name the layers to keep" if key else ""
        raise UserError(
            f"{term.key}: {term.kind} compares inner states, which {described} does not show; "
            f"use teacher.source {' or '.join(able)}{remedy}"
        )


def _shows_all(kind: str, teacher: TeacherCapabilities) -> bool:
    """Whether a teacher shows the inner states of every layer that a kind of term compares."""
    return teacher.has_attention if FEATURE_LOSSES[kind].reads_inside_layers else teacher.hidden_layers == ALL_LAYERS


def describe_feature_teachers(kind: str) -> str:
    """The sources that show the inner states which a kind of term compares, those of some layers with the key that names
    them."""
    able = {name: teacher_capabilities(TeacherConfig(source=name)) for name in teacher_sources()}
    of_all = [name for name, one in able.items() if _shows_all(kind, one)]
    of_some = [f"{name} with {one.hidden_layers_key}" for name, one in able.items() if one.hidden_layers_key]
    return " or ".join([*of_all, *([] if FEATURE_LOSSES[kind].reads_inside_layers else of_some)])


def check_feature_dimensions(
    objective: Objective, student_config: Any, teacher_config: Any, hidden_layers: HiddenLayers = ALL_LAYERS
) -> None:
    """Raises UserError for a term that does not fit two models with these transformers configs, or that compares a layer
    of the teacher that is not among those it shows."""
    student_dims, teacher_dims = activation_dims(student_config), activation_dims(teacher_config)
    for term in objective.feature_terms:
        for _, layer in fixed_layer_pairs(term, student_dims.layers, teacher_dims.layers):
            if hidden_layers != ALL_LAYERS and layer not in hidden_layers:
                raise UserError(f"teacher.hidden_layers: layer {layer} is not among them, and {term.key} compares with it")
        if term.loss_spec.reads_inside_layers and not (student_dims.heads and teacher_dims.heads):
            raise UserError(f"{term.key}: {term.kind} compares attention, and one of the two models has no attention heads")
        term.loss_spec.check(term.option_key, term.options, student_dims, teacher_dims)


def build_feature_alignment(
    objective: Objective, student: Any, teacher_config: Any, teacher: Any, calibration_batches: list[PackedBatch], seed: int
) -> "FeatureAlignment | None":
    """What the representation terms of an objective need between these models; None where there are none.

    teacher: the model, or None where its states come from a cache; calibration_batches: for layer mappings by similarity;
    seed: for the projectors. Terms on attention maps need `use_eager_attention` first. Raises UserError for terms that do
    not fit these models.
    """
    if not objective.feature_terms:
        return None
    check_feature_dimensions(objective, student.config, teacher_config)
    student_dims, teacher_dims = activation_dims(student.config), activation_dims(teacher_config)
    cka_pairs: list[LayerPair] = []
    by_cka = [term for term in objective.feature_terms if term.options["layers"] == "cka"]
    if by_cka and not calibration_batches:
        raise UserError(
            f"{by_cka[0].option_key('layers')}: cka is measured on batches; give pairs, or feature_alignment="
            "distill_lit.align_features(loss, student, teacher, [batch])"
        )
    if by_cka:
        cka_pairs = cka_layer_pairs(
            layer_outputs(student, calibration_batches[:1]), layer_outputs(teacher, calibration_batches[:1])
        )
    term_layer_pairs = [
        (term, fixed_layer_pairs(term, student_dims.layers, teacher_dims.layers) or cka_pairs)
        for term in objective.feature_terms
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeatureAlignment(term_layer_pairs, student_dims, teacher_dims)


def align_features(
    loss: Any, student: Any, teacher: Any, calibration_batches: Sequence[PackedBatch] = (), seed: int = 0
) -> "FeatureAlignment | None":
    """What the hidden-state terms of a loss need between two models, the `feature_alignment` of `Distiller` and
    `DistillationLoss`; None without such terms, or for a teacher without a model.

    teacher: a model, or a `Teacher` that has one; calibration_batches: any batches with `input_ids`, for `layers="cka"`;
    seed: for the projectors. Raises UserError for terms that do not fit the models as they are.

    Example:
        >>> loss = losses.ForwardKL() + losses.HiddenStates(loss="cosine", layers="cka")
        >>> alignment = align_features(loss, student, teacher, [next(iter(train_loader))])
        >>> Distiller(student, teacher, loss, feature_alignment=alignment)
    """
    objective = as_objective(loss)
    model = _model_of(teacher)
    if not objective.feature_terms or model is None:
        return None
    check_eager_attention(objective, student, model)
    return build_feature_alignment(objective, student, model.config, model, list(calibration_batches), seed)


def check_can_align_later(objective: Objective, teacher: Any) -> None:
    """Raises UserError for a term whose alignment must be there before the first batch: a projector is trained, cka is
    measured, and of a teacher without a model the layers are not known."""
    for term in objective.feature_terms:
        remedy = "give feature_alignment=distill_lit.align_features(loss, student, teacher"
        if _model_of(teacher) is None:
            raise UserError(
                f"{term.key}: this teacher has no model whose layers could be counted; give feature_alignment=, from "
                "distill_lit.training.feature_alignment.build_feature_alignment"
            )
        if term.options["layers"] == "cka":
            raise UserError(f"{term.option_key('layers')}: cka is measured on batches; give pairs, or {remedy}, [batch])")
        if term.options.get("projector"):
            raise UserError(f"{term.option_key('projector')}: it is trained, so the optimizer must know it; {remedy})")


def _model_of(teacher: Any) -> Any:
    return teacher if isinstance(teacher, nn.Module) else getattr(teacher, "model", None)


def use_eager_attention(objective: Objective, *models: Any) -> None:
    """Switches models to eager attention, the only one that has attention maps, where a term compares these."""
    if any(ATTENTION in term.states for term in objective.feature_terms):
        for model in models:
            model.set_attn_implementation("eager")


def check_eager_attention(objective: Objective, *models: Any) -> None:
    """Raises UserError for a term on attention maps and a model whose attention has none."""
    for term in objective.feature_terms:
        if ATTENTION in term.states and any(m.config.get_text_config()._attn_implementation != "eager" for m in models):
            raise UserError(f"{term.key}: attention maps need attn_implementation='eager' in both models")


@torch.inference_mode()
def layer_outputs(model: Any, batches: list[PackedBatch]) -> list[Tensor]:
    """The output (N, D) of every layer for the tokens of batches, packed or not, without padding, in float32."""
    count = model.config.get_text_config().num_hidden_layers
    outputs: list[list[Tensor]] = [[] for _ in range(count)]
    for batch in batches:
        with capture_activations(model, {HIDDEN_STATES: set(range(count))}) as states:
            last_hidden_state(model, batch, states)
        for layer in range(count):
            outputs[layer].append(states[HIDDEN_STATES, layer][document_ids_of(batch) > 0].float())
    return [torch.cat(parts) for parts in outputs]


class FeatureAlignment(nn.Module):
    """The representation terms between a student and its teacher. Its projectors train with the student and are no part
    of it."""

    def __init__(
        self, term_layer_pairs: TermLayerPairs, student_dims: ActivationDims, teacher_dims: ActivationDims
    ) -> None:
        """matched: each term with its pairs of layers."""
        super().__init__()
        self.term_layer_pairs, self.student_dims, self.teacher_dims = term_layer_pairs, student_dims, teacher_dims
        self.projectors = nn.ModuleDict()
        for term, pairs in term_layer_pairs:
            if term.options.get("projector"):
                self.projectors[term.name] = nn.ModuleList(
                    _build_projector(student_dims.hidden_size, teacher_dims.hidden_size) for _ in pairs
                )

    @property
    def captured_layers(self) -> tuple[LayersByKind, LayersByKind]:
        """What to watch in the student and in the teacher."""
        sides: tuple[dict[str, set[int]], dict[str, set[int]]] = ({}, {})
        for term, pairs in self.term_layer_pairs:
            for what in term.states:
                for side, wanted in enumerate(sides):
                    wanted.setdefault(what, set()).update(pair[side] for pair in pairs)
        return sides

    def forward(
        self, student_states: Activations, teacher_states: Activations, document_ids: Tensor, loss_mask: Tensor
    ) -> Tensor:
        """The (K,) sums of the K terms over the chosen positions, unweighted, in float32.

        student_states, teacher_states: the watched states of student and teacher; document_ids: (B, T); loss_mask: (B, T −
        1), True where the next token is supervised.
        """
        return torch.stack(
            [
                self._sum(term, pairs, student_states, teacher_states, document_ids, loss_mask)
                for term, pairs in self.term_layer_pairs
            ]
        )

    def _sum(
        self,
        term: FeatureTerm,
        pairs: list[LayerPair],
        student_states: Activations,
        teacher_states: Activations,
        document_ids: Tensor,
        loss_mask: Tensor,
    ) -> Tensor:
        """Sum over chosen tokens of the mean over pairs of layers, and over q, k, v."""
        losses = []
        for pair_index, (student_layer, teacher_layer) in enumerate(pairs):
            inputs = self._inputs(term, pair_index, document_ids, loss_mask)
            for kind in term.states:
                s, t = _to_float(student_states[kind, student_layer]), _to_float(teacher_states[kind, teacher_layer])
                losses.append(term.loss_spec.function(s, t, term.options, inputs))
        return torch.stack(losses).mean(0).sum()

    def _inputs(self, term: FeatureTerm, pair: int, document_ids: Tensor, loss_mask: Tensor) -> FeatureInputs:
        project: Any = self.projectors[term.name][pair] if term.name in self.projectors else nn.Identity()  # type: ignore[index]
        mask = partial(block_causal_mask, document_ids)
        return FeatureInputs(loss_mask, mask, project, self.student_dims, self.teacher_dims)


def _to_float(states: Tensor) -> Tensor:
    """Float32; float64 stays."""
    return states if states.dtype == torch.float64 else states.float()


def _build_projector(student: int, teacher: int) -> nn.Linear:
    """A feature projector, from the student's width to the teacher's: the identity where they are equal, else it keeps
    lengths."""
    projector = nn.Linear(student, teacher, bias=False)
    nn.init.eye_(projector.weight) if student == teacher else nn.init.orthogonal_(projector.weight)
    return projector
