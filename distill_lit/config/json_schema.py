"""The JSON schema of experiment files, which editors complete and check them by, and its fields as lines."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema, to_jsonable_python

from distill_lit.config.errors import KeyPath
from distill_lit.config.fields import MAX_INT
from distill_lit.config.key_paths import is_section, type_adapter
from distill_lit.config.loading import NULLABLE
from distill_lit.config.schema import ExperimentConfig

Json = dict[str, Any]
_INTERPOLATED = {"type": "string", "pattern": r"\$\{"}
_DEFAULTS = {
    "type": "array",
    "items": {"type": "string"},
    "default": [],
    "description": "names of files below configs/, without .yaml, that this file builds on; the last on top",
}
_RANGE_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class _Generator(GenerateJsonSchema):
    """Allows `${key}` wherever a number or a choice is asked for; gives defaults that are lists; leaves titles out."""

    def generate(self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_interpolated(super().int_schema(schema))

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_interpolated(super().float_schema(schema))

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_interpolated(super().bool_schema(schema))

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return {"anyOf": [super().literal_schema(schema), _INTERPOLATED]}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        made = schema["default_factory"]() if "default_factory" in schema else None  # type: ignore[call-arg]
        return found if made is None or is_section(type(made)) else {**found, "default": to_jsonable_python(made)}


def _or_interpolated(schema: JsonSchemaValue) -> JsonSchemaValue:
    # limits are for numbers and patterns for texts, so both can stand side by side
    return {**schema, "type": [schema["type"], "string"], "pattern": _INTERPOLATED["pattern"]}


def experiment_json_schema() -> Json:
    """The JSON schema of an experiment file, and of a file below configs/."""
    schema: Json = type_adapter(ExperimentConfig).json_schema(by_alias=True, schema_generator=_Generator)
    schema["properties"] = {**schema["properties"], "defaults": _DEFAULTS}
    for path in NULLABLE:
        named = _property(schema, path)
        named["additionalProperties"] = {"anyOf": [named["additionalProperties"], {"type": "null"}]}
    teacher = schema["properties"]["teacher"]
    teacher["anyOf"] = [{"$ref": teacher.pop("$ref")}, {"type": "string"}]  # short for its model
    return schema


def _property(schema: Json, path: KeyPath) -> Json:
    """The schema of the property at a path."""
    section = schema
    for key in path[:-1]:
        section = schema["$defs"][section["properties"][key]["$ref"].rsplit("/", 1)[1]]
    found: Json = section["properties"][path[-1]]
    return found


class FieldDescription(NamedTuple):
    """One field of an experiment.

    key: dotted, with NAME for a name that users give; default: as plain value; allowed: its range or choices, or empty.
    """

    key: str
    default: Any
    allowed: str
    description: str


def describe_fields() -> Iterator[FieldDescription]:
    """Every field of an experiment, in the order of the sections."""
    schema = experiment_json_schema()
    yield from _fields_below(schema, schema["$defs"], "")


def _fields_below(section: Json, sections: Json, path: str) -> Iterator[FieldDescription]:
    for name, field in section["properties"].items():
        key = f"{path}{name}"
        if "default" in field:
            allowed = ", ".join(dict.fromkeys(_limits(field)))
            yield FieldDescription(key, field["default"], allowed, field["description"])
        named = field.get("additionalProperties")
        for part, below in ((field, f"{key}."), (named if isinstance(named, dict) else {}, f"{key}.NAME.")):
            for member in (part, *part.get("anyOf", ())):
                if "$ref" in member:
                    yield from _fields_below(sections[member["$ref"].rsplit("/", 1)[1]], sections, below)


def _limits(field: Json) -> Iterator[str]:
    """Range and choices of a field, of the items of a list, and of each member of a union."""
    for name, sign in _RANGE_SIGNS.items():
        if name in field and not (name == "maximum" and field[name] == MAX_INT):
            yield f"{sign} {field[name]}"
    yield from field.get("enum", [field["const"]] if "const" in field else [])
    for member in (*field.get("anyOf", ()), *field.get("oneOf", ()), *([field["items"]] if "items" in field else [])):
        yield from _limits(member)
