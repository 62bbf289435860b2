"""What is refused before anything is run: by the config alone, and by the environment."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from distill_lit import assets, data
from distill_lit.config import (
    EvaluationConfig,
    ExperimentConfig,
    LauncherConfig,
    TeacherConfig,
    load_section,
)
from distill_lit.config.derivation import Recipe
from distill_lit.config.grid_points import comparable_text
from distill_lit.config.hypotheses import ROLE, STUDENT, axis_named, values_of
from distill_lit.config.hypothesis_validation import needed_baselines
from distill_lit.config.models import BASE_TEACHER
from distill_lit.config.on_policy import check_on_policy, is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.config.training import check_lr_schedule
from distill_lit.evaluation.probe_corpora import check_probes
from distill_lit.evaluation.tasks import check_tasks
from distill_lit.experiment.checks.export_checks import check_adaptive_fraction, check_export
from distill_lit.experiment.estimates.strategy import check_strategy
from distill_lit.experiment.execution.devices import num_devices, share_gpus, visible_gpus
from distill_lit.experiment.launcher.slurm.checks import check_slurm_config
from distill_lit.experiment.planning.asked_teachers import check_mixture
from distill_lit.experiment.planning.fingerprint import TEACHER_INT8
from distill_lit.experiment.planning.grid import GridPoint, expand_points
from distill_lit.experiment.planning.pipeline import config_key, expand_pipeline, referred_models
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.run_references import RUN_PREFIX
from distill_lit.generation.backend import check_backend
from distill_lit.generation.corpus import check_generated_corpora
from distill_lit.losses import Objective, build_objective, check_teacher_supports_objective
from distill_lit.models import check_student, check_torchao
from distill_lit.teachers import (
    TeacherCapabilities,
    describe_teacher,
    sources_supporting,
    teacher_capabilities,
    teacher_source,
)
from distill_lit.teachers.unread_fields import check_unread_teacher_fields
from distill_lit.training.feature_alignment import check_teacher_supports_features
from distill_lit.training.input_checks import check_policy_gradient
from distill_lit.training.loggers import check_loggers
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError, suggest


def check_experiment(config: ExperimentConfig, points: Sequence[GridPoint] | None = None) -> None:
    """Raises UserError for anything that can be known to be wrong before a model or data set is touched."""
    _check_reference("teacher.model", config.teacher.model, config)
    if TEACHER_INT8 in config.baselines:
        check_torchao(f"baselines: {TEACHER_INT8}")
    points = points or expand_points(config)
    _check_launcher(config)
    for name, student in config.students.items():
        check_student(f"students.{name}", student)
        _check_reference(f"students.{name}.from", student.from_, config)
    for name, reference in config.external_models.items():
        if not reference:
            raise UserError(f"external_models.{name}: it is required and has no value")
        _check_reference(f"external_models.{name}", reference, config)
    check_loggers(config.loggers)
    configs: list[ExperimentConfig] = []
    for _, point, base in points:
        recipes = expand_pipeline(point, base).recipes
        for name, recipe in recipes.items():
            _check_recipe(name, recipe, recipes)
        configs += [point, *(recipe.config for recipe in recipes.values())]
    check_unread_teacher_fields(configs)
    task_names = check_tasks(config.evaluation, config.dataset_source)
    check_probes(config.evaluation, config.dataset_source, task_names)
    if not config.report.is_empty:
        from distill_lit.report.declared_names import check_report_section  # pandas takes a second

        check_report_section(config, task_names)


def _check_launcher(config: ExperimentConfig) -> None:
    """Raises UserError for devices that are not here. On a cluster they are not to be here but on its nodes."""
    if config.launcher.engine == "slurm":
        check_slurm_config(config.launcher.slurm)
        return
    hardware.device_for(config.training.accelerator)
    if config.launcher.teacher_device not in ("", "auto"):
        hardware.check_device("launcher.teacher_device", config.launcher.teacher_device)


def check_gpus(launcher: LauncherConfig, runs: Sequence[Run], is_done: Callable[[Run], bool]) -> None:
    """Raises UserError where this machine has too few GPUs for those of these runs that are not done, or for the workers
    that do them. is_done: asked only where it matters, as it reads every file of a run."""
    gpus = visible_gpus() if launcher.engine == "local" else []
    try:
        _check_gpus(launcher, runs if gpus else (), gpus)
    except UserError:
        _check_gpus(launcher, [run for run in runs if not is_done(run)], gpus)


def _check_gpus(launcher: LauncherConfig, runs: Sequence[Run], gpus: list[str]) -> None:
    for run in runs:
        if num_devices(run) > len(gpus):
            raise UserError(f"training.devices: {run.label} takes {num_devices(run)} GPUs, and {len(gpus)} are here")
    share_gpus(launcher, runs, gpus)


def check_own_text(runs: Iterable[Run]) -> None:
    """Raises UserError for text of one's own whose first row makes no document for a student of these runs."""
    texts = {id(run.config.data): run.config.data for run in runs if run.student}  # runs share most of them
    for text in {repr(text): text for text in texts.values()}.values():
        data.check_first_rows(text)


