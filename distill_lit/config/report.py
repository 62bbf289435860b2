"""How tables and figures call and order what they show. Nothing here changes a number."""

import math
from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from distill_lit.config.fields import Count, Text, config_section


@config_section
class ReportConfig:
    """Labels, order and decimals of tables and figures, for `distill-lit report` and `distill-lit table` alike."""

    labels: dict[Text, Text] = Field(
        default_factory=dict,
        description="{name: what is shown in its place}, of students, roles, tasks, grid keys, their values, experiments "
        "and columns, as {d18: 18 layers, reverse_kl: Reverse KL}; '' for a grid key shows its values alone",
    )
    order: list[Text] = Field(
        default_factory=list,
        description="names of students, roles, tasks and values of the grid in the order of rows and columns; others "
        "follow",
    )
    decimals: dict[Text, Annotated[Count, Field(ge=0, le=6)]] = Field(
        default_factory=dict,
        description="{column: digits after the point}, as {score: 2, retained: 1}; see `distill-lit table --help`",
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is named."""
        return not (self.labels or self.order or self.decimals)

    def label(self, name: str) -> str:
        """What is shown for a name: its label, or the name itself."""
        return self.labels.get(name, name)

    def rank(self, *names: str) -> float:
        """A sorting key of what bears these names: its first place in `order`, behind all places where it has none."""
        return min((self.order.index(name) for name in names if name in self.order), default=math.inf)

    def ordered(self, names: Iterable[str]) -> list[str]:
        """The names, those in `order` first, in that order."""
        return sorted(names, key=self.rank)

    def digits(self, column: str, usual: int) -> int:
        """Digits after the point in a column; usual: where it is not named."""
        return self.decimals.get(column, usual)
