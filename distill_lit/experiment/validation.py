"""What is refused before anything is run: by the config alone, by the environment, by the teacher's config."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lit import assets, data
from distill_lit.config import EvaluationConfig, ExperimentConfig, OnPolicyConfig, load_section
from distill_lit.config.on_policy import check_on_policy, is_on_policy_enabled
from distill_lit.evaluation.tasks import check_answer_lengths, check_tasks, check_user_tasks
from distill_lit.experiment.fingerprint import TEACHER_INT8
from distill_lit.experiment.grid import GridPoint, expand_points
from distill_lit.experiment.requirements import student_base_folder
from distill_lit.generation.corpus import check_generated_corpora
from distill_lit.losses import Objective, build_objective, check_teacher_supports_objective
from distill_lit.models import (
    check_student,
    check_student_against_teacher,
    check_student_vocabulary,
    check_torchao,
    load_model_config,
    load_tokenizer,
    model_folder,
)
from distill_lit.models.position_limits import check_row_length
from distill_lit.models.vocabulary import check_special_tokens
from distill_lit.teachers import TeacherCapabilities, sources_supporting, teacher_capabilities, teacher_source
from distill_lit.training.feature_alignment import check_feature_dimensions, check_teacher_supports_features
from distill_lit.training.loggers import check_loggers
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:  # bad input is told before it is loaded
    from transformers import PreTrainedConfig


def check_experiment(config: ExperimentConfig, points: Sequence[GridPoint] | None = None) -> None:
    """Raises UserError for anything that can be known to be wrong before a model or data set is touched."""
    for reference in (config.teacher.model, *config.external_models.values()):
        assets.check_reference(reference)
    if TEACHER_INT8 in config.baselines:
        check_torchao(f"baselines: {TEACHER_INT8}")
    hardware.device_for(config.training.accelerator)
    if config.launcher.teacher_device:
        hardware.check_device("launcher.teacher_device", config.launcher.teacher_device)
    for name, student in config.students.items():
        check_student(name, student)
    check_loggers(config.loggers)
    for _, point in points or expand_points(config):
        objective = build_objective(point.objective.terms, point.objective.temperature_scaling)
        _check_teacher(point, objective)
        data.check_data_config(point.data, point.dataset_source)
        check_generated_corpora(point.data, point.dataset_source)
    check_tasks(config.evaluation, config.dataset_source)


def _check_teacher(point: ExperimentConfig, objective: Objective) -> None:
    """What the capabilities of the teacher do not allow."""
    source = teacher_source(point.teacher)
    source.check(point.teacher)
    teacher, described = source.capabilities(point.teacher), source.describe(point.teacher)
    if objective.needs_teacher and not teacher.target_form:
        raise UserError(f"teacher.source: {point.teacher.source}, and a term of the objective compares with the teacher")
    check_on_policy(point.on_policy, described, teacher.scores_student_text, point.training.compile)
    _check_policy_gradient(objective, point.on_policy)
    check_teacher_supports_objective(
        objective, teacher.target_form, described, has_on_policy_mask=is_on_policy_enabled(point.on_policy)
    )
    check_teacher_supports_features(objective, teacher, described, point.training.compile)
    _check_teacher_device(point, objective, teacher)
    for name, corpus in point.data.corpora.items():
        if corpus.is_chat and not teacher.shares_tokenizer:  # a chat template belongs to a tokenizer
            raise UserError(f"data.corpora.{name}: {described} reads plain text only, and this is a chat")


def _check_policy_gradient(objective: Objective, on_policy: OnPolicyConfig) -> None:
    """A policy gradient on text of others, or not drawn from the student as it is, would follow another mean than the
    reverse KL's."""
    is_drawn = (
        on_policy.temperature == on_policy.top_p == 1
        and not on_policy.teacher_mix_fraction
        and not on_policy.replay_buffer_size
    )
    for term in objective.logit_terms:
        if term.kind == "policy_gradient_reverse_kl" and not (on_policy.fraction == 1 and is_drawn):
            raise UserError(
                f"objective.terms.{term.name}: policy_gradient_reverse_kl is for the student's own text alone: "
                "set on_policy.fraction to 1, without teacher_mix_fraction and replay_buffer_size, and leave temperature "
                "and top_p at 1"
            )


