"""What an experiment expects, written down before it is run, and judged by the rule that is written down with it.

    hypotheses:
      corrected_teacher_helps:
        claim: A teacher that has read the text teaches more than the labels of the text
        paper: arXiv:2408.11796
        models: {teacher: corrected}
        against: without_teacher
      gain_grows_with_depth:
        claim: The teacher gives more to 24 layers than to 12
        models: {student: d24}
        against: {student: d12}
        measure: gain

A claim is about every pair of models that differ as it says, on the average over the pairs. Pre-registration: Nosek et al.
2018; claims as regions of a difference: Lakens 2017 (equivalence), Piaggio et al. 2012 (non-inferiority).
"""

from collections.abc import Collection, Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from distill_lit.config.evaluation import AnalysisConfig, EndpointName
from distill_lit.config.fields import Float, Text, config_section
from distill_lit.config.grid_points import comparable_text
from distill_lit.utils.exceptions import UserError

Opponent = Literal["without_teacher", "before_training", "teacher"]
BASELINE_OF = {"without_teacher": "ce_only", "before_training": "untrained", "teacher": "teacher"}  # opponent: role
STUDENT, ROLE = "student", "role"  # keys of `models` beside those of the grid
COMPARED_ROLES = ("distilled", "ce_only", "untrained")
VALIDATION_ENDPOINTS = ("val_kl", "val_ce")  # of each model as a whole, on rows of the corpus that no student reads
HypothesisEndpoint = Literal[EndpointName, "val_kl", "val_ce", ""]
Expectation = Literal["better", "worse", "equal", "not_better", "not_worse"]
NEEDS_MARGIN = ("equal", "not_better", "not_worse")
OpponentOrChanges = Annotated[
    Annotated[Opponent, Tag("role")] | Annotated[dict[Text, Any], Tag("changes")],
    Discriminator(lambda value: "changes" if isinstance(value, dict) else "role"),
]


@config_section
class HypothesisConfig:
    """A claim about differences between models, and when the results agree with it."""

    claim: Text = Field(default="", description="what is expected, in one sentence; always needed")
    paper: Text = Field(default="", description="whose claim it is, as arXiv:2408.11796; empty: one's own")
    models: dict[Text, Any] = Field(
        default_factory=dict,
        description="which models it is about, {student or key of the grid: value or list of values}; `role`: ce_only or "
        "untrained instead of distilled; empty: all distilled students",
    )
    against: OpponentOrChanges = Field(
        default="without_teacher",
        description="what each is compared with: the same student without_teacher or before_training, the teacher, or the "
        "same model but for {key of the grid: value}",
    )
    measure: Literal["score", "gain"] = Field(
        default="score", description="score; or gain: what the score is above that of the same student without teacher"
    )
    endpoint: HypothesisEndpoint = Field(
        default="",
        description="one of `analysis.primary_endpoint`, which is the default; or val_kl, val_ce: KL to the teacher and "
        "loss on held-out rows of the corpus, nats per token",
    )
    tasks: list[Text] = Field(
        default_factory=list, description="tasks or probes to average over; empty: all that the average is over"
    )
    expect: Expectation = Field(
        default="better",
        description="better or worse, by more than `margin`; equal, not_better, not_worse: up to `margin`. Better is less "
        "where less is better, as of a loss",
    )
    margin: Annotated[Float, Field(ge=0)] | None = Field(
        default=None,
        description="difference that matters, in the unit of the endpoint (0.02: two points); null: 0 for better and "
        "worse, else `analysis.equivalence_margin` where the endpoint is accuracy",
    )


def endpoint_of(hypothesis: HypothesisConfig, analysis: AnalysisConfig) -> str:
    """The endpoint by which it is tested."""
    return hypothesis.endpoint or analysis.primary_endpoint


def margin_of(hypothesis: HypothesisConfig, analysis: AnalysisConfig) -> float:
    """The difference that matters. Raises UserError where it must be said and is not."""
    if hypothesis.margin == 0 and hypothesis.expect == "equal":
        raise UserError("margin: 0 expects what no result can show; say up to which difference models are equal")
    if hypothesis.margin is not None:
        return hypothesis.margin
    if hypothesis.expect not in NEEDS_MARGIN:
        return 0.0
    endpoint = endpoint_of(hypothesis, analysis)
    if endpoint == "accuracy":
        return analysis.equivalence_margin
    raise UserError(f"margin: needed to expect {hypothesis.expect} by {endpoint}, in its unit")


def axis_named(name: str, axes: Iterable[str]) -> str | None:
    """The dotted key of the grid that a name means: the key itself, or the only one that ends with it."""
    ends = [axis for axis in axes if axis == name or axis.endswith(f".{name}")]
    return name if name in ends else ends[0] if len(ends) == 1 else None


def values_of(value: Any, known: Collection[str] = ()) -> list[Any]:
    """The values that a key of `models` may have: those of a list, or the only one. known: `comparable_text` of the values
    of that key; a list that is one of them is a single value."""
    return value if isinstance(value, list) and comparable_text(value) not in known else [value]
