"""What is known of a run's models before any of them is made: transformers config and tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distill_lit.experiment.planned_run import Run
from distill_lit.models import ModelSize, load_model_config, model_folder, size_from_config, student_config
from distill_lit.teachers import teacher_capabilities


@dataclass(frozen=True)
class Architecture:
    """config: of transformers; tokenizer_folder: whose tokenizer the model reads with."""

    config: Any
    tokenizer_folder: Path

    @cached_property
    def size(self) -> ModelSize:
        """Its parameters and arithmetic; counting them builds the model, without weights."""
        return size_from_config(self.config)


class Architectures:
    """The architectures of the models that runs need and make. All assets must have been fetched; no weights are loaded.

    Example:
        architectures = Architectures(experiment.runs)
        teacher = architectures.teacher(run)
        layers = architectures.student(run).config.num_hidden_layers
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = {run.name: run for run in runs}
        self._known: dict[str, Architecture] = {}  # by reference, or by how it is made

    def teacher(self, run: Run) -> Architecture:
        """Of the teacher that a run has."""
        return self.of(run.config.teacher.model, run)

    def student(self, run: Run) -> Architecture:
        """Of the model that a run trains or quantizes, or takes as it is."""
        if run.model_reference:
            return self.of(run.model_reference, run)
        key = self._key(run)
        if key not in self._known:
            config = student_config(run.config.students[run.student], self.origin(run).config)
            self._known[key] = Architecture(config, self.tokenizer_folder(run))
        return self._known[key]

    def _key(self, run: Run) -> str:
        """What runs have in common whose students are made alike."""
        config, shape = run.config, run.config.students[run.student]
        origins = [self._origin_key(reference, run) for reference in (shape.from_, config.teacher.model)]
        return repr((shape, origins, config.teacher.source))

    def _origin_key(self, reference: str, run: Run) -> str:
        made = self._runs.get(run.sources.get(reference, ""))
        return reference if made is None else self._key(made) if made.student else made.model_reference

    def origin(self, run: Run) -> Architecture:
        """Of the model that the student of a run begins as, or is pruned from."""
        return self.of(run.config.students[run.student].from_ or run.config.teacher.model, run)

    def tokenizer_folder(self, run: Run) -> Path:
        """Whose tokenizer the student of a run reads with: the teacher's, or its own where they need not share one."""
        reference = run.config.students[run.student].from_ if run.student else ""
        has_own = bool(reference) and not teacher_capabilities(run.config.teacher).shares_tokenizer
        return (self.of(reference, run) if has_own else self.teacher(run)).tokenizer_folder

    def of(self, reference: str, run: Run) -> Architecture:
        """Of what a reference in the config of a run stands for."""
        if reference in run.sources:
            return self.student(self._runs[run.sources[reference]])
        if reference not in self._known:
            folder = model_folder(reference)
            self._known[reference] = Architecture(load_model_config(folder), folder)
        return self._known[reference]
