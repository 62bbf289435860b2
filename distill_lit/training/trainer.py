"""One training: the Trainer around a distiller, in a run folder that can be killed and goes on where it stopped."""

import functools
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L

from distill_lit.config import TrainingConfig
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.models.backbone import compile_for_training
from distill_lit.teachers import StudentFollowingTeacher
from distill_lit.training.callbacks.checkpoints import CheckpointCallback
from distill_lit.training.callbacks.nonfinite_guard import TerminateOnNonFinite
from distill_lit.training.callbacks.progress import TrainingProgressReporter
from distill_lit.training.callbacks.random_state import RNGStateCallback
from distill_lit.training.callbacks.teacher_update import TeacherUpdateCallback
from distill_lit.training.callbacks.termination import TerminationRequest, catch_termination_signals
from distill_lit.training.checkpoint import (
    Fingerprints,
    SafeCheckpointIO,
    checkpoint_step,
    find_latest_checkpoint,
    fingerprint_mismatches,
    remove_checkpoints,
)
from distill_lit.training.curve_axis import CurveAxis
from distill_lit.training.distiller import DDP_WITH_UNUSED_PARAMETERS, Distiller
from distill_lit.training.fsdp_strategy import FullyShardedStrategy
from distill_lit.training.json_lines_logger import step_of
from distill_lit.training.local_trainer import build_local_trainer, sync_lightning_rank
from distill_lit.training.loggers import LoggerOptions, build_loggers, close_loggers
from distill_lit.training.optim import (
    CHECKPOINT_BYTES,
    SchedulerFactory,
    adamw,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)
from distill_lit.utils.distributed.ranks import broadcast_from_rank_zero, get_world_size
from distill_lit.utils.exceptions import Preempted, UserError
from distill_lit.utils.files import read_jsonl
from distill_lit.utils.progress import ProgressCallback

log = logging.getLogger(__name__)
MAX_WHOLE_CHECKPOINT_BYTES = 10_000_000_000  # of a checkpoint in one file, where there is a choice
__all__ = ["Preempted", "TrainingJob", "train", "validate"]


