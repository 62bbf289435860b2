"""One rule for the names of losses, teachers, initializers and filters."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from distill_lit import losses, register_filter, register_initializer, register_teacher
from distill_lit.generation.filters import CUSTOM_FILTERS
from distill_lit.losses import LOGIT_LOSSES
from distill_lit.models.initializers import STUDENT_INITIALIZERS
from distill_lit.teachers import TeacherCapabilities, TeacherSource
from distill_lit.teachers.registry import TEACHER_SOURCES
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.registry import Registry

PART = """
from distill_lit.teachers import NoTeacherSource
class Source(NoTeacherSource): pass
def loss(log_q, log_p): return (log_p - log_q).square().sum(-1)
def initialize(student, teacher): pass
def keep(completion): return True
"""
KINDS = {
    "losses.register": (losses.register, "loss", LOGIT_LOSSES),
    "register_teacher": (register_teacher, "Source", TEACHER_SOURCES),
    "register_initializer": (register_initializer, "initialize", STUDENT_INITIALIZERS),
    "register_filter": (register_filter, "keep", CUSTOM_FILTERS),
}


@pytest.fixture(autouse=True)
def _registries_as_they_were() -> Iterator[None]:
    with ExitStack() as stack:
        for _, _, registry in KINDS.values():
            stack.enter_context(patch.dict(registry))
        yield


def plugin(name: str) -> ModuleType:
    """A module with one part of each kind."""
    module = ModuleType(name)
    exec(PART, module.__dict__)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_given_once(kind: str) -> None:
    register, name, registry = KINDS[kind]
    for module in (plugin("mine"), plugin("mine")):  # a cell that is run twice
        register("a_name")(getattr(module, name))
    kept = registry["a_name"]
    with pytest.raises(UserError, match=rf"{kind}\('a_name'\): what has this name was registered by mine; choose another"):
        register("a_name")(getattr(plugin("yours"), name))
    assert registry["a_name"] is kept
    register("built_in")(getattr(plugin("distill_lit.part"), name))
    with pytest.raises(UserError, match="what has this name is part of distill_lit"):
        register("built_in")(getattr(plugin("mine"), name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_decorator_without_parentheses_has_no_name(kind: str) -> None:
    register, name, _ = KINDS[kind]
    with pytest.raises(UserError, match=rf'{kind}: it needs a name, as in @{kind}\("my_name"\)'):
        register(getattr(plugin("mine"), name))


def test_a_file_that_is_read_as_two_modules_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script whose losses an experiment names as a plugin too."""
    registry: Registry[Callable[..., Any]] = Registry("register")
    for name in ("__script__", "distill_lit_plugin_0"):
        module = plugin(name)
        module.__file__ = "/somewhere/mine.py"
        monkeypatch.setitem(__import__("sys").modules, name, module)
        registry.add("keep", module.keep)
    assert registry["keep"].__module__ == "distill_lit_plugin_0"
    with pytest.raises(UserError, match=r"register\('keep'\): what has this name was registered by /somewhere/mine.py"):
        registry.add("keep", plugin("other").keep)


def test_what_cannot_be_called_is_no_part() -> None:
    with pytest.raises(UserError, match=r"register_filter\('x'\): 3 is no function"):
        register_filter("x")(3)  # type: ignore[arg-type]


class Unfinished(TeacherSource):
    def capabilities(self, config: Any) -> TeacherCapabilities:
        return TeacherCapabilities(target_form="dense")


class Configured(Unfinished):
    def __init__(self, path: str) -> None:
        self.path = path

    def build(self, context: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (dict, "<class 'dict'> is no TeacherSource; give a class derived from it, with capabilities"),
        (3, "3 is no TeacherSource"),
        (Unfinished, "Unfinished has no build"),
        (Configured, "it is made without arguments, and .*path"),
    ],
)
def test_what_is_no_source_is_refused(source: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"register_teacher\('x'\): {words}"):
        register_teacher("x")(source)
