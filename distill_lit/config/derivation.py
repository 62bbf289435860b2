"""Configs derived from the config of a grid point: one for each of its `models`, and one for each stage of its student.

Both are written as changes to the experiment, and a model also says what it begins as:

    models:
      corrected: {from: teacher, objective: {terms: {ce: {}}}, training: {max_tokens: 200000}}
      assistant: {student: d24, teacher: corrected}
    stages:
      warm_up: {objective: {terms: {ce: {}}}}
      on_policy: {on_policy: {fraction: 1.0}}

`objective: {…}` takes the place of the experiment's; of every other section, and by a dotted key, what is named changes.

Teacher correction (Minitron, 2408.11796) and teacher assistants (Mirzadeh et al. 2019, 1902.03393) are models; a
curriculum, as a warm-up before text of the student's own (GKD, 2306.13649), and progressive pruning (2407.14679) are
stages.
"""

import copy
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from distill_lit.config.data import CorpusConfig
from distill_lit.config.fields import with_values
from distill_lit.config.key_paths import deep_merge, fields_by_key
from distill_lit.config.loading import (
    Layer,
    Tree,
    build_section,
    check_nulls,
    drop_nulls,
    nest_changes,
    to_dict,
)
from distill_lit.config.mixture import MixtureConfig
from distill_lit.config.models import StudentConfig
from distill_lit.config.schema import ExperimentConfig
from distill_lit.config.training import ObjectiveConfig
from distill_lit.utils.exceptions import UserError, suggest

SECTIONS = ("teacher", "data", "objective", "training", "on_policy")
STUDENT_KEYS = tuple(fields_by_key(StudentConfig))
MODEL_KEYS = ("student", "seed", "stages", *SECTIONS, *STUDENT_KEYS)
STAGE_KEYS = (*SECTIONS, *(key for key in STUDENT_KEYS if key not in ("from", "config")))
FULL_PRECISION, QUANTIZE_STAGE = "full_precision", "quantize"  # stages of a student with `quantize` alone
KEPT_OF_THE_OBJECTIVE = ("chunk_size", "memory_budget", "compile")  # they say how it is computed, not what it is
STAGE_MODEL = "{student}_after_{stage}"  # what a student is called after a stage that is not its last
ChangeReference = Callable[[str, str], str]  # (key, reference) → another reference


class Recipe(NamedTuple):
    """How a model is made.

    Args:
        config: of its run: its only student, which bears its name, and the sections it is trained with.
        is_trained: whether it takes optimizer steps; else it is a model as it is, or quantized.
        has_fixed_seed: whether it is the same for all seeds of the experiment.
        previous: the stage before it, whose curves it goes on with; empty for the first, and for models of `models`.
    """

    config: ExperimentConfig
    is_trained: bool = True
    has_fixed_seed: bool = False
    previous: str = ""


def derive_model(point: ExperimentConfig, name: str) -> Recipe:
    """The recipe of a model of `models` at a point of the grid. Raises UserError for what cannot be."""
    where, spec = f"models.{name}", point.models[name]
    _check_keys(where, spec, MODEL_KEYS)
    if "student" in spec and "from" in spec:
        raise UserError(f"{where}: it begins as `from` or as `student`; give one")
    shape: Tree = {}
    if "student" in spec:
        if not isinstance(spec["student"], str) or spec["student"] not in point.students:
            raise UserError(
                f"{where}.student: unknown value {spec['student']!r}{suggest(str(spec['student']), point.students)}"
            )
        shape = to_dict(point.students[spec["student"]])
    elif not {_root(key) for key in spec} & {"from", "config"}:
        raise UserError(f"{where}: say what it begins as: from, student or config")
    # the teachers of the experiment are often made here themselves, each from one
    point = with_one_teacher(point)
    config = _derive(point, where, name, shape, {key: value for key, value in spec.items() if key != "student"})
    other = {_root(key) for key in spec} - {"from", "quantize", "seed"}
    return Recipe(config, is_trained=bool(other), has_fixed_seed="seed" in spec)


