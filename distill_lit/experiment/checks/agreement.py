"""Do the models of an experiment agree on how a chat is written, where a text ends, and how one is drawn?

All of it shows in configs and tokenizers, before any weight is loaded. What breaks an experiment is refused; what is only
to be known is a note, for the terminal and the report. See docs/concepts/templates_and_ends.md.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distill_lit import assets
from distill_lit.config import ExperimentConfig, GeneratedConfig
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.data.chat import check_has_chat_template
from distill_lit.data.chat_agreement import (
    TurnEnd,
    chat_tokens,
    check_prompt_renders,
    find_turn_end,
    rendering_difference,
    token_id_difference,
)
from distill_lit.data.templates import CHAT_TEMPLATE_KEY, read_template, set_chat_template
from distill_lit.experiment.checks.model_files import ModelFiles
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.experiment.planning.asked_teachers import asked_teachers, teacher_weights
from distill_lit.experiment.planning.pipeline import config_key
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.losses import build_objective
from distill_lit.models.generation_files import load_generation_config, penalty_settings, sampling_settings
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.template_limits import TemplateLimitExceeded


class AgreementCheck:
    """Compares the models of an experiment run by run. `notes`: what differs and is only to be known."""

    def __init__(self, architectures: Architectures) -> None:
        self.notes: list[str] = []
        self._architectures = architectures
        self._files: dict[tuple[str, int], ModelFiles] = {}
        self._checked: set[str] = set()

    def check(self, run: Run) -> None:
        """Adds the notes of a run. Raises UserError for what breaks it. The models must have been fetched."""
        point = run.config
        relevant = (run.student, point.teacher, point.objective, point.on_policy, point.data, point.evaluation)
        shape = run.student and point.students[run.student].from_
        key = repr((*relevant, shape, self._architectures.references(run)))
        if not (run.student or run.role == Role.GENERATED) or key in self._checked:
            return
        self._checked.add(key)
        teacher = self._model("the teacher", point.teacher.model, run)
        for name, corpus in point.data.corpora.items():
            self._note(self._check_writer(f"data.corpora.{name}.generated", corpus.generated, run))
        if run.student and point.students[run.student].quantize == "none":
            self._note(self._check_student(run, teacher))

    def _note(self, found: list[str]) -> None:
        self.notes += [note for note in found if note not in self.notes]

    def _check_student(self, run: Run, teacher: ModelFiles) -> list[str]:
        point, key = run.config, config_key(run.student, run.config)
        student = self._model(key, point.students[run.student].from_, run)
        found: list[str] = []
        if teacher_capabilities(point.teacher).shares_tokenizer:
            found += _tokenizer_notes(teacher, student)
            if point.data.has_chats:
                found += _check_chats(point, teacher, student, self._teachers_of_chats(run))
        found += _sampling_notes(point, student)
        return found + _evaluation_notes(point, teacher)

    def _model(self, name: str, reference: str, run: Run) -> ModelFiles:
        """A model of a run before it is trained in it; the teacher where there is no reference, or where it is the same."""
        of_teacher = self._architectures.teacher(run)
        found = self._architectures.of(reference, run) if reference else of_teacher
        teacher = self._files.setdefault(("the teacher", id(of_teacher)), ModelFiles("the teacher", of_teacher))
        if found is of_teacher:
            return teacher
        model = self._files.setdefault((name, id(found)), ModelFiles(name, found))
        return teacher if model.is_like(teacher) else model

    def _teachers_of_chats(self, run: Run) -> list[ModelFiles]:
        """The teachers whose models the loss asks about chats."""
        point = run.config
        if not build_objective(point.objective.terms, point.objective.temperature_scaling).needs_teacher:
            return []
        weights, chats = teacher_weights(point), [name for name, corpus in point.data.corpora.items() if corpus.is_chat]
        asked = {
            f"the teacher {name}": teacher.model
            for name, teacher in asked_teachers(point).items()
            if teacher_capabilities(teacher).needs_model and any(weights[corpus].get(name) for corpus in chats)
        }
        return list(dict.fromkeys(self._model(name, reference, run) for name, reference in asked.items()))

    def _check_writer(self, key: str, generated: GeneratedConfig | None, run: Run) -> list[str]:
        """A local model that writes a corpus: it must be able to read its prompts."""
        if generated is None or generated.remote is not None:
            return []
        if generated.model and generated.model not in run.sources and not assets.is_fetched(generated.model):
            return []
        writer = self._model("the model that writes", generated.model, run)
        if generated.chat:
            if not writer.tokenizer.chat_template:
                raise UserError(f"{key}.chat: the tokenizer of {writer.name} has no chat template; set it to false")
            try:
                check_prompt_renders(writer.tokenizer, generated.prompts.system_prompt)
            except UserError as error:
                place = ".prompts.system_prompt" if generated.prompts.system_prompt else ".chat"
                raise UserError(f"{key}{place}: of {writer.name}: {error}") from error
        return _sampling_note(key, generated.temperature, generated.top_p, writer)


# ---------------------------------------------------------------- chats that several models read


def _check_chats(
    point: ExperimentConfig, teacher: ModelFiles, student: ModelFiles, asked: Sequence[ModelFiles]
) -> list[str]:
    """Rows are written in one chat template, and read by all models. teacher: `teacher.model`; asked: the teachers that the
    loss asks about the chats, it or others."""
    template = read_template(point.data.chat_template)
    rows = set_chat_template(copy.copy(teacher.tokenizer), template)
    check_has_chat_template(rows)
    key = CHAT_TEMPLATE_KEY if template else "the teacher's chat template"
    try:
        end, tokens = find_turn_end(rows), chat_tokens(rows)
    except TemplateLimitExceeded:
        raise
    except UserError as error:
        return [f"{key}: it does not take a plain question and its answer, so that nothing is compared: {error}"]
    teachers = dict.fromkeys([*asked, teacher])
    for model in (*teachers, student):
        _check_tokens_are_known(key, tokens, model)
    notes = _check_end(key, end)
    for model in teachers:
        notes += _check_teacher_template(key, rows, tokens, model, model in asked)
    notes += _own_template_notes(key, rows, student) if point.students[point.student].from_ else []
    return notes + _check_turn_ends(point, end, asked or [teacher], student, is_asked=bool(asked))


def _check_tokens_are_known(key: str, tokens: dict[int, str], model: ModelFiles) -> None:
    for number, token in tokens.items():
        if number >= model.vocab_size:
            raise UserError(
                f"{key}: it writes {token!r}, token {number:,}, and {model.name} has {model.vocab_size:,} tokens"
            )


def _check_end(key: str, end: TurnEnd | None) -> list[str]:
    """The token that ends a response must be among what students learn to write."""
    if end is None:
        return [f"{key}: no token ends a response, so that students learn no end of a turn from these chats"]
    if not end.is_supervised:
        raise UserError(
            f"{key}: its {{% generation %}} block ends before {end.token!r}, so that no student would learn to end a turn; "
            "put the token into the block"
        )
    return []


def _check_teacher_template(key: str, rows: Any, tokens: dict[int, str], teacher: ModelFiles, is_asked: bool) -> list[str]:
    """A teacher with a template of its own was made for that format, and reads that of the rows."""
    known = teacher.known_chats
    if not known.chat_template or known.chat_template == rows.chat_template:
        return []
    try:
        own = chat_tokens(known)
    except TemplateLimitExceeded:
        raise
    except UserError:
        return []
    difference = rendering_difference(rows, known)
    if own != tokens and is_asked:
        remedy = "leave it empty" if key == CHAT_TEMPLATE_KEY else "have it score plain text alone"
        raise UserError(
            f"{key}: it writes a chat with {_quoted(tokens.values()) or 'no special token'}, {teacher.name}'s own template "
            f"with {_quoted(own.values()) or 'none'}: {teacher.name} would score a format that it does not know; {remedy}, "
            f"or train {teacher.name} on such chats first"
        )
    return [f"{key} renders a chat unlike {teacher.name}'s own template, {difference}"] if difference else []


def _own_template_notes(key: str, rows: Any, student: ModelFiles) -> list[str]:
    if not student.known_chats.chat_template:
        return []
    difference = rendering_difference(rows, student.known_chats)
    said = f"{student.name}: it is trained on chats of {key}, which renders them unlike its own, {difference}"
    return [said] if difference else []


def _check_turn_ends(
    point: ExperimentConfig, end: TurnEnd | None, teachers: Sequence[ModelFiles], student: ModelFiles, is_asked: bool
) -> list[str]:
    """The token that ends a turn of the rows should be one with which the models end their texts. is_asked: whether the
    loss asks the teachers about the rows."""
    if end is None:
        return []
    strangers = [teacher for teacher in teachers if end.token_id not in teacher.eos_token_ids]
    notes = [
        f"{teacher.name} ends its texts with {teacher.eos_tokens}, and a turn of these chats ends with {end.token!r}: if "
        "it was not trained on such chats, it teaches students to go on, and only a term on labels, as ce, to stop"
        for teacher in strangers
        if is_asked
    ]
    if len(strangers) < len(teachers) and end.token_id not in student.eos_token_ids:
        own = f"{student.name} ends its texts with {student.eos_tokens}, and a turn of these chats ends with {end.token!r}"
        settings = point.on_policy
        if settings.fraction == 1 and not settings.teacher_mix_fraction:
            raise UserError(
                f"on_policy.fraction: {own}: from its own text alone it would not learn to stop; train it on the chats "
                "first, or set a fraction below 1"
            )
        notes.append(f"{own}, which it learns only here")
    return notes


# ---------------------------------------------------------------- text of any kind


def _tokenizer_notes(teacher: ModelFiles, student: ModelFiles) -> list[str]:
    """A student of another model reads with the teacher's tokenizer."""
    if student is teacher:
        return []
    notes = []
    difference = token_id_difference(teacher.tokenizer, student.tokenizer)
    if difference:
        notes.append(f"{student.name}: it reads with the teacher's tokenizer, which cuts text unlike its own: {difference}")
    end = teacher.tokenizer.eos_token_id
    if end is not None and end >= student.vocab_size:
        raise UserError(
            f"{student.name}.from: the teacher's tokenizer ends texts with token {end:,}, and it has "
            f"{student.vocab_size:,} tokens"
        )
    if end is not None and end not in student.eos_token_ids:
        notes.append(
            f"{student.name}: documents end with {teacher.tokenizer.eos_token!r}, the teacher's, and its own texts with "
            f"{student.eos_tokens}"
        )
    return notes


