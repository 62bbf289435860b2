"""The objective: named terms with weights and temperatures, which can be weighted and added up in Python."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any

from distill_lit.losses.hidden_states import FEATURE_LOSSES, FeatureLossSpec
from distill_lit.losses.registry import LOGIT_LOSSES, LossSpec, argument_key, check_options, option_key
from distill_lit.losses.schedules import Schedule, parse_schedule
from distill_lit.utils.exceptions import UserError, suggest

TEMPERATURE_SCALINGS = ("hinton", "none")


class WeightedSum:
    """What can be weighted and added up, `0.5 * CrossEntropy() + 0.5 * ForwardKL()`: terms and objectives."""

    def __add__(self, other: Any) -> "Objective":
        if not isinstance(other, WeightedSum):
            return NotImplemented
        objectives = [_sum_of(part) for part in (self, other)]
        scalings = {objective.scales_by_temperature for objective in objectives if objective.uses_temperature}
        if len(scalings) > 1:
            raise UserError(
                "losses: an objective that scales by T² and one that does not cannot be added; give one of them "
                ".with_temperature_scaling"
            )
        terms = [term for objective in objectives for term in objective.terms]
        unsoftened = [objective.scales_by_temperature for objective in objectives if objective.terms] or [True]
        return _sum_of_terms(terms, scalings.pop() if scalings else unsoftened[0])

    def __radd__(self, other: Any) -> Any:
        return self if other == 0 else NotImplemented  # sum() begins with 0

    def __mul__(self, factor: Any) -> Any:
        if isinstance(factor, WeightedSum):
            raise UserError("losses: a loss is multiplied with a number or a schedule, not with another loss")
        if isinstance(self, Objective):
            return _sum_of_terms([factor * term for term in self.terms], self.scales_by_temperature)
        assert isinstance(self, (Term, FeatureTerm))
        return replace(self, weight=_product(argument_key(self.key, "weight"), self.weight, factor))

    __rmul__ = __mul__

    def with_temperature_scaling(self, scaling: str) -> "Objective":
        """The same, where terms at a temperature T count T² times, `hinton`, as they do unless told otherwise, or once,
        `none`: `objective.temperature_scaling` of a config. Raises UserError for another word."""
        if scaling not in TEMPERATURE_SCALINGS:
            raise UserError(f"losses: unknown temperature scaling {scaling!r}{suggest(str(scaling), TEMPERATURE_SCALINGS)}")
        return replace(_sum_of(self), scales_by_temperature=scaling == "hinton")


def _product(key: str, weight: Schedule, factor: Any) -> Schedule:
    other = parse_schedule(key, factor, low=0)
    for one, another in ((weight, other), (other, weight)):
        if len(one.points) == 1:
            return another.scaled(one.points[0][1])
    raise UserError(f"{key}: two schedules cannot be multiplied; give the term one of them")


@dataclass(frozen=True)
class Term(WeightedSum):
    """One named term from logits; `weight` and `temperature` are functions of the share of training done."""

    name: str
    kind: str
    weight: Schedule
    temperature: Schedule
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    key: str = field(default="", compare=False, repr=False)  # what errors call it

    def facts(self) -> dict[str, Any]:
        """What identifies it, as plain values."""
        schedules = {"weight": self.weight.facts(), "temperature": self.temperature.facts()}
        return {"name": self.name, "kind": self.kind, **schedules, "options": dict(self.options)}

    @property
    def loss_spec(self) -> LossSpec:
        """Its entry in the registry."""
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
class FeatureTerm(WeightedSum):
    """One named term from hidden states; `weight` is a function of the share of training done; `options` are complete."""

    name: str
    kind: str
    weight: Schedule
    options: Mapping[str, Any] = field(hash=False)
    key: str = field(default="", compare=False, repr=False)  # what errors call it

    def facts(self) -> dict[str, Any]:
        """What identifies it, as plain values."""
        return {"name": self.name, "kind": self.kind, "weight": self.weight.facts(), "options": dict(self.options)}

    @property
    def loss_spec(self) -> FeatureLossSpec:
        """Its entry in the registry."""
        return FEATURE_LOSSES[self.kind]

    @property
    def states(self) -> list[str]:
        """Which inner states of the mapped layers it compares, as `hidden_states` or `attention`."""
        return list(self.loss_spec.states(self.options))

    @property
    def needs_teacher(self) -> bool:
        """It compares with the teacher's layers."""
        return True

    def option_key(self, option: str) -> str:
        """How an error names one of its options."""
        return option_key(self.key, option)


