"""The model of a cell: taken as it is, quantised, or a student that is trained and exported."""

import functools
import json
from pathlib import Path
from typing import Any

from lightning import Callback

from distill_lit import data
from distill_lit.config import ExperimentConfig, StudentConfig, to_dict, to_yaml
from distill_lit.config.on_policy import is_on
from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.loader import calibration_batches
from distill_lit.data.templates import read_template, with_template
from distill_lit.experiment.fingerprint import QUANTISED, UNTOUCHED, training_identity
from distill_lit.experiment.plan import Cell
from distill_lit.experiment.requirements import base_of
from distill_lit.experiment.teacher import dtype_of, open_signal, prepare_data, real_tokens
from distill_lit.generation.sampling import end_tokens
from distill_lit.losses import Objective, build_objective, can_compile, chunk_for
from distill_lit.models import (
    CARD,
    INT8,
    READER_PROCESS,
    Calibration,
    Size,
    check_exports,
    check_reloads,
    export_student,
    initial_student,
    load_config,
    load_model,
    load_tokenizer,
    logits_on,
    merge_adapters,
    model_card,
    model_fingerprint,
    model_folder,
    probe,
    quantise,
    size_from_config,
    size_of,
    trained_share,
)
from distill_lit.models.loading import may_run_code
from distill_lit.models.student import kept_layers
from distill_lit.teachers import TeacherSignal
from distill_lit.training.callbacks.evaluation import MidwayEvaluation
from distill_lit.training.distiller import Distiller, HeadSettings
from distill_lit.training.feature_alignment import Matching, build_matching
from distill_lit.training.on_policy import StudentText
from distill_lit.training.tensorboard_summary import Layout
from distill_lit.training.trainer import Report, Run, train, validate
from distill_lit.utils import hardware
from distill_lit.utils.distributed.ranks import first_rank_first, this_rank
from distill_lit.utils.files import fingerprint, hashes_of

BYTES_PER_NUMBER = 2  # of cached keys and values: bfloat16 or float16


def student_hashes(folder: Path) -> dict[str, str]:
    """Hashes of a student's files but the model card, to which the report adds scores."""
    return {name: digest for name, digest in hashes_of(folder / "student").items() if name != CARD}


def take_model(cell: Cell, folder: Path) -> dict[str, Any]:
    """A model as it is, or the teacher in int8."""
    place = model_folder(cell.reference)
    if cell.role != QUANTISED:
        return {"model": str(place), **_size_facts(size_of(load_model(place)))}
    quantised = quantise(place, folder / "student")
    ids = probe(quantised)
    check_reloads(quantised, folder / "student", ids, logits_on(quantised, ids))
    size = size_of(load_model(folder / "student"))
    return {"files": student_hashes(folder), "format": INT8, **_size_facts(size)}


def build_student(cell: Cell, folder: Path, teacher: Path, report: Report) -> dict[str, Any]:
    """Trains (or only validates) a student and exports it; what its manifest says of it. Only the first rank exports."""
    config = cell.config
    base = base_of(config, teacher)
    with first_rank_first():
        prepared = prepare_data(config, base)
        vocabulary = real_tokens(base)
        measured = Calibration(
            calibration_batches(prepared.train),
            prepared.fingerprint,
            dtype_of(config.teacher.dtype),
            lambda done, total: report("choose layers", done, total, "trials", {}),
            hardware.device_for(config.training.accelerator),
        )
        student = initial_student(config.students[cell.student], base, measured, config.seed)
        if not this_rank():
            check_exports(student, base, folder / "export", to_dict(config.students[cell.student]))
        signal = open_signal(config, teacher, prepared, vocabulary)
        trained = trained_share(student)
        run = _training_run(cell, folder, student, vocabulary, prepared, signal, report, teacher)
    metrics = (validate if cell.role == UNTOUCHED else train)(run)
    if this_rank():
        return {}
    report("export", 0, 1, "", {})
    size = _export(cell, folder, student, base)
    return {
        "files": student_hashes(folder),
        "origin": run.origin,
        "metrics": metrics,
        "data": prepared.statistics,
        **_size_facts(size),
        **_cost_facts(cell, run, size, trained, teacher),
        **_choices(config.students[cell.student], teacher, measured, run.distiller.matching),
    }


def _export(cell: Cell, folder: Path, student: Any, base: Path) -> Size:
    """Writes the finished student, adapters merged, and has it read in another process. Raises UserError, its weights kept,
    where it says something else there."""
    READER_PROCESS.start()
    ids = probe(student)
    said = logits_on(student, ids)
    size = size_of(merge_adapters(student))
    card = model_card(cell.label, cell.config.teacher.model, _recipe(cell), {"parameters": f"{size.parameters:,}"})
    export_student(student, base, folder / "student", card, read_template(cell.config.data.chat_template))
    check_reloads(student, folder / "student", ids, said, may_run_code(folder / "student"))
    return size


def _choices(student: StudentConfig, teacher: Path, measured: Calibration, matching: Matching | None) -> dict[str, Any]:
    """Which of the teacher's layers the student kept, and which layers were compared with which."""
    is_cut = not student.from_ and not student.config
    kept = {"kept_layers": kept_layers(student, teacher, measured)} if is_cut else {}
    return kept | ({"layer_maps": {term.name: pairs for term, pairs in matching.matched}} if matching else {})