def derive_stages(config: ExperimentConfig) -> dict[str, Recipe]:
    """The recipes of all stages of a config's student, {name: recipe}, in their order. The last bears the student's own
    name, the others STUDENT_after_STAGE. Without stages there is one."""
    student, shape = config.student, config.students[config.student]
    specs = _stage_changes(config)
    if not specs:
        return {student: Recipe(config)}
    names = {stage: STAGE_MODEL.format(student=student, stage=stage) for stage in specs} | {list(specs)[-1]: student}
    last_trained = [stage for stage, spec in specs.items() if "quantize" not in spec][-1:]
    recipes: dict[str, Recipe] = {}
    previous = ""
    for number, (stage, spec) in enumerate(specs.items()):
        where = f"stages.{stage}"
        _check_keys(where, spec, STAGE_KEYS)
        begins: Tree = to_dict(replace(shape, quantize="none"))
        if previous:
            begins = {"from": previous, "lora": begins["lora"], "quantization_aware": begins["quantization_aware"]}
        if [stage] != last_trained:
            begins["quantization_aware"] = "none"  # its weights are exported rounded, and the next stage trains them
        if is_quantization := "quantize" in spec:
            if recipes[previous].config.students[previous].quantization_aware != "none":
                raise UserError(f"{where}: with quantization_aware the student is quantized already when its training ends")
            begins = {"from": previous}
        spec = _with_teacher_of_stage(where, spec, names, list(specs)[: number + 1], config.models)
        derived = _derive(config, where, names[stage], begins, spec)
        if [stage] != last_trained and derived.students[names[stage]].quantization_aware != "none":
            raise UserError(f"{where}: quantization_aware is for the last stage that trains, as it exports rounded weights")
        recipes[names[stage]] = Recipe(derived, is_trained=not is_quantization, previous=previous)
        previous = names[stage]
    return recipes


def _stage_changes(config: ExperimentConfig) -> dict[str, Tree]:
    """{stage: what it changes}, with the one that `quantize` of the student adds. One with `quantize: none`, as a value of
    the grid may be, leaves its model as it is and is none."""
    shape = config.students[config.student]
    if shape.quantize != "none" and QUANTIZE_STAGE in config.stages:
        raise UserError(
            f"stages.{QUANTIZE_STAGE}: students.{config.student}.quantize adds a stage of this name; rename yours"
        )
    for number, (stage, spec) in enumerate(config.stages.items()):
        if "quantize" in spec and (len(spec) > 1 or number == 0):
            raise UserError(f"stages.{stage}: `quantize` is a stage of its own, after the one that trains")
    specs = {stage: spec for stage, spec in config.stages.items() if spec != {"quantize": "none"}}
    if shape.quantize == "none":
        return specs
    return (specs or {FULL_PRECISION: {}}) | {QUANTIZE_STAGE: {"quantize": shape.quantize}}


def _with_teacher_of_stage(
    where: str, spec: Tree, names: Mapping[str, str], until: Iterable[str], models: Container[str]
) -> Tree:
    """The changes of a stage with an earlier stage, named as teacher, under the name of its model."""
    teacher = spec.get("teacher")
    stage = spec.get("teacher.model", teacher.get("model") if isinstance(teacher, dict) else teacher)
    if not isinstance(stage, str) or stage not in names:
        return spec
    if stage in models:
        raise UserError(f"{where}.teacher: {stage!r} is a stage and one of `models`; rename one of them")
    *earlier, itself = until
    if stage not in earlier:
        raise UserError(f"{where}.teacher: {stage!r} is {'this stage itself' if stage == itself else 'a later stage'}")
    given = teacher if isinstance(teacher, dict) else {}
    others = {key: value for key, value in spec.items() if key != "teacher.model"}
    return {**others, "teacher": {**given, "model": names[stage]}}


