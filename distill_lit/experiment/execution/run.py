"""One run, from its config to a student folder and its evaluation records, each stage done once."""

import shutil
from collections.abc import Container, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_lit import assets
from distill_lit.config import to_yaml
from distill_lit.config.derivation import map_model_references
from distill_lit.config.roles import Role
from distill_lit.data.own_text import own_text_fingerprints
from distill_lit.evaluation.evaluator import EvaluationResult, evaluate_model, join_results
from distill_lit.evaluation.own_questions import own_questions_fingerprint
from distill_lit.evaluation.probes import evaluate_probes
from distill_lit.evaluation.result_files import write_records
from distill_lit.evaluation.surprisal import measure_surprisal
from distill_lit.evaluation.task_scores import mean_above_chance, primary_scores
from distill_lit.experiment.estimates.strategy import takes_all_ranks, with_strategy
from distill_lit.experiment.execution.provenance import collect_provenance
from distill_lit.experiment.execution.run_data import write_generated_corpora
from distill_lit.experiment.execution.student import build_reference_model, train_and_export_student
from distill_lit.experiment.execution.teacher import write_teacher_cache_of
from distill_lit.experiment.planning.planned_run import BUILD, EVALUATE, Run
from distill_lit.experiment.planning.requirements import required_assets_of, required_models
from distill_lit.experiment.state.completion import (
    OWN_QUESTIONS,
    SURPRISAL_FILE,
    evaluation_identity,
    is_run_built,
    is_run_evaluated,
    run_model_folder,
)
from distill_lit.experiment.state.run_times import record_times
from distill_lit.models import model_fingerprint, model_folder
from distill_lit.models.loading import allow_remote_code, is_remote_code_allowed, weight_bytes
from distill_lit.training.tensorboard_summary import FINAL_FOLDER, HParamsSession, write_run_summary
from distill_lit.utils import hardware
from distill_lit.utils.distributed.node import Node, node_from_environment
from distill_lit.utils.distributed.ranks import barrier, get_rank
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import atomic_write, fingerprint, hashes_of, read_json, read_mapping, write_json
from distill_lit.utils.plugins import load_plugins
from distill_lit.utils.progress import ProgressCallback

OWN_TEXT = "own_text"  # in the manifest, of what stood in the user's own files


def execute_run(run: Run, folder: Path, progress_callback: ProgressCallback, part: str = "") -> None:
    """Does whatever of a run is not done: builds its model, evaluates it. Each stage ends with its manifest.

    part: `build` or `evaluate`, where the two are jobs of their own.
    """
    load_plugins(run.config.plugins)
    folder.mkdir(parents=True, exist_ok=True)
    run = with_source_folders(run, folder.parent)
    allow_run_remote_code(run, folder)
    with record_times(folder, progress_callback, hardware.device_for(run.config.training.accelerator)) as timed_callback:
        _execute_stages(run, folder, timed_callback, part)


def _execute_stages(run: Run, folder: Path, progress_callback: ProgressCallback, part: str) -> None:
    if part != EVALUATE and not is_run_built(run, folder):
        run = with_strategy(run)
        if takes_all_ranks(run):
            _build_on_ranks(run, folder, node_from_environment(run.config.training.nodes), progress_callback)
        else:
            build_run(run, folder, progress_callback)
    if part != BUILD and run.is_model and not is_run_evaluated(run, folder):
        evaluate_run(run, folder, progress_callback)


def join_run(run: Run, folder: Path, node: Node) -> None:
    """Takes part, with the ranks of this machine, in what a run needs several nodes for; the first one does the rest."""
    load_plugins(run.config.plugins)
    run = with_strategy(with_source_folders(run, folder.parent))
    if not is_run_built(run, folder) and takes_all_ranks(run):
        _build_on_ranks(run, folder, node, lambda *_: None)


def _build_on_ranks(run: Run, folder: Path, node: Node, callback: ProgressCallback) -> None:
    count = run.config.training.devices
    spawn_ranks(count, build_run_on_rank, run, folder, progress_callback=callback, node=node, label=run.name)


def build_run_on_rank(run: Run, folder: Path, progress_callback: ProgressCallback) -> None:
    """Builds a run as one of several ranks, in a process of its own. None ends before the first has written the manifest: a
    node whose ranks have ended looks whether the run is done."""
    load_plugins(run.config.plugins)
    allow_run_remote_code(run, folder)
    build_run(run, folder, progress_callback)
    barrier()


