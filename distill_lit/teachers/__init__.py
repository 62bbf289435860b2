"""Teachers: beside the student, from a cache, with another tokenizer, several, the student itself. A new one is a file here
and a line below."""

from distill_lit.teachers.answers import AnswersTeacher
from distill_lit.teachers.base import (
    CachedTeacherSource,
    HiddenStateTeacher,
    PrefetchingTeacher,
    StudentFollowingTeacher,
    Teacher,
    TeacherCapabilities,
    TeacherContext,
    TeacherSource,
)
from distill_lit.teachers.compression import TeacherCacheFormat
from distill_lit.teachers.cross_tokenizer import CrossTokenizerTeacher
from distill_lit.teachers.mixture import MixtureTeacher
from distill_lit.teachers.no_teacher import NoTeacherSource
from distill_lit.teachers.offline import OfflineTeacher
from distill_lit.teachers.online import OnlineTeacher
from distill_lit.teachers.registry import (
    cached_teacher_source,
    describe_teacher,
    is_shipped_source,
    register_teacher,
    sources_supporting,
    teacher_capabilities,
    teacher_source,
    teacher_sources,
)
from distill_lit.teachers.self_distillation import EMATeacher
from distill_lit.teachers.served import ServedTeacher
from distill_lit.teachers.server import TeacherServer
from distill_lit.teachers.teacher_cache import write_teacher_cache

__all__ = [
    "AnswersTeacher",
    "CachedTeacherSource",
    "CrossTokenizerTeacher",
    "EMATeacher",
    "HiddenStateTeacher",
    "MixtureTeacher",
    "NoTeacherSource",
    "OfflineTeacher",
    "OnlineTeacher",
    "PrefetchingTeacher",
    "ServedTeacher",
    "StudentFollowingTeacher",
    "Teacher",
    "TeacherCacheFormat",
    "TeacherCapabilities",
    "TeacherContext",
    "TeacherServer",
    "TeacherSource",
    "cached_teacher_source",
    "describe_teacher",
    "is_shipped_source",
    "register_teacher",
    "sources_supporting",
    "teacher_capabilities",
    "teacher_source",
    "teacher_sources",
    "write_teacher_cache",
]
