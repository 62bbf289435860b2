"""Every knob of an experiment: its default, its unit, its range."""

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING

from distill_lit.config.fields import config_field
from distill_lit.config.generation import DatasetConfig, GeneratedConfig
from distill_lit.config.on_policy import OnPolicyConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
BASELINES = ("teacher", "untrained", "ce_only")
OPTIONAL_BASELINES = ("teacher_int8",)  # only where asked for
GRID_VALUE_SEPARATOR = " or "  # between the values of a grid key for which one baseline stands


@dataclass
class TeacherConfig:
    """The frozen model whose output distribution the students learn."""

    model: str = MISSING  # reference: hf:org/name[@revision], pypi:package==version/file.gguf, file:folder
    source: str = config_field(
        "online",
        "live: forward beside the student; foreign: the same, with a tokenizer of its own; cached: written once; none",
        choices=("online", "cross_tokenizer", "offline", "none"),
    )
    cache_format: str = config_field(
        "hidden_states",
        "what is cached, hidden: last hidden states, exact; top_k: its k best tokens; sampled: tokens drawn from it",
        choices=("hidden_states", "top_k", "sampled"),
    )
    hidden_layers: list[int] = config_field(
        [], "cache: hidden keeps the states behind these too, from 0, for terms on hidden states", ge=0
    )
    top_k: int = config_field(50, "tokens per position of cache: top_k", ge=1)
    num_samples: int = config_field(12, "tokens per position of cache: sampled, drawn with replacement", ge=1)
    sampling_temperature: float = config_field(1.0, "tokens are drawn from p^(1/this); weights make up for it", gt=0)
    dtype: str = config_field(
        "auto", "number format of the teacher; auto: the fastest measured on this machine", choices=DTYPES
    )


@dataclass
class WidthConfig:
    """Sizes of a teacher's layers after pruning, under transformers' names. 0: as the teacher's."""

    hidden_size: int = config_field(0, "channels of the residual stream", ge=0)
    intermediate_size: int = config_field(0, "neurons of each feed-forward part", ge=0)
    num_attention_heads: int = config_field(0, "query heads of each layer; their width stays", ge=0)
    num_key_value_heads: int = config_field(0, "key-value heads (groups) of each layer", ge=0)


@dataclass
class LoraConfig:
    """Low-rank adapters that are trained instead of the student's weights, and merged into them at the end."""

    rank: int = config_field(0, "rank of the adapters; 0: no adapters, all weights are trained", ge=0)
    alpha: int = config_field(16, "adapters are scaled by alpha / rank", gt=0)
    dropout: float = config_field(0.0, "before an adapter", ge=0, le=0.99)
    target_modules: Any = config_field(
        "all-linear", "all-linear: every linear layer but the head; or a list of names such as q_proj"
    )