def _derive(config: ExperimentConfig, where: str, name: str, shape: Tree, spec: Tree) -> ExperimentConfig:
    """The config with `name` as its only student, of this shape, and with the changes of a model or a stage."""
    spec = copy.deepcopy(spec)
    base = {**to_dict(config), "student": name, "students": {name: shape}, "stages": {}}
    if isinstance(spec.get("objective"), dict):
        kept = {key: value for key, value in base["objective"].items() if key in KEPT_OF_THE_OBJECTIVE}
        base["objective"] = {**to_dict(ObjectiveConfig()), **kept}
    student_changes = {key: spec.pop(key) for key in list(spec) if _root(key) in STUDENT_KEYS}
    nested = {f"students.{name}.{key}": value for key, value in student_changes.items()}
    try:
        layers = [Layer("", base), Layer(where, nest_changes(base, {**spec, **nested}, f"{where}."))]
        check_nulls(f"{where}.", layers[1].tree, base)
        return build_section(ExperimentConfig, drop_nulls(deep_merge(layers[0].tree, layers[1].tree)), layers)
    except UserError as error:  # the key as it was written
        raise UserError(str(error).replace(f"students.{name}.", "")) from None


def _check_keys(where: str, spec: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in spec:
        if _root(key) not in known:
            raise UserError(f"{where}: unknown key {_root(key)!r}{suggest(_root(key), known)}")


def _root(key: str) -> str:
    return key.partition(".")[0]


def with_one_teacher(config: ExperimentConfig) -> ExperimentConfig:
    """The config with `teacher.model` alone, whichever teachers are beside it."""
    corpora = (*config.data.corpora.values(), *config.data.validation.values())
    if not config.teacher.mixture.teachers and not any(corpus.teacher for corpus in corpora):
        return with_values(config, teacher=with_values(config.teacher, mixture=MixtureConfig()))
    data = replace(
        config.data,
        corpora={name: replace(corpus, teacher="") for name, corpus in config.data.corpora.items()},
        validation={name: replace(corpus, teacher="") for name, corpus in config.data.validation.items()},
    )
    return replace(config, teacher=replace(config.teacher, mixture=MixtureConfig()), data=data)


def map_model_references(config: ExperimentConfig, change: ChangeReference) -> ExperimentConfig:
    """The config with every reference to a model that its run needs changed: of its teachers, of what its own student
    begins as, and of who writes and filters its corpora. change: told the key and the reference, gives another one."""
    student = config.students.get(config.student, StudentConfig())
    corpora = {
        name: _map_corpus(f"data.corpora.{name}.generated", corpus, change) for name, corpus in config.data.corpora.items()
    }
    members = dict(config.teacher.mixture.teachers)
    for name, member in members.items():
        if member.model:
            members[name] = replace(member, model=change(f"teacher.mixture.teachers.{name}.model", member.model))
    mixture = with_values(config.teacher.mixture, teachers=members) if members else config.teacher.mixture
    teacher = with_values(config.teacher, model=change("teacher.model", config.teacher.model), mixture=mixture)
    if student.from_:
        student = student.with_origin(change(f"students.{config.student}.from", student.from_))
    return with_values(
        config,
        teacher=teacher,
        students={**config.students, config.student: student} if config.student else config.students,
        data=config.data if corpora == config.data.corpora else with_values(config.data, corpora=corpora),
    )


def _map_corpus(key: str, corpus: CorpusConfig, change: ChangeReference) -> CorpusConfig:
    generated = corpus.generated
    if generated is None:
        return corpus
    filters = generated.filters
    if filters.perplexity_model:
        filters = replace(filters, perplexity_model=change(f"{key}.filters.perplexity_model", filters.perplexity_model))
    model = change(f"{key}.model", generated.model) if generated.model else ""
    return replace(corpus, generated=replace(generated, model=model, filters=filters))
