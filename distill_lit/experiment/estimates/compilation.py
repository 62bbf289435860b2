"""Which students are compiled: what `training.compile: auto` means for the runs of an experiment.

Compiling pays where runs are long, and how long depends on the machine: it is compared what all runs of one graph save
together with what compiling it costs once, and finding it again in each of them. Decided before the first of them begins,
and kept beside the runs: seeds, arms and runs that go on compute alike, whatever else the machine does by then.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from distill_lit.config import ExperimentConfig, to_dict
from distill_lit.config.on_policy import is_on_policy_enabled
from distill_lit.experiment.estimates.pace import Pace
from distill_lit.experiment.estimates.run_estimate import Estimate, teacher_pass_flops, training_tokens
from distill_lit.experiment.planning.architectures import Architectures
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.losses import build_objective, can_compile
from distill_lit.profiling.compilation import CompilationCost, compilation_cost
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils import hardware
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import fingerprint, merge_json, read_mapping

CHOICES_FILE = "compile.json"  # in the folder of the runs: {graph: {compile, why}}
MIN_SECONDS = 1800.0  # of training on a graph, below which it is not measured: a third of it would hardly pay for measuring
MARGIN = 1.5  # times what it costs, compiling is to save: an estimate is no promise


class BackboneWork(NamedTuple):
    """Seconds that the backbones of a run's student and of its online teacher take in training, and their layers."""

    student_seconds: float
    teacher_seconds: float
    student_layers: int
    teacher_layers: int


def choose_compilation(
    runs: Sequence[Run], estimates: Mapping[str, Estimate | None], folder: Path, note: Callable[[str], None]
) -> list[Run]:
    """The runs with `always` in the place of `auto` where they are compiled; left at `auto` they are not. folder: of the
    runs, where choices are kept; note: told what is compiled, or why it cannot be."""
    graphs: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.is_trained and run.config.training.compile == "auto" and not why_not_compiled(run.config):
            graphs[_graph_key(run.config)].append(run)
    path = folder / CHOICES_FILE
    kept = read_mapping(path)
    new = {key: _decide(of_graph, runs, estimates, note) for key, of_graph in graphs.items() if key not in kept}
    if new:
        kept = merge_json(path, new)  # another driver may have been faster
    compiled = {run.name for key, of_graph in graphs.items() for run in of_graph if kept[key]["compile"] == "always"}
    return [_compiled(run) if run.name in compiled else run for run in runs]


def _compiled(run: Run) -> Run:
    return replace(run, config=replace(run.config, training=replace(run.config.training, compile="always")))


def why_not_compiled(config: ExperimentConfig) -> str:
    """What of a config speaks against compiling it unasked; empty where nothing does."""
    objective = build_objective(config.objective.terms, config.objective.temperature_scaling)
    reasons = {
        "several ranks": config.training.ranks > 1,
        "launcher.engine slurm, whose nodes are not this machine": config.launcher.engine == "slurm",
        "on_policy, which writes with the student": is_on_policy_enabled(config.on_policy),
        "terms on hidden states, which a compiled backbone does not show": objective.feature_terms,
        "training.gradient_checkpointing": config.training.gradient_checkpointing,
        "evaluation.interval, which asks the student in rows of all lengths": config.evaluation.interval,
        "teacher.prompt, under which rows have all lengths": config.teacher.prompt.is_set,
        "quantization_aware": config.students[config.student].quantization_aware != "none",
    }
    return next((reason for reason, applies in reasons.items() if applies), "")


def _graph_key(config: ExperimentConfig) -> str:
    """Runs that compile the same graphs, whatever their seed, loss and length."""
    training, teacher = config.training, config.teacher
    return fingerprint([
        to_dict(config.students[config.student]), config.data.sequence_length, training.micro_batch_size,
        training.precision, training.packed_attention, training.accelerator,
        teacher.model, teacher.source, teacher.dtype, teacher.quantize,
    ])  # fmt: skip


def _decide(
    runs: list[Run], all_runs: Sequence[Run], estimates: Mapping[str, Estimate | None], note: Callable[[str], None]
) -> dict[str, Any]:
    """{compile, why} for the runs of a graph. all_runs: what they are made from too, and what the cores are shared with."""
    config, student = runs[0].config, runs[0].student
    found = [estimates.get(run.name) for run in runs]
    seconds = sum(60 * one.parts.get("training", 0.0) for one in found if one is not None)
    if seconds < MIN_SECONDS:
        return {"compile": "never", "why": f"{student}: {seconds:.0f} s of training"}
    device = hardware.device_for(config.training.accelerator)
    try:
        if not can_compile(device):
            raise UserError("no C++ compiler is here" if device.type == "cpu" else "Triton is not here")
        cost = compilation_cost(device, config.training.precision)
    except UserError as error:
        note(f"training.compile: auto: {student} is not compiled: {error}")
        return {"compile": "never", "why": str(error)}
    architectures, pace = Architectures(all_runs), Pace.of(all_runs)
    saved, spent = balance([_backbone_work(run, architectures, pace) for run in runs], cost)
    choice = "always" if saved > MARGIN * spent else "never"
    line = f"{student}: compiling {len(runs)} runs saves {saved:.0f} s and takes {spent:.0f} s"
    if choice == "always":
        note(f"training.compile: auto: {line}")
    return {"compile": choice, "why": line}


def balance(works: Sequence[BackboneWork], cost: CompilationCost) -> tuple[float, float]:
    """(seconds that runs of one graph save, seconds that compiling takes them)."""
    student = sum(work.student_seconds for work in works)
    teacher = sum(work.teacher_seconds for work in works)
    saved = student * (1 - 1 / cost.training_speedup) + teacher * (1 - 1 / cost.forward_speedup)
    spent = cost.seconds(works[0].student_layers, len(works))
    if with_teacher := [work for work in works if work.teacher_seconds]:
        spent += cost.seconds(with_teacher[0].teacher_layers, len(with_teacher))
    return saved, spent


def _backbone_work(run: Run, architectures: Architectures, pace: Pace) -> BackboneWork:
    config, student = run.config, architectures.student(run).size
    tokens = training_tokens(config)
    student_flops = 3 * student.flops_per_token(head=False) * tokens
    able = teacher_capabilities(config.teacher)
    is_compiled = able.reads_training_rows and able.shares_tokenizer and not able.copies_student
    teacher_flops = teacher_pass_flops(run, architectures, student)[0] * tokens if is_compiled else 0.0
    return BackboneWork(
        pace.training(student_flops, config.training.precision),
        pace.forward(teacher_flops, config.teacher.dtype),
        student.layers,
        architectures.teacher(run).size.layers if teacher_flops else 0,
    )