@dataclass
class StudentConfig:
    """One student shape: layers and width cut from the teacher, another model, or a model from scratch."""

    num_layers: int = config_field(0, "layers kept of the teacher; 0: all, or not a pruned teacher", ge=0)
    layers: Any = config_field(
        "kl_greedy", "which layers are kept: uniform, first_last, block_influence, kl_greedy, or their numbers"
    )
    from_: str = config_field("", "reference of a pretrained student")
    config: dict[str, Any] = config_field(
        {}, "changes to the teacher's transformers config for a student from random weights"
    )
    width: WidthConfig = field(default_factory=WidthConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class CorpusConfig(DatasetConfig):
    """Training text: rows of a dataset repository or of a file, each rendered to one document, or written by a teacher."""

    text: str = config_field("{{ text }}", "Jinja template of a document over the columns of a row")
    messages: str = config_field("", "instead of `text`: column of chat messages; the loss is then on the responses only")
    generated: Optional[GeneratedConfig] = None  # instead of `dataset` and `path`

    @property
    def is_chat(self) -> bool:
        """Whether its documents are chats."""
        return bool(self.messages or (self.generated is not None and self.generated.chat))


@dataclass
class DataConfig:
    """What students read, and how it is packed."""

    corpora: dict[str, CorpusConfig] = field(default_factory=dict)  # null removes an inherited corpus
    sequence_length: int = config_field(256, "tokens per packed sequence", ge=8, le=1 << 24)
    max_tokens: int = config_field(0, "tokens in the training pool, drawn at random; 0: the whole corpus", ge=0, le=10**15)
    validation_sequences: int = config_field(16, "packed sequences held out for validation", ge=1)
    chat_template: str = config_field(
        "", "file with a Jinja chat template for corpora and students; empty: the tokenizer's own"
    )
    seed: int = config_field(0, "draws and packs documents; the order of batches follows the experiment's seed", ge=0)


@dataclass
class TermConfig:
    """One term of the objective."""

    kind: str = config_field("", "its loss; empty: the preset's, or the term's own name")
    weight: Any = config_field(None, "factor, or a schedule {shape, start, end} over the steps; none: the preset's, or 1")
    temperature: Any = config_field(None, "of both softmaxes, or a schedule; none: the preset's, or 1")
    options: dict[str, Any] = config_field({}, "parameters of the loss, such as beta")


@dataclass
class ObjectiveConfig:
    """The loss: a weighted sum of named terms."""

    preset: str = config_field("", "conventions of others, which `terms` may change: hinton, trl, torchtune, distillm, …")
    terms: dict[str, Optional[TermConfig]] = field(default_factory=dict)  # null removes an inherited term
    temperature_scaling: str = config_field(
        "auto", "hinton: soft terms times T²; none; auto: the preset's, or hinton", choices=("auto", "hinton", "none")
    )
    chunk_size: int = config_field(0, "tokens per pass of the fused head; 0: from memory_budget", ge=0)
    memory_budget: float = config_field(
        0.0, "MiB for logits in the fused head; 0: 512, on one GPU a tenth of its memory", ge=0
    )
    compile: str = config_field("auto", "element-wise part of the fused head", choices=("auto", "always", "never"))


@dataclass
class TrainingConfig:
    """How one student is trained."""

    max_tokens: int = config_field(1_000_000, "tokens the student reads", ge=1, le=10**15)
    micro_batch_size: int = config_field(8, "sequences per forward pass", ge=1, le=1 << 20)
    gradient_accumulation_steps: int = config_field(1, "forward passes per optimizer step", ge=1, le=1 << 20)
    learning_rate: float = config_field(5e-4, "AdamW peak", gt=0)
    warmup_fraction: float = config_field(0.1, "share of the steps in which the learning rate rises", ge=0, le=1)
    min_lr_ratio: float = config_field(0.1, "at the end of the cosine, as a share of the peak", ge=0, le=1)
    weight_decay: float = config_field(0.01, "AdamW, on matrices only", ge=0)
    beta1: float = config_field(0.9, "AdamW", ge=0, le=0.9999)
    beta2: float = config_field(0.95, "AdamW", ge=0, le=0.9999)
    max_grad_norm: float = config_field(1.0, "largest gradient norm; 0: no clipping", ge=0)
    precision: str = config_field(
        "auto",
        "of the student's matrix products; auto: the fastest measured on this machine",
        choices=("auto", "float32", "bfloat16"),
    )
    gradient_checkpointing: bool = config_field(False, "recompute activations to save memory")
    compile: bool = config_field(False, "torch.compile the body of the student, and of a live teacher")
    val_check_interval: float = config_field(0.25, "share of the steps between validations", gt=0, le=1)
    checkpoint_interval: int = config_field(100, "optimizer steps between checkpoints", ge=1)
    log_every_n_steps: int = config_field(1, "optimizer steps between logged points", ge=1)
    checkpoint_budget: float = config_field(20.0, "GB of checkpoints a cell may hold; its newest is kept in any case", gt=0)
    keep_checkpoints: bool = config_field(False, "keep the last and the best checkpoint of a finished cell")
    accelerator: str = config_field("auto", "where students train", choices=("auto", "cpu", "cuda"))
    devices: int = config_field(1, "processes or GPUs", ge=1, le=4096)


@dataclass
class EvaluationConfig:
    """Which lm-eval tasks, on how many documents."""

    tasks: list[str] = field(default_factory=list)
    limit: int = config_field(0, "documents per task, drawn at random; 0: all", ge=0)
    num_fewshot: Optional[int] = config_field(
        None, "examples before each question; null: what the task's file says", ge=0, le=64
    )
    apply_chat_template: bool = config_field(False, "wrap prompts in the tokenizer's chat template")
    dtype: str = config_field("float32", "number format of the model under test; softmax is float32", choices=DTYPES)
    seed: int = config_field(1234, "draws the documents of a limit and the few-shot examples", ge=0)
    pack_tokens: int = config_field(512, "tokens per forward pass of the prefix tree", ge=16)
    include_path: str = config_field("", "folder with task files of your own")
    token_logprobs: bool = config_field(False, "keep the log-probability of every scored token in the records")
    confirm_run_unsafe_code: bool = config_field(
        False, "let tasks execute code that the model writes, in a process with limits"
    )
    interval: float = config_field(0.0, "share of a training between evaluations on the way; 0: none", ge=0, le=1)
    interval_limit: int = config_field(100, "documents per task of an evaluation on the way; 0: all", ge=0)


@dataclass
class CostConfig:
    """How speed, memory and energy are measured; on idle cores, or the numbers are those of the other programs."""

    measure: bool = config_field(False, "measure at the end of a run; else with `distill-lit cost`")
    blocks: int = config_field(5, "turns of every model, all models in each", ge=5)
    batch_sizes: list[int] = config_field([1, 8], "sequences at a time", ge=1)
    prompt_lengths: list[int] = config_field([64, 256], "tokens of a prompt", ge=1)
    output_lengths: list[int] = config_field([32], "tokens written after it", ge=2)
    requests: int = config_field(100, "single requests behind the latencies, in all blocks together", ge=100)
    warmup_generations: int = config_field(1, "generations at every point of the grid that do not count", ge=1)
    dtype: str = config_field("float32", "number format of the models", choices=DTYPES[1:])
    price_per_hour: float = config_field(
        0.0, "of an hour of this machine, in any currency; 0: unknown, no money is shown", ge=0
    )


@dataclass
class AnalysisConfig:
    """How tables and the long-tail report judge."""

    n_resamples: int = config_field(10_000, "draws of every interval", ge=100)
    confidence_level: float = config_field(0.95, "of every interval", gt=0.5, le=0.999)
    num_strata: int = config_field(5, "quantile groups of an axis, within a task", ge=2, le=20)
    false_discovery_rate: float = config_field(0.05, "rate q of Benjamini-Hochberg", gt=0, le=0.5)
    claim_min_quality: float = config_field(
        0.9, "share of the teacher's score above chance a student must keep", gt=0, le=1
    )
    claim_max_cost: float = config_field(0.1, "share of the teacher's cost it may need", gt=0, le=1)

    @property
    def alpha(self) -> float:
        """Below which an adjusted p of a declared comparison is significant."""
        return 1 - self.confidence_level


@dataclass
class LauncherConfig:
    """Where cells run. Nothing here changes a result beyond the rounding of another device."""

    workers: int = config_field(1, "cells at a time", ge=1, le=4096)
    threads_per_worker: int = config_field(
        0, "CPU threads per worker, for all its ranks together; 0: all cores, shared out", ge=0, le=4096
    )
    teacher_device: str = config_field("", "device of a live teacher, as cuda:1 or cpu; empty: the student's")
    on_mismatch: str = config_field(
        "refuse",
        "a checkpoint of another model, data or objective: refuse it, resume all the same, or restart the cell",
        choices=("refuse", "resume", "restart"),
    )


@dataclass
class ExperimentConfig:
    """A question, a base, and a grid."""

    name: str = MISSING
    question: str = config_field("", "what the experiment asks, in one sentence")
    seed: int = config_field(0, "initialisation of new weights, dropout, order of batches", ge=0)
    dataset_source: str = config_field("pypi", "where benchmark data comes from", choices=("pypi", "hub"))
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    students: dict[str, StudentConfig] = field(default_factory=dict)
    student: str = config_field("", "the student of a cell, one of `students`; the grid usually sets it")
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    loggers: dict[str, Optional[dict[str, Any]]] = config_field(
        {"tensorboard": {}},
        "curves go to: tensorboard, csv, wandb, mlflow, with options of Lightning's loggers; null: not there",
    )
    variants: dict[str, dict[str, Any]] = config_field({}, "named sets of overrides, chosen by grid key `variant`")
    variant: str = config_field("", "one of `variants`; the grid usually sets it")
    grid: dict[str, list[Any]] = field(default_factory=dict)  # dotted key: values
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    external_models: dict[str, str] = config_field({}, "off-the-shelf models to compare with, {name: reference}")
