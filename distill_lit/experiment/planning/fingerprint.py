"""What identifies a run: its role and every value that can change its result, and nothing else."""

import inspect
from typing import Any

from distill_lit.config import CorpusConfig, ExperimentConfig, TermConfig, TrainingConfig, non_default_fields
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.config.roles import Role
from distill_lit.config.server import without_neutral_server_fields
from distill_lit.data.corpora import corpus_text_fields
from distill_lit.experiment.planning.asked_teachers import routed_corpora
from distill_lit.generation.corpus import remote_fingerprint_fields
from distill_lit.generation.filters import answer_comparison_metadata
from distill_lit.generation.prompts import prompt_sampling_metadata
from distill_lit.losses import Term, build_objective
from distill_lit.losses.sparse import DEFAULT_K
from distill_lit.models.drawing import sampling_metadata
from distill_lit.teachers import is_shipped_source, teacher_capabilities
from distill_lit.utils.files import fingerprint
from distill_lit.utils.plugins import plugin_hash

TEACHER_INT8 = "teacher_int8"  # name of a baseline
FINGERPRINT_VERSION = 2  # raise it when a default, or what a value means, changes: every run is then a new one
# fields of training that cannot change a result
RESULT_NEUTRAL_TRAINING_FIELDS = ("keep_checkpoints", "checkpoint_interval", "checkpoint_budget", "log_every_n_steps",
                                  "compile", "strategy", "teacher_shards", "checkpoint")  # fmt: skip


def student_fingerprint_fields(role: str, config: ExperimentConfig) -> dict[str, Any]:
    """What identifies a student: how it begins, what it reads, and, unless it is untrained, how it is trained. Its seed,
    where one decides anything, is the `seed` among them."""
    facts: dict[str, Any] = {
        **plugin_fingerprint_fields(config),
        "role": Role.UNTRAINED if role == Role.UNTRAINED else "trained",
        "student": non_default_fields(config.students[config.student]),
        "teacher": _teacher_fingerprint_fields(role, config),
        "data": data_fingerprint_fields(config),
    }
    if role != Role.UNTRAINED:
        facts |= {
            "objective": _objective_fingerprint_fields(config),
            "training": training_fingerprint_fields(config),
            "seed": config.seed,
        }
        if is_on_policy_enabled(config.on_policy):
            drawn = sampling_metadata(config.on_policy.temperature, config.generation.backend)
            facts["on_policy"] = non_default_fields(config.on_policy) | drawn
            if config.on_policy.replay_buffer_size:
                facts["on_policy"]["replay"] = "grows"  # once it faded
    elif config.students[config.student].draws_weights:
        facts["seed"] = config.seed
    return facts


def _teacher_fingerprint_fields(role: str, config: ExperimentConfig) -> dict[str, Any]:
    """What of the teacher decides a student; of one that learns nothing from it, not the settings of its outputs, but its
    weights and the prompt under which it is compared with it."""
    found = without_neutral_server_fields(non_default_fields(config.teacher))
    if routes := routed_corpora(config):
        found["corpora"] = routes
    # one with another tokenizer leaves the student its own
    own_tokenizer = [] if teacher_capabilities(config.teacher).shares_tokenizer else ["source"]
    known = ("model", "dtype", "quantize", "prompt", *own_tokenizer)
    return found if role == Role.DISTILLED else {key: found[key] for key in known if key in found}


def _objective_fingerprint_fields(config: ExperimentConfig) -> dict[str, Any]:
    """The terms that have a weight, and the scaling of those with a teacher; how the head computes them decides nothing."""
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    used = set(objective.term_names)
    default_term = TermConfig(weight=1.0, temperature=1.0)
    terms = {
        name: {key: value for key, value in non_default_fields(term).items() if value != getattr(default_term, key)}
        for name, term in config.objective.terms.items()
        if name in used and term is not None
    }
    facts: dict[str, Any] = {"terms": terms}
    if objective.needs_teacher:
        facts["scaling"] = config.objective.temperature_scaling
    able = teacher_capabilities(config.teacher)
    if able.target_form == "top_k" and able.max_target_tokens > DEFAULT_K and any(map(_reads_all, objective.logit_terms)):
        facts["k"] = "all"  # once no more than DEFAULT_K were read
    return facts


def _reads_all(term: Term) -> bool:
    """Whether it reads all tokens that are kept of a teacher's distribution, because nobody has said how many."""
    count = inspect.signature(term.loss_spec.function).parameters.get("k")
    return count is not None and count.default is None and "k" not in term.options


