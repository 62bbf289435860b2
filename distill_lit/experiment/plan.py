"""An experiment as a list of cells: what each trains, how it is called, and what identifies it."""

import copy
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from distill_lit.config import ExperimentConfig, OnPolicyConfig, TermConfig, decisive
from distill_lit.config.on_policy import is_on
from distill_lit.config.schema import EITHER
from distill_lit.experiment.fingerprint import (
    CE_ONLY,
    DISTILLED,
    GENERATED,
    QUANTISED,
    RIVAL,
    SIGNAL,
    TEACHER,
    TEACHER_INT8,
    UNTOUCHED,
    corpus_identity,
    data_identity,
    identity_of,
    student_identity,
    training_identity,
)
from distill_lit.experiment.precision import settle, settled_points
from distill_lit.losses import build_objective
from distill_lit.models import INT8
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint

LABEL_BYTES = 150  # of the 255 that a name may have


@dataclass(frozen=True)
class Cell:
    """One model of the table, or what the teacher tells others. `identity` hashes all that decides its result."""

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
        return self.role not in (SIGNAL, GENERATED)


def plan(config: ExperimentConfig) -> list[Cell]:
    """All cells in the order they run: what the teacher tells, the teacher, the baselines, the distilled students."""
    planned = _apart(_without_repeats(list(_all_cells(settle(config)))))
    label, times = Counter(cell.label for cell in planned if cell.is_model).most_common(1)[0]
    if times > 1:
        raise UserError(f"students: {times} models would be called {label!r}; give a student or a grid value another name")
    return planned


def _without_repeats(cells: list[Cell]) -> list[Cell]:
    """One cell of every identity. A baseline is often the same at several grid points: of a grid key it has all values it
    stands for, as in `live or top_50`, and does not have the key at all where it stands for every value."""
    everywhere: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    own: dict[str, dict[str, dict[str, Any]]] = {}
    for cell, identity in [*((cell, cell.identity) for cell in cells), *_stood_in_for(cells)]:
        for key, value in cell.axes.items():
            for found in (everywhere.setdefault(_alike(cell), {}), own.setdefault(identity, {})):
                found.setdefault(key, {})[str(value)] = value
    once: dict[str, Cell] = {}
    for cell in cells:
        if cell.identity not in once:
            known = own.get(cell.identity, {}) if cell.role in (UNTOUCHED, CE_ONLY) else {}
            varies = {key: values for key, values in known.items() if len(values) < len(everywhere[_alike(cell)][key])}
            once[cell.identity] = _named_by(cell, varies) if known else cell
    return list(once.values())


def _alike(cell: Cell) -> tuple[Any, ...]:
    return "trained" if cell.role in (CE_ONLY, DISTILLED) else cell.role, cell.student, cell.seed


def _stood_in_for(cells: list[Cell]) -> Iterable[tuple[Cell, str]]:
    """Distilled cells that have no baseline without teacher at their own point, with the identity of the one other point
    that no teacher tells anything and that is trained in the same way, if there is just one."""
    without = [cell for cell in cells if cell.role == CE_ONLY]
    served = {_place(cell) for cell in without}
    for cell in cells:
        if without and cell.role == DISTILLED and _place(cell) not in served:
            found = {other.identity for other in without if _is_trained_like(other, cell)}
            if len(found) == 1:
                yield cell, found.pop()


def _place(cell: Cell) -> tuple[Any, ...]:
    return cell.student, cell.seed, tuple(sorted((key, str(value)) for key, value in cell.axes.items()))


def _is_trained_like(other: Cell, cell: Cell) -> bool:
    """Whether a student reads on its own as many tokens in the same way as another."""
    ways = [(one.student, one.seed, one.config.data.length, training_identity(one.config)) for one in (other, cell)]
    return ways[0] == ways[1] and not is_on(other.config.on_policy)


def _named_by(cell: Cell, varies: dict[str, dict[str, Any]]) -> Cell:
    axes = {key: EITHER.join(found) if len(found) > 1 else next(iter(found.values())) for key, found in varies.items()}
    seed = cell.seed if "seed" in cell.config.grid else None
    return replace(cell, axes=axes, label=_label(cell.role, cell.student, axes, seed))


def _all_cells(config: ExperimentConfig) -> Iterable[Cell]:
    points = list(settled_points(config))
    for _, point in points:
        yield from _generated_cells(point)
    for _, point in points:
        if point.teacher.source == "cached":
            yield _signal_cell(point)
    if TEACHER in config.baselines:
        yield _teacher_cell(config)
    if TEACHER_INT8 in config.baselines:
        yield _int8_cell(config)
    for name, reference in config.rivals.items():
        yield Cell(RIVAL, _bounded(name), identity_of(rival=reference), config, reference=reference)
    # seed by seed, so that an experiment that is not finished yet has whole comparisons already
    for seed in dict.fromkeys(point.seed for _, point in points):
        for role in (UNTOUCHED, CE_ONLY, DISTILLED):
            for values, point in points:
                if point.seed == seed and role in _roles(point):
                    yield _student_cell(role, values, point)


