"""A teacher that the package does not know: one class and one registration take it through checks, plan and training."""

import ast
import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from torch import Tensor

from distill_lit import data
from distill_lit.config import ExperimentConfig, TeacherConfig, load_experiment
from distill_lit.data.loader import make_batch
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.estimates.run_estimate import estimate_runs
from distill_lit.experiment.execution.run import build_run
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.completion import is_run_built
from distill_lit.losses.lm_head import LMHead, get_lm_head
from distill_lit.losses.targets import DenseTarget
from distill_lit.models import ModelSize, load_model
from distill_lit.teachers import (
    CachedTeacherSource,
    OfflineTeacher,
    OnlineTeacher,
    TeacherCacheFormat,
    TeacherCapabilities,
    TeacherContext,
    TeacherSource,
    register_teacher,
    registry,
    teacher_sources,
    write_teacher_cache,
)
from distill_lit.teachers.base import CacheRows
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json, write_json
from distill_lit.utils.progress import ProgressCallback

PACKAGE = ROOT / "distill_lit"
SHIPPED = ["answers", "cross_tokenizer", "ema", "none", "offline", "online", "self", "served"]
EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", source: {source}, dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 3, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}, compile: never}}
training: {{max_tokens: 256, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""


class UnigramTeacher:
    """The same distribution at every position. logprobs: (V,) nats."""

    def __init__(self, logprobs: Tensor) -> None:
        self.lm_head = LMHead(torch.zeros(len(logprobs), 1), logprobs, 1.0, 0.0, len(logprobs))

    def to(self, device: torch.device) -> None:
        self.lm_head = self.lm_head.to(device)

    def target(self, batch: dict[str, Tensor], loss_mask: Tensor) -> DenseTarget:
        return DenseTarget(torch.zeros(int(loss_mask.sum()), 1, device=loss_mask.device), self.lm_head)


class UniformSource(TeacherSource):
    """Every token is as probable as any other: no model, nothing to write."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        return TeacherCapabilities(target_form="dense", needs_model=False)

    def build(self, context: TeacherContext) -> UnigramTeacher:
        return UnigramTeacher(torch.full((context.vocab_size,), -math.log(context.vocab_size)))


class UnigramSource(CachedTeacherSource):
    """Counts of the tokens in the training rows, made by a run of its own, `teacher.options.add` added to each."""

    def capabilities(self, config: TeacherConfig) -> TeacherCapabilities:
        return TeacherCapabilities(target_form="dense", needs_model=False, needs_cache=True)

    def check(self, config: TeacherConfig) -> None:
        if set(config.options) != {"add"}:
            raise UserError("teacher.options: a unigram teacher needs add, and nothing else")

    def cache_label(self, config: TeacherConfig) -> str:
        return f"counts_{config.options['add']}"

    def write_cache(self, context: TeacherContext, progress: ProgressCallback) -> dict[str, Any]:
        tokens = context.data.train.input_ids[context.data.train.document_ids > 0]
        path = context.model_folder.parent / f"counts-{context.data.fingerprint[:8]}.json"
        write_json(path, np.bincount(tokens, minlength=context.vocab_size).tolist())
        progress("cache", len(context.data.train), len(context.data.train), "rows")
        return {"teacher_cache": str(path)}

    def is_cache_complete(self, facts: Mapping[str, Any]) -> bool:
        return Path(facts["teacher_cache"]).is_file()

    def estimate_cache_bytes(self, config: TeacherConfig, model: ModelSize, rows: CacheRows) -> int:
        return 4 * model.vocab_size

    def build(self, context: TeacherContext) -> UnigramTeacher:
        path = context.model_folder.parent / f"counts-{context.data.fingerprint[:8]}.json"
        counts = torch.tensor(json.loads(path.read_text())) + float(context.config.teacher.options["add"])
        return UnigramTeacher((counts / counts.sum()).log())


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both teachers, for one test."""
    monkeypatch.setattr(registry, "TEACHER_SOURCES", copy.copy(registry.TEACHER_SOURCES))
    register_teacher("uniform")(UniformSource)
    register_teacher("unigram")(UnigramSource)


@pytest.fixture
def load(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> Any:
    def load_config(source: str, *changes: str) -> ExperimentConfig:
        (file := tmp_path / "tiny.yaml").write_text(
            EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus, source=source)
        )
        return load_experiment(file, list(changes))

    return load_config


def build(run: Run, folder: Path) -> Any:
    """The manifest of a run, by the way that every run takes."""
    folder.mkdir(parents=True)
    build_run(run, folder, lambda *_: None)
    assert is_run_built(run, folder)
    return read_json(folder / "manifest.json")


# ---------------------------------------------------------------- a new teacher


def test_a_student_is_distilled_from_a_teacher_without_a_model(load: Any, tmp_path: Path) -> None:
    config = load("uniform")
    check_experiment(config)
    check_against_teacher(plan_runs(config))
    (run,) = plan_runs(config)
    assert (run.role, run.depends_on) == ("distilled", ())
    made = build(run, tmp_path / "run")
    metrics = made["metrics"]
    assert metrics["validation/teacher_nll"] == pytest.approx(math.log(300), rel=1e-6)
    assert metrics["validation/teacher_entropy"] == pytest.approx(math.log(300), rel=1e-6)
    losses = [json.loads(line)["train/loss"] for line in (tmp_path / "run/metrics.jsonl").open() if "train/loss" in line]
    assert losses[-1] < losses[0]  # the student forgets what it knew
    assert made["teacher_training_flops"] == 0
    assert made["training_tokens"] == 256


def test_a_teacher_whose_run_comes_first(load: Any, tmp_path: Path, tiny_teacher: Path) -> None:
    config = load("unigram", "teacher.options.add=1")
    check_experiment(config)
    check_against_teacher(plan_runs(config))
    first, second = plan_runs(config)
    assert (first.role, first.label) == ("teacher_cache", "teacher-cache-counts_1")
    assert (second.role, second.depends_on) == ("distilled", (first.name,))
    estimates = estimate_runs([first, second])
    assert estimates is not None
    assert estimates[first.name].disk_bytes == 4 * 300
    build(first, tmp_path / "first")
    prepared = data.prepare_datasets(config.data, tiny_teacher, config.dataset_source)
    counts = np.ones(300)
    np.add.at(counts, prepared.train.input_ids[prepared.train.document_ids > 0], 1)
    labels = prepared.validation.input_ids[prepared.validation.loss_mask]
    metrics = build(second, tmp_path / "second")["metrics"]
    assert metrics["validation/teacher_nll"] == pytest.approx(-np.log(counts / counts.sum())[labels].mean(), rel=1e-5)


def test_its_knobs_decide_what_is_one_and_the_same_run(load: Any) -> None:
    one, same, other = (plan_runs(load("unigram", f"teacher.options.add={n}")) for n in (1, 1, 2))
    assert [run.fingerprint for run in one] == [run.fingerprint for run in same]
    assert not {run.fingerprint for run in one} & {run.fingerprint for run in other}


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        (
            "uniform",
            ["objective.terms.inner={kind: hidden_states}"],
            "objective.terms.inner: hidden_states compares inner states, which teacher.source uniform does not show; "
            "use teacher.source online$",
        ),
        ("uniform", ["objective.terms.maps={kind: attention}"], "which teacher.source uniform does not show"),
        ("uniform", ["objective.terms.kl.kind=uld"], "uld needs a teacher that is .*, and teacher.source uniform is dense"),
        ("uniform", ["on_policy.fraction=0.5"], "on_policy.fraction: teacher.source uniform cannot score text"),
        ("uniform", ["teacher.options.order=2"], "teacher.options: 'order' is given, and teacher.source uniform has none"),
        ("unigram", [], "teacher.options: a unigram teacher needs add"),
        ("unigramm", [], "teacher.source: unknown value 'unigramm'; did you mean 'unigram'"),
        ("off_line", [], "teacher.source: unknown value 'off_line'; did you mean 'offline'"),
    ],
)
def test_what_it_cannot_do_is_refused_by_its_name(load: Any, source: str, changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load(source, *changes))