def _sampling_notes(point: ExperimentConfig, student: ModelFiles) -> list[str]:
    settings = point.on_policy
    if not is_on_policy_enabled(settings):
        return []
    return _sampling_note("on_policy", settings.temperature, settings.top_p, student)


def _sampling_note(key: str, temperature: float, top_p: float, writer: ModelFiles) -> list[str]:
    """What a model's own file recommends is not followed: the config alone says how text is drawn."""
    recommended = sampling_settings(writer.generation_config)
    same = {"temperature": temperature, "top_p": top_p}
    others = {name: value for name, value in recommended.items() if same.get(name) != value}
    if not others:
        return []
    return [
        f"{key}: text is drawn at temperature {temperature:g} and top_p {top_p:g}, whatever generation_config.json of "
        f"{writer.name} says: {_settings(others)}"
    ]


def _evaluation_notes(point: ExperimentConfig, teacher: ModelFiles) -> list[str]:
    """Questions in a chat template: of students that never saw one, or another one than the teacher."""
    settings, student = point.evaluation, point.students[point.student]
    if not settings.apply_chat_template or not settings.tasks:
        return []
    if (student.from_ or student.config) and not point.data.has_chats:
        return [f"evaluation.apply_chat_template: students.{point.student} is asked in chats, and its corpora have none"]
    template = read_template(point.data.chat_template)
    if template and teacher.tokenizer.chat_template:
        rows = set_chat_template(copy.copy(teacher.tokenizer), template)
        if difference := rendering_difference(rows, teacher.tokenizer):
            return [
                "evaluation.apply_chat_template: students are asked in data.chat_template and the teacher in its own, "
                f"{difference}"
            ]
    return []


def penalty_notes(folders: dict[str, Path]) -> list[str]:
    """Models that write answers under penalties of their own, which lm-eval leaves to them. folders: of models by the names
    that users know them by; students have the teacher's file."""
    found = {name: penalty_settings(load_generation_config(folder)) for name, folder in folders.items()}
    return [
        f"evaluation.tasks: {name} writes its answers under {_settings(settings)} of its generation_config.json"
        for name, settings in found.items()
        if settings
    ]


def _quoted(tokens: Iterable[str]) -> str:
    return ", ".join(repr(token) for token in tokens)


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {str(value)[:40]}" for name, value in values.items())
