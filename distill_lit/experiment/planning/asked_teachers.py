"""Which teachers an experiment asks, about which of its corpora, where their models are, and what asking them costs."""

import functools
import re
from dataclasses import replace
from pathlib import Path

from distill_lit.config import ExperimentConfig, TeacherConfig
from distill_lit.config.derivation import with_one_teacher
from distill_lit.config.mixture import MAIN_TEACHER, WEIGHT_TOLERANCE
from distill_lit.data import PackedDataset
from distill_lit.data.corpora import corpus_names
from distill_lit.models import ModelSize, load_model_config, model_folder, size_from_config
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils.exceptions import UserError, suggest


def routed_corpora(config: ExperimentConfig) -> dict[str, str]:
    """{corpus: its teacher} of the corpora that name one of several teachers. Text to validate on has the teacher of the
    corpus of its name, where there is one."""
    corpora = {**config.data.validation, **config.data.corpora}
    named = {name: corpus.teacher for name, corpus in corpora.items() if corpus.teacher}
    return named if config.teacher.mixture.teachers else {}


def teacher_weights(config: ExperimentConfig) -> dict[str, dict[str, float]]:
    """{corpus: {teacher: weight}}, in the order of the corpora's numbers in a batch."""
    routes, mixture = routed_corpora(config), config.teacher.mixture
    return {name: {routes[name]: 1.0} if name in routes else mixture.weights for name in corpus_names(config.data)}


def asked_teachers(config: ExperimentConfig) -> dict[str, TeacherConfig]:
    """{name: its fields} of the teachers that have a weight somewhere, `teacher` for `teacher.model`."""
    if not config.teacher.mixture.teachers:
        return config.teacher.members
    weights = teacher_weights(config).values()
    return {name: one for name, one in config.teacher.members.items() if any(row.get(name) for row in weights)}


def with_teacher(config: ExperimentConfig, name: str) -> ExperimentConfig:
    """The same experiment with one of its teachers alone."""
    return replace(config, teacher=config.teacher.members[name or MAIN_TEACHER])


def teacher_references(config: ExperimentConfig) -> dict[str, str]:
    """{name: reference} of the models of all teachers; `teacher.model`, whose tokenizer reads the rows, is always there."""
    others = {name: one.model for name, one in asked_teachers(config).items() if teacher_capabilities(one).needs_model}
    return {MAIN_TEACHER: config.teacher.model, **others}


def teacher_flops_per_token(config: ExperimentConfig, train: PackedDataset, student: ModelSize) -> float:
    """Forward arithmetic of all teachers per training token. Of several, one beside the student reads the rows where it has
    a weight. The references of the config are those of models that are here."""
    weights, total = teacher_weights(config), 0.0
    for name, teacher in asked_teachers(config).items():
        able = teacher_capabilities(teacher)
        corpora = [number for number, row in enumerate(weights.values()) if row.get(name)]
        share = 1.0 if able.needs_cache else train.share_of_rows(corpora)
        if able.copies_student:
            total += student.flops_per_token() * share
        elif able.needs_model:
            total += _model_size(model_folder(teacher.model)).flops_per_token() * share
    return total


@functools.lru_cache(maxsize=8)
def _model_size(folder: Path) -> ModelSize:
    return size_from_config(load_model_config(folder))


def with_teacher_beside(name: str, config: ExperimentConfig) -> ExperimentConfig:
    """The config with no other teacher than `teacher.model` and this one."""
    alone = with_one_teacher(config)
    if name == MAIN_TEACHER:
        return alone
    mixture = replace(config.teacher.mixture, teachers={name: config.teacher.mixture.teachers[name]})
    return replace(alone, teacher=replace(alone.teacher, mixture=mixture))


def check_mixture(config: ExperimentConfig) -> None:
    """Raises UserError for names and weights of several teachers that cannot be, and for teachers that cannot be mixed."""
    mixture = config.teacher.mixture
    members = config.teacher.members
    for section, corpora in (("corpora", config.data.corpora), ("validation", config.data.validation)):
        for name, corpus in corpora.items():
            key = f"data.{section}.{name}.teacher"
            if corpus.teacher and corpus.teacher not in members:
                raise UserError(f"{key}: unknown teacher {corpus.teacher!r}{suggest(corpus.teacher, members)}")
            if corpus.teacher and section == "validation" and name in config.data.corpora:
                raise UserError(f"{key}: it is that of data.corpora.{name}, whose name it has; leave it out")
    total = sum(member.weight or 0.0 for member in mixture.teachers.values())
    if total > 1 + WEIGHT_TOLERANCE:
        raise UserError(f"teacher.mixture.teachers: their weights are {total:g} in sum, and 1 is all there is")
    named = set(routed_corpora(config).values())
    for name, member in mixture.teachers.items():
        key = f"teacher.mixture.teachers.{name}"
        if name == MAIN_TEACHER or not re.fullmatch(r"[A-Za-z0-9][\w-]{,99}", name):
            raise UserError(f"{key}: a name is made of letters, digits, '_' and '-', and is not {MAIN_TEACHER}")
        if member.weight is None and name not in named:
            raise UserError(f"{key}: it has no weight, and no corpus names it as its teacher")
        _check_can_be_mixed(key, members[name], config)
    if mixture.teachers:
        _check_can_be_mixed("teacher", members[MAIN_TEACHER], config)


def _check_can_be_mixed(key: str, member: TeacherConfig, config: ExperimentConfig) -> None:
    able = teacher_capabilities(member)
    if not able.shares_tokenizer:
        raise UserError(f"{key}.source: {member.source}, and several teachers need the student's tokenizer")
    if not able.target_form:
        raise UserError(f"{key}.source: {member.source} says nothing that could be mixed")
    others = {teacher_capabilities(one).target_form for one in config.teacher.members.values()}
    if able.target_form != "dense" and (config.teacher.mixture.is_mixed or len(others) > 1):
        raise UserError(
            f"teacher.mixture: a cache of {member.cache_format} keeps too few tokens of each teacher to mix them; "
            "choose cache_format: hidden_states, or name one teacher for each corpus"
        )