@dataclass
class TrainingJob:
    """What one training needs. fingerprints: {teacher, data, objective …: what identifies it}, which a checkpoint carries;
    on_mismatch: what becomes of a checkpoint with other fingerprints, refuse, resume or restart; loggers: see
    `training.loggers`."""

    folder: Path
    distiller: Distiller
    datamodule: PackedDataModule
    config: TrainingConfig
    seed: int
    progress_callback: ProgressCallback
    fingerprints: Fingerprints = field(default_factory=dict)
    on_mismatch: str = "refuse"
    callbacks: list[L.Callback] = field(default_factory=list)
    loggers: LoggerOptions = field(default_factory=lambda: {"tensorboard": {}})
    hyperparameters: dict[str, Any] = field(default_factory=dict)  # of the run, for its loggers
    first_step: int = 0  # optimizer steps of the stages before this one
    first_tokens: int = 0  # positions that were read in them

    @property
    def checkpoint_folder(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"


def prepare_student(student: Any, config: TrainingConfig) -> None:
    """Switches on what the config asks of the student: activation (gradient) checkpointing, a compiled backbone."""
    if config.gradient_checkpointing:
        student.gradient_checkpointing_enable({"use_reentrant": False})
    if config.compile == "always":
        compile_for_training(student)


def optimizer_settings(config: TrainingConfig) -> dict[str, Any]:
    """Learning rate, optimizer and schedule of a `Distiller`."""
    return {
        "lr": config.learning_rate,
        "optimizer": functools.partial(
            adamw, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(config.beta1, config.beta2)
        ),
        "lr_scheduler": _lr_scheduler(config),
    }


def _lr_scheduler(config: TrainingConfig) -> SchedulerFactory:
    warmup, end = config.warmup_fraction, config.min_lr_ratio
    if config.lr_schedule == "constant":
        return functools.partial(warmup_constant, warmup_fraction=warmup)
    if config.lr_schedule == "wsd":
        decay = config.decay_fraction
        return functools.partial(warmup_stable_decay, warmup_fraction=warmup, min_lr_ratio=end, decay_fraction=decay)
    schedule = warmup_linear if config.lr_schedule == "linear" else warmup_cosine
    return functools.partial(schedule, warmup_fraction=warmup, min_lr_ratio=end)


def train(job: TrainingJob) -> dict[str, float]:
    """Trains until the token budget is spent, resuming from the newest checkpoint; returns the last validation's metrics.

    Every one of `training.devices` × `nodes` ranks calls this, each with a run of its own (`spawn_ranks`). Raises Preempted
    after SIGTERM, FloatingPointError for a step that is not finite, UserError for a checkpoint of something else.
    """
    if job.config.ranks != get_world_size():
        raise RuntimeError(
            f"training.devices × nodes is {job.config.ranks}, and {get_world_size()} ranks are here; use `spawn_ranks`"
        )
    with catch_termination_signals() as termination:
        checkpoint = broadcast_from_rank_zero(lambda: find_resume_checkpoint(job))
        L.seed_everything(job.seed, verbose=False)
        trainer = build_trainer(
            job, resume_step=checkpoint_step(checkpoint) if checkpoint else None, termination=termination
        )
        try:
            _fit(job, trainer, checkpoint)
        finally:
            close_loggers(trainer.loggers)
    return final_metrics(job.folder / "metrics.jsonl")


def _fit(job: TrainingJob, trainer: L.Trainer, checkpoint: Path | None) -> None:
    """Trains, with a validation before the first step and after the last."""
    if checkpoint is None:
        trainer.validate(job.distiller, job.datamodule, verbose=False)
    job.distiller.train()
    trainer.fit(job.distiller, job.datamodule, ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    if broadcast_from_rank_zero(
        lambda: "validation/loss" not in _names_at(job.folder / "metrics.jsonl", job.datamodule.steps)
    ):
        trainer.validate(job.distiller, job.datamodule, verbose=False)


def find_resume_checkpoint(job: TrainingJob) -> Path | None:
    """The checkpoint to go on from, None to begin anew. Raises UserError when none is intact or the newest belongs to
    something else."""
    checkpoint, warnings = find_latest_checkpoint(job.checkpoint_folder)
    for line in warnings:
        log.warning(line)
    if checkpoint is None:
        return None
    mismatches = fingerprint_mismatches(checkpoint, job.fingerprints)
    if mismatches and job.on_mismatch == "refuse":
        raise UserError(
            f"checkpoint {checkpoint} does not belong to this run: {'; '.join(mismatches)}. "
            "launcher.on_mismatch=restart begins anew, launcher.on_mismatch=resume goes on all the same"
        )
    if mismatches:
        log.warning("checkpoint %s: %s; launcher.on_mismatch=%s", checkpoint, "; ".join(mismatches), job.on_mismatch)
    if mismatches and job.on_mismatch == "restart":
        remove_checkpoints(job.checkpoint_folder)
        return None
    return checkpoint


def validate(job: TrainingJob) -> dict[str, float]:
    """The validation metrics of the student as it is, logged as step 0; one process alone does it."""
    single_process = replace(job, config=replace(job.config, devices=1, nodes=1))
    trainer = build_trainer(single_process, resume_step=None, termination=TerminationRequest())
    trainer.validate(job.distiller, job.datamodule, verbose=False)
    close_loggers(trainer.loggers)
    return final_metrics(job.folder / "metrics.jsonl")


def build_trainer(job: TrainingJob, resume_step: int | None, termination: TerminationRequest) -> L.Trainer:
    """A Trainer that shows, logs and stores nothing but what this suite wants."""
    config = job.config
    val_check_interval = config.steps_between_validations(job.datamodule.steps)
    sync_lightning_rank()
    curve_start = CurveAxis("steps", job.first_step, job.first_tokens, job.datamodule.tokens_per_step)
    loggers = build_loggers(job.loggers, job.folder, resume_step, curve_start)
    for logger in loggers if resume_step is None else []:
        logger.log_hyperparams(job.hyperparameters)
    checkpoint_interval, budget = config.checkpoint_interval, config.checkpoint_budget
    return build_local_trainer(
        default_root_dir=job.folder,
        accelerator="gpu" if config.accelerator == "cuda" else config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy=_strategy(job),
        inference_mode=config.strategy != "fsdp",  # a layer that is gathered in it could not be trained after
        precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
        max_steps=job.datamodule.steps,
        accumulate_grad_batches=config.gradient_accumulation_steps,
        val_check_interval=val_check_interval * config.gradient_accumulation_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=config.max_grad_norm or None,
        log_every_n_steps=config.log_every_n_steps,
        logger=loggers,
        callbacks=[
            TerminateOnNonFinite(job.folder),
            RNGStateCallback(),
            *_teacher_callbacks(job.distiller.loss.teacher),
            CheckpointCallback(
                job.checkpoint_folder,
                checkpoint_interval,
                val_check_interval,
                config.keep_checkpoints,
                config.export == "best",
                budget,
                job.fingerprints,
                termination,
            ),
            TrainingProgressReporter(job.progress_callback, job.datamodule.steps, job.datamodule.tokens_per_step),
            *job.callbacks,
        ],
        plugins=[SafeCheckpointIO()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _strategy(job: TrainingJob) -> Any:
    """How Lightning spreads a training over ranks; `auto` is decided before a job is made, and else means ddp."""
    config = job.config
    if config.ranks == 1:
        return "auto"
    if config.strategy != "fsdp":
        return "ddp" if job.distiller.loss.objective.logit_terms else DDP_WITH_UNUSED_PARAMETERS
    trained = sum(p.numel() for p in job.distiller.parameters() if p.requires_grad)
    is_sharded = config.checkpoint == "sharded" or (
        config.checkpoint == "auto" and trained * CHECKPOINT_BYTES > MAX_WHOLE_CHECKPOINT_BYTES
    )
    return FullyShardedStrategy(config.ranks, config.teacher_shards, is_sharded)


def _teacher_callbacks(teacher: Any) -> list[L.Callback]:
    """What tells a teacher that follows the student of its steps; before the callback that saves them."""
    return [TeacherUpdateCallback(teacher)] if isinstance(teacher, StudentFollowingTeacher) else []


def _names_at(path: Path, step: int) -> set[str]:
    """The names of all metrics logged at a step."""
    return {name for line in read_jsonl(path) if step_of(line) == step for name in line}


def final_metrics(path: Path, last_step: float = float("inf")) -> dict[str, float]:
    """The last value of every metric in a run's lines, up to those of a step."""
    latest: dict[str, float] = {}
    for line in read_jsonl(path):
        latest.update(line if step_of(line) <= last_step else {})
    latest.pop("step", None)
    return latest
