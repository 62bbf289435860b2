"""What is known of a run's models before any of them is made: transformers config and tokenizer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distill_lit.experiment.planned_run import Run
from distill_lit.models import load_model_config, model_folder, student_config
from distill_lit.teachers import teacher_capabilities


class Architecture(NamedTuple):
    """config: of transformers; tokenizer_folder: whose tokenizer the model reads with."""

    config: Any
    tokenizer_folder: Path


class Architectures:
    """The architectures of the models that runs need and make. All assets must have been fetched; no weights are loaded.

    Example:
        architectures = Architectures(experiment.runs)
        teacher = architectures.teacher(run)
        layers = architectures.student(run).config.num_hidden_layers
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = {run.name: run for run in runs}
        self._known: dict[str, Architecture] = {}  # by reference, or by name of the run

    def teacher(self, run: Run) -> Architecture:
        """Of the teacher that a run has."""
        return self.of(run.config.teacher.model, run)

    def student(self, run: Run) -> Architecture:
        """Of the model that a run trains or quantizes, or takes as it is."""
        if run.model_reference:
            return self.of(run.model_reference, run)
        if run.name not in self._known:
            config = student_config(run.config.students[run.student], self.origin(run).config)
            self._known[run.name] = Architecture(config, self.tokenizer_folder(run))
        return self._known[run.name]

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
