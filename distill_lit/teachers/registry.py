"""The choices of `teacher.source`: names, and what stands behind each."""

from collections.abc import Callable
from typing import TypeVar

from distill_lit.config import TeacherConfig
from distill_lit.teachers.base import CachedTeacherSource, TeacherCapabilities, TeacherSource
from distill_lit.utils.exceptions import UserError, suggest

TEACHER_SOURCES: dict[str, TeacherSource] = {}
SourceClass = TypeVar("SourceClass", bound=type[TeacherSource])


def register_teacher(name: str) -> Callable[[SourceClass], SourceClass]:
    """Decorates the class of a `TeacherSource`, which users then choose by `teacher.source: <name>`.

    Raises UserError where the name is another's.
    """

    def register(source: SourceClass) -> SourceClass:
        known = type(TEACHER_SOURCES[name]) if name in TEACHER_SOURCES else source
        if (known.__module__, known.__qualname__) != (source.__module__, source.__qualname__):
            raise UserError(f"teacher.source: {name!r} is registered already, by {known.__module__}; choose another name")
        TEACHER_SOURCES[name] = source()
        return source

    return register


def teacher_sources() -> list[str]:
    """The choices of `teacher.source`, in the order in which they were registered."""
    return list(TEACHER_SOURCES)


def teacher_source(config: TeacherConfig) -> TeacherSource:
    """The chosen source. Raises UserError for one that is not registered."""
    if config.source not in TEACHER_SOURCES:
        raise UserError(f"teacher.source: unknown value {config.source!r}{suggest(config.source, TEACHER_SOURCES)}")
    return TEACHER_SOURCES[config.source]


def cached_teacher_source(config: TeacherConfig) -> CachedTeacherSource:
    """The chosen source, whose `needs_cache` is true."""
    source = teacher_source(config)
    assert isinstance(source, CachedTeacherSource), f"{config.source} needs a cache and cannot write one"
    return source


def teacher_capabilities(config: TeacherConfig) -> TeacherCapabilities:
    """What the configured teacher can do. Raises UserError for a source that is not registered."""
    return teacher_source(config).capabilities(config)


def sources_supporting(is_able: Callable[[TeacherCapabilities], bool]) -> list[str]:
    """The sources that are able to do something with the default fields, for messages that say what to choose instead."""
    return [
        name
        for name, source in TEACHER_SOURCES.items()
        if is_able(source.capabilities(TeacherConfig(model="", source=name)))
    ]
