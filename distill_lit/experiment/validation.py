"""What is refused before anything is run: by the config alone, by the environment, by the teacher's config."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_lit import assets, data
from distill_lit.config import EvaluationConfig, ExperimentConfig, OnPolicyConfig, TeacherConfig, load_section
from distill_lit.config.derivation import BASE_TEACHER, Recipe
from distill_lit.config.on_policy import check_on_policy, is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.evaluation.probe_corpora import check_probes
from distill_lit.evaluation.tasks import check_answer_lengths, check_tasks, check_user_tasks, has_generative_tasks
from distill_lit.experiment.agreement import AgreementCheck, penalty_notes
from distill_lit.experiment.architectures import Architectures
from distill_lit.experiment.fingerprint import TEACHER_INT8
from distill_lit.experiment.grid import GridPoint, expand_points
from distill_lit.experiment.mixture import asked_teachers, check_mixture
from distill_lit.experiment.pipeline import config_key, expand_pipeline, referred_models
from distill_lit.experiment.planned_run import Run
from distill_lit.experiment.run_references import RUN_PREFIX
from distill_lit.generation.corpus import check_generated_corpora
from distill_lit.losses import Objective, build_objective, check_teacher_supports_objective
from distill_lit.models import (
    check_student,
    check_student_origin,
    check_student_vocabulary,
    check_torchao,
    load_tokenizer,
)
from distill_lit.models.position_limits import check_row_length
from distill_lit.models.vocabulary import check_same_vocabulary, check_special_tokens
from distill_lit.teachers import (
    TeacherCapabilities,
    describe_teacher,
    sources_supporting,
    teacher_capabilities,
    teacher_source,
)
from distill_lit.training.feature_alignment import check_feature_dimensions, check_teacher_supports_features
from distill_lit.training.loggers import check_loggers
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:  # bad input is told before it is loaded
    from transformers import PreTrainedConfig


def check_experiment(config: ExperimentConfig, points: Sequence[GridPoint] | None = None) -> None:
    """Raises UserError for anything that can be known to be wrong before a model or data set is touched."""
    _check_reference(config.teacher.model, config)
    if TEACHER_INT8 in config.baselines:
        check_torchao(f"baselines: {TEACHER_INT8}")
    hardware.device_for(config.training.accelerator)
    if config.launcher.teacher_device:
        hardware.check_device("launcher.teacher_device", config.launcher.teacher_device)
    for name, student in config.students.items():
        check_student(f"students.{name}", student)
        _check_reference(student.from_, config)
    for reference in config.external_models.values():
        _check_reference(reference, config)
    check_loggers(config.loggers)
    for _, point, base in points or expand_points(config):
        recipes = expand_pipeline(point, base).recipes
        for name, recipe in recipes.items():
            _check_recipe(name, recipe, recipes)
    task_names = check_tasks(config.evaluation, config.dataset_source)
    check_probes(config.evaluation, config.dataset_source, task_names)


def _check_reference(reference: str, config: ExperimentConfig) -> None:
    is_made = reference in (BASE_TEACHER, *config.models) or reference.startswith(RUN_PREFIX)  # checked at each point
    if reference and not is_made:
        assets.check_reference(reference)


def _check_recipe(name: str, recipe: Recipe, recipes: Mapping[str, Recipe]) -> None:
    """What the config of one run shows."""
    config = recipe.config
    check_student(config_key(name, config), config.students[name])
    for reference in referred_models(config).values():
        if reference not in recipes:
            assets.check_reference(reference)
    if (shape := config.students[name]).quantize != "none":
        check_torchao(f"{config_key(name, config)}.quantize: {shape.quantize}")
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    if recipe.is_trained:
        _check_teacher(config, objective)
    data.check_data_config(config.data, config.dataset_source)
    check_generated_corpora(config.data, config.dataset_source)


def _check_teacher(point: ExperimentConfig, objective: Objective) -> None:
    """What the capabilities of the teacher do not allow."""
    for member in point.teacher.members.values():
        teacher_source(member).check(member)
    check_mixture(point)
    teacher, described = teacher_capabilities(point.teacher), describe_teacher(point.teacher)
    if objective.needs_teacher and not teacher.target_form:
        raise UserError(f"teacher.source: {point.teacher.source}, and a term of the objective compares with the teacher")
    for member in point.teacher.members.values():
        if teacher_capabilities(member).follows_student and not objective.needs_teacher:
            raise UserError(
                f"teacher.source: {member.source} follows the student through a training, and no term of the objective "
                "compares with the teacher"
            )
    check_on_policy(point.on_policy, described, teacher.scores_student_text, point.training.compile)
    if point.on_policy.teacher_mix_fraction and is_on_policy_enabled(point.on_policy) and not teacher.writes_text:
        raise UserError(f"on_policy.teacher_mix_fraction: tokens cannot be drawn from {described}")
    _check_policy_gradient(objective, point.on_policy)
    check_teacher_supports_objective(
        objective, teacher.target_form, described, has_on_policy_mask=is_on_policy_enabled(point.on_policy)
    )
    _check_teacher_prompt(point, objective, teacher, described)
    check_teacher_supports_features(objective, teacher, described, point.training.compile)
    for member in point.teacher.members.values():
        _check_teacher_device(point, objective, member)
    for section, corpora in (("corpora", point.data.corpora), ("validation", point.data.validation)):
        for name, corpus in corpora.items():
            if corpus.is_chat and not teacher.shares_tokenizer:  # a chat template belongs to a tokenizer
                raise UserError(f"data.{section}.{name}: {described} reads plain text only, and this is a chat")


def _check_teacher_prompt(
    point: ExperimentConfig, objective: Objective, teacher: TeacherCapabilities, described: str
) -> None:
    """What a teacher with a prompt of its own cannot do: its tokens are not the student's, but for the responses."""
    prompt = point.teacher.prompt
    if not prompt.is_set:
        if prompt.sequence_length:
            raise UserError("teacher.prompt.sequence_length: there is no prompt; give system, user or prefix too")
        return
    if not teacher.reads_prompt:
        able = " or ".join(sources_supporting(lambda other: other.reads_prompt))
        raise UserError(f"teacher.prompt: {described} has no prompt of its own; choose teacher.source {able}")
    if objective.feature_terms:
        name = objective.feature_terms[0].name
        raise UserError(f"teacher.prompt: objective.terms.{name} compares inner states, of one and the same text only")
    if point.teacher.hidden_layers:
        raise UserError("teacher.prompt: teacher.hidden_layers keeps inner states, which belong to one and the same text")
    if is_on_policy_enabled(point.on_policy) and point.on_policy.teacher_mix_fraction:
        raise UserError("teacher.prompt: on_policy.teacher_mix_fraction draws from both models behind the same prompt")
    data.check_teacher_prompt(prompt, point.data)


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


