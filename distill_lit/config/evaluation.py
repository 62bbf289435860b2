"""What models are asked, what they cost, and how differences are judged."""

from typing import Annotated, Literal

from pydantic import Field

from distill_lit.config.fields import Bool, Count, Dtype, Float, Int, Text, config_section
from distill_lit.config.key_paths import HOLDS_PATHS
from distill_lit.config.probes import ProbeConfig

EndpointName = Literal[
    "accuracy", "margin", "p_gold", "bits_per_byte",
    "probe_bits_per_byte", "probe_kl", "probe_draft_acceptance", "probe_agreement",
]  # fmt: skip


@config_section
class EvaluationConfig:
    """Which lm-eval tasks, on how many documents."""

    tasks: list[Text] = Field(default_factory=list, description="tasks and groups of lm-eval, see `distill-lit list tasks`")
    probes: dict[Text, ProbeConfig] = Field(
        default_factory=dict,
        description="held-out text, {name: passages}, scored in bits per byte, KL to the teacher and draft acceptance",
    )
    limit: Count = Field(default=0, ge=0, description="documents per task, drawn at random; 0: all")
    num_fewshot: Annotated[Int, Field(ge=0, le=64)] | None = Field(
        default=None, description="examples before each question; null: what the task's file says"
    )
    apply_chat_template: Bool = Field(default=False, description="wrap prompts in the tokenizer's chat template")
    system_instruction: Text = Field(
        default="", description="system message before every question, as lm-eval puts it; empty: none"
    )
    repeats: Annotated[Int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="answers to each document of generative tasks; null: what the task's file says"
    )
    do_sample: Bool | None = Field(
        default=None,
        description="whether generative tasks draw their answers; null: yes where `temperature` is above 0, else what the "
        "task's file says",
    )
    temperature: Annotated[Float, Field(ge=0, le=10)] | None = Field(
        default=None,
        description="temperature of drawn answers; 0: the most probable token; null: what the task's file says",
    )
    top_p: Annotated[Float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="smallest set of tokens with this probability is drawn from; null: what the task's file says",
    )
    max_gen_toks: Annotated[Count, Field(ge=1)] | None = Field(
        default=None, description="tokens of the longest answer; null: what the task's file says"
    )
    dtype: Dtype = Field(default="float32", description="number format of the model under test; softmax is float32")
    seed: Count = Field(
        default=1234, ge=0, description="draws the documents of a limit, the few-shot examples and sampled answers"
    )
    pack_tokens: Count = Field(default=512, ge=16, description="tokens per forward pass of the prefix tree")
    include_path: Text = Field(default="", description="folder with task files of your own", json_schema_extra=HOLDS_PATHS)
    token_logprobs: Bool = Field(default=False, description="keep the log-probability of every scored token in the records")
    confirm_run_unsafe_code: Bool = Field(
        default=False, description="let tasks execute code that the model writes, in a process with limits"
    )
    interval: Float = Field(
        default=0.0, ge=0, le=1, description="share of the steps between evaluations during training; 0: none"
    )
    interval_limit: Count = Field(
        default=100, ge=0, description="documents per task of an evaluation during training; 0: all"
    )


@config_section
class CostConfig:
    """How speed, memory and energy are measured; on idle cores, or the numbers are those of the other programs."""

    measure: Bool = Field(default=False, description="measure at the end of a run; else with `distill-lit cost`")
    blocks: Count = Field(default=5, ge=5, description="turns of every model, all models in each")
    batch_sizes: list[Annotated[Count, Field(ge=1)]] = Field(
        min_length=1, default_factory=lambda: [1, 8], description="sequences at a time"
    )
    prompt_lengths: list[Annotated[Count, Field(ge=1)]] = Field(
        min_length=1, default_factory=lambda: [64, 256], description="tokens of a prompt"
    )
    output_lengths: list[Annotated[Count, Field(ge=2)]] = Field(
        min_length=1, default_factory=lambda: [32], description="tokens written after a prompt"
    )
    requests: Count = Field(default=100, ge=100, description="single requests behind the latencies, in all blocks together")
    warmup_generations: Count = Field(
        default=1, ge=1, description="generations at every point of the measurement that do not count"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="number format of the models")
    price_per_hour: Float = Field(
        default=0.0, ge=0, description="of an hour of this machine, in any currency; 0: unknown, no money is shown"
    )


@config_section
class AnalysisConfig:
    """Intervals and tests of the tables and of the long-tail report."""

    n_resamples: Count = Field(
        default=10_000, ge=100, description="draws of what has no formula, such as the chance to be on the frontier"
    )
    confidence_level: Float = Field(default=0.95, gt=0.5, le=0.999, description="coverage of every interval")
    primary_endpoint: EndpointName = Field(
        default="accuracy",
        description="what decides, declared before the run: accuracy (each task's metric); length-normalized margin, "
        "probability or bits per byte of the right answer; of the probes bits per byte, KL, draft acceptance by the "
        "teacher or agreement with it; the rest is secondary",
    )
    num_strata: Int = Field(default=5, ge=2, le=20, description="quantile groups of an axis, within a task")
    false_discovery_rate: Float = Field(default=0.05, gt=0, le=0.5, description="rate q of Benjamini-Hochberg")
    claim_min_quality: Float = Field(
        default=0.9, gt=0, le=1, description="share of the teacher's score above chance a student must keep"
    )
    claim_max_cost: Float = Field(default=0.1, gt=0, le=1, description="share of the teacher's cost a student may need")
    equivalence_margin: Float = Field(
        default=0.02, gt=0, le=1, description="difference of two averages above chance from which it would matter"
    )

    @property
    def alpha(self) -> float:
        """Below which an adjusted p of a declared comparison is significant."""
        return 1 - self.confidence_level
