"""What a run is in its experiment."""

from enum import StrEnum


class Role(StrEnum):
    """The role of a run: a reference model, a student, or what the teacher provides for students."""

    TEACHER = "teacher"  # evaluated as it is
    QUANTIZED = "quantized"  # the teacher in int8
    EXTERNAL = "external"  # an off-the-shelf model to compare with
    DERIVED = "derived"  # a model of `models`, or an earlier stage of a student
    UNTRAINED = "untrained"  # a student as it was initialized
    CE_ONLY = "ce_only"  # a student trained without the teacher: the SFT baseline
    DISTILLED = "distilled"
    TEACHER_CACHE = "teacher_cache"  # the outputs of an offline teacher, written once
    GENERATED = "generated"  # a corpus that a teacher writes

    @property
    def is_model(self) -> bool:
        """Whether it is a row of the table."""
        return self not in (Role.TEACHER_CACHE, Role.GENERATED)

    @property
    def is_trained(self) -> bool:
        """Whether such a model has optimizer steps, unless it only quantizes another."""
        return self in (Role.DERIVED, Role.CE_ONLY, Role.DISTILLED)
