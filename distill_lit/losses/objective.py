"""The objective: named terms with weights and temperatures, checked against the teacher's signal before anything loads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from distill_lit.losses.hidden_states import FEATURE_LOSSES, FeatureTerm, build_feature_term
from distill_lit.losses.registry import LOGIT_LOSSES, LossSpec, check_loss_options
from distill_lit.losses.schedules import Schedule, parse_schedule
from distill_lit.utils.exceptions import UserError, suggest


@dataclass(frozen=True)
class Term:
    """One named term; `weight` and `temperature` are functions of the share of training done."""

    name: str
    kind: str
    weight: Schedule
    temperature: Schedule
    options: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What identifies it, as plain values."""
        schedules = {"weight": self.weight.facts(), "temperature": self.temperature.facts()}
        return {"name": self.name, "kind": self.kind, **schedules, "options": dict(self.options)}

    @property
    def loss_spec(self) -> LossSpec:
        """Its entry in the family."""
        return LOGIT_LOSSES[self.kind]

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares with the teacher's distribution."""
        return bool(self.loss_spec.target_forms)

    @property
    def uses_temperature(self) -> bool:
        """Whether its temperature is ever other than 1."""
        return any(value != 1 for _, value in self.temperature.points)


@dataclass(frozen=True)
class Objective:
    """Σ weight · [T^power] · term. Terms whose weight is always 0 are left out."""

    logit_terms: tuple[Term, ...]  # from logits
    scales_by_temperature: bool = True
    feature_terms: tuple[FeatureTerm, ...] = ()  # from inner states

    def facts(self) -> dict[str, Any]:
        """What identifies it, as plain values: a class that is renamed changes nothing here."""
        terms = [term.facts() for term in self.logit_terms] + [term.facts() for term in self.feature_terms]
        return {"terms": terms, "scaling": "hinton" if self.scales_by_temperature else "none"}

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return bool(self.feature_terms) or any(term.needs_teacher for term in self.logit_terms)

    @property
    def term_names(self) -> list[str]:
        """The names of all terms, those from logits first."""
        return [*(term.name for term in self.logit_terms), *(term.name for term in self.feature_terms)]

    def weights(self, progress: float) -> dict[str, float]:
        """{name of a term: its weight, with T^power where it applies} when the share `done` of training is over."""
        feature_weights = [term.weight(progress) for term in self.feature_terms]
        return dict(
            zip(self.term_names, [*self.logit_weights_and_temperatures(progress)[0], *feature_weights], strict=True)
        )

    @property
    def needs_on_policy_mask(self) -> bool:
        """Whether any term asks who wrote a text, the teacher or the student."""
        return any("on_policy_mask" in term.loss_spec.inputs for term in self.logit_terms)

    @property
    def reads_cross_tokenizer_logits(self) -> bool:
        """Whether any term reads the whole distribution of a teacher with another tokenizer."""
        return any(term.kind == "uld" for term in self.logit_terms)

    @property
    def reads_span_logprobs(self) -> bool:
        """Whether any term compares spans of bytes."""
        return any(term.kind == "alm" for term in self.logit_terms)

    def logit_weights_and_temperatures(self, done: float) -> tuple[list[float], list[float]]:
        """(weights with T^power where it applies, temperatures) of the terms from logits when the share `done` of
        training is over.

        The power is 2 as in Hinton et al. 2015, 1503.02531 §2.1, 1 for total variation, whose gradient fades as 1/T.
        """
        temperatures = [term.temperature(done) for term in self.logit_terms]
        weights = [
            term.weight(done) * (t**term.loss_spec.temperature_power if self.scales_by_temperature else 1.0)
            for term, t in zip(self.logit_terms, temperatures, strict=True)
        ]
        return weights, temperatures


def build_objective(terms: Mapping[str, Any], temperature_scaling: str = "auto") -> Objective:
    """The objective of a config: {name: TermConfig-like or None}. Raises UserError for anything out of range."""
    built_terms = [_build_term(name, term) for name, term in terms.items() if term is not None]
    built_terms = [term for term in built_terms if not term.weight.is_zero]
    if not built_terms:
        raise UserError("objective.terms: at least one term with a weight is needed, as in {ce: {weight: 1}}")
    logits = tuple(term for term in built_terms if isinstance(term, Term))
    feature_terms = tuple(term for term in built_terms if isinstance(term, FeatureTerm))
    return Objective(logits, temperature_scaling != "none", feature_terms)


def _build_term(name: str, term: Any) -> Term | FeatureTerm:
    key, kind = f"objective.terms.{name}", term.kind or name
    known = (*LOGIT_LOSSES, *FEATURE_LOSSES)
    if kind not in known and not term.kind and not get_close_matches(name, known, 1):
        raise UserError(
            f"{key}: there is no such term, and no loss of this name; give it a kind, or name one of the terms there are"
        )
    if kind not in known:
        raise UserError(f"{key}: unknown loss {kind!r}{suggest(kind, known)}")
    weight = parse_schedule(f"{key}.weight", _or_one(term.weight), low=0)
    temperature = parse_schedule(f"{key}.temperature", _or_one(term.temperature), low=0, exclusive=True)
    if kind in FEATURE_LOSSES:
        if any(value != 1 for _, value in temperature.points):
            raise UserError(f"{key}.temperature: {kind} has no temperature; leave it at 1")
        return build_feature_term(name, kind, weight, dict(term.options))
    built = Term(name, kind, weight, temperature, check_loss_options(f"{key}.options", kind, dict(term.options)))
    if built.uses_temperature and not built.loss_spec.softenable_forms:
        raise UserError(f"{key}.temperature: {kind} has no temperature; leave it at 1")
    return built


def _or_one(value: Any) -> Any:
    return 1.0 if value is None else value


def check_teacher_supports_objective(
    objective: Objective, target_form: str, source: str, has_on_policy_mask: bool = False
) -> None:
    """Raises UserError for the first term that a teacher signal cannot feed.

    form: of its target, `dense`, `top_k` or `draws`; source: what users call it; tells_author: whether it marks the text
    that the student wrote.
    """
    for term in objective.logit_terms:
        key, loss = f"objective.terms.{term.name}", term.loss_spec
        if term.needs_teacher and target_form not in loss.target_forms:
            able = [name for name, kind in LOGIT_LOSSES.items() if target_form in kind.target_forms]
            raise UserError(
                f"{key}: {term.kind} needs a teacher that is {' or '.join(loss.target_forms)}, and {source} is "
                f"{target_form}; "
                f"choose from {', '.join(able)}"
            )
        if term.needs_teacher and term.uses_temperature and target_form not in loss.softenable_forms:
            raise UserError(
                f"{key}.temperature: {term.kind} cannot soften a teacher that is {target_form} ({source}); leave it at 1"
            )
        if "on_policy_mask" in loss.inputs and not has_on_policy_mask:
            raise UserError(
                f"{key}: {term.kind} treats the student's own text and that of others differently, and {source} does "
                "not tell them apart"
            )
