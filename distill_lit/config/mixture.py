"""Fields of several teachers at once."""

from typing import Annotated, Literal

from pydantic import Field

from distill_lit.config.fields import Float, Text, config_section
from distill_lit.config.key_paths import HOLDS_PATHS

MAIN_TEACHER = "teacher"  # name of `teacher.model` among several
WEIGHT_TOLERANCE = 1e-9  # of their sum


@config_section
class MixtureMemberConfig:
    """One more teacher, under a name of its own."""

    model: Text = Field(
        default="",
        description="reference of a model with teacher.model's tokenizer; empty: that model",
        json_schema_extra=HOLDS_PATHS,
    )
    weight: Annotated[Float, Field(ge=0, le=1)] | None = Field(
        default=None, description="its weight in the mixture; null: 0, it is only for corpora that name it"
    )
    source: Text = Field(default="", description="where it says what it says, as in teacher.source; empty: the same")


@config_section
class MixtureConfig:
    """Several teachers: their distributions mixed, or each for the corpora that name it (data.corpora.NAME.teacher)."""

    kind: Literal["arithmetic", "geometric"] = Field(
        default="arithmetic", description="arithmetic: weighted mean of probabilities; geometric: of logits, renormalized"
    )
    teachers: dict[Text, MixtureMemberConfig] = Field(
        default_factory=dict,
        description="teachers beside teacher.model, {name: teacher}; what their weights leave to 1 is teacher.model's",
    )

    @property
    def weights(self) -> dict[str, float]:
        """{name: weight} of all teachers where no corpus names one: 1 in sum; `teacher` is `teacher.model`."""
        given = {name: member.weight or 0.0 for name, member in self.teachers.items()}
        rest = 1 - sum(given.values())
        return {MAIN_TEACHER: rest if rest > WEIGHT_TOLERANCE else 0.0, **given}

    @property
    def is_mixed(self) -> bool:
        """Whether two teachers ever speak of one token."""
        return sum(weight > 0 for weight in self.weights.values()) > 1