def plugin_fingerprint_fields(config: ExperimentConfig) -> dict[str, Any]:
    """{plugins: their hashes}; empty without plugins."""
    return {"plugins": [plugin_hash(name) for name in config.plugins]} if config.plugins else {}


def teacher_cache_fingerprint_fields(name: str, config: ExperimentConfig) -> dict[str, Any]:
    """What identifies the cache of one of the teachers, by its name: teacher, rows, and code that is not shipped."""
    teacher = config.teacher.members[name]
    # the tokenizer of `teacher.model` makes the rows, whichever teacher reads them
    is_other = teacher.model != config.teacher.model
    return {
        **({} if is_shipped_source(teacher) else plugin_fingerprint_fields(config)),
        "teacher_cache": without_neutral_server_fields(non_default_fields(teacher)),
        "data": data_fingerprint_fields(config),
        **({"tokenizer": config.teacher.model} if is_other else {}),
    }


def versioned_fingerprint(**facts: Any) -> str:
    """Identifies these facts in this version."""
    return fingerprint({"version": FINGERPRINT_VERSION, **facts})


def training_fingerprint_fields(config: ExperimentConfig) -> dict[str, Any]:
    """The fields of training that decide its result. Ranks share out the rows of a pass: how many they are decides nothing
    where all read as many, but for students that write, each rank a text of its own."""
    found = non_default_fields(config.training)
    if config.training.ranks > 1 and not is_on_policy_enabled(config.on_policy):
        rows = config.training.micro_batch_size * config.training.ranks
        found = {key: value for key, value in found.items() if key not in ("devices", "nodes", "micro_batch_size")}
        found |= {"micro_batch_size": rows} if rows != TrainingConfig().micro_batch_size else {}
    return {key: value for key, value in found.items() if key not in RESULT_NEUTRAL_TRAINING_FIELDS}


def data_fingerprint_fields(config: ExperimentConfig) -> dict[str, Any]:
    """What decides the rows that are read."""
    found = {**non_default_fields(config.data), "dataset_source": config.dataset_source}
    found.pop("workers", None)  # they make the same rows
    if config.data.validation:
        found["validation"] = {name: corpus_text_fields(corpus) for name, corpus in config.data.validation.items()}
    return {
        **found,
        "corpora": {name: corpus_fingerprint_fields(corpus, config) for name, corpus in config.data.corpora.items()},
    }


def validation_data_fingerprint(config: ExperimentConfig) -> str:
    """Identifies the text that is held out for validation: numbers measured on different text do not compare. Held-out
    documents are the same whatever the weights of the corpora."""
    found = data_fingerprint_fields(config)
    corpora = found.get("validation") or {
        name: {key: value for key, value in corpus.items() if key != "weight"} for name, corpus in found["corpora"].items()
    }
    rows: list[Any] = [config.data.seed, config.data.sequence_length, config.data.validation_sequences]
    if config.data.chat_template:
        rows.append({"chat_template": config.data.chat_template})
    if not teacher_capabilities(config.teacher).shares_tokenizer:  # the student's own tokenizer cuts them
        rows.append(config.students[config.student].from_)
    return versioned_fingerprint(corpora=corpora, rows=rows, dataset_source=found["dataset_source"])


def corpus_fingerprint_fields(corpus: CorpusConfig, config: ExperimentConfig) -> dict[str, Any]:
    """A corpus without the fields that cannot change its documents."""
    found = corpus_text_fields(corpus)
    generated = corpus.generated
    if generated is None:
        return found
    found |= answer_comparison_metadata(generated.filters) | prompt_sampling_metadata(generated.prompts)
    if generated.filters.custom:
        found |= plugin_fingerprint_fields(config)
    if generated.filters.decontamination_ngram:
        found["evaluation_tasks"] = [sorted(config.evaluation.tasks), config.evaluation.include_path]
    if generated.remote is not None:
        found["generated"]["remote"] = remote_fingerprint_fields(generated.remote)
        return found
    return found | sampling_metadata(generated.temperature, config.generation.backend)


def evaluation_fingerprint(config: ExperimentConfig, compared_with: str = "") -> str:
    """Identifies the questions a model is asked: a run is evaluated again when they change. compared_with: the teacher of a
    model that nothing else ties to it, with which probes compare it."""
    fields = {
        key: value
        for key, value in non_default_fields(config.evaluation).items()
        if key not in ("interval", "interval_limit")
    }
    if config.evaluation.probes and compared_with:
        fields["compared_with"] = compared_with
    return versioned_fingerprint(**fields, dataset_source=config.dataset_source)