@dataclass(frozen=True)
class Objective(WeightedSum):
    """Σ weight · [T^power] · term. Terms whose weight is always 0 are left out.

    `scales_by_temperature`: whether terms at a temperature T count T² times, as Hinton et al. 2015, 1503.02531 §2.1 do.
    """

    logit_terms: tuple[Term, ...]
    scales_by_temperature: bool = True
    feature_terms: tuple[FeatureTerm, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What identifies it, as plain values: a class that is renamed changes nothing here."""
        return {
            "terms": [term.facts() for term in self.terms],
            "scaling": "hinton" if self.scales_by_temperature else "none",
        }

    @property
    def terms(self) -> tuple[Term | FeatureTerm, ...]:
        """All terms, those from logits first."""
        return (*self.logit_terms, *self.feature_terms)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return any(term.needs_teacher for term in self.terms)

    @property
    def term_names(self) -> list[str]:
        """The names of all terms, those from logits first."""
        return [term.name for term in self.terms]

    @property
    def uses_temperature(self) -> bool:
        """Whether the temperature of any term is ever other than 1."""
        return any(term.uses_temperature for term in self.logit_terms)

    @property
    def is_scheduled(self) -> bool:
        """Whether a weight or temperature changes in the course of training."""
        schedules = [term.weight for term in self.terms] + [term.temperature for term in self.logit_terms]
        return any(len(schedule.points) > 1 for schedule in schedules)

    def weights(self, progress: float) -> dict[str, float]:
        """{name of a term: its weight, with T^power where it applies} when the share `progress` of training is done."""
        feature_weights = [term.weight(progress) for term in self.feature_terms]
        return dict(
            zip(self.term_names, [*self.logit_weights_and_temperatures(progress)[0], *feature_weights], strict=True)
        )

    @property
    def reads_cross_tokenizer_logits(self) -> bool:
        """Whether any term reads the whole distribution of a teacher with another tokenizer."""
        return any(term.kind == "uld" for term in self.logit_terms)

    @property
    def reads_span_logprobs(self) -> bool:
        """Whether any term compares spans of bytes."""
        return any(term.kind == "alm" for term in self.logit_terms)

    def logit_weights_and_temperatures(self, progress: float) -> tuple[list[float], list[float]]:
        """(weights with T^power where it applies, temperatures) of the terms from logits when the share `progress` of
        training is done.

        The power is 2 as in Hinton et al. 2015, 1503.02531 §2.1, 1 for total variation, whose gradient fades as 1/T.
        """
        temperatures = [term.temperature(progress) for term in self.logit_terms]
        weights = [
            term.weight(progress) * (t**term.loss_spec.temperature_power if self.scales_by_temperature else 1.0)
            for term, t in zip(self.logit_terms, temperatures, strict=True)
        ]
        return weights, temperatures


def as_objective(loss: Any) -> Objective:
    """A term, an objective, or the plain values of one (`Objective.facts`) as an objective. Raises UserError."""
    if isinstance(loss, WeightedSum):
        return _with_terms(_sum_of(loss))
    if isinstance(loss, Mapping) and "terms" in loss:
        terms = [build_term(f"losses.{fields['kind']}", **_from_facts(fields)) for fields in loss["terms"]]
        return objective_of_terms(terms, loss.get("scaling") != "none")
    raise UserError(f"loss: {loss!r} is no loss; give one of distill_lit.losses, or a weighted sum of them")


def _from_facts(fields: Mapping[str, Any]) -> dict[str, Any]:
    schedules = {
        name: Schedule(
            tuple((float(share), float(value)) for share, value in fields[name]["points"]), fields[name]["shape"]
        )
        for name in ("weight", "temperature")
        if name in fields
    }
    return {**fields, **schedules}


def objective_of_terms(terms: Iterable[Term | FeatureTerm], scales_by_temperature: bool = True) -> Objective:
    """The sum of terms. Raises UserError for none with a weight, and for two of one name."""
    return _with_terms(_sum_of_terms(terms, scales_by_temperature))


def _with_terms(objective: Objective) -> Objective:
    if not objective.terms:
        raise UserError("loss: no term has a weight above 0")
    return objective


def _sum_of(part: WeightedSum) -> Objective:
    """A part of a sum, which may have no weight."""
    if isinstance(part, Objective):
        return part
    assert isinstance(part, (Term, FeatureTerm))
    return _sum_of_terms([part])


def _sum_of_terms(terms: Iterable[Term | FeatureTerm], scales_by_temperature: bool = True) -> Objective:
    """The same as `objective_of_terms`, of no terms where none has a weight: others may be added to it."""
    terms = [term for term in terms if not term.weight.is_zero]
    for number, term in enumerate(terms):
        if term.name in (other.name for other in terms[:number]):
            raise UserError(f"loss: two terms are called {term.name!r}; give one of them another name=")
    logit_terms = tuple(term for term in terms if isinstance(term, Term))
    feature_terms = tuple(term for term in terms if isinstance(term, FeatureTerm))
    return Objective(logit_terms, scales_by_temperature, feature_terms)


TERM_DEFAULTS: dict[str, Any] = {"weight": 1.0, "temperature": 1.0, "options": {}}
MAX_BUILT_TERMS = 4096
_built_terms: dict[tuple[Any, ...], tuple[Any, "Term | FeatureTerm"]] = {}


def build_objective(terms: Mapping[str, Any], temperature_scaling: str = "auto") -> Objective:
    """The objective of a config: {name: its fields, as a `TermConfig` or a mapping, or None}. Raises UserError for anything
    out of range."""
    built_terms = [_build_config_term(name, term) for name, term in terms.items() if term is not None]
    if all(term.weight.is_zero for term in built_terms):
        raise UserError("objective.terms: at least one term with a weight is needed, as in {ce: {weight: 1}}")
    return objective_of_terms(built_terms, temperature_scaling != "none")


def _build_config_term(name: str, term: Any) -> Term | FeatureTerm:
    key = f"objective.terms.{name}"
    if isinstance(term, Mapping):
        fields = {"kind": "", **TERM_DEFAULTS}
        for field_name in term:
            if field_name not in fields:
                raise UserError(f"{key}: unknown field {field_name!r}{suggest(str(field_name), fields)}")
        term = SimpleNamespace(**{**fields, **term})
    kind = term.kind or name
    known = (*LOGIT_LOSSES, *FEATURE_LOSSES)
    if kind not in known and not term.kind and not get_close_matches(name, known, 1):
        raise UserError(
            f"{key}: there is no such term, and no loss of this name; give it a kind, or name one of the terms there are"
        )
    # a term stands at many points of a grid; `entry`, of the registry, is kept so that its id is not another's
    entry = LOGIT_LOSSES.get(kind) or FEATURE_LOSSES.get(kind)
    facts = (name, kind, id(entry), repr(term.weight), repr(term.temperature), repr(term.options))
    if facts not in _built_terms:
        if len(_built_terms) >= MAX_BUILT_TERMS:
            _built_terms.clear()
        built = build_term(key, name, kind, _or_one(term.weight), _or_one(term.temperature), dict(term.options))
        _built_terms[facts] = (entry, built)
    return _built_terms[facts][1]


def build_term(
    key: str,
    name: str,
    kind: str,
    weight: Any = 1.0,
    temperature: Any = 1.0,
    options: Mapping[str, Any] | None = None,
) -> Term | FeatureTerm:
    """A checked term of a loss in the registry; key: what errors call it. Raises UserError."""
    if kind not in (*LOGIT_LOSSES, *FEATURE_LOSSES):
        raise UserError(f"{key}: unknown loss {kind!r}{suggest(kind, (*LOGIT_LOSSES, *FEATURE_LOSSES))}")
    weight = parse_schedule(argument_key(key, "weight"), weight, low=0)
    temperature_key = argument_key(key, "temperature")
    temperature = parse_schedule(temperature_key, temperature, low=0, exclusive=True)
    softens, checks = kind in LOGIT_LOSSES and LOGIT_LOSSES[kind].softenable_forms, _option_checks(kind)
    if any(value != 1 for _, value in temperature.points) and not softens:
        raise UserError(f"{temperature_key}: {kind} has no temperature; leave it at 1")
    checked = check_options(key, checks, options or {})
    if kind in LOGIT_LOSSES:
        return Term(name, kind, weight, temperature, checked, key)
    return FeatureTerm(name, kind, weight, {**FEATURE_LOSSES[kind].defaults, **checked}, key)


def _option_checks(kind: str) -> Mapping[str, Any]:
    if kind in LOGIT_LOSSES:
        return LOGIT_LOSSES[kind].options
    return {option: check for option, (check, _) in FEATURE_LOSSES[kind].options.items()}


def _or_one(value: Any) -> Any:
    return 1.0 if value is None else value
