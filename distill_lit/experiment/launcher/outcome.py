"""What became of the runs of an experiment."""

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """failed: {run name: reason}; left: {run name: where it is} of runs that are neither done nor failed."""

    failed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
