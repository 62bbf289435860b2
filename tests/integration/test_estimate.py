"""What an experiment is said to cost, against what it then writes; and the refusal where a disk has not the room."""

import dataclasses
from pathlib import Path

import pytest
from helpers import tiny_models
from helpers.caches import new_cache

from distill_lit.config import ExperimentConfig, load_experiment
from distill_lit.data import prepare_datasets
from distill_lit.experiment import estimate
from distill_lit.experiment.estimate import Estimate, estimate_runs, require_disk_space
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planned_run import Run
from distill_lit.experiment.run import execute_run
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import disk_free, filesystem_id, read_json

EXPERIMENT = """
name: tiny
teacher: {{model: "file:{teacher}", source: offline, dtype: float32}}
students: {{one: {{layers: [0]}}}}
data: {{sequence_length: 32, validation_sequences: 3, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{ce: {{weight: 1}}}}, compile: never}}
training: {{max_tokens: 64, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""
FORMS = {
    "hidden_states": [],
    "hidden_bfloat16": ["teacher.dtype=bfloat16"],
    "hidden_layers": ["teacher.hidden_layers=[0,1]"],
    "top_k": [
        "teacher.cache_format=top_k",
        "teacher.top_k=7",
        "objective.terms.kl={kind: top_k_kl, weight: 1, options: {k: 7}}",
    ],
    "sampled": [
        "teacher.cache_format=sampled",
        "teacher.num_samples=5",
        "objective.terms.kl={kind: sampled_kl, weight: 1}",
    ],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))


def load(tmp_path: Path, teacher: Path, corpus: Path, *changes: str) -> ExperimentConfig:
    file = tmp_path / "tiny.yaml"
    file.write_text(EXPERIMENT.format(teacher=teacher, corpus=corpus))
    return load_experiment(file, list(changes))


def teacher_cache_of(config: ExperimentConfig) -> Run:
    return next(run for run in plan_runs(config) if run.role == "teacher_cache")


def estimate_of(config: ExperimentConfig) -> Estimate | None:
    known = estimate_runs(plan_runs(config))
    assert known is not None
    return known[teacher_cache_of(config).name]


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_a_cache_takes_what_was_said(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, changes: list[str]) -> None:
    config = load(tmp_path, tiny_teacher, tiny_corpus, *changes)
    prepare_datasets(config.data, tiny_teacher, "pypi")
    said = estimate_of(config)
    run = teacher_cache_of(config)
    execute_run(run, tmp_path / "run", lambda *_: None)
    shards = list(Path(read_json(tmp_path / "run/manifest.json")["teacher_cache"]).glob("*.safetensors"))
    assert said is not None
    assert said.disk_bytes == sum(path.stat().st_size - header(path) for path in shards)
    assert said.minutes > 0


def header(path: Path) -> int:
    """Bytes before the numbers of a safetensors file."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_text_that_is_not_prepared_is_counted_by_its_bytes(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    size = sum(len(text) for text in set(tiny_models.sentences(400, 1)))
    states = 32 * 4  # bytes of 32 channels
    said = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus))
    assert said is not None
    assert said.disk_bytes == (size // 4 + 3 * 32) * states
    capped = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus, "data.max_tokens=512"))
    assert capped is not None
    assert capped.disk_bytes == (512 + 3 * 32) * states


def test_text_that_nobody_can_count_is_unknown_not_nothing(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill_lit.data.pipeline.MAX_BYTES_TO_COUNT", 10)
    assert estimate_of(load(tmp_path, tiny_teacher, tiny_corpus)) is None
    capped = estimate_of(load(tmp_path, tiny_teacher, tiny_corpus, "data.max_tokens=512"))
    assert capped is not None
    assert capped.disk_bytes == (512 + 3 * 32) * 32 * 4


# ---------------------------------------------------------------- room on the disks

CACHE, RUNS = 10, 100  # bytes that the two runs write


def check(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch, disks: dict[str, tuple[int, int]], built: str = ""
) -> None:
    """`disks`: {cache or runs: (number of the file system, bytes free)}; `built`: role of the run that is."""

    def disk(path: Path) -> tuple[int, int]:
        return disks["cache" if "cache" in path.parts else "runs"]

    monkeypatch.setattr(estimate, "filesystem_id", lambda path: disk(path)[0])
    monkeypatch.setattr(estimate, "disk_free", lambda path: disk(path)[1])
    monkeypatch.setattr(estimate, "is_run_built", lambda run, folder: run.role == built)
    size = {"teacher_cache": CACHE, "ce_only": RUNS}
    known = {run.name: Estimate(0, 0.0, size[run.role], size[run.role], 0.0) for run in runs}
    require_disk_space(known, runs, tmp_path / "runs" / "tiny")


def test_each_disk_is_asked_for_what_goes_there(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus))
    assert [run.role for run in runs] == ["teacher_cache", "ce_only"]
    check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE), "runs": (2, RUNS)})
    with pytest.raises(UserError, match="cache: .*DISTILL_LIT_CACHE"):
        check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE - 1), "runs": (2, RUNS)})
    with pytest.raises(UserError, match="runs/tiny: .*--root"):
        check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE), "runs": (2, RUNS - 1)})
    check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE + RUNS), "runs": (1, CACHE + RUNS)})
    with pytest.raises(UserError, match="--root"):
        check(tmp_path, runs, monkeypatch, {"cache": (1, CACHE + RUNS - 1), "runs": (1, CACHE + RUNS - 1)})


def test_what_is_done_needs_no_room(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus))
    full = {"cache": (1, 0), "runs": (2, RUNS)}
    check(tmp_path, runs, monkeypatch, full, built="teacher_cache")
    with pytest.raises(UserError, match="cache: "):
        check(tmp_path, runs, monkeypatch, full, built="ce_only")


def test_a_run_of_unknown_size_is_not_refused(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan_runs(load(tmp_path, tiny_teacher, tiny_corpus))
    monkeypatch.setattr(estimate, "disk_free", lambda path: 0)
    require_disk_space(dict.fromkeys([run.name for run in runs]), runs, tmp_path / "runs" / "tiny")


def test_disks_of_folders_that_are_not_there_yet(tmp_path: Path) -> None:
    assert filesystem_id(tmp_path / "a/b") == tmp_path.stat().st_dev
    assert disk_free(tmp_path / "a/b") > 0


def test_totals_hold_one_peak_at_a_time() -> None:
    one = Estimate(1, 2.0, 3, 10, 4.0)
    assert dataclasses.astuple(estimate.sum_estimates([one, one])) == (2, 4.0, 6, 6 + 7, 8.0)
    assert estimate.sum_estimates([]).peak_disk_bytes == 0
