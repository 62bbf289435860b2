"""Fields of the teacher that are given and that no teacher of the experiment reads: its runs would be those without."""

from collections.abc import Callable, Iterable

from distill_lit.config import ExperimentConfig, TeacherConfig, to_dict
from distill_lit.teachers.registry import is_shipped_source
from distill_lit.utils.exceptions import UserError


def _has_format(*formats: str) -> Callable[[TeacherConfig], bool]:
    """Whether the cache has one of these formats: also where an override asks the teacher online, and leaves it unused."""
    return lambda teacher: teacher.cache_format in formats


READERS: dict[str, tuple[str, Callable[[TeacherConfig], bool]]] = {  # {field: (what reads it, in words; whether it does)}
    "hidden_layers": ("source: offline with cache_format: hidden_states", _has_format("hidden_states")),
    "top_k": (
        "source: served, and source: offline with cache_format: top_k or top_p",
        lambda teacher: teacher.source == "served" or _has_format("top_k", "top_p")(teacher),
    ),
    "top_p": ("source: offline with cache_format: top_p", _has_format("top_p")),
    "num_samples": ("source: offline with cache_format: sampled", _has_format("sampled")),
    "sampling_temperature": ("source: offline with cache_format: sampled", _has_format("sampled")),
    "ema_decay": ("source: ema", lambda teacher: teacher.source == "ema"),
}


def check_unread_teacher_fields(configs: Iterable[ExperimentConfig]) -> None:
    """Raises UserError for a field of the teacher that one of these configs gives and none reads, as `top_k` of a cache of
    hidden states. configs: of all runs of an experiment, some of which may leave unread what others read."""
    teachers = {str(to_dict(config.teacher)): config.teacher for config in configs}.values()
    members = [member for teacher in teachers for member in teacher.members.values()]
    if not all(map(is_shipped_source, members)):  # what a plugin's reads, nobody knows
        return
    default = TeacherConfig()
    for name, (readers, reads) in READERS.items():
        given = [member for member in members if getattr(member, name) != getattr(default, name)]
        if given and not any(map(reads, members)):
            value, source = getattr(given[0], name), given[0].source
            kind = f" with cache_format: {given[0].cache_format}" if source == "offline" else ""
            remedy = "leave it out, or choose what reads it"
            raise UserError(f"teacher.{name}: {value!r} is read by {readers}, and source is {source}{kind}; {remedy}")