def _roles(point: ExperimentConfig) -> set[str]:
    """What is made of a point of the grid: its own student, and the baselines it has. Where the teacher wrote the text,
    plain training on it is no training without the teacher; where it says nothing at all, the point itself is just that."""
    own = DISTILLED if _is_taught(point) else CE_ONLY
    return {own} | ({UNTOUCHED, CE_ONLY} & set(point.baselines)) - ({CE_ONLY} if _reads_a_teacher(point) else set())


def _is_taught(point: ExperimentConfig) -> bool:
    """Whether the student of a point learns from a teacher: a term compares with it, or it writes some of the text."""
    objective = build_objective(point.objective.terms, point.objective.temperature_scaling)
    is_mixed = is_on(point.on_policy) and point.on_policy.teacher_mix > 0
    return objective.needs_teacher or is_mixed or _reads_a_teacher(point)


def _reads_a_teacher(point: ExperimentConfig) -> bool:
    return any(corpus.generated is not None for corpus in point.data.corpora.values())


def _teacher_cell(config: ExperimentConfig) -> Cell:
    reference = config.teacher.model
    return Cell(TEACHER, TEACHER, identity_of(teacher=reference), config, reference=reference)


def _int8_cell(config: ExperimentConfig) -> Cell:
    reference = config.teacher.model
    return Cell(QUANTISED, TEACHER_INT8, identity_of(teacher=reference, form=INT8), config, reference=reference)


def _generated_cells(config: ExperimentConfig) -> Iterable[Cell]:
    """One cell for each corpus that is written; its config holds no other corpus."""
    for name, corpus in config.data.corpora.items():
        if corpus.generated is not None:
            alone = copy.deepcopy(config)
            alone.data.corpora = {name: corpus}
            writer = {} if corpus.generated.remote else {"model": config.teacher.model, "dtype": config.teacher.dtype}
            identity = identity_of(corpus=corpus_identity(corpus, config), writer=writer, benchmarks=config.benchmarks)
            yield Cell(GENERATED, _bounded(f"generated-{name}"), identity, alone)


def _signal_cell(config: ExperimentConfig) -> Cell:
    identity = identity_of(signal=decisive(config.teacher), data=data_identity(config))
    teacher, widths = config.teacher, {"top_k": config.teacher.k, "sampled": config.teacher.draws}
    kept = f"-{teacher.cache}_{widths[teacher.cache]}" if teacher.cache in widths else ""
    return Cell(SIGNAL, f"teacher-signal{kept}", identity, config, needs=_generated_names(config))


def _generated_names(config: ExperimentConfig) -> tuple[str, ...]:
    return tuple(cell.name for cell in _generated_cells(config))


def _student_cell(role: str, values: dict[str, Any], config: ExperimentConfig) -> Cell:
    axes = {key: value for key, value in values.items() if key not in ("student", "seed")}
    seed: int | None = config.seed
    if role == CE_ONLY and _is_taught(config):
        config = copy.deepcopy(config)
        config.objective.terms = {"ce": TermConfig(weight=1.0)}
        config.on_policy = OnPolicyConfig()  # nobody judges what it would write
    if role == UNTOUCHED and not config.students[config.student].config:
        seed = None
    label = _label(role, config.student, axes, seed if "seed" in values else None)
    needs = _generated_names(config) + ((_signal_cell(config).name,) if config.teacher.source == "cached" else ())
    return Cell(role, label, student_identity(role, config), config, config.student, seed, axes, needs)


def _label(role: str, student: str, axes: dict[str, Any], seed: int | None) -> str:
    parts = [student, *([] if role == DISTILLED else [role])]
    parts += [str(value) if key == "variant" else f"{key.rsplit('.')[-1]}={value}" for key, value in axes.items()]
    parts += [] if seed is None else [f"seed={seed}"]
    return _bounded("-".join(parts).replace(EITHER, "+").replace(" ", ""))


def _bounded(label: str) -> str:
    """A label that is a file name, with room for what is written before and after it: one that is too long, or holds what
    no terminal shows, ends in ~ and a hash of all of it."""
    plain = label.replace("/", "_")
    clean = "".join(c if c.isprintable() else "_" for c in plain)
    if clean == plain and len(clean.encode()) <= LABEL_BYTES:
        return clean
    return f"{clean.encode()[: LABEL_BYTES - 9].decode(errors='ignore')}~{fingerprint(label)[:8]}"


def _apart(planned: list[Cell]) -> list[Cell]:
    """The same cells, with another label where two differ in nothing that every file system tells apart."""
    taken: dict[str, str] = {}
    found = []
    for cell in planned:
        folded = unicodedata.normalize("NFKC", cell.label).casefold()
        if taken.setdefault(folded, cell.label) != cell.label:
            cell = replace(cell, label=_bounded(f"{cell.label[:100]}~{fingerprint(cell.label)[:8]}"))
        found.append(cell)
    return found