def untestable_at_points(config: ExperimentConfig, points: Sequence[GridPoint]) -> dict[str, str]:
    """{name: why} of the hypotheses that no model could decide, by which points of the grid learn from a teacher."""
    if not config.hypotheses:
        return {}
    learning = [point for point in points if expand_pipeline(point.config, point.base).learns_from_teacher]
    planned, distilled = (_values_by_key(point.values for point in some) for some in (points, learning))
    is_compared = Role.CE_ONLY in config.baselines or len(learning) < len(points)
    found = {}
    for name, hypothesis in config.hypotheses.items():
        if not is_compared and Role.CE_ONLY in needed_baselines(hypothesis):
            found[name] = f"hypotheses.{name}: it needs ce_only in baselines"
        role = hypothesis.models.get(ROLE, Role.DISTILLED)  # that of the opponents too, unless they have another
        for side, selection in (("models", hypothesis.models), ("against", hypothesis.against)):
            if isinstance(selection, dict) and set(values_of(selection.get(ROLE, role))) == {Role.DISTILLED}:
                for key, value in _without_teacher(selection, planned, distilled):
                    remedy = (
                        "write against: without_teacher" if side == "against" else f"leave it out, or write {ROLE}: ce_only"
                    )
                    found[name] = (
                        f"hypotheses.{name}.{side}.{key}: nothing at {value} learns from a teacher, so its student is the "
                        f"one without teacher; {remedy}"
                    )
    return found


def _without_teacher(
    selection: Mapping[str, Any], planned: Mapping[str, set[str]], distilled: Mapping[str, set[str]]
) -> Iterator[tuple[str, Any]]:
    """The (key, value) of a selection of distilled students at which there are none: the student there bears no value of
    the grid. planned, distilled: as `_values_by_key`, of all points and of those with distilled students."""
    for key, value in selection.items():
        axis = axis_named(str(key), planned) or ""
        for one in values_of(value, planned.get(axis, ())):
            if comparable_text(one) in planned.get(axis, set()) - distilled.get(axis, set()):
                yield key, one


def _values_by_key(points: Iterable[Mapping[str, Any]]) -> dict[str, set[str]]:
    """{key of the grid but the student: its values, by `comparable_text`}."""
    found: dict[str, set[str]] = {}
    for point in points:
        for key in point.keys() - {STUDENT}:
            found.setdefault(key, set()).add(comparable_text(point[key]))
    return found


def _check_reference(key: str, reference: str, config: ExperimentConfig) -> None:
    """Raises UserError, naming the key, for a reference to neither a model of `models` nor weights elsewhere."""
    known = (BASE_TEACHER, *config.models)
    if not reference or reference in known or reference.startswith(RUN_PREFIX):  # checked at each point
        return
    try:
        assets.check_reference(reference)
    except UserError as error:
        if config.models and re.fullmatch(r"[\w-]+", reference):
            message = f"{key}: no model and no path is called {reference!r}{suggest(reference, known)}"
            raise UserError(message) from error
        raise UserError(f"{key}: {error}") from error


