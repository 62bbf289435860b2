"""What a teacher is: the protocol that training sees, and the capabilities that planning asks for before loading anything.

A new teacher is one file: a class with `target` and `to`, and a `TeacherSource` that builds it from a config, registered
under the word that users write for `teacher.source`. Nothing outside this package compares that word with anything: plans,
checks, fingerprints and estimates ask for capabilities.

Example:
    @register_teacher("uniform")
    class UniformSource(TeacherSource):
        def capabilities(self, config):
            return TeacherCapabilities(target_form="dense", needs_model=False)

        def build(self, context):
            return UniformTeacher(context.vocab_size)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from distill_lit.config import DataConfig, ExperimentConfig, TeacherConfig
from distill_lit.data import PreparedData
from distill_lit.losses.targets import TeacherTarget
from distill_lit.models import ModelSize, load_model
from distill_lit.models.activations import Activations, LayersByKind
from distill_lit.models.device_map import load_over_devices
from distill_lit.models.loading import torch_dtype
from distill_lit.models.quantization import round_weights
from distill_lit.models.sharding import build_on_rank_zero, rank_device, shard_frozen, world_mesh
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.utils import hardware
from distill_lit.utils.distributed.ranks import get_world_size
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.progress import ProgressCallback

ALL_LAYERS: Literal["all"] = "all"
HiddenLayers = Literal["all"] | tuple[int, ...]


class Teacher(Protocol):
    """The teacher as training sees it."""

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> TeacherTarget:
        """What it says of the N tokens to predict. batch: packed rows; loss_mask: (B, T − 1) bool, True at the N positions
        whose next token is supervised. Validations ask once for a batch, unless the teacher follows the student."""
        ...

    def to(self, device: torch.device) -> None:
        """Moves what is in memory to a device."""
        ...


@runtime_checkable
class HiddenStateTeacher(Teacher, Protocol):
    """A teacher that also shows its inner states."""

    def activations(self, batch: dict[str, Tensor], wanted: LayersByKind) -> AbstractContextManager[Activations]:
        """Yields the wanted states for a batch, all of them there once `target` has been called inside."""
        ...


@runtime_checkable
class PrefetchingTeacher(Teacher, Protocol):
    """A teacher that waits on I/O: it can begin with a batch before the student reads it."""

    def prefetch(self, batch: dict[str, Tensor]) -> None:
        """Begins with a batch of packed rows, and returns at once."""
        ...


@runtime_checkable
class StudentFollowingTeacher(Teacher, Protocol):
    """A teacher whose weights follow the student's: told of every optimizer step, saved with every checkpoint."""

    def follow(self, student: Any) -> None:
        """Takes in the student's weights after an optimizer step; the same on every rank."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that a resumed training needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        ...


def _of_several(rule: Callable[[Sequence[Any]], Any], default: Any = False) -> Any:
    """A field with its default, and what it is of several teachers together, from the values of each."""
    return field(default=default, metadata={"of_several": rule})


def _none(_: Sequence[bool]) -> bool:
    return False


@dataclass(frozen=True)
class TeacherCapabilities:
    """What a configured teacher can do, and what it needs. Each field says what it is of several teachers.

    Args:
        target_form: of its targets for training rows: dense, top_k, sampled or cross_tokenizer, the words that losses list
            in `target_forms`; empty for no targets at all.
        max_target_tokens: the most tokens of a target that is top_k; 0 where that is not known.
        hidden_layers: layers whose hidden states can be compared: all, some, or none.
        hidden_layers_key: the config key that gives it hidden layers, for messages; empty where there is none.
        has_attention: attention maps, queries, keys and values can be compared too.
        shares_tokenizer: it reads the student's tokens. If not, the student keeps a tokenizer of its own.
        needs_model: the weights of `teacher.model` read the rows, during the training or before it.
        needs_cache: a run of its own must come first and write what it says (`CachedTeacherSource`).
        keeps_lm_head: of its weights the lm_head alone is beside the student, and makes distributions of hidden states.
        reads_held_out_rows: its model is beside the student for held-out rows alone; something else says what it says of
            training rows.
        scores_student_text: it can be asked about text that the student has just written (on-policy training).
        has_device: it can run on a device other than the student's (`launcher.teacher_device`).
        writes_text: its model can be drawn from beside the student (`on_policy.teacher_mix_fraction`).
        copies_student: its model is a copy of the student, in memory while this trains.
        follows_student: its weights change with the student's, a `StudentFollowingTeacher`: nothing without a training.
        reads_prompt: it can read another prompt than the student (`teacher.prompt`).
        is_shardable: it is a `Shardable` (models.sharding), whose ranks all read in the same number of passes.
    """

    target_form: str = field(metadata={"of_several": lambda forms: next((f for f in forms if f != "dense"), "dense")})
    max_target_tokens: int = _of_several(min, 0)
    hidden_layers: HiddenLayers = _of_several(lambda _: (), ())  # they have different layers
    hidden_layers_key: str = _of_several(lambda _: "", "")
    has_attention: bool = _of_several(_none)
    shares_tokenizer: bool = _of_several(all, True)
    needs_model: bool = _of_several(any, True)
    needs_cache: bool = _of_several(any)
    keeps_lm_head: bool = _of_several(any)
    reads_held_out_rows: bool = _of_several(any)
    scores_student_text: bool = _of_several(all)
    has_device: bool = _of_several(all)
    writes_text: bool = _of_several(_none)
    copies_student: bool = _of_several(any)
    follows_student: bool = _of_several(any)
    reads_prompt: bool = _of_several(all)
    is_shardable: bool = _of_several(_none)

    @classmethod
    def of_several(cls, able: Sequence["TeacherCapabilities"]) -> "TeacherCapabilities":
        """What several teachers can do together, and what any of them needs."""
        return cls(**{f.name: f.metadata["of_several"]([getattr(one, f.name) for one in able]) for f in fields(cls)})

    @property
    def runs_beside_student(self) -> bool:
        """Whether the teacher's model is in memory while the student trains, and is validated."""
        return self.reads_training_rows or self.reads_held_out_rows

    @property
    def reads_training_rows(self) -> bool:
        """Whether the teacher's model reads what the student learns from, at the same time."""
        return (self.needs_model or self.copies_student) and not (self.needs_cache or self.reads_held_out_rows)


