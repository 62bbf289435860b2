"""What identifies a cell: its role and every value that can change its result, and nothing else."""

from typing import Any

from distill_lit.config import CorpusConfig, ExperimentConfig, TermConfig, decisive
from distill_lit.config.on_policy import is_on
from distill_lit.generation.corpus import decisive_remote
from distill_lit.generation.filters import comparison_facts
from distill_lit.generation.prompts import drawing_facts
from distill_lit.losses import build_objective
from distill_lit.utils.files import fingerprint

TEACHER, UNTOUCHED, CE_ONLY, DISTILLED = "teacher", "untouched", "ce_only", "distilled"
QUANTISED, RIVAL = "quantised", "rival"
SIGNAL, GENERATED = "signal", "generated"  # what the teacher tells, for cells that need it
TEACHER_INT8 = "teacher_int8"  # name of a baseline
VERSION = 1  # raise it when a default, or what a value means, changes: every cell is then a new one
# knobs of training that cannot change a result
WITHOUT_EFFECT = ("keep_checkpoints", "checkpoint_every", "checkpoint_budget", "log_every")


def student_identity(role: str, config: ExperimentConfig) -> str:
    """Identifies a student: how it begins, what it reads, and, unless it is untouched, how it is trained."""
    facts: dict[str, Any] = {
        "role": UNTOUCHED if role == UNTOUCHED else "trained",
        "student": decisive(config.students[config.student]),
        "teacher": _teacher_identity(role, config),
        "data": data_identity(config),
    }
    if role != UNTOUCHED:
        facts |= {"objective": _objective_identity(config), "training": training_identity(config), "seed": config.seed}
        facts |= {"on_policy": decisive(config.on_policy)} if is_on(config.on_policy) else {}
    elif config.students[config.student].config:
        facts["seed"] = config.seed
    return identity_of(**facts)


def _teacher_identity(role: str, config: ExperimentConfig) -> dict[str, Any]:
    """What of the teacher decides a student: for one that learns nothing from it, not how it would have told."""
    found = decisive(config.teacher)
    known = ("model", "dtype", *(["source"] if config.teacher.source == "foreign" else []))  # then it has another tokenizer
    return found if role == DISTILLED else {key: found[key] for key in known if key in found}


def _objective_identity(config: ExperimentConfig) -> dict[str, Any]:
    """The terms that have a weight, and the scaling of those with a teacher; how the head computes them decides nothing."""
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    used = set(objective.names)
    unless_said = TermConfig(weight=1.0, temperature=1.0)
    terms = {
        name: {key: value for key, value in decisive(term).items() if value != getattr(unless_said, key)}
        for name, term in config.objective.terms.items()
        if name in used and term is not None
    }
    return {"terms": terms, **({"scaling": config.objective.temperature_scaling} if objective.needs_teacher else {})}


def identity_of(**facts: Any) -> str:
    """Identifies these facts in this version."""
    return fingerprint({"version": VERSION, **facts})


def training_identity(config: ExperimentConfig) -> dict[str, Any]:
    """The knobs of training that decide its result."""
    return {key: value for key, value in decisive(config.training).items() if key not in WITHOUT_EFFECT}


def data_identity(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the rows that are read."""
    found = {**decisive(config.data), "benchmarks": config.benchmarks}
    return {**found, "corpora": {name: corpus_identity(corpus, config) for name, corpus in config.data.corpora.items()}}


def held_out_identity(config: ExperimentConfig) -> str:
    """Identifies the text that is held out for validation: numbers measured on different text do not compare."""
    found = data_identity(config)
    rows: list[Any] = [config.data.seed, config.data.length, config.data.validation]
    if config.teacher.source == "foreign":  # the student's own tokenizer cuts them
        rows.append(config.students[config.student].from_)
    return identity_of(corpora=found["corpora"], rows=rows, benchmarks=found["benchmarks"])


def corpus_identity(corpus: CorpusConfig, config: ExperimentConfig) -> dict[str, Any]:
    """A corpus without the knobs that cannot change its documents."""
    found = decisive(corpus)
    generated = corpus.generated
    if generated is None:
        return found
    found |= comparison_facts(generated.filters) | drawing_facts(generated.prompts)
    if generated.filters.contamination:
        found["asked"] = [sorted(config.evaluation.tasks), config.evaluation.include_path]
    if generated.remote is not None:
        found["generated"]["remote"] = decisive_remote(generated.remote)
    return found


def evaluation_identity(config: ExperimentConfig) -> str:
    """Identifies the questions a model is asked: a cell is evaluated again when they change."""
    asked = {key: value for key, value in decisive(config.evaluation).items() if key not in ("every", "every_limit")}
    asked.setdefault("fewshot", "what the task says")  # once it was none at all
    return identity_of(**asked, benchmarks=config.benchmarks)
