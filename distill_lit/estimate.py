"""What an experiment will cost, before it starts: tokens, arithmetic, disk, minutes."""

from dataclasses import dataclass

from distill_lit import assets, hardware
from distill_lit.config import ExperimentConfig
from distill_lit.data.loader import optimizer_steps
from distill_lit.experiment import Cell
from distill_lit.identity import CE_ONLY, DISTILLED, GENERATED, QUANTISED, SIGNAL
from distill_lit.models import Size, load_config, model_folder, size_from_config, student_config
from distill_lit.objectives import build_objective
from distill_lit.signals.compress import HIDDEN
from distill_lit.teaching import cache_form

# shares of the speed of a plain matrix product that whole passes reach: measured with SmolLM2-135M on two cores
TRAINING_EFFICIENCY, FORWARD_EFFICIENCY = 0.45, 0.55
DECODING_EFFICIENCY = 0.1  # one token at a time, 16 sequences beside each other
TEXT_BYTES = 12  # of a token in JSON: text, id, log-probability
TOKENS_PER_DOCUMENT = 120  # of the benchmark questions, shared prefixes once
WHOLE_TASK_DOCUMENTS = 1500  # a guess where no limit is given
BYTES_PER_WEIGHT, BYTES_PER_CHECKPOINTED_WEIGHT = 4, 12


@dataclass(frozen=True)
class Estimate:
    """tokens: read in training; flops: all arithmetic; bytes: on disk when the cell is done; peak_bytes: while it runs."""

    tokens: int
    flops: float
    bytes: int
    peak_bytes: int
    minutes: float


def estimates(cells: list[Cell]) -> dict[str, Estimate] | None:
    """{cell name: estimate}, or None while the teacher has not been fetched."""
    if not cells or not assets.is_fetched(cells[0].config.teacher.model):
        return None
    teacher_config = load_config(model_folder(cells[0].config.teacher.model))
    teacher = size_from_config(teacher_config)
    return {cell.name: _estimate(cell, teacher, _student_size(cell, teacher_config, teacher)) for cell in cells}


def _student_size(cell: Cell, teacher_config: object, teacher: Size) -> Size:
    student = cell.config.students.get(cell.student)
    if student is None:
        return teacher
    if student.from_ and not assets.is_fetched(student.from_):
        return teacher
    return size_from_config(student_config(student, teacher_config))


def _estimate(cell: Cell, teacher: Size, student: Size) -> Estimate:
    config = cell.config
    speed = hardware.speeds(hardware.device_for(config.training.accelerator))
    train_speed, teacher_speed = speed[config.training.precision], speed.get(config.teacher.dtype, speed["float32"])
    evaluation_speed = speed.get(config.evaluation.dtype, speed["float32"])
    if cell.role == GENERATED:
        return _writing(config, teacher, teacher_speed)
    if cell.role == SIGNAL:
        tokens = config.data.tokens
        flops = teacher.flops_per_token(head=False) * tokens
        size = tokens * _cached_bytes(config, teacher)
        return Estimate(0, flops, size, size, flops / (teacher_speed * FORWARD_EFFICIENCY) / 60)
    questions = len(config.evaluation.tasks) * (config.evaluation.limit or WHOLE_TASK_DOCUMENTS) * TOKENS_PER_DOCUMENT
    asking = student.flops_per_token() * questions
    minutes = asking / (evaluation_speed * FORWARD_EFFICIENCY) / 60
    tokens = _training_tokens(config) if cell.role in (CE_ONLY, DISTILLED) else 0
    learning = 3 * student.flops_per_token() * tokens
    teaching = _teaching(config, teacher) * tokens
    minutes += (learning / train_speed + teaching / teacher_speed) / TRAINING_EFFICIENCY / 60
    flops, wait = _student_writing(config, student, tokens if cell.role == DISTILLED else 0, teacher_speed)
    minutes += wait
    weights = student.parameters * (BYTES_PER_WEIGHT if cell.student else 2 if cell.role == QUANTISED else 0)
    peak = weights + (2 * student.parameters * BYTES_PER_CHECKPOINTED_WEIGHT if tokens else 0)
    return Estimate(tokens, asking + learning + teaching + flops, weights, peak, minutes)


def _writing(config: ExperimentConfig, teacher: Size, speed: float) -> Estimate:
    """Prompts and answers of a local writer; a server's work costs this machine nothing but the disk."""
    tokens = local = 0
    for generated in [corpus.generated for corpus in config.data.corpora.values() if corpus.generated is not None]:
        templates = len(generated.prompts.text) if isinstance(generated.prompts.text, list) else 1
        answers = (generated.prompts.documents or WHOLE_TASK_DOCUMENTS) * templates * generated.samples
        tokens += answers * (generated.max_new_tokens + TOKENS_PER_DOCUMENT)
        local += 0 if generated.remote else answers * generated.max_new_tokens
    flops = teacher.flops_per_token() * local
    return Estimate(0, flops, 2 * tokens * TEXT_BYTES, 2 * tokens * TEXT_BYTES, flops / (speed * DECODING_EFFICIENCY) / 60)


def _student_writing(config: ExperimentConfig, student: Size, tokens: int, speed: float) -> tuple[float, float]:
    """(FLOPs, minutes) of the text that a student writes while it trains: one for each row it would have read."""
    share = config.on_policy.share if isinstance(config.on_policy.share, (int, float)) else 0.5
    written = share * tokens / config.data.length * config.on_policy.max_new_tokens
    flops = student.flops_per_token() * written
    return flops, flops / (speed * DECODING_EFFICIENCY) / 60


def _cached_bytes(config: ExperimentConfig, teacher: Size) -> int:
    """Bytes per token of the teacher's cache: two for each channel of a hidden state, or a few numbers."""
    vocabulary = max(1, teacher.head_products // _width(teacher))
    form = cache_form(config.teacher)
    if form.kind != HIDDEN:
        return form.bytes_per_token(vocabulary)
    return 2 * teacher.embedding // vocabulary * (1 + len(form.layers))


def _width(size: Size) -> int:
    return max(1, size.attention_width // size.layers)


def _training_tokens(config: ExperimentConfig) -> int:
    training = config.training
    per_step = training.batch * training.accumulate * training.devices * config.data.length
    return optimizer_steps(training, config.data.length) * per_step


def _teaching(config: ExperimentConfig, teacher: Size) -> float:
    """The teacher's forward arithmetic per training token."""
    if not build_objective(config.objective.terms, config.objective.temperature_scaling).needs_teacher:
        return 0.0
    if config.teacher.source == "cached":
        return 2.0 * teacher.head_products if config.teacher.cache == HIDDEN else 0.0
    return teacher.flops_per_token()