def _training_run(
    cell: Cell,
    folder: Path,
    student: Any,
    vocabulary: int,
    prepared: data.PreparedData,
    signal: TeacherSignal | None,
    report: Report,
    teacher: Path,
) -> Run:
    config, length = cell.config, prepared.train.length
    module = PackedDataModule(prepared.train, prepared.validation, config.training, config.seed)
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    model = getattr(signal, "model", None)
    calibration = calibration_batches(prepared.train)
    matching = build_matching(objective, student, load_config(teacher), model, calibration, config.seed)
    distiller = Distiller(
        student,
        vocabulary,
        objective,
        signal,
        config.training,
        module.steps,
        length,
        _head_settings(config, max(vocabulary, real_tokens(teacher))),  # a foreign teacher may have more words
        matching,
        _student_text(config, student, vocabulary, base_of(config, teacher), model, module.steps),
    )
    origin = _origin(cell, teacher, student, prepared, objective)
    callbacks: list[Callback] = [Layout([term.name for term in objective.terms])]
    if config.evaluation.every:
        tokenizer = _tokenizer(config, base_of(config, teacher))
        callbacks.append(MidwayEvaluation(tokenizer, config.evaluation, config.benchmarks, module.steps))
    return Run(folder, distiller, module, config.training, config.seed, report, origin, config.launcher.changed, callbacks)


def _tokenizer(config: ExperimentConfig, base: Path) -> Any:
    """The student's tokenizer, with the chat template that it is trained on."""
    return with_template(load_tokenizer(base), read_template(config.data.chat_template))


def _student_text(
    config: ExperimentConfig, student: Any, vocabulary: int, base: Path, teacher: Any, steps: int
) -> StudentText | None:
    """What makes batches of the student's own text, or None where it writes none."""
    if not is_on(config.on_policy):
        return None
    ends = end_tokens(student, _tokenizer(config, base), any(corpus.is_chat for corpus in config.data.corpora.values()))
    return StudentText(config.on_policy, ends, vocabulary, teacher, config.seed, steps)


def _origin(cell: Cell, teacher: Path, student: Any, prepared: data.PreparedData, objective: Objective) -> dict[str, str]:
    """What a checkpoint belongs to. A cell's identity holds references; this holds the contents behind them."""
    config = cell.config.students[cell.student]
    shapes = {name: list(parameter.shape) for name, parameter in student.named_parameters()}
    origin = {
        "teacher": fingerprint(model_fingerprint(teacher)),
        "student": fingerprint([to_dict(config), shapes]),
        "data": prepared.fingerprint,
        "objective": json.dumps(objective.facts(), sort_keys=True),
        "training": json.dumps(training_identity(cell.config), sort_keys=True),
        "seed": str(cell.config.seed),
    }
    return origin | ({"student.from": fingerprint(model_fingerprint(model_folder(config.from_)))} if config.from_ else {})


def _head_settings(config: ExperimentConfig, vocabulary: int) -> HeadSettings:
    objective = config.objective
    device = hardware.device_for(config.training.accelerator)
    compiled = objective.compile == "always" or (objective.compile == "auto" and can_compile(device))
    dtype = dtype_of(config.training.precision)
    budget = objective.memory_budget or hardware.logits_budget(device)
    chunk = objective.chunk or chunk_for(budget, vocabulary, compiled, dtype)
    return HeadSettings(chunk, compiled, dtype)


def _recipe(cell: Cell) -> str:
    config = cell.config
    head = f"student: {cell.student}\nseed: {config.seed}\n"
    if cell.role == UNTOUCHED:
        return head + "training: none\n"
    return (
        head + "objective:\n" + _indented(to_yaml(config.objective)) + "training:\n" + _indented(to_yaml(config.training))
    )


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


def _size_facts(size: Size) -> dict[str, Any]:
    return {
        "parameters": size.parameters,
        "non_embedding_parameters": size.non_embedding,
        "layers": size.layers,
        "flops_per_token": size.flops_per_token(),
        "kv_bytes_per_token": BYTES_PER_NUMBER * size.cache_width,
    }


def _cost_facts(cell: Cell, run: Run, size: Size, trained: float, teacher: Path) -> dict[str, Any]:
    """Tokens read and arithmetic spent. A backward pass costs a forward pass for the activations and another for the
    share of the weights that is trained; a cached teacher's body ran once, for all cells, and is charged to each."""
    tokens = 0 if cell.role == UNTOUCHED else run.data.steps * run.distiller.tokens_per_step
    teacher_size = _teacher_size(str(teacher))
    needs_teacher = run.distiller.objective.needs_teacher
    return {
        "training_tokens": tokens,
        "student_flops": (2 + trained) * size.flops_per_token() * tokens,
        "teacher_flops": teacher_size.flops_per_token() * tokens if needs_teacher else 0.0,
    }


@functools.lru_cache(maxsize=2)
def _teacher_size(folder: str) -> Size:
    return size_from_config(load_config(Path(folder)))
