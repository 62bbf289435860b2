"""What is known of a run's models before any of them is made: transformers config and tokenizer."""

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from distill_lit.config import to_dict
from distill_lit.experiment.planning.pipeline import referred_models
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.models import ModelSize, load_model_config, model_folder, size_from_config, student_config
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils.files import cache_root, fingerprint, read_json, sha256_of, try_write_json

SIZE_VERSION = 2  # raise it when a number of `ModelSize` means something else


@dataclass(frozen=True, eq=False)
class Architecture:
    """identity: fingerprint of what decides its config; make_config: the transformers config; tokenizer_folder: whose
    tokenizer the model reads with; chat_template: file with the one that takes the place of this tokenizer's, or empty.

    Of a model that is made here: what it begins as, and the kinds of text that it is trained on.
    """

    identity: str
    make_config: Callable[[], Any]
    tokenizer_folder: Path
    chat_template: str = ""
    origin: "Architecture | None" = None
    reads_chats: bool = False
    reads_plain_text: bool = False

    @cached_property
    def config(self) -> Any:
        """Its transformers config. Raises UserError where there can be none."""
        return self.make_config()

    @cached_property
    def size(self) -> ModelSize:
        """Its parameters and arithmetic. Counting them builds the model, without weights, so they are remembered."""
        path = cache_root() / "architectures" / f"{fingerprint([SIZE_VERSION, self.identity])}.json"
        if path.is_file():
            return ModelSize(**read_json(path))
        size = size_from_config(self.config)
        try_write_json(path, asdict(size))
        return size

    @classmethod
    def of_folder(cls, folder: Path) -> "Architecture":
        """Of the model in a folder of transformers."""
        code = {path.name: sha256_of(path) for path in sorted([folder / "config.json", *folder.glob("*.py")])}
        identity = fingerprint([importlib.metadata.version("transformers"), code])
        return cls(identity, partial(load_model_config, folder), folder)


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
        self._keys: dict[str, str] = {}  # of runs, by name

    def teacher(self, run: Run) -> Architecture:
        """Of the teacher that a run has."""
        return self.of(run.config.teacher.model, run)

    def student(self, run: Run) -> Architecture:
        """Of the model that a run trains or quantizes, or takes as it is."""
        if run.model_reference:
            return self.of(run.model_reference, run)
        key = self._key(run)
        if key not in self._known:
            self._known[key] = self._made(run)
        return self._known[key]

    def _made(self, run: Run) -> Architecture:
        config, shape, origin = run.config, run.config.students[run.student], self.origin(run)
        identity = fingerprint([origin.identity, to_dict(shape)])
        folder, template = origin.tokenizer_folder, origin.chat_template
        made = Architecture(identity, lambda: student_config(shape, origin.config), folder, template, origin)
        if shape.quantize != "none":  # the files beside the weights are copied
            return made
        reader, corpora = self.reader(run), config.data.corpora.values() if run.is_trained else ()
        kinds = {corpus.is_chat for corpus in corpora}
        return replace(
            made,
            tokenizer_folder=reader.tokenizer_folder,
            chat_template=config.data.chat_template or reader.chat_template,
            reads_chats=True in kinds,
            reads_plain_text=False in kinds,
        )

    def _key(self, run: Run) -> str:
        """What runs have in common whose students are made alike, whatever they are trained on and for how long."""
        if run.name not in self._keys:
            config, shape = run.config, run.config.students[run.student]
            kinds = sorted({corpus.is_chat for corpus in config.data.corpora.values()}) if run.is_trained else []
            made_from = self.references(run)
            facts = (shape, made_from, config.teacher.source, config.data.chat_template, kinds)
            self._keys[run.name] = fingerprint(repr(facts))
        return self._keys[run.name]

    def references(self, run: Run) -> dict[str, str]:
        """{reference to a model in the config of a run: what it stands for, which is itself, or how that model is made}."""
        return {reference: self._made_as(reference, run) for reference in referred_models(run.config).values()}

    def _made_as(self, reference: str, run: Run) -> str:
        made = self._runs.get(run.sources.get(reference, ""))
        return reference if made is None else self._key(made) if made.student else made.model_reference

    def origin(self, run: Run) -> Architecture:
        """Of the model that the student of a run begins as, or is pruned from."""
        return self.of(run.config.students[run.student].from_ or run.config.teacher.model, run)

    def writer(self, run: Run) -> Architecture | None:
        """Of the local model that writes the corpus of a run; None where a server does."""
        generated = next(corpus.generated for corpus in run.config.data.corpora.values() if corpus.generated)
        return None if generated.remote else self.of(generated.model or run.config.teacher.model, run)

    def reader(self, run: Run) -> Architecture:
        """Of the model with whose tokenizer the text of a run is read: the teacher, or where they need not share it, what
        the student begins as."""
        reference = run.config.students[run.student].from_ if run.student else ""
        has_own = bool(reference) and not teacher_capabilities(run.config.teacher).shares_tokenizer
        return self.of(reference, run) if has_own else self.teacher(run)

    def of(self, reference: str, run: Run) -> Architecture:
        """Of what a reference in the config of a run stands for."""
        if reference in run.sources:
            return self.student(self._runs[run.sources[reference]])
        if reference not in self._known:
            self._known[reference] = Architecture.of_folder(model_folder(reference))
        return self._known[reference]
