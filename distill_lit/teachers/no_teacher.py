"""Students without a teacher: plain training (SFT), pruning alone, or text that a teacher wrote before."""

from distill_lit.config import TeacherConfig
from distill_lit.teachers.base import Teacher, TeacherCapabilities, TeacherContext, TeacherSource
from distill_lit.teachers.registry import register_teacher


@register_teacher("none")
class NoTeacherSource(TeacherSource):
    """No teacher: nothing is asked while students train, so their fidelity is not measured either."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """No targets, no model."""
        return TeacherCapabilities(target_form="", needs_model=False)

    def build(self, context: TeacherContext) -> Teacher | None:
        """None."""
        return None
