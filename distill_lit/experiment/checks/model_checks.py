"""What the files of models show to be wrong before any is loaded: their transformers configs and their tokenizers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_lit.config import EvaluationConfig, ExperimentConfig
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.data.token_pipeline import check_token_files
from distill_lit.evaluation.tasks import check_answer_lengths, check_user_tasks, has_generative_tasks
from distill_lit.experiment.checks.agreement import AgreementCheck, penalty_notes
from distill_lit.experiment.execution.services import asking_members, check_service_starts
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.experiment.planning.asked_teachers import asked_teachers
from distill_lit.experiment.planning.pipeline import config_key
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.losses import build_objective
from distill_lit.models import check_quantizable, check_student_origin, check_student_vocabulary, load_tokenizer
from distill_lit.models.position_limits import check_row_length
from distill_lit.models.vocabulary import check_same_vocabulary, check_special_tokens
from distill_lit.teachers import teacher_capabilities, teacher_source
from distill_lit.training.feature_alignment import check_feature_dimensions
from distill_lit.utils.exceptions import UserError

if TYPE_CHECKING:  # bad input is told before it is loaded
    from transformers import PreTrainedConfig


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
        if run.student and (key := _compared_fields(run, architectures)) not in checked:
            checked.add(key)
            _check_student_against_teacher(run, architectures)
        _check_same_tokens(run, architectures, checked)
        agreement.check(run)
    return agreement.notes


def _compared_fields(run: Run, architectures: Architectures) -> tuple[Any, ...]:
    """What of a run decides whether its student fits its teacher."""
    config = run.config
    sections = (config.students[run.student], config.teacher, config.objective, config.data, config.on_policy)
    return run.student, *map(repr, (*sections, architectures.references(run)))


def _check_student_against_teacher(run: Run, architectures: Architectures) -> None:
    config, teacher = run.config, architectures.teacher(run).config
    key = config_key(run.student, config)
    shape, origin = config.students[run.student], architectures.origin(run).config
    if not shape.config and getattr(origin, "quantization_config", None) is not None:
        raise UserError(
            f"{key}: it begins as {shape.from_ or 'the teacher'}, whose weights are rounded (quantization_config in its "
            "config.json); begin with the model in full precision, see `from`"
        )
    student = check_student_origin(key, shape, origin)
    check_token_files(config.data, architectures.reader(run).tokenizer_folder, config.teacher.prompt)
    check_row_length("data.sequence_length", key, student, config.data.sequence_length)
    source, able = teacher_source(config.teacher), teacher_capabilities(config.teacher)
    if able.needs_model and able.shares_tokenizer:  # it reads the same rows
        check_row_length("data.sequence_length", "the teacher", teacher, config.data.sequence_length)
    if config.teacher.prompt.is_set:
        check_row_length("teacher.prompt.sequence_length", "the teacher", teacher, _longest_prompted_text(config))
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    check_feature_dimensions(objective, student, teacher, able.hidden_layers)
    source.check_model(config.teacher, teacher)
    if config.teacher.quantize != "none":
        if getattr(teacher, "quantization_config", None) is not None:
            raise UserError("teacher.quantize: the teacher's weights are quantized already")
        check_quantizable(teacher, config.teacher.quantize, "teacher.quantize")
    if config.training.strategy == "fsdp" and getattr(teacher, "quantization_config", None) is not None:
        raise UserError("training.strategy: fsdp cannot cut the teacher's quantized weights; take ddp, or source: offline")
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


def check_services(runs: Sequence[Run], pending: Iterable[Run]) -> None:
    """Raises UserError where a service that one of the pending runs will ask is not there, or cannot do what is wanted of
    it. runs: all of the experiment, from some of which pending ones are made."""
    architectures, asked = Architectures(runs), set[str]()
    for run in pending:
        for member in asking_members(run):
            check_service_starts(run, member.server.service)
            if (key := repr(member)) not in asked:
                asked.add(key)
                teacher_source(member).check_service(member, architectures.teacher(run).tokenizer_folder)


def check_models(config: ExperimentConfig, runs: Sequence[Run]) -> list[str]:
    """Raises UserError for questions and measurements that a model of the experiment is not made for. Returns what is to be
    known of how they answer. All assets must have been fetched; no weights are loaded."""
    from distill_lit.profiling.inference import check_positions

    architectures = Architectures(runs)
    models = _models_that_differ(runs, architectures)
    known = {name: architectures.student(run) for name, run in models.items()}
    folders = {name: (architecture.tokenizer_folder, architecture.config) for name, architecture in known.items()}
    with_own_chat_template = {name for name, architecture in known.items() if architecture.chat_template}
    check_evaluation_fits_models(config.evaluation, config.dataset_source, folders, with_own_chat_template)
    if config.cost.measure:
        check_positions({name: architecture.config for name, architecture in known.items()}, config.cost)
    if not has_generative_tasks(config.evaluation, config.dataset_source):
        return []
    return penalty_notes({name: folder for name, (folder, _) in folders.items() if not models[name].student})


def _models_that_differ(runs: Sequence[Run], architectures: Architectures) -> dict[str, Run]:
    """{name: run} of one run of every student, or several where they are made in different ways, as by several teachers."""
    found: dict[str, Run] = {}
    ways: set[tuple[Any, ...]] = set()
    for run in runs:
        name = "the teacher" if run.role == Role.TEACHER else run.student or run.label
        if run.is_model:
            made = architectures.student(run)
            positions = getattr(made.config.get_text_config(), "max_position_embeddings", 0)
            way = (name, made.tokenizer_folder, made.chat_template, positions)
            if way not in ways:
                ways.add(way)
                found[run.label if name in found else name] = run
    return found


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