@dataclass(frozen=True)
class TeacherContext:
    """What a teacher is built from.

    Args:
        model_folder: of `teacher.model`.
        student_tokenizer_folder: whose tokenizer has made the rows of `data`; the teacher's where it shares it.
        student: as it is before its training; None where none is trained.
    """

    config: ExperimentConfig
    model_folder: Path
    student_tokenizer_folder: Path
    data: PreparedData
    student: Any = None

    @cached_property
    def vocab_size(self) -> int:
        """The teacher's real tokens: heads are often padded."""
        return load_unpadded_vocab_size(self.model_folder)

    @property
    def dtype(self) -> torch.dtype:
        """The teacher's number format."""
        return torch_dtype(self.config.teacher.dtype)

    @property
    def device(self) -> torch.device:
        """Where the experiment trains."""
        return hardware.device_for(self.config.training.accelerator)

    @property
    def is_sharded(self) -> bool:
        """Whether its model is to be sharded over the ranks that are here."""
        return self.config.training.strategy == "fsdp" and get_world_size() > 1

    def load_model(self) -> Any:
        """The teacher's model, frozen, on the CPU, in its number format; where it is to be sharded on the first rank alone,
        and elsewhere its shape: all ranks call this together."""
        return build_on_rank_zero(self._load_model) if self.is_sharded else self._load_model()

    def place(self, model: Any) -> Any:
        """A loaded model where it reads rows before a training: on its device, on all of this machine, or sharded over the
        ranks, who call this together."""
        if self.is_sharded:
            shard_frozen(model, world_mesh(self.device), rank_device(self.device))
            return model
        return model if self.is_spread else model.to(self.device)

    @property
    def is_spread(self) -> bool:
        """Whether its model is spread over all devices of this machine."""
        return self.config.launcher.teacher_device == "auto"

    def _load_model(self) -> Any:
        if self.is_spread:
            return load_over_devices(self.model_folder, self.dtype).requires_grad_(False)
        model, quantize = load_model(self.model_folder, self.dtype), self.config.teacher.quantize
        return (model if quantize == "none" else round_weights(model, quantize)).requires_grad_(False)


class TeacherSource(ABC):
    """One choice of `teacher.source`: what such a teacher can do, what it refuses, and how a config becomes one."""

    @abstractmethod
    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        """What a teacher with these fields can do. Nothing is loaded; the config may be wrong still."""

    @abstractmethod
    def build(self, context: TeacherContext) -> Teacher | None:
        """The teacher that a training asks; None where it asks none. All ranks call this, at the same time."""

    @property
    def about(self) -> str:
        """The first line of the class's documentation."""
        return (type(self).__doc__ or "").strip().partition("\n")[0]

    def describe(self, config: TeacherConfig) -> str:
        """What users call such a teacher, for messages."""
        return f"teacher.source {config.source}"

    def check(self, config: TeacherConfig) -> None:
        """Raises UserError for fields that cannot be, as far as the config alone shows."""
        if config.options:
            name = next(iter(config.options))
            raise UserError(f"teacher.options: {name!r} is given, and {self.describe(config)} has none")

    def check_data(self, config: TeacherConfig, data: DataConfig) -> None:  # noqa: B027
        """Raises UserError for a configuration of the data that it cannot be asked about."""

    def check_model(self, config: TeacherConfig, model_config: Any) -> None:  # noqa: B027 - most have nothing to refuse
        """Raises UserError for fields that do not fit the teacher's transformers config."""

    def check_service(self, config: TeacherConfig, tokenizer_folder: Path) -> None:  # noqa: B027
        """Raises UserError where a service that it asks cannot do what is wanted, as far as it shows now; before any run
        that would ask it. tokenizer_folder: of `teacher.model`."""

    def check_tokenizers(self, tokenizer: Any, student_tokenizer: Any) -> None:  # noqa: B027
        """Raises UserError for tokenizers that it cannot bring together; asked where it does not share the student's."""


class CacheRows(NamedTuple):
    """How much a teacher cache is about: positions of training rows, supervised ones among them, and held-out positions."""

    train_positions: int
    supervised: int
    validation_positions: int


class CachedTeacherSource(TeacherSource):
    """A teacher whose cache is written by a run of its own, once for all students that read it."""

    @abstractmethod
    def cache_label(self, config: TeacherConfig) -> str:
        """What tells its run from those of other caches, such as top_k_50; empty for the usual one."""

    @abstractmethod
    def write_cache(self, context: TeacherContext, progress: ProgressCallback) -> dict[str, Any]:
        """Writes what the teacher says of all rows, or what is missing of it. The facts go into the manifest of the run:
        `teacher_cache`, its folder, `rows`, and `bytes_per_token`."""

    @abstractmethod
    def is_cache_complete(self, facts: Mapping[str, Any]) -> bool:
        """Whether what `write_cache` has written, by these facts, is there and whole."""

    @abstractmethod
    def estimate_cache_bytes(self, config: TeacherConfig, model: ModelSize, rows: CacheRows) -> int:
        """Bytes on disk. model: the teacher's."""