def _check_teacher_device(point: ExperimentConfig, objective: Objective, teacher: TeacherCapabilities) -> None:
    """What a teacher on a device of its own cannot do: it sends its last hidden states over, and nothing else."""
    if not point.launcher.teacher_device or not teacher.runs_beside_student:
        return
    if not teacher.has_device:
        able = " or ".join(sources_supporting(lambda other: other.has_device))
        raise UserError(
            f"launcher.teacher_device: teacher.source {point.teacher.source} runs beside the student; only {able} can run "
            "elsewhere"
        )
    if point.training.devices > 1:
        raise UserError("launcher.teacher_device: every one of training.devices would put a teacher there")
    if objective.feature_terms:
        name = objective.feature_terms[0].name
        raise UserError(f"launcher.teacher_device: objective.terms.{name} compares inner states, beside the student only")
    if is_on_policy_enabled(point.on_policy) and point.on_policy.teacher_mix_fraction:
        raise UserError(
            "launcher.teacher_device: on_policy.teacher_mix_fraction draws from both models, on one device only"
        )


def check_against_teacher(config: ExperimentConfig, points: Sequence[GridPoint] | None = None) -> None:
    """Raises UserError for what the teacher's config and tokenizer show to be wrong: a student it cannot give or that reads
    other tokens, a term that does not fit both. The teacher must have been fetched; no weights are loaded."""
    folder = model_folder(config.teacher.model)  # no grid varies it
    teacher = load_model_config(folder)
    vocab_size = teacher.get_text_config().vocab_size
    check_special_tokens(load_tokenizer(folder), vocab_size, folder)
    readers: set[str] = set()  # models whose tokens have been compared
    aligned: set[Path] = set()  # and those whose bytes are known
    for _, point in points or expand_points(config):
        student = check_student_against_teacher(point.student, point.students[point.student], folder)
        check_row_length("data.sequence_length", f"students.{point.student}", student, point.data.sequence_length)
        source, able = teacher_source(point.teacher), teacher_capabilities(point.teacher)
        if able.needs_model and able.shares_tokenizer:  # it reads the same rows
            check_row_length("data.sequence_length", "the teacher", teacher, point.data.sequence_length)
        reference = point.students[point.student].from_
        if reference and able.shares_tokenizer and reference not in readers:
            check_student_vocabulary(point.student, reference, folder)
            readers.add(reference)
        if not able.shares_tokenizer and (base := student_base_folder(point, folder)) not in aligned:
            source.check_tokenizers(load_tokenizer(folder), load_tokenizer(base))
            aligned.add(base)
        objective = build_objective(point.objective.terms, point.objective.temperature_scaling)
        check_feature_dimensions(objective, student, teacher, able.hidden_layers)
        source.check_model(point.teacher, teacher)


def check_models(config: ExperimentConfig, points: Sequence[GridPoint] | None = None) -> None:
    """Raises UserError for questions and measurements that a model of the experiment is not made for. All assets must have
    been fetched; no weights are loaded."""
    from distill_lit.profiling.inference import check_positions

    folder = model_folder(config.teacher.model)
    folders = {
        "the teacher": folder,
        **{name: model_folder(reference) for name, reference in config.external_models.items()},
    }
    models = {name: (place, load_model_config(place)) for name, place in folders.items()}
    with_own_chat_template: set[str] = set()  # students with a chat template of their own
    for _, point in points or expand_points(config):
        student = check_student_against_teacher(point.student, point.students[point.student], folder)
        models[point.student] = (student_base_folder(point, folder), student)
        with_own_chat_template.update({point.student} if point.data.chat_template else ())
    check_evaluation_fits_models(config.evaluation, config.dataset_source, models, with_own_chat_template)
    if config.cost.measure:
        check_positions({name: model for name, (_, model) in models.items()}, config.cost)


def check_evaluation_fits_models(
    settings: EvaluationConfig,
    dataset_source: str,
    models: "Mapping[str, tuple[Path, PreTrainedConfig]]",
    with_own_chat_template: Collection[str] = (),
) -> None:
    """Raises UserError for questions that a model cannot be asked. models: (folder of its tokenizer, config) of each, by
    the name that users know it by; with_own_chat_template: those that get a chat template with their training."""
    from distill_lit.evaluation.task_evaluation import require_chat_template

    for name, (folder, _) in models.items() if settings.apply_chat_template else ():
        if name not in with_own_chat_template:
            require_chat_template(settings, load_tokenizer(folder), name)
    texts = {name: config.get_text_config() for name, (_, config) in models.items()}
    check_answer_lengths(
        settings, dataset_source, {n: getattr(text, "max_position_embeddings", 0) or 0 for n, text in texts.items()}
    )
    check_user_tasks(settings, dataset_source)


def load_evaluation_settings(
    reference: str, overrides: list[str], dataset_source: str, accelerator: str = "auto"
) -> EvaluationConfig:
    """The checked settings for evaluating one model outside an experiment. Raises UserError like `check_experiment`."""
    settings = load_section(EvaluationConfig, overrides)
    assets.check_reference(reference)
    hardware.device_for(accelerator, "--accelerator")
    if not settings.tasks:
        raise UserError("tasks: give at least one, as in tasks=[arc_easy,piqa]")
    check_tasks(settings, dataset_source)
    return settings
