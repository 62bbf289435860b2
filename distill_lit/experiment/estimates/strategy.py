"""How a training is spread over ranks: what cannot be sharded, and what `training.strategy: auto` means for a run."""

from dataclasses import replace
from typing import Literal

from distill_lit.config import ExperimentConfig
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.experiment.estimates.memory_estimate import Memory, estimate_memory
from distill_lit.experiment.estimates.pace import planning_device
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.experiment.planning.asked_teachers import with_teacher
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.losses import Objective, build_objective
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError

MAX_MEMORY_SHARE = 0.9  # of a device that an estimate may fill before `auto` shards


def check_strategy(config: ExperimentConfig, objective: Objective, student: str) -> None:
    """Raises UserError for a strategy without ranks, and for fsdp with what it cannot shard. student: its name."""
    training = config.training
    if training.strategy != "auto" and training.ranks == 1:
        raise UserError(
            f"training.strategy: {training.strategy} is for several ranks, and training.devices and training.nodes are 1"
        )
    if training.checkpoint == "sharded" and training.strategy != "fsdp":
        raise UserError(
            "training.checkpoint: sharded is for training.strategy fsdp; otherwise the first rank has all of it"
        )
    if training.teacher_shards and training.strategy != "fsdp":
        raise UserError("training.teacher_shards: it is for training.strategy fsdp")
    if training.teacher_shards and training.ranks % training.teacher_shards:
        raise UserError(
            f"training.teacher_shards: {training.teacher_shards} does not divide the {training.ranks} ranks "
            "(training.devices × training.nodes)"
        )
    if training.strategy == "fsdp" and (reason := why_not_sharded(config, objective, student)):
        raise UserError(f"training.strategy: fsdp cannot be with {reason}; take ddp")


def why_not_sharded(config: ExperimentConfig, objective: Objective, student: str) -> str:
    """What of a config needs a student or teacher that is whole; empty where both can be sharded."""
    for term in objective.feature_terms:
        if term.loss_spec.reads_inside_layers:
            return f"objective.terms.{term.name}, which reads {term.kind} inside the layers"
    if is_on_policy_enabled(config.on_policy):
        return "on_policy, which would gather every layer for each token that the student writes"
    for name, value in (
        ("launcher.teacher_device", config.launcher.teacher_device),
        ("training.compile", config.training.compile == "always"),
        ("evaluation.interval, for which the first rank needs the whole student", config.evaluation.interval),
        ("teacher.prompt, under which ranks read in different numbers of passes", config.teacher.prompt.is_set),
        ("teacher.mixture, of which ranks ask different teachers", config.teacher.mixture.teachers),
        (f"students.{student}.quantization_aware", config.students[student].quantization_aware != "none"),
    ):
        if value:
            return name
    return _why_teacher_not_sharded(config)


def _why_teacher_not_sharded(config: ExperimentConfig) -> str:
    """Of the teacher that a student is validated beside, whatever it learns from."""
    able = teacher_capabilities(config.teacher)
    if able.runs_beside_student and not able.is_shardable:
        return f"teacher.source {config.teacher.source}"
    if able.needs_model and config.teacher.quantize != "none":
        return f"teacher.quantize {config.teacher.quantize}: rounded weights are not cut"
    return ""


def with_strategy(run: Run, architectures: Architectures | None = None) -> Run:
    """The run with a strategy for this machine in the place of `auto`: fsdp where what a rank needs does not fit its device
    otherwise, and can be sharded."""
    training = run.config.training
    if training.strategy != "auto" or training.ranks == 1:
        return run
    strategy = _choose_strategy(run, architectures or Architectures([run]))
    return replace(run, config=replace(run.config, training=replace(training, strategy=strategy)))


def _choose_strategy(run: Run, architectures: Architectures) -> Literal["ddp", "fsdp"]:
    is_cache = run.role == Role.TEACHER_CACHE
    if is_cache:
        is_whole = not _is_cache_shardable(run)
    else:
        is_whole = not run.is_trained or bool(why_not_sharded(run.config, _objective(run), run.student))
    if is_whole:
        return "ddp"
    return "ddp" if fits_device(run.config, estimate_memory(run, architectures)) else "fsdp"


def fits_device(config: ExperimentConfig, memory: Memory) -> bool:
    """Whether what a process needs fits its device; True where nobody knows."""
    available = _device_memory(config)
    return not available or memory.total <= MAX_MEMORY_SHARE * available


def fit_line(run: Run, memory: Memory, architectures: Architectures) -> str:
    """What to say of a run that does not fit a device, and what would; empty for one that does. memory: as planned."""
    config = run.config
    if fits_device(config, memory):
        return ""
    device = _device_memory(config) / 1e9
    line = f"{run.label} needs {memory.total / 1e9:.1f} GB of each device, which has {device:.1f} GB here"
    if run.role == Role.TEACHER_CACHE:
        return f"{line}; take launcher.teacher_device=auto, teacher.quantize=int8 or int4, or training.strategy=fsdp"
    if not run.is_trained or why_not_sharded(config, _objective(run), run.student):
        return line
    for ranks in (2**power for power in range(1, 11)):
        training = replace(config.training, strategy="fsdp", devices=ranks, nodes=1)
        sharded = estimate_memory(replace(run, config=replace(config, training=training)), architectures)
        if fits_device(config, sharded):
            return f"{line}; training.strategy=fsdp over {ranks} devices needs {sharded.total / 1e9:.1f} GB of each"
    return line


def _device_memory(config: ExperimentConfig) -> int:
    return hardware.device_memory(planning_device(config), config.training.devices)


def _is_cache_shardable(run: Run) -> bool:
    """Whether the model that writes a cache is one that ranks can share, and reads what the student reads."""
    teacher = with_teacher(run.config, run.teacher).teacher
    return teacher_capabilities(teacher).is_shardable and not teacher.prompt.is_set


def _objective(run: Run) -> Objective:
    return build_objective(run.config.objective.terms, run.config.objective.temperature_scaling)


def takes_all_ranks(run: Run) -> bool:
    """Whether all ranks of a training build a run: one that is trained, and a cache of a teacher that is sharded."""
    training = run.config.training
    is_sharded_cache = run.role == Role.TEACHER_CACHE and training.strategy == "fsdp" and _is_cache_shardable(run)
    return training.ranks > 1 and (run.is_trained or is_sharded_cache)


def may_take_several_nodes(run: Run) -> bool:
    """Whether a run takes several nodes, or does so where its teacher is sharded."""
    return run.config.training.nodes > 1 and (run.is_trained or run.role == Role.TEACHER_CACHE)