def with_source_folders(run: Run, runs_folder: Path) -> Run:
    """The run with the folders of the models that other runs have made in the place of their names."""

    def folder_of(_: str, reference: str) -> str:
        source = run.sources.get(reference)
        return f"file:{source_model_folder(runs_folder / source)}" if source else reference

    reference = folder_of("", run.model_reference)
    return replace(run, config=map_model_references(run.config, folder_of), model_reference=reference)


def source_model_folder(folder: Path) -> Path:
    """The transformers folder of the model that a run has made, or has taken as it was."""
    return run_model_folder(folder, read_mapping(folder / "manifest.json"))


def allow_run_remote_code(run: Run, folder: Path) -> None:
    """Lets the models of a run run the code they bring, in this process, where a reference ends with `+code`, or one did
    from which they were made."""
    references = required_models([run])
    made = [folder.parent / name for name in run.sources.values()]
    trusted = [model_folder(name) for name in references if assets.parse_reference(name).trust_remote_code]
    trusted += [source_model_folder(place) for place in made if read_mapping(place / "manifest.json").get("remote_code")]
    for place in trusted:  # the student is of the same classes
        allow_remote_code(place)
        allow_remote_code(folder / "student")


def check_sources_unchanged(runs: Iterable[Run], runs_folder: Path) -> None:
    """Raises UserError where the files of a model are others than when a finished run learned from it or began as it: one
    that another run has made, or one of the user's own."""
    for run in runs:
        recorded = read_mapping(runs_folder / run.name / "manifest.json").get("sources", {})
        for name, source in run.sources.items():
            place = source_model_folder(runs_folder / source)
            # a model may have had another name then
            if recorded and place.is_dir() and fingerprint(model_fingerprint(place)) not in recorded.values():
                raise UserError(
                    f"{place}: it is not the {name!r} any more that {run.label} was made from; put its files back, or "
                    f"remove the folders of both below {runs_folder} to make them again"
                )
        for reference, place in _own_models(run, recorded).items():
            if fingerprint(model_fingerprint(place)) != recorded[reference]:
                raise UserError(
                    f"{place}: its files are others than when {run.label} was made from it; put them back, or remove "
                    f"{runs_folder / run.name} to make it again"
                )


def check_text_unchanged(runs: Iterable[Run], to_build: Iterable[Run], runs_folder: Path) -> None:
    """Raises UserError where the user's own files of text, of what `to_build` is made of, hold something else than when
    finished runs read them: the others would be trained on other text."""
    read = {item for run in to_build if not run.model_reference for item in own_text_fingerprints(run.config.data).items()}
    known: dict[str, dict[str, str]] = {}
    readers: dict[str, list[Run]] = {}
    for run in runs if read else ():
        recorded = read_mapping(runs_folder / run.name / "manifest.json").get(OWN_TEXT, {})
        data = repr(run.config.data)
        if recorded and data not in known:
            known[data] = _text_still_there(run)
        for key, content in recorded.items():
            now = known[data].get(key, content)
            if now != content and (key, now) in read:
                readers.setdefault(key, []).append(run)
    for key, others in readers.items():
        first, more = others[0], f" and those of {len(others) - 1} others" if len(others) > 1 else ""
        raise UserError(
            f"{key}: its text has changed since {first.label} was made; put it back, or remove "
            f"{runs_folder / first.name}{more} to make them of the new text"
        )


def _text_still_there(run: Run) -> dict[str, str]:
    try:
        return own_text_fingerprints(run.config.data)
    except UserError:  # a file is gone that no run needs which is still to be made
        return {}


def _own_models(run: Run, known: Container[str] | None = None) -> dict[str, Path]:
    """{reference: transformers folder} of the models on this disk that a run needs and no run of its experiment has made.

    known: only of these references; None: of all.
    """
    names = [name for name in required_models([run]) if assets.parse_reference(name).kind == "file"]
    return {name: model_folder(name) for name in names if known is None or name in known}


