"""How students learn: the terms of the loss, and the optimizer's settings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from distill_lit.config.fields import MAX_TOKENS, Bool, Count, Float, Int, Temperature, Text, Weight, config_section
from distill_lit.utils.exceptions import UserError


@config_section
class TermConfig:
    """One term of the objective."""

    kind: Text = Field(
        default="", description="its loss (`distill-lit list objectives`); empty: the preset's, or the term's name"
    )
    weight: Weight | None = Field(
        default=None, description="factor, or a schedule {shape, start, end} over the steps; null: the preset's, or 1"
    )
    temperature: Temperature | None = Field(
        default=None, description="of both softmaxes, or a schedule over the steps; null: the preset's, or 1"
    )
    options: dict[Text, Any] = Field(default_factory=dict, description="parameters of the loss, such as beta")


@config_section
class ObjectiveConfig:
    """The loss: a weighted sum of named terms."""

    preset: Text = Field(
        default="", description="conventions of others, which `terms` may change: hinton, gkd, torchtune, distillm, …"
    )
    terms: dict[Text, TermConfig | None] = Field(
        default_factory=dict, description="{name: term}; null removes an inherited term, or one of the preset"
    )
    alpha: Annotated[Float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="mixes by one number: weights of terms with the teacher times alpha, of terms on labels (`ce` is added "
        "where there is none) times 1 − alpha; null: weights as they are",
    )
    temperature_scaling: Literal["auto", "hinton", "none"] = Field(
        default="auto", description="hinton: terms with a temperature T times T²; none: not; auto: the preset's, or hinton"
    )
    chunk_size: Count = Field(default=0, ge=0, description="tokens per pass of the fused lm_head; 0: from memory_budget")
    memory_budget: Float = Field(
        default=0.0,
        ge=0,
        description="MiB for logits in the fused lm_head; 0: 512; on one GPU 1024 in its Triton kernel, else a tenth of it",
    )
    compile: Literal["auto", "always", "never"] = Field(
        default="auto", description="torch.compile of the element-wise part of the fused lm_head; on CUDA its Triton kernel"
    )


def _compile_word(value: Any) -> Any:
    """always and never for true and false, which plans of finished experiments have."""
    return {"true": "always", "false": "never"}.get(value, value) if isinstance(value, str) else value


@config_section
class TrainingConfig:
    """How one student is trained."""

    max_tokens: Int = Field(default=1_000_000, ge=1, le=MAX_TOKENS, description="tokens the student reads")
    micro_batch_size: Int = Field(default=8, ge=1, le=1 << 20, description="sequences per forward pass")
    gradient_accumulation_steps: Int = Field(default=1, ge=1, le=1 << 20, description="forward passes per optimizer step")
    learning_rate: Float = Field(default=5e-4, gt=0, description="peak learning rate of AdamW")
    warmup_fraction: Float = Field(
        default=0.1, ge=0, le=1, description="share of the steps in which the learning rate rises"
    )
    lr_schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        default="cosine",
        description="learning rate after the warm-up: cosine, linear: it falls to the end; constant; wsd (warm-up, stable, "
        "decay): constant, then it falls along a line",
    )
    min_lr_ratio: Float = Field(
        default=0.1, ge=0, le=1, description="learning rate at the end of cosine, linear and wsd, as a share of the peak"
    )
    decay_fraction: Float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="of wsd alone: share of the steps, the last ones, in which the learning rate falls",
    )
    weight_decay: Float = Field(default=0.01, ge=0, description="weight decay of AdamW, on matrices only")
    beta1: Float = Field(default=0.9, ge=0, le=0.9999, description="decay of AdamW's first moment")
    beta2: Float = Field(default=0.95, ge=0, le=0.9999, description="decay of AdamW's second moment")
    max_grad_norm: Float = Field(
        default=1.0, ge=0, description="gradients of a larger norm are scaled to it; 0: no clipping"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the student's matrix products; auto: the fastest measured on this machine"
    )
    packed_attention: Literal["auto", "mask", "segments", "flex", "varlen"] = Field(
        default="auto",
        description="how documents of a row are kept apart: by a (T, T) mask, or without one: segments anywhere, flex "
        "(FlexAttention) on GPUs, varlen (FlashAttention) on GPUs in 16 bits; auto: from 2048 tokens a row on the fastest "
        "by which the model reads rightly, else the mask",
    )
    gradient_checkpointing: Bool = Field(default=False, description="recompute activations to save memory")
    compile: Annotated[Literal["auto", "always", "never"], BeforeValidator(_compile_word)] = Field(
        default="auto",
        description="torch.compile of the student's backbone, and an online teacher's; auto: where it saves more time than "
        "it takes, as measured on this machine; not on several ranks or a cluster",
    )
    val_check_interval: Float = Field(default=0.25, gt=0, le=1, description="share of the steps between validations")
    checkpoint_interval: Count = Field(default=100, ge=1, description="optimizer steps between checkpoints")
    log_every_n_steps: Count = Field(default=1, ge=1, description="optimizer steps between logged points")
    checkpoint_budget: Float = Field(
        default=20.0,
        gt=0,
        description="GB of checkpoints a run may hold; its newest, and the best for export, are kept in any case",
    )
    keep_checkpoints: Bool = Field(
        default=False, description="keep the last checkpoint of a finished run, and the best: of the lowest validation/loss"
    )
    export: Literal["last", "best"] = Field(
        default="last",
        description="weights that a finished run exports, and that are evaluated: of the last step, or of the step with "
        "the lowest validation/loss, the objective on held-out rows, of those that are validated (val_check_interval)",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where students train")
    devices: Int = Field(
        default=1, ge=1, le=4096, description="processes or GPUs of each node that train one student together"
    )
    nodes: Int = Field(default=1, ge=1, le=65536, description="machines that train one student together")
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="of several ranks. ddp: each holds everything; fsdp: student and online teacher are sharded over them "
        "(FSDP2); auto: fsdp where a training does not fit one device",
    )
    teacher_shards: Int = Field(
        default=0,
        ge=0,
        le=4096,
        description="of fsdp: ranks that hold one copy of an online teacher together; 0: all of them, 1: each its own copy",
    )
    checkpoint: Literal["auto", "whole", "sharded"] = Field(
        default="auto",
        description="of fsdp. whole: one file, which the first rank writes; sharded: a folder, of which every rank writes "
        "its part; auto: sharded above 10 GB. Any run goes on from either",
    )

    @property
    def ranks(self) -> int:
        """Processes that train one student together, on all nodes."""
        return self.devices * self.nodes

    def steps_between_validations(self, steps: int) -> int:
        """Optimizer steps between two validations of a training of `steps`."""
        return max(1, round(self.val_check_interval * steps))


def check_lr_schedule(config: TrainingConfig) -> None:
    """Raises UserError for what the schedule has no use for, and for a decay that would begin within the warm-up."""
    default = TrainingConfig()
    unused = {"constant": ("min_lr_ratio", "decay_fraction"), "wsd": ()}.get(config.lr_schedule, ("decay_fraction",))
    for name in unused:
        if (value := getattr(config, name)) != getattr(default, name):
            raise UserError(
                f"training.{name}: {value}, and training.lr_schedule is {config.lr_schedule}, which has none; leave it "
                "out, or write both into the variants or stages that it is for"
            )
    if config.lr_schedule == "wsd" and config.warmup_fraction + config.decay_fraction > 1:
        raise UserError(
            f"training.decay_fraction: {config.decay_fraction} and a warmup_fraction of {config.warmup_fraction} are more "
            "than all steps"
        )
