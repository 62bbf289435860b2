"""Types of config fields, and the decorator that makes a class a checked section of a config.

A field is declared with pydantic's `Field`: default, range (`ge`, `gt`, `le`) and a description that names its unit.
Numbers, truth values and texts are not converted into each other: a number in quotes is refused, not guessed at.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    InstanceOf,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    ValidationError,
    with_config,
)
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from distill_lit.config.errors import describe_error
from distill_lit.utils.exceptions import UserError

Section = TypeVar("Section")
MAX_INT = 2**32 - 1  # the largest seed there is
MAX_TOKENS = 10**15
CHECKS = ConfigDict(extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True)

Int = StrictInt
Count = Annotated[StrictInt, Field(le=MAX_INT)]  # a whole number without a maximum of its own
Float = StrictFloat
Bool = StrictBool
Text = InstanceOf[str]  # any text, half a surrogate pair too, which pydantic's own `str` refuses
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["int8", "int8_weight_only", "int4"]
GGUFQuantization = Literal["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"]
QuantizationAware = Literal["none", "int8_weight_only", "int4"]
Quantize = Literal["none", "int8", "int8_weight_only", "int4"]
LayerSelectionMethod = Literal["uniform", "first_last", "block_influence", "kl_greedy"]
Baseline = Literal["teacher", "untrained", "ce_only", "teacher_int8"]


@dataclass_transform(field_specifiers=(Field,))
def config_section(cls: type[Section]) -> type[Section]:
    """A dataclass that pydantic checks when it is made. Its constructor raises UserError, one line, for a wrong value."""
    section = cast(type[Section], dataclass(cls, config=CHECKS))
    make: Callable[..., None] = section.__init__

    @functools.wraps(make)
    def checked(self: Any, *values: Any, **named_values: Any) -> None:
        try:
            make(self, *values, **named_values)
        except ValidationError as error:
            raise UserError(describe_error(error, section, f"{section.__name__}.")[1]) from None

    section.__init__ = checked  # type: ignore[method-assign,assignment]
    return section


def with_values(section: Section, **values: Any) -> Section:
    """A copy of a section with other values, which are known to be right: unlike `dataclasses.replace` it checks nothing,
    and takes a twentieth of the time. A grid has ten thousand points."""
    changed = object.__new__(type(section))
    changed.__dict__.update(section.__dict__)
    changed.__dict__.update(values)
    return changed


# a union names the member that a value wants to be, so that an error is about this member alone
TEXT_OR_LIST = Discriminator(lambda value: "list" if isinstance(value, list) else "text")
_NUMBER_OR_MAPPING = Discriminator(lambda value: "mapping" if isinstance(value, dict) else "number")
_TEXT_OR_MAPPING = Discriminator(lambda value: "mapping" if isinstance(value, dict) else "text")
_NUMBER_OR_TEXT = Discriminator(lambda value: "text" if isinstance(value, str) else "number")

ScheduleFields = TypedDict(
    "ScheduleFields",
    {
        "shape": Annotated[
            Literal["linear", "cosine", "piecewise"],
            Field(description="linear, cosine: from start to end; piecewise: each of points until the next"),
        ],
        "start": Annotated[Float, Field(description="value at the start")],
        "end": Annotated[Float, Field(description="value at the end")],
        "from": Annotated[Float, Field(ge=0, le=1, description="share of the steps at which it starts (default 0)")],
        "until": Annotated[Float, Field(ge=0, le=1, description="share of the steps at which it ends (default 1)")],
        "points": Annotated[dict[Text, Float], Field(description="of piecewise: {share of the steps: value}")],
    },
    total=False,
)
with_config(CHECKS)(ScheduleFields)

Weight = Annotated[
    Annotated[Float, Tag("number"), Field(ge=0)] | Annotated[ScheduleFields, Tag("mapping")],
    _NUMBER_OR_MAPPING,
]
Temperature = Annotated[
    Annotated[Float, Tag("number"), Field(gt=0)] | Annotated[ScheduleFields, Tag("mapping")],
    _NUMBER_OR_MAPPING,
]
LayerSelection = Annotated[
    Annotated[LayerSelectionMethod, Tag("text")] | Annotated[list[Annotated[Count, Field(ge=0)]], Tag("list")],
    TEXT_OR_LIST,
]
LoraTargets = Annotated[
    Annotated[Literal["all-linear"], Tag("text")] | Annotated[list[Text], Tag("list"), Field(min_length=1)],
    TEXT_OR_LIST,
]
Templates = Annotated[Annotated[Text, Tag("text")] | Annotated[list[Text], Tag("list"), Field(min_length=1)], TEXT_OR_LIST]
OnPolicyFraction = Annotated[
    Annotated[Float, Tag("number"), Field(ge=0, le=1)] | Annotated[Literal["adaptive"], Tag("text")],
    _NUMBER_OR_TEXT,
]
VariantChoice = Annotated[
    Annotated[Text, Tag("text")] | Annotated[dict[Text, Text], Tag("mapping")],
    _TEXT_OR_MAPPING,
]
