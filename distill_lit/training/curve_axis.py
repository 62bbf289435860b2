"""Where on a curve an optimizer step is: stages go on where the one before ended, and runs are compared over tokens."""

from dataclasses import dataclass
from typing import Literal

AXES = ("tokens", "steps")


@dataclass(frozen=True)
class CurveAxis:
    """kind: tokens or steps; first_step, first_tokens: of the stages before this one; tokens_per_step: positions that all
    ranks read in an optimizer step."""

    kind: Literal["tokens", "steps"] = "steps"
    first_step: int = 0
    first_tokens: int = 0
    tokens_per_step: int = 0

    def position(self, step: int) -> int:
        """Of an optimizer step of this stage."""
        return self.first_tokens + step * self.tokens_per_step if self.kind == "tokens" else self.first_step + step
