"""One run of an experiment, as the plan knows it."""

from dataclasses import dataclass, field, fields
from typing import Any

from distill_lit.config import ExperimentConfig, to_dict
from distill_lit.config.loading import build_section
from distill_lit.config.roles import Role

BUILD, EVALUATE = "build", "evaluate"  # the parts of a run that may be jobs of their own


@dataclass(frozen=True)
class Run:
    """One model of the table, or text or a cache that others learn from. `fingerprint` hashes all that decides its
    result."""

    role: Role
    label: str
    fingerprint: str
    config: ExperimentConfig
    student: str = ""
    seed: int | None = None
    grid_values: dict[str, Any] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()  # names of runs that must be done before
    model_reference: str = ""  # of a model that is evaluated as it is, or quantized
    sources: dict[str, str] = field(default_factory=dict)  # {name of a model that it needs: name of the run that makes it}
    previous_stage: str = ""  # name of the run whose curves it goes on with
    teacher: str = ""  # name of the teacher whose cache it writes, where that is not `teacher.model`

    @property
    def name(self) -> str:
        """Its folder below `runs/<experiment>/`."""
        return f"{self.label}-{self.fingerprint[:8]}"

    @property
    def is_model(self) -> bool:
        """Whether it stands in the table."""
        return self.role.is_model

    @property
    def is_trained(self) -> bool:
        """Whether it takes optimizer steps."""
        is_made = not self.model_reference and self.student in self.config.students
        return self.role.is_trained and is_made and self.config.students[self.student].quantize == "none"

    @property
    def may_take_all_ranks(self) -> bool:
        """Whether all ranks of a training may build it together: it is trained, or writes what a sharded teacher says."""
        return self.is_trained or (self.role == Role.TEACHER_CACHE and self.config.training.strategy != "ddp")

    def to_json(self) -> dict[str, Any]:
        """All but the config, for another process: `from_json` gives it back."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "config"}

    @classmethod
    def from_json(cls, values: dict[str, Any], config: ExperimentConfig) -> "Run":
        """The run that `to_json` wrote."""
        return cls(**{**values, "role": Role(values["role"]), "depends_on": tuple(values["depends_on"])}, config=config)


def to_task(run: Run) -> dict[str, Any]:
    """A run with its config as plain values, for another process."""
    return {"run": run.to_json(), "config": to_dict(run.config)}


def from_task(task: dict[str, Any]) -> Run:
    """The run that `to_task` wrote."""
    return Run.from_json(task["run"], build_section(ExperimentConfig, task["config"], []))
