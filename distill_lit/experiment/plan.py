"""An experiment as a list of runs: what each trains, how it is called, and what identifies it."""

import copy
import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import getitem
from typing import Any

from distill_lit.config import CorpusConfig, ExperimentConfig, OnPolicyConfig, TermConfig, non_default_fields, to_dict
from distill_lit.config.grid_points import grid_keys, shortest_names
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.config.schema import GRID_VALUE_SEPARATOR
from distill_lit.experiment.fingerprint import (
    TEACHER_INT8,
    corpus_fingerprint_fields,
    data_fingerprint_fields,
    student_fingerprint,
    training_fingerprint_fields,
    versioned_fingerprint,
)
from distill_lit.experiment.grid import GridPoint, expand_points
from distill_lit.experiment.precision import resolve_auto
from distill_lit.losses import build_objective
from distill_lit.models import INT8_RECIPE
from distill_lit.teachers import cached_teacher_source, teacher_capabilities
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint

LABEL_BYTES = 150  # of the 255 that a name may have


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
    depends_on: tuple[str, ...] = ()
    model_reference: str = ""  # of a model that is evaluated as it is, or quantized

    @property
    def name(self) -> str:
        """Its folder below `runs/<experiment>/`."""
        return f"{self.label}-{self.fingerprint[:8]}"

    @property
    def is_model(self) -> bool:
        """Whether it stands in the table."""
        return self.role.is_model

    def to_json(self) -> dict[str, Any]:
        """All but the config, for another process: `from_json` gives it back."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "config"}

    @classmethod
    def from_json(cls, values: dict[str, Any], config: ExperimentConfig) -> "Run":
        """The run that `to_json` wrote."""
        return cls(**{**values, "role": Role(values["role"]), "depends_on": tuple(values["depends_on"])}, config=config)


def plan_runs(config: ExperimentConfig, points: Sequence[GridPoint] | None = None) -> list[Run]:
    """All runs in the order they run: generated corpora, teacher caches, the teacher, the baselines, the distilled
    students."""
    runs = _make_labels_distinct(_deduplicate_runs(list(_all_runs(resolve_auto(config), points or expand_points(config)))))
    label, times = Counter(run.label for run in runs if run.is_model).most_common(1)[0]
    if times > 1:
        raise UserError(f"students: {times} models would be called {label!r}; give a student or a grid value another name")
    return runs


def _deduplicate_runs(runs: list[Run]) -> list[Run]:
    """One run of every identity. A baseline is often the same at several grid points: of a grid key it has all values it
    stands for, as in `online or top_50`, and does not have the key at all where it stands for every value."""
    values_in_group: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    values_of_run: dict[str, dict[str, dict[str, Any]]] = {}
    # a grid with exclusions has other points at other seeds, and a baseline is called alike at all of them
    seedless = {run.fingerprint: _seedless_fingerprint(run) for run in runs}
    for run, identity in [*((run, run.fingerprint) for run in runs), *_runs_without_own_baseline(runs)]:
        for key, value in run.grid_values.items():
            own = values_of_run.setdefault(seedless[identity], {})
            for found in (values_in_group.setdefault(_baseline_group(run), {}), own):
                found.setdefault(key, {})[str(value)] = value
    unique_runs: dict[str, Run] = {}
    for run in runs:
        if run.fingerprint not in unique_runs:
            known = values_of_run.get(seedless[run.fingerprint], {}) if run.role in (Role.UNTRAINED, Role.CE_ONLY) else {}
            varies = {
                key: values
                for key, values in known.items()
                if len(values) < len(values_in_group[_baseline_group(run)][key])
            }
            unique_runs[run.fingerprint] = _relabel(run, varies) if known else run
    return list(unique_runs.values())


def _baseline_group(run: Run) -> tuple[Any, ...]:
    return "trained" if run.role.is_trained else run.role, run.student


def _seedless_fingerprint(run: Run) -> str:
    """What identifies a student and its like at other seeds; any other run by itself."""
    if run.seed is None or not run.student:
        return run.fingerprint
    config = copy.copy(run.config)
    config.seed = 0
    return student_fingerprint(run.role, config)


def _runs_without_own_baseline(runs: list[Run]) -> Iterable[tuple[Run, str]]:
    """Distilled runs that have no baseline without teacher at their own point, with the identity of the one other point
    that no teacher tells anything and that is trained in the same way, if there is just one."""
    without = [run for run in runs if run.role == Role.CE_ONLY]
    served = {_grid_point_key(run) for run in without}
    for run in runs:
        if without and run.role == Role.DISTILLED and _grid_point_key(run) not in served:
            found = {other.fingerprint for other in without if _is_trained_like(other, run)}
            if len(found) == 1:
                yield run, found.pop()


def _grid_point_key(run: Run) -> tuple[Any, ...]:
    return run.student, run.seed, tuple(sorted((key, str(value)) for key, value in run.grid_values.items()))


def _is_trained_like(other: Run, run: Run) -> bool:
    """Whether a student reads on its own as many tokens in the same way as another."""
    ways = [
        (one.student, one.seed, one.config.data.sequence_length, training_fingerprint_fields(one.config))
        for one in (other, run)
    ]
    return ways[0] == ways[1] and not is_on_policy_enabled(other.config.on_policy)


def _relabel(run: Run, varies: dict[str, dict[str, Any]]) -> Run:
    axes = {
        key: GRID_VALUE_SEPARATOR.join(found) if len(found) > 1 else next(iter(found.values()))
        for key, found in varies.items()
    }
    keys = grid_keys(run.config.grid)
    seed = run.seed if "seed" in keys else None
    return replace(run, grid_values=axes, label=_label(run.role, run.student, axes, seed, keys))


def _all_runs(config: ExperimentConfig, points: Sequence[GridPoint]) -> Iterable[Run]:
    points = [GridPoint(values, resolve_auto(point)) for values, point in points]
    for _, point in points:
        yield from _generated_runs(point)
    for _, point in points:
        if teacher_capabilities(point.teacher).needs_cache:
            yield _teacher_cache_run(point)
    if Role.TEACHER in config.baselines:
        yield _teacher_run(config)
    if TEACHER_INT8 in config.baselines:
        yield _int8_run(config)
    for name, reference in config.external_models.items():
        yield Run(
            Role.EXTERNAL, _safe_label(name), versioned_fingerprint(external=reference), config, model_reference=reference
        )
    # seed by seed, so that an experiment that is not finished yet has whole comparisons already
    for seed in dict.fromkeys(point.seed for _, point in points):
        for role in (Role.UNTRAINED, Role.CE_ONLY, Role.DISTILLED):
            for values, point in points:
                if point.seed == seed and role in _roles(point):
                    yield _student_run(role, values, point)


def _roles(point: ExperimentConfig) -> set[str]:
    """What is made of a point of the grid: its own student, and the baselines it has. Where the teacher wrote the text,
    plain training on it is no training without the teacher; where it says nothing at all, the point itself is just that."""
    own = Role.DISTILLED if _learns_from_teacher(point) else Role.CE_ONLY
    return {own} | ({Role.UNTRAINED, Role.CE_ONLY} & set(point.baselines)) - (
        {Role.CE_ONLY} if _has_generated_corpus(point) else set()
    )


def _learns_from_teacher(point: ExperimentConfig) -> bool:
    """Whether the student of a point learns from a teacher: a term compares with it, or it writes some of the text."""
    objective = build_objective(point.objective.terms, point.objective.temperature_scaling)
    is_mixed = is_on_policy_enabled(point.on_policy) and point.on_policy.teacher_mix_fraction > 0
    return objective.needs_teacher or is_mixed or _has_generated_corpus(point)


def _has_generated_corpus(point: ExperimentConfig) -> bool:
    return any(corpus.generated is not None for corpus in point.data.corpora.values())


def _teacher_run(config: ExperimentConfig) -> Run:
    reference = config.teacher.model
    return Run(Role.TEACHER, Role.TEACHER, versioned_fingerprint(teacher=reference), config, model_reference=reference)


def _int8_run(config: ExperimentConfig) -> Run:
    reference = config.teacher.model
    return Run(
        Role.QUANTIZED,
        TEACHER_INT8,
        versioned_fingerprint(teacher=reference, form=INT8_RECIPE),
        config,
        model_reference=reference,
    )


def _generated_runs(config: ExperimentConfig) -> Iterable[Run]:
    """One run for each corpus that is written; its config holds no other corpus."""
    for name, corpus in config.data.corpora.items():
        if corpus.generated is not None:
            alone = copy.deepcopy(config)
            alone.data.corpora = {name: corpus}
            writer = {} if corpus.generated.remote else {"model": config.teacher.model, "dtype": config.teacher.dtype}
            written = {key: value for key, value in corpus_fingerprint_fields(corpus, config).items() if key != "weight"}
            identity = versioned_fingerprint(corpus=written, writer=writer, benchmarks=config.dataset_source)
            label = "-".join([f"generated-{name}", *_corpus_axes(name, corpus, config.grid)])
            yield Run(Role.GENERATED, _safe_label(label), identity, alone)


def _corpus_axes(name: str, corpus: CorpusConfig, grid: Mapping[str, list[Any]]) -> list[str]:
    """`key=value` of what the grid varies in how a corpus is written: one run for each."""
    prefix, values = f"data.corpora.{name}.generated.", to_dict(corpus.generated)
    names = shortest_names(grid_keys(grid))
    paths = {key: key.removeprefix(prefix).split(".") for key in names if key.startswith(prefix)}
    return [f"{names[key]}={functools.reduce(getitem, path, values)}" for key, path in paths.items()]


def _teacher_cache_run(config: ExperimentConfig) -> Run:
    identity = versioned_fingerprint(teacher_cache=non_default_fields(config.teacher), data=data_fingerprint_fields(config))
    kind = cached_teacher_source(config.teacher).cache_label(config.teacher)
    label = _safe_label(f"teacher-cache-{kind}" if kind else "teacher-cache")
    return Run(Role.TEACHER_CACHE, label, identity, config, depends_on=_generated_run_names(config))


def _generated_run_names(config: ExperimentConfig) -> tuple[str, ...]:
    return tuple(run.name for run in _generated_runs(config))


def _student_run(role: Role, values: dict[str, Any], config: ExperimentConfig) -> Run:
    axes = {key: value for key, value in values.items() if key not in ("student", "seed")}
    seed: int | None = config.seed
    if role == Role.CE_ONLY and _learns_from_teacher(config):
        config = copy.deepcopy(config)
        config.objective.terms = {"ce": TermConfig(weight=1.0)}
        config.on_policy = OnPolicyConfig()  # nobody judges what it would write
    if role == Role.UNTRAINED and not config.students[config.student].config:
        seed = None
    label = _label(role, config.student, axes, seed if "seed" in values else None, grid_keys(config.grid))
    needs = _generated_run_names(config) + (
        (_teacher_cache_run(config).name,) if teacher_capabilities(config.teacher).needs_cache else ()
    )
    return Run(role, label, student_fingerprint(role, config), config, config.student, seed, axes, needs)


def _label(role: str, student: str, axes: dict[str, Any], seed: int | None, keys: list[str]) -> str:
    """keys: all that the grid varies, among which an axis is called by its shortest ending."""
    names = shortest_names([*keys, *axes])
    parts = [student, *([] if role == Role.DISTILLED else [role])]
    parts += [str(value) if key == "variant" else f"{names[key]}={value}" for key, value in axes.items()]
    parts += [] if seed is None else [f"seed={seed}"]
    return _safe_label("-".join(parts).replace(GRID_VALUE_SEPARATOR, "+").replace(" ", ""))


def _safe_label(label: str) -> str:
    """A label that is a file name, with room for what is written before and after it: one that is too long, or holds what
    no terminal shows, ends in ~ and a hash of all of it."""
    plain = label.replace("/", "_")
    clean = "".join(c if c.isprintable() else "_" for c in plain)
    if clean == plain and len(clean.encode()) <= LABEL_BYTES:
        return clean
    return f"{clean.encode()[: LABEL_BYTES - 9].decode(errors='ignore')}~{fingerprint(label)[:8]}"


def _make_labels_distinct(runs: list[Run]) -> list[Run]:
    """The same runs, with another label where two differ in nothing that every file system tells apart."""
    labels_by_folded: dict[str, str] = {}
    found = []
    for run in runs:
        folded = unicodedata.normalize("NFKC", run.label).casefold()
        if labels_by_folded.setdefault(folded, run.label) != run.label:
            run = replace(run, label=_safe_label(f"{run.label[:100]}~{fingerprint(run.label)[:8]}"))
        found.append(run)
    return found
