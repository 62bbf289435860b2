"""The choices of `teacher.source`: names, and what stands behind each."""

import inspect
from collections.abc import Callable
from typing import TypeVar

from distill_lit.config import TeacherConfig
from distill_lit.teachers.base import CachedTeacherSource, TeacherCapabilities, TeacherSource
from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.registry import Registry

TEACHER_SOURCES: Registry[TeacherSource] = Registry("register_teacher", defined_by=type)
SourceClass = TypeVar("SourceClass", bound=type[TeacherSource])


def register_teacher(name: str) -> Callable[[SourceClass], SourceClass]:
    """Decorates the class of a `TeacherSource`, which users then choose by `teacher.source: <name>`.

    Raises UserError where the name is another's, and for a class that is no source or lacks a method of one.
    """
    TEACHER_SOURCES.check_name(name)

    def register(source: SourceClass) -> SourceClass:
        if not (isinstance(source, type) and issubclass(source, TeacherSource)):
            raise UserError(
                f"register_teacher({name!r}): {source!r} is no TeacherSource; give a class derived from it, with "
                "capabilities(config) and build(context)"
            )
        if inspect.isabstract(source):
            missing = ", ".join(sorted(source.__abstractmethods__))
            raise UserError(f"register_teacher({name!r}): {source.__name__} has no {missing}")
        try:
            TEACHER_SOURCES.add(name, source())
        except TypeError as error:
            raise UserError(f"register_teacher({name!r}): it is made without arguments, and {error}") from error
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


def is_shipped_source(config: TeacherConfig) -> bool:
    """Whether the chosen source is code of this package. Raises UserError for one that is not registered."""
    return type(teacher_source(config)).__module__.partition(".")[0] == __name__.partition(".")[0]


def cached_teacher_source(config: TeacherConfig) -> CachedTeacherSource:
    """The chosen source, whose `needs_cache` is true. Raises UserError for one that cannot write a cache."""
    source = teacher_source(config)
    if not isinstance(source, CachedTeacherSource):
        raise UserError(f"teacher.source: {config.source} needs a cache, and its class is no CachedTeacherSource")
    return source


def teacher_capabilities(config: TeacherConfig) -> TeacherCapabilities:
    """What the configured teacher can do, or several together. Raises UserError for a source that is not registered."""
    able = [teacher_source(member).capabilities(member) for member in config.members.values()]
    return able[0] if len(able) == 1 else TeacherCapabilities.of_several(able)


def describe_teacher(config: TeacherConfig) -> str:
    """What users call the configured teacher, for messages."""
    return "a teacher.mixture" if config.mixture.teachers else teacher_source(config).describe(config)


def sources_supporting(is_able: Callable[[TeacherCapabilities], bool]) -> list[str]:
    """The sources that are able to do something with the default fields, for messages that say what to choose instead."""
    return [
        name
        for name, source in TEACHER_SOURCES.items()
        if is_able(source.capabilities(TeacherConfig(model="", source=name)))
    ]