def test_a_source_that_nobody_registered_is_not_planned(load: Any) -> None:
    with pytest.raises(UserError, match="teacher.source: unknown value 'nobody'"):
        plan_runs(load("nobody"))


def test_a_name_is_given_once() -> None:
    assert sorted(teacher_sources()) == sorted([*SHIPPED, "uniform", "unigram"])
    register_teacher("uniform")(UniformSource)  # a file that is read twice
    with pytest.raises(UserError, match=r"register_teacher\('online'\): what has this name is part of distill_lit"):
        register_teacher("online")(UniformSource)


# ---------------------------------------------------------------- capabilities instead of names


def compared_sources(code: str) -> list[int]:
    """Lines of a module that compare the name of a source: something called `source` with a text, or these names."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Compare):
            sides: list[Any] = [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            sides = [node.subject, *node.cases]
        elif isinstance(node, ast.Dict):
            sides = [key for key in node.keys if key is not None]
        else:
            continue
        parts = [part for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant)]
        texts = {part.value for part in parts if isinstance(part.value, str)}
        is_source = any(getattr(side, "attr", getattr(side, "id", "")) == "source" for side in sides)
        if texts & {"online", "offline"} or (is_source and texts):
            found.append(node.lineno)
    return found


def test_nothing_outside_the_registry_compares_the_name_of_a_source() -> None:
    for code in (
        'if config.teacher.source == "offline": pass',
        'if source in ("none", "cross_tokenizer"): pass',
        'match teacher.source:\n    case "none": pass',
        'forms = {"online": 1}[kind]',
    ):
        assert compared_sources(code), code
    assert {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "teachers" and (lines := compared_sources(path.read_text()))
    } == {}


# ---------------------------------------------------------------- alone, as in a notebook


def test_an_online_and_an_offline_teacher_alone(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    """Both against the model's own logits, a document at a time."""
    model = load_model(tiny_teacher)
    online = OnlineTeacher(model)
    batch = make_batch(prepared.train, np.array([5, 0]), 1)
    loss_mask = batch["labels"][:, 1:] >= 0
    target = online.target(batch, loss_mask)
    logprobs = target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)
    expected = torch.zeros(2, 31, 300)
    for row, documents in enumerate(batch["document_ids"]):
        for number in range(1, int(documents.max()) + 1):
            columns = (documents == number).nonzero()[:, 0]
            ids = batch["input_ids"][row, columns][None]
            expected[row, columns[:-1]] = model(ids).logits[0, :-1].log_softmax(-1)
    torch.testing.assert_close(logprobs, expected[loss_mask], atol=1e-4, rtol=1e-4)
    for cache_format in (TeacherCacheFormat(hidden_layers=(1,)), TeacherCacheFormat("top_k", 5)):
        folder = tmp_path / cache_format.kind
        write_teacher_cache(folder, model, prepared.train, cache_format=cache_format)
        offline = OfflineTeacher(folder, prepared.train, get_lm_head(model, 300))
        assert offline.cache_format == cache_format
        kept = offline.target(batch, loss_mask)
        if isinstance(kept, DenseTarget):
            torch.testing.assert_close(kept.hidden_states, target.hidden_states, atol=1e-5, rtol=1e-5)
        else:
            values, ids = logprobs.topk(5)
            assert torch.equal(kept.ids, ids)
            torch.testing.assert_close(kept.logprobs, values, atol=5e-3, rtol=2e-3)
    with pytest.raises(UserError, match="has no hidden_states of layer 0"):
        offline.activations(batch, {"hidden_states": {0}})
    with pytest.raises(UserError, match="incomplete or corrupt, or not of"):
        OfflineTeacher(folder, prepared.validation, get_lm_head(model, 300))


def test_a_manifest_that_names_no_format_is_refused(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    model = load_model(tiny_teacher)
    write_teacher_cache(tmp_path, model, prepared.train)
    manifest = read_json(tmp_path / "manifest.json")
    for damaged in (None, [], {}, {"kind": "top_q", "hidden_layers": []}, {"kind": "top_k", "hidden_layers": 3}):
        write_json(tmp_path / "manifest.json", {**manifest, "cache_format": damaged})
        with pytest.raises(UserError, match="the manifest of the teacher cache .* is corrupt"):
            OfflineTeacher(tmp_path, prepared.train, get_lm_head(model, 300))
