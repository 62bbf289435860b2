"""How much memory a run needs at its peak, from configs alone: weights, moments, activations, teacher, cache."""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields

from distill_lit.config import ExperimentConfig, TeacherConfig
from distill_lit.config.roles import Role
from distill_lit.evaluation.generation_settings import MAX_BATCH_ROWS, MAX_BATCH_TOKENS
from distill_lit.evaluation.probe_corpora import WINDOW_TOKENS
from distill_lit.evaluation.tasks import asked_tasks
from distill_lit.experiment.estimates.evaluation_estimate import TOKENS_PER_DOCUMENT
from distill_lit.experiment.estimates.pace import planning_device
from distill_lit.experiment.planning.architectures import Architecture, Architectures
from distill_lit.experiment.planning.asked_teachers import asked_teachers, with_teacher
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.losses import build_objective
from distill_lit.teachers import cached_teacher_source, teacher_capabilities
from distill_lit.teachers.base import CacheRows
from distill_lit.training.optim import MASTER, MOMENTS
from distill_lit.utils import hardware

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GRADIENT = 4  # bytes per parameter, in float32
LOGIT_BYTES = 40  # per token of the fused head and word of the vocabulary, as `chunk_size_for_budget` counts
PROCESS_BYTES = 1_000_000_000  # of a worker with its libraries, on a CPU: measured
# times its activations a training on a CPU holds, for freed blocks are kept: measured, plan_error.md; of bfloat16 before
# moments were allocated beforehand, which may be too much by now
HEAP = {"float32": 1.1, "bfloat16": 2.0}
MIN_TRAINED_SHARE = 0.02  # of the weights, with adapters
ROUNDED_BYTES = {"int8": 1.0, "int8_weight_only": 1.0, "int4": 0.5 + 4 / 32}  # per weight: of 4 bits two scales per group
GATHERED_LAYERS = 2  # of a sharded model that are whole at a time: one that is read, and the next one


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a run. weights: of the student, with the copies that mixed precision makes, and gradients;
    moments: AdamW's two; activations: kept for the backward pass of one micro-batch, and logits; teacher: its weights, or
    its head alone, and what it holds in a forward pass; cache: rows of an offline teacher in one micro-batch; process:
    Python and its libraries."""

    weights: int = 0
    moments: int = 0
    activations: int = 0
    teacher: int = 0
    cache: int = 0
    process: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(astuple(self))


MEMORY_PARTS = tuple(field.name for field in fields(Memory))


def largest(memories: Iterable[Memory]) -> Memory:
    """The one with the highest total."""
    return max(memories, key=lambda memory: memory.total, default=Memory())


def estimate_memory(run: Run, architectures: Architectures) -> Memory:
    """What a run needs at its peak: in training, or before or after it where that needs more."""
    config, process = run.config, _process_bytes(run.config)
    if run.role == Role.TEACHER_CACHE:
        fields_ = with_teacher(config, run.teacher).teacher
        if not teacher_capabilities(fields_).needs_model:
            return Memory(process=process)
        asked = _teacher_bytes(architectures.of(fields_.model, run), fields_, config, _teacher_shards(config))
        return Memory(teacher=asked, activations=_logit_bytes(config, architectures.teacher(run)), process=process)
    if run.role == Role.GENERATED:
        writer = architectures.writer(run)
        held = 0 if writer is None else _model_bytes(writer, config.teacher.dtype, _micro_tokens(config))
        return Memory(teacher=held, process=process)
    is_model = bool(run.student or run.model_reference)
    student = architectures.student(run) if is_model else architectures.teacher(run)
    stages = [_evaluation_memory(config, student), _answering_memory(config, student)]
    if config.evaluation.probes:
        teacher_beside = None if run.role == Role.TEACHER else architectures.teacher(run)
        stages.append(_probe_memory(config, student, teacher_beside))
    if run.student:
        # validated as it is, beside its teacher, while a copy of it is written and read to see that it can be exported
        copies, logits = 2 * student.size.parameters * MASTER, _logit_bytes(config, student)
        held, rows = _teacher_memory(run, student, architectures)
        stages.append(Memory(weights=copies, activations=logits, teacher=held, cache=rows, process=process))
    if run.is_trained:
        stages.append(_training_memory(run, student, architectures))
    return largest(stages)


def _evaluation_memory(config: ExperimentConfig, model: Architecture) -> Memory:
    """Weights as they are read, before they are rounded; one pass of the prefix tree with its log-softmax."""
    return Memory(
        weights=model.size.parameters * MASTER,
        activations=config.evaluation.pack_tokens * (_vocabulary(model) * 2 * MASTER + _token_bytes(model, MASTER)),
        process=_process_bytes(config),
    )


def _answering_memory(config: ExperimentConfig, model: Architecture) -> Memory:
    """Weights, and the keys and values of a batch of answers; nothing without generative tasks."""
    tasks = asked_tasks(config.evaluation, config.dataset_source)
    lengths = [TOKENS_PER_DOCUMENT * (1 + task.num_fewshot) + task.max_gen_toks for task in tasks if task.repeats]
    if not lengths:
        return Memory()
    longest = max(lengths)
    tokens = min(MAX_BATCH_ROWS * longest, max(MAX_BATCH_TOKENS, longest))
    kept = tokens * model.size.kv_cache_values_per_token * BYTES.get(config.evaluation.dtype, MASTER)
    return Memory(weights=model.size.parameters * MASTER, activations=kept, process=_process_bytes(config))


def _probe_memory(config: ExperimentConfig, model: Architecture, teacher: Architecture | None) -> Memory:
    """Weights and logits of a model and of the teacher that reads probes beside it."""
    number, tokens = BYTES.get(config.evaluation.dtype, MASTER), max(config.evaluation.pack_tokens, WINDOW_TOKENS)
    logits = sum(tokens * _vocabulary(one) * number for one in (model, teacher) if one is not None)
    return Memory(
        weights=model.size.parameters * MASTER,
        activations=logits + tokens * _token_bytes(model, number),
        teacher=0 if teacher is None else _model_bytes(teacher, config.evaluation.dtype, tokens),
        process=_process_bytes(config),
    )


def _training_memory(run: Run, student: Architecture, architectures: Architectures) -> Memory:
    config, parameters = run.config, student.size.parameters
    trained = round(parameters * (MIN_TRAINED_SHARE if config.students[run.student].lora.rank else 1.0))
    copies = BYTES["bfloat16"] if config.training.precision == "bfloat16" else 0  # kept by autocast for a forward pass
    average = MASTER if teacher_capabilities(config.teacher).follows_student else 0
    teacher, cache = _teacher_memory(run, student, architectures)
    weights = parameters * (MASTER + average) + trained * GRADIENT
    shards = config.training.ranks if config.training.strategy == "fsdp" else 1
    gathered = _gathered_bytes(student, MASTER + copies, GRADIENT) if shards > 1 else parameters * copies
    kept = HEAP.get(config.training.precision, 1.0) if planning_device(config).type == "cpu" else 1.0
    return Memory(
        weights=weights // shards + gathered,
        moments=trained * MOMENTS // shards,
        activations=round(kept * (activation_bytes(config, student) + _logit_bytes(config, student))),
        teacher=teacher,
        cache=cache,
        process=_process_bytes(config),
    )


def activation_bytes(config: ExperimentConfig, student: Architecture) -> int:
    """Of one micro-batch: what every layer keeps for its backward pass; with gradient checkpointing the inputs of all
    layers and what one of them keeps. After Korthikanti et al. 2022, 2205.05198 §4, for gated feed-forward parts and
    fused attention, whose scores are never kept."""
    layer = _token_bytes(student, BYTES.get(config.training.precision, MASTER))
    if config.training.gradient_checkpointing:
        return _micro_tokens(config) * (student.size.layers * student.size.hidden_size * MASTER + layer)
    return _micro_tokens(config) * student.size.layers * layer


def _token_bytes(architecture: Architecture, width_of_number: int) -> int:
    """What a layer keeps of a token: of two norms their input and result in float32; in the format of the products the
    inputs of projections, queries, keys, values, what attention gives, and four times the feed-forward width."""
    size = architecture.size
    hidden, layers = size.hidden_size, max(size.layers, 1)
    attention, keys_and_values = size.attention_width // layers, size.kv_cache_values_per_token // layers
    norms = 2 * 2 * hidden * MASTER
    return int(norms + width_of_number * (2 * hidden + 3 * attention + keys_and_values + 4 * size.feed_forward_size))


def _teacher_memory(run: Run, student: Architecture, architectures: Architectures) -> tuple[int, int]:
    """(bytes of all teachers, bytes of their caches' rows in a micro-batch): of training rows, of a student that does not
    learn from them of held-out rows, on which it is compared with them all the same."""
    config, held, rows, tokens = run.config, 0, 0, _micro_tokens(run.config)
    learns = build_objective(config.objective.terms, config.objective.temperature_scaling).needs_teacher and run.is_trained
    read = CacheRows(tokens, tokens, 0) if learns else CacheRows(0, 0, tokens)
    shards = _teacher_shards(config) if run.is_trained else 1
    for fields_ in asked_teachers(config).values():
        able = teacher_capabilities(fields_)
        model = student if able.copies_student else architectures.of(fields_.model, run)
        if able.runs_beside_student:
            held += _teacher_bytes(model, fields_, config, shards)
        elif able.keeps_lm_head:
            held += model.size.lm_head_parameters * BYTES.get(fields_.dtype, MASTER)
        if able.needs_cache:
            rows += cached_teacher_source(fields_).estimate_cache_bytes(fields_, model.size, read)
    return held, rows


def _teacher_shards(config: ExperimentConfig) -> int:
    """Ranks over which the weights of a teacher are spread."""
    training = config.training
    return (training.teacher_shards or training.ranks) if training.strategy == "fsdp" else 1


def _gathered_bytes(student: Architecture, layer_bytes: int, gradient_bytes: int) -> int:
    """What is whole on every rank while a sharded student is trained: embeddings and head in float32 with their gradient,
    and some layers, of which one has its gradient before it is summed over the ranks."""
    size = student.size
    layer = size.non_embedding // max(size.layers, 1)
    ends = (size.parameters - size.non_embedding) * (MASTER + gradient_bytes)
    return ends + layer * (GATHERED_LAYERS * layer_bytes + gradient_bytes)


def _teacher_bytes(model: Architecture, fields_: TeacherConfig, config: ExperimentConfig, shards: int) -> int:
    """Weights of a teacher on a device, rounded or sharded, and what one layer holds in a forward pass."""
    size = model.size
    number = BYTES.get(fields_.dtype, MASTER)
    body = size.non_embedding * ROUNDED_BYTES.get(fields_.quantize, number)
    gathered = GATHERED_LAYERS * body / max(size.layers, 1) if shards > 1 else 0
    ends = (size.parameters - size.non_embedding) * number
    return int(body / shards + gathered) + ends + _micro_tokens(config) * _token_bytes(model, number)


def _model_bytes(model: Architecture, dtype: str, tokens: int) -> int:
    """Weights, and what one layer holds in a forward pass."""
    number = BYTES.get(dtype, MASTER)
    return model.size.parameters * number + tokens * _token_bytes(model, number)


def _logit_bytes(config: ExperimentConfig, model: Architecture) -> int:
    """Of the chunks of the fused head, which is never given more than its budget."""
    budget = config.objective.memory_budget or hardware.logits_budget(planning_device(config))
    whole = _micro_tokens(config) * _vocabulary(model) * LOGIT_BYTES
    chunk = config.objective.chunk_size * _vocabulary(model) * LOGIT_BYTES
    return min(chunk or int(budget * 2**20), whole)


def _micro_tokens(config: ExperimentConfig) -> int:
    return config.training.micro_batch_size * config.data.sequence_length


def _vocabulary(model: Architecture) -> int:
    return model.size.vocab_size


def _process_bytes(config: ExperimentConfig) -> int:
    return PROCESS_BYTES if planning_device(config).type == "cpu" else 0


def run_memory_bytes(run: Run, memory: Memory) -> int:
    """Of all ranks of a run together on a CPU; of one rank on a GPU, which has its own."""
    ranks = run.config.training.devices if run.is_trained else 1
    return memory.total * (ranks if planning_device(run.config).type == "cpu" else 1)


def peak_memory_bytes(runs: Iterable[Run], memories: Mapping[str, Memory], workers: int) -> tuple[int, list[Run]]:
    """(bytes that the most demanding runs need that are at work at the same time, those runs)."""
    known = [(run_memory_bytes(run, memories[run.name]), run) for run in runs if run.name in memories]
    most = sorted(known, key=lambda pair: -pair[0])[:workers]
    return sum(size for size, _ in most), [run for _, run in most]
