"""Text of a config: YAML in which every key is the text that stands there, and `${key}`, which stands for another value.

Whatever is written by `dump_yaml` is read back by `parse_yaml` as it was. A dollar sign is a dollar sign: only `${` before
a name, as in `${data.sequence_length}`, is more, and `\\${` is a `${` that is not. Backslashes elsewhere stay.
"""

import copy
import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

from distill_lit.utils.exceptions import UserError

MAX_YAML_NODES = 200_000  # of a file, aliases counted each time; a few lines of them could stand for more than memory holds
INTERPOLATION = re.compile(r"\$\{\s*\.*[A-Za-z_]")
INTERPOLATED_KEY = re.compile(r"\$\{\s*(\.*[A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*\}", re.ASCII)
MAX_DEPTH = 100  # of values within values
# what PyYAML and OmegaConf raise beside their own kinds where a value has a shape they did not expect
PARSE_ERRORS = (TypeError, ValueError, AttributeError, AssertionError, LookupError, RecursionError, yaml.YAMLError)
SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
DOLLAR = re.compile(r"(\\*)\$\{")
FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
INTEGER = re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_FLOAT, _INTEGER, _DATE, _EQUALS = (f"tag:yaml.org,2002:{kind}" for kind in ("float", "int", "timestamp", "value"))


@dataclass(frozen=True)
class YamlScalar:
    """A number or a truth value that stands in a file without quotes, which a key of text takes as it is written."""

    source: str
    value: Any


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number, which YAML 1.1 does not; as text a date, `=`, a time, which YAML 1.1 counts in its smallest
    unit, and a number with a zero before it, which would be octal."""


class _Dumper(yaml.SafeDumper):
    """Puts into quotes whatever `_Loader`, or PyYAML, would take for a number or a truth value."""

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is written as a reference to what was written before."""
        return True


for _class in (_Loader, _Dumper):
    # what PyYAML finds and these do not; what is written is in quotes where PyYAML alone would find a number
    _others = (_FLOAT, _INTEGER, _DATE, _EQUALS) if _class is _Loader else (_DATE, _EQUALS)
    _class.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in _others]
        for first, known in copy.copy(yaml.SafeLoader.yaml_implicit_resolvers).items()
    }
    _class.add_implicit_resolver(_FLOAT, FLOAT, list("-+0123456789."))
    _class.add_implicit_resolver(_INTEGER, INTEGER, list("-+0123456789"))


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # the other styles fold line breaks that are not "\n", and drop blanks around them
    odd = not text.isprintable() and any(ord(c) > 126 or (ord(c) < 32 and c != "\n") for c in text if not c.isprintable())
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd or " \n" in text else None)


_Dumper.add_representer(str, _represent_text)


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML document: lists, dicts with keys of text, text, None, `YamlScalar`. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Builder(loader).build(node)
    finally:
        loader.dispose()


class _Builder:
    def __init__(self, loader: _Loader) -> None:
        self.loader, self.built = loader, 0

    def build(self, node: yaml.Node, depth: int = 0) -> Any:
        self.built += 1
        if depth > MAX_DEPTH:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_DEPTH} levels", node.start_mark)
        if self.built > MAX_YAML_NODES:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MAX_YAML_NODES:,} values", node.start_mark)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.build(item, depth + 1) for item in node.value]
        value = self.loader.construct_object(node, deep=True)
        if isinstance(value, str):
            return _joined(value)
        if isinstance(value, (bool, int, float)) and isinstance(node, yaml.ScalarNode):
            return YamlScalar(node.value, value)
        if value is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{node.tag} is no plain value", node.start_mark)
        return value

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        names: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is more than one text", key.start_mark)
            if key.value in names and not key.tag.endswith(":merge"):
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key.value}", key.start_mark)
            names.add(key.value)
        self.loader.flatten_mapping(node)
        return {_joined(key.value): self.build(value, depth + 1) for key, value in node.value}


def _joined(text: str) -> str:
    """Text with one character for two halves of it, as JSON writes what is beyond 16 bits."""
    if text.isascii() or not SURROGATES.search(text):
        return text
    return SURROGATES.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


def dump_yaml(tree: Any) -> str:
    """YAML of plain values that `parse_yaml` gives back, once `YamlScalar` is taken for its value and `${` for itself."""
    text: str = yaml.dump(_escaped(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return escape_interpolations(value) if isinstance(value, str) else value


def escape_interpolations(text: str) -> str:
    """What must be written for `text`: one backslash more, and twice as many, before a `${` that would be read."""

    def escaped(found: re.Match[str]) -> str:
        slashes = len(found[1])
        if not slashes and not INTERPOLATION.match(text, found.end() - 2):
            return found[0]
        return "\\" * (2 * slashes + 1) + "${"

    return DOLLAR.sub(escaped, text)


# OmegaConf resolves `${key}` and reads nothing else into text: all it could is spelled with this character meanwhile
MASK = "\ue000"
_SPELLED = {MASK: MASK + "0", "$": MASK + "1", "\\": MASK + "2", "?": MASK + "3"}
_SPELLING = str.maketrans(_SPELLED)
_UNMASK_OF = {spelled: character for character, spelled in _SPELLED.items()}


def mask_literals(text: str, where: str = "", literal: re.Pattern[str] | None = None) -> str:
    """`text` as OmegaConf must see it to give back what was meant, its interpolations in place. Raises UserError for one
    that names no key. where: the key of the text; literal: a `${` that is none there, as of a variable in a path."""
    pieces, at = [], 0
    for found in DOLLAR.finditer(text):
        slashes, begin = len(found[1]), found.end() - 2
        pieces += [mask_text(text[at : found.start()]), mask_text("\\" * (slashes // 2))]
        at = found.end()
        if slashes % 2 or not INTERPOLATION.match(text, begin) or (literal and literal.match(text, begin)):
            pieces.append(mask_text("${"))
            continue
        whole = INTERPOLATED_KEY.match(text, begin)
        if whole is None:
            raise UserError(
                f"{where}: {text[begin : begin + 60]!r} is not the name of a key, as in ${{data.sequence_length}}; "
                "write \\${ for the characters themselves"
            )
        pieces.append(f"${{{whole[1]}}}")
        at = whole.end()
    return "".join([*pieces, mask_text(text[at:])])


def mask_text(text: str) -> str:
    """`text` without anything that OmegaConf would look into."""
    return text.translate(_SPELLING)


def unmask_text(text: str) -> str:
    """The text that `mask_literals` hid."""
    return re.sub(f"{MASK}[0-3]", lambda found: _UNMASK_OF[found[0]], text) if MASK in text else text


def is_interpolated(value: Any) -> bool:
    """Whether a value stands for that of another key."""
    return isinstance(value, str) and any(
        len(found[1]) % 2 == 0 and INTERPOLATION.match(value, found.end() - 2) for found in DOLLAR.finditer(value)
    )
