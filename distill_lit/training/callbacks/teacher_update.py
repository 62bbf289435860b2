"""Teachers that follow the student, such as an average of its weights: told of every optimizer step, saved and resumed."""

from typing import Any

import lightning as L

from distill_lit.teachers import StudentFollowingTeacher


class TeacherUpdateCallback(L.Callback):
    """Tells the teacher of each optimizer step before anything else looks at it: a checkpoint or validation after the step
    has the teacher of that step. Ranks have equal students, so their teachers are equal too."""

    def __init__(self, teacher: StudentFollowingTeacher) -> None:
        self.teacher = teacher

    @property
    def state_key(self) -> str:
        """Under which it stands in a checkpoint; Lightning would take the name of the class."""
        return "teacher"

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        """After an optimizer step, not within a window of accumulation."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self.teacher.follow(module.student)

    def state_dict(self) -> dict[str, Any]:
        """What the teacher needs to go on."""
        return dict(self.teacher.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.teacher.load_state_dict(state)