def build_run(run: Run, folder: Path, progress_callback: ProgressCallback) -> None:
    """Makes a run's model, teacher cache or corpora, then its manifest. Of several ranks only the first writes."""
    teacher_folder = model_folder(run.config.teacher.model)
    own_text = {} if run.model_reference else own_text_fingerprints(run.config.data)  # as it is before it is read
    if run.model_reference:
        facts: dict[str, Any] = build_reference_model(run, folder)
    elif run.role == Role.TEACHER_CACHE:
        facts = write_teacher_cache_of(run.config, run.teacher, teacher_folder, progress_callback)
        if get_rank():
            return
    elif run.role == Role.GENERATED:
        facts = {"corpora": write_generated_corpora(run.config, progress_callback)}
    else:
        facts = train_and_export_student(run, folder, teacher_folder, progress_callback)
        if get_rank():
            return
    if run.is_model:
        place = run_model_folder(folder, facts)
        facts |= {"fingerprint": model_fingerprint(place), "bytes": weight_bytes(place)}
    facts |= source_facts(run, folder) | ({OWN_TEXT: own_text} if own_text else {})
    provenance = collect_provenance(run.config, required_assets_of(run), folder.parents[1])
    write_json(
        folder / "manifest.json",
        {"identity": run.fingerprint, "role": run.role, "label": run.label, **facts, "provenance": provenance},
    )
    if not run.config.training.keep_checkpoints:  # only now: without a manifest the run would begin anew
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def source_facts(run: Run, folder: Path) -> dict[str, Any]:
    """What the models were from which a run was made, and whether code of theirs may be run."""
    places = {name: source_model_folder(folder.parent / source) for name, source in run.sources.items()}
    # in the config of a run that is made, models of other runs are folders too
    places |= {name: place for name, place in _own_models(run).items() if place not in places.values()}
    facts: dict[str, Any] = {"remote_code": True} if is_remote_code_allowed(folder / "student") else {}
    if places:
        facts["sources"] = {name: fingerprint(model_fingerprint(place)) for name, place in places.items()}
    return facts


def evaluate_run(run: Run, folder: Path, progress_callback: ProgressCallback) -> None:
    """Asks a run's model the experiment's questions; writes records, then `evaluation.json`."""
    progress_callback("prepare evaluation", 0, 1)
    own_questions = own_questions_fingerprint(run.config.evaluation)  # before they are read: they may change meanwhile
    manifest = read_json(folder / "manifest.json")
    result = evaluate_model(
        run_model_folder(folder, manifest),
        run.config.evaluation,
        run.config.dataset_source,
        device=str(hardware.device_for(run.config.training.accelerator)),
        progress_callback=progress_callback,
    )
    if run.config.evaluation.probes:
        result = _with_probes(run, run_model_folder(folder, manifest), result, progress_callback)
    records = folder / "records"
    write_records(result, records)
    if run.role == Role.TEACHER:
        surprisal = measure_surprisal(
            run_model_folder(folder, manifest),
            result.documents,
            run.config.evaluation,
            run.config.dataset_source,
            device=str(hardware.device_for(run.config.training.accelerator)),
            progress_callback=progress_callback,
        )
        with atomic_write(records / SURPRISAL_FILE) as path:
            surprisal.to_parquet(path, compression="zstd", index=False)
    write_run_summary(folder, tensorboard_hparams(run, folder), to_yaml(run.config))
    write_json(
        folder / "evaluation.json",
        {
            "evaluation": evaluation_identity(run),
            **({OWN_QUESTIONS: own_questions} if own_questions else {}),
            "model": manifest["fingerprint"],
            "files": hashes_of(records),
        },
    )


def _with_probes(run: Run, model: Path, tasks: EvaluationResult, progress_callback: ProgressCallback) -> EvaluationResult:
    """The result with a run's model scored on the probes too, beside its teacher."""
    probes = evaluate_probes(
        model,
        run.config.evaluation,
        run.config.dataset_source,
        teacher=None if run.role == Role.TEACHER else model_folder(run.config.teacher.model),
        device=str(hardware.device_for(run.config.training.accelerator)),
        progress_callback=progress_callback,
    )
    return join_results(tasks, probes)


def tensorboard_hparams(run: Run, folder: Path) -> HParamsSession:
    """(fields, final scores) of an evaluated run, for TensorBoard's table of hyperparameters."""
    metrics = read_json(folder / "manifest.json").get("metrics", {})
    meta = read_json(folder / "records" / "meta.json")
    above = mean_above_chance(meta)
    found = {name.removeprefix("validation/"): value for name, value in metrics.items() if name.startswith("validation/")}
    found |= primary_scores(meta) | ({} if above is None else {"above_chance": above})
    return _hyperparameters(run), {f"{FINAL_FOLDER}/{name}": value for name, value in found.items()}


def _hyperparameters(run: Run) -> dict[str, Any]:
    training = run.config.training
    return {
        "experiment": run.config.name,
        "role": run.role,
        "student": run.student,
        "seed": run.config.seed,
        **run.grid_values,
        "learning_rate": training.learning_rate,
        "tokens": training.max_tokens,
    }