def _check_recipe(name: str, recipe: Recipe, recipes: Mapping[str, Recipe]) -> None:
    """What the config of one run shows."""
    config = recipe.config
    check_student(config_key(name, config), config.students[name])
    for key, reference in referred_models(config).items():
        if reference not in recipes:
            _check_reference(key, reference, config)
    if (shape := config.students[name]).quantize != "none":
        check_torchao(f"{config_key(name, config)}.quantize: {shape.quantize}")
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    if recipe.is_trained:
        check_lr_schedule(config.training)
        _check_teacher(config, objective)
        check_export(config, objective)
        check_adaptive_fraction(config, objective)
        check_strategy(config, objective, name)
    check_backend(config)
    data.check_data_config(config.data, config.dataset_source)
    check_generated_corpora(config.data, config.dataset_source)


def _check_teacher(point: ExperimentConfig, objective: Objective) -> None:
    """What the capabilities of the teacher do not allow."""
    for member in point.teacher.members.values():
        teacher_source(member).check(member)
        teacher_source(member).check_data(member, point.data)
        if member.quantize != "none":
            check_torchao(f"teacher.quantize: {member.quantize}")
            if not teacher_capabilities(member).needs_model:
                raise UserError(f"teacher.quantize: {describe_teacher(member)} has no model of its own")
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
    check_on_policy(point.on_policy, described, teacher.scores_student_text, point.training.compile == "always")
    if point.on_policy.teacher_mix_fraction and is_on_policy_enabled(point.on_policy) and not teacher.writes_text:
        raise UserError(f"on_policy.teacher_mix_fraction: tokens cannot be drawn from {described}")
    check_policy_gradient(objective, point.on_policy)
    check_teacher_supports_objective(
        objective, teacher.target_form, described, is_on_policy_enabled(point.on_policy), teacher.max_target_tokens
    )
    _check_teacher_prompt(point, objective, teacher, described)
    check_teacher_supports_features(objective, teacher, described, point.training.compile == "always")
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


def _check_teacher_device(point: ExperimentConfig, objective: Objective, member: TeacherConfig) -> None:
    """What a teacher on a device of its own cannot do: it sends its last hidden states over, and nothing else."""
    teacher = teacher_capabilities(member)
    if point.launcher.teacher_device == "auto":
        _check_teacher_over_devices(point, member, teacher)
    if not point.launcher.teacher_device or not teacher.runs_beside_student:
        return
    if not teacher.has_device:
        able = " or ".join(sources_supporting(lambda other: other.has_device))
        raise UserError(
            f"launcher.teacher_device: teacher.source {member.source} runs beside the student; only {able} can run "
            "elsewhere"
        )
    if point.training.ranks > 1:
        raise UserError("launcher.teacher_device: every one of training.devices would put a teacher there")
    if objective.feature_terms:
        name = objective.feature_terms[0].name
        raise UserError(f"launcher.teacher_device: objective.terms.{name} compares inner states, beside the student only")
    if is_on_policy_enabled(point.on_policy) and point.on_policy.teacher_mix_fraction:
        raise UserError(
            "launcher.teacher_device: on_policy.teacher_mix_fraction draws from both models, on one device only"
        )


def _check_teacher_over_devices(point: ExperimentConfig, member: TeacherConfig, teacher: TeacherCapabilities) -> None:
    """What a teacher that is spread over all devices cannot do."""
    if teacher.runs_beside_student:
        raise UserError(
            "launcher.teacher_device: auto spreads a teacher over all devices while its cache is written; take "
            "teacher.source: offline, or beside the student training.strategy: fsdp"
        )
    if member.quantize != "none":
        raise UserError("launcher.teacher_device: auto is for weights as they are; leave out teacher.quantize")
    if point.training.strategy == "fsdp":
        raise UserError("launcher.teacher_device: auto is for one process; training.strategy: fsdp shards the teacher")


def load_evaluation_settings(
    reference: str, overrides: list[str], dataset_source: str, accelerator: str = "auto"
) -> EvaluationConfig:
    """The checked settings for evaluating one model outside an experiment. Raises UserError like `check_experiment`."""
    settings = load_section(EvaluationConfig, overrides)
    assets.check_reference(reference)
    hardware.device_for(accelerator, "--accelerator")
    if not settings.tasks:
        raise UserError("tasks: give at least one, as in 'tasks=[arc_easy,piqa]'")
    check_probes(settings, dataset_source, check_tasks(settings, dataset_source))
    return settings
