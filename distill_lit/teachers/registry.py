"""The choices of `teacher.source`: names, and what stands behind each."""

from collections.abc import Callable, Sequence
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


def is_shipped_source(config: TeacherConfig) -> bool:
    """Whether the chosen source is code of this package. Raises UserError for one that is not registered."""
    return type(teacher_source(config)).__module__.partition(".")[0] == __name__.partition(".")[0]


def cached_teacher_source(config: TeacherConfig) -> CachedTeacherSource:
    """The chosen source, whose `needs_cache` is true."""
    source = teacher_source(config)
    assert isinstance(source, CachedTeacherSource), f"{config.source} needs a cache and cannot write one"
    return source


def teacher_capabilities(config: TeacherConfig) -> TeacherCapabilities:
    """What the configured teacher can do, or several together. Raises UserError for a source that is not registered."""
    able = [teacher_source(member).capabilities(member) for member in config.members.values()]
    return able[0] if len(able) == 1 else _combine(able)


def _combine(able: Sequence[TeacherCapabilities]) -> TeacherCapabilities:
    """What several teachers can do together, and what any of them needs. Their inner states are of different layers."""
    return TeacherCapabilities(
        target_form=next((one.target_form for one in able if one.target_form != "dense"), "dense"),
        max_target_tokens=min(one.max_target_tokens for one in able),
        shares_tokenizer=all(one.shares_tokenizer for one in able),
        needs_model=any(one.needs_model for one in able),
        needs_cache=any(one.needs_cache for one in able),
        keeps_lm_head=any(one.keeps_lm_head for one in able),
        reads_held_out_rows=any(one.reads_held_out_rows for one in able),
        scores_student_text=all(one.scores_student_text for one in able),
        has_device=all(one.has_device for one in able),
        copies_student=any(one.copies_student for one in able),
        follows_student=any(one.follows_student for one in able),
        reads_prompt=all(one.reads_prompt for one in able),
    )


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
