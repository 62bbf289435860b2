"""How a student's weights begin, beyond pruning: functions of one's own, by name."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from distill_lit.utils.exceptions import UserError, suggest
from distill_lit.utils.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Initializer = Callable[["PreTrainedModel", "PreTrainedModel"], None]
STUDENT_INITIALIZERS: Registry[Initializer] = Registry("register_initializer")


def register_initializer(name: str) -> Callable[[Initializer], Initializer]:
    """Registers a function (student, teacher) that changes the student's weights in place, before any training.

    Raises UserError where the name is another's.

    Example:
        >>> @register_initializer("scaled_embeddings")
        ... def scale(student, teacher):
        ...     student.get_input_embeddings().weight.data.mul_(0.5)
    """

    STUDENT_INITIALIZERS.check_name(name)

    def register(function: Initializer) -> Initializer:
        STUDENT_INITIALIZERS.add(name, function)
        return function

    return register


def find_initializer(name: str) -> Initializer:
    """A registered initializer. Raises UserError for an unknown name."""
    if name not in STUDENT_INITIALIZERS:
        raise UserError(f"initializer: unknown {name!r}{suggest(name, STUDENT_INITIALIZERS)}; a plugin registers it")
    return STUDENT_INITIALIZERS[name]