def _check_teacher_device(point: ExperimentConfig, objective: Objective, member: TeacherConfig) -> None:
    """What a teacher on a device of its own cannot do: it sends its last hidden states over, and nothing else."""
    teacher = teacher_capabilities(member)
    if not point.launcher.teacher_device or not teacher.runs_beside_student:
        return
    if not teacher.has_device:
        able = " or ".join(sources_supporting(lambda other: other.has_device))
        raise UserError(
            f"launcher.teacher_device: teacher.source {member.source} runs beside the student; only {able} can run "
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


def check_against_teacher(runs: Sequence[Run]) -> list[str]:
    """Raises UserError for what the configs and tokenizers of teachers show to be wrong: a student that one cannot give or
    that reads other tokens, a term that does not fit both, a chat that both would read or end differently. Returns what
    differs and is only to be known. All assets must have been fetched; no weights are loaded."""
    architectures = Architectures(runs)
    agreement = AgreementCheck(architectures)
    checked: set[Any] = set()  # what several runs have in common
    for run in runs:
        teacher = architectures.teacher(run)
        folder = teacher.tokenizer_folder
        if folder not in checked:
            checked.add(folder)
            check_special_tokens(load_tokenizer(folder), teacher.config.get_text_config().vocab_size, folder)
        if run.student and (key := _compared_fields(run)) not in checked:
            checked.add(key)
            _check_student_against_teacher(run, architectures)
        _check_same_tokens(run, architectures, checked)
        agreement.check(run)
    return agreement.notes


def _compared_fields(run: Run) -> tuple[Any, ...]:
    """What of a run decides whether its student fits its teacher."""
    config = run.config
    sections = (config.students[run.student], config.teacher, config.objective, config.data, config.on_policy)
    return run.student, *map(repr, sections)


def _check_student_against_teacher(run: Run, architectures: Architectures) -> None:
    config, teacher = run.config, architectures.teacher(run).config
    key = config_key(run.student, config)
    student = check_student_origin(key, config.students[run.student], architectures.origin(run).config)
    check_row_length("data.sequence_length", key, student, config.data.sequence_length)
    source, able = teacher_source(config.teacher), teacher_capabilities(config.teacher)
    if able.needs_model and able.shares_tokenizer:  # it reads the same rows
        check_row_length("data.sequence_length", "the teacher", teacher, config.data.sequence_length)
    if config.teacher.prompt.is_set:
        check_row_length("teacher.prompt.sequence_length", "the teacher", teacher, _longest_prompted_text(config))
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    check_feature_dimensions(objective, student, teacher, able.hidden_layers)
    source.check_model(config.teacher, teacher)
    _check_other_teachers(run, architectures)


def _check_other_teachers(run: Run, architectures: Architectures) -> None:
    """What the configs and tokenizers of teachers beside `teacher.model` show to be wrong."""
    config, own = run.config, architectures.teacher(run).tokenizer_folder
    for name, member in asked_teachers(config).items():
        if member.model == config.teacher.model or not teacher_capabilities(member).needs_model:
            continue
        other = architectures.of(member.model, run)
        try:
            check_same_vocabulary(load_tokenizer(own), load_tokenizer(other.tokenizer_folder))
        except UserError:
            raise UserError(
                f"teacher.mixture.teachers.{name}.model: {member.model} numbers its tokens otherwise than "
                f"{config.teacher.model}; several teachers need one tokenizer"
            ) from None
        check_row_length("data.sequence_length", f"the teacher {name}", other.config, config.data.sequence_length)
        teacher_source(member).check_model(member, other.config)


def _longest_prompted_text(config: ExperimentConfig) -> int:
    """Tokens of the longest text that a teacher with a prompt of its own may read: a student may write as many tokens more
    than it finds in the corpora."""
    written = config.on_policy.max_new_tokens if is_on_policy_enabled(config.on_policy) else 0
    return (config.teacher.prompt.sequence_length or config.data.sequence_length) + written


def _check_same_tokens(run: Run, architectures: Architectures, checked: set[Any]) -> None:
    """Raises UserError unless a student reads the tokens of its teacher, or the teacher can do with others. checked: pairs
    of tokenizers that have been compared, to which this one is added."""
    if not run.student:
        return
    config, teacher = run.config, architectures.teacher(run).tokenizer_folder
    able, reference = teacher_capabilities(config.teacher), config.students[run.student].from_
    own = architectures.of(reference, run).tokenizer_folder if reference else teacher
    if (pair := (able.shares_tokenizer, teacher, own)) in checked or (own == teacher and able.shares_tokenizer):
        return
    checked.add(pair)
    if able.shares_tokenizer:
        check_student_vocabulary(config_key(run.student, config), own, teacher)
    else:
        teacher_source(config.teacher).check_tokenizers(load_tokenizer(teacher), load_tokenizer(own))


def check_models(config: ExperimentConfig, runs: Sequence[Run]) -> list[str]:
    """Raises UserError for questions and measurements that a model of the experiment is not made for. Returns what is to be
    known of how they answer. All assets must have been fetched; no weights are loaded."""
    from distill_lit.profiling.inference import check_positions

    architectures = Architectures(runs)
    models = {"the teacher" if run.role == Role.TEACHER else run.student or run.label: run for run in runs if run.is_model}
    known = {name: architectures.student(run) for name, run in models.items()}
    folders = {name: (architecture.tokenizer_folder, architecture.config) for name, architecture in known.items()}
    with_own_chat_template = {run.student for run in runs if run.student and run.config.data.chat_template}
    check_evaluation_fits_models(config.evaluation, config.dataset_source, folders, with_own_chat_template)
    if config.cost.measure:
        check_positions({name: architecture.config for name, architecture in known.items()}, config.cost)
    if not has_generative_tasks(config.evaluation, config.dataset_source):
        return []
    return penalty_notes({name: folder for name, (folder, _) in folders.items() if not models[name].student})


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
    check_probes(settings, dataset_source, check_tasks(settings, dataset_source))
    return settings
