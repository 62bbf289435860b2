"""Whatever a file, an override or a reference holds: it works, or it is one clean UserError. Damaged caches are misses.

The slow twins do the same with many more examples; both are bounded, and CI runs both, always with the same examples.
`make fuzz` looks at new ones.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import synthetic_results, training_processes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill_lit import assets
from distill_lit.analysis.results import load_results
from distill_lit.config import load_experiment, load_section, to_dict
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.config.schema import ExperimentConfig
from distill_lit.evaluation.cache import DOCUMENT_COLUMNS, RECORD_COLUMNS, read_cached_evaluation, write_cached_evaluation
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.teachers.teacher_cache import is_teacher_cache_complete
from distill_lit.training.checkpoint import find_latest_checkpoint, is_checkpoint_intact, load_checkpoint_weights_only
from distill_lit.utils.array_store import open_arrays, save_arrays
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.shards import Shards

FEW, MANY = 60, int(os.environ.get("FUZZ_EXAMPLES", "500"))
EXPLORE = "FUZZ_EXAMPLES" in os.environ
QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@contextmanager
def only_clean_errors() -> Iterator[None]:
    """Inside, a UserError that says something in our words is fine, and nothing else is."""
    try:
        yield
    except UserError as error:
        said = str(error)
        if not said.strip() or "pydantic" in said or "validation error" in said:
            raise AssertionError(f"an error without a word of ours: {said}") from error


def fuzz(examples: int) -> Any:
    return settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, derandomize=not EXPLORE)


def twice(test: Callable[..., None], **strategies: Any) -> tuple[Any, Any]:
    """The test with few examples, and with many as a slow test."""
    return fuzz(FEW)(given(**strategies)(test)), pytest.mark.slow(fuzz(MANY)(given(**strategies)(test)))


def paths_of(value: Any, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a config, at every depth."""
    if not isinstance(value, dict):
        return []
    return [path for key, item in value.items() for path in ((*prefix, key), *paths_of(item, (*prefix, key)))]


SHAPE = to_dict(ExperimentConfig(name="x"))
NAMES = sorted({key for path in paths_of(SHAPE) for key in path} | {"kl", "ce", "one", "text", "defaults", "from", "kind"})
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["???", "${name}", "${oc.env:HOME}", "${", "auto", "", "../x", "\x00", "file:/nowhere", "1e-3", "💥"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), inner, max_size=3),
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def valid(
    tmp_path_factory: pytest.TempPathFactory, dropping_teacher: Path, tiny_corpus: Path, tasks_folder: Path
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("fuzz")
    file = training_processes.write_experiment(folder, dropping_teacher, tiny_corpus, tasks_folder)
    tree: dict[str, Any] = yaml.safe_load(file.read_text())
    return tree


def plant(tree: Any, path: tuple[str, ...], value: Any) -> None:
    """Sets a value below a path, replacing whatever stands in the way."""
    for key in path[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[path[-1]] = value


def load_and_check(file: Path, overrides: list[str]) -> None:
    """Succeeds or raises UserError; that is what is tested."""
    with only_clean_errors():
        config = load_experiment(file, overrides)
        check_experiment(config)
        plan_runs(config)


def config_test(valid: dict[str, Any], tmp_path: Path, path: tuple[str, ...], value: Any, more: dict[str, Any]) -> None:
    tree = json.loads(json.dumps(valid))
    plant(tree, path, value)
    tree.update({key: item for key, item in more.items() if key not in ("name", "teacher")})
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8", errors="replace")
    load_and_check(tmp_path / "x.yaml", [])


PATHS = st.one_of(
    st.sampled_from(paths_of(SHAPE)),
    st.sampled_from([("students", "one"), ("students", "one", "layers"), ("data", "corpora", "text", "path"),
                     ("objective", "terms", "kl"), ("objective", "terms", "kl", "weight"), ("grid", "seed"),
                     ("objective", "terms", "kl", "temperature"), ("objective", "terms", "kl", "options"),
                     ("students", "one", "config"), ("students", "one", "lora"), ("students", "one", "width"),
                     ("variants", "a"), ("data", "corpora", "text", "generated"), ("evaluation", "tasks")]),
    st.lists(st.one_of(st.sampled_from(NAMES), st.text(min_size=1, max_size=6)), min_size=1, max_size=4).map(tuple),
)  # fmt: skip
EXTRA = st.one_of(st.just({}), st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=6)), TREES, max_size=2))
test_configs, test_many_configs = twice(config_test, path=PATHS, value=TREES, more=EXTRA)


def override_test(valid: dict[str, Any], tmp_path: Path, override: str) -> None:
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(valid))
    load_and_check(tmp_path / "x.yaml", [override])
    with only_clean_errors():
        load_section(EvaluationConfig, [override])


KEYS = st.sampled_from([".".join(path) for path in paths_of(SHAPE)])
OVERRIDES = st.one_of(
    st.text(max_size=30),
    st.builds("{}={}".format, KEYS, st.one_of(SCALARS.map(str), TREES.map(lambda tree: json.dumps(tree, default=str)))),
)
test_overrides, test_many_overrides = twice(override_test, override=OVERRIDES)


def file_test(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    load_and_check(tmp_path / "x.yaml", [])


CONTENTS = st.one_of(st.binary(max_size=200), st.text(alphabet="{}[]:,-&*!|>'\"%@`#? \n\tab1", max_size=60).map(str.encode))
test_files, test_many_files = twice(file_test, content=CONTENTS)


def reference_test(reference: str) -> None:
    with only_clean_errors():
        assets.parse_reference(reference)
        assets.check_reference(reference)


REFERENCES = st.one_of(
    st.text(max_size=40),
    st.builds("{}:{}".format, st.sampled_from(["hf", "pypi", "file", "http", "HF"]), st.text(max_size=40)),
    st.builds("pypi:{}=={}/{}#sha256={}".format, st.text(max_size=8), st.text(max_size=8), st.text(max_size=8),
              st.text(max_size=8)),
)  # fmt: skip
test_references, test_many_references = twice(reference_test, reference=REFERENCES)


# ---------------------------------------------------------------- damaged files


def damage(path: Path, where: float, what: bytes, cut: bool) -> None:
    """Overwrites, inserts into or truncates a file at a share of its length."""
    content = path.read_bytes()
    at = int(where * len(content))
    path.write_bytes(content[:at] + what + (b"" if cut else content[at + len(what) :]))


DAMAGE = {"where": st.floats(0, 1), "what": st.binary(max_size=40), "cut": st.booleans()}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_results.build(tmp_path_factory.mktemp("records"), documents=8)


def records_test(results: Path, tmp_path: Path, name: str, where: float, what: bytes, cut: bool) -> None:
    folder = tmp_path / "results"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(results, folder)
    damage(folder / name, where, what, cut)
    with only_clean_errors():
        load_results(folder)


RECORDS = st.sampled_from(["runs.csv", "records.parquet"])
test_records, test_many_records = twice(records_test, name=RECORDS, **DAMAGE)


def arrays_test(tmp_path: Path, name: str, where: float, what: bytes, cut: bool) -> None:
    """A damaged cache is a miss, or what was damaged did not matter: never other numbers."""
    folder = tmp_path / "arrays"
    rows = np.arange(50)
    save_arrays(folder, {"rows": rows}, {"statistics": {"rows": 50}})
    damage(folder / name, where, what, cut)
    found = open_arrays(folder)
    assert found is None or np.array_equal(found[0]["rows"], rows) or "rows" not in found[0]


ARRAYS = st.sampled_from(["manifest.json", "rows.npy"])
test_arrays, test_many_arrays = twice(arrays_test, name=ARRAYS, **DAMAGE)


def checkpoint_test(tmp_path: Path, name: str, where: float, what: bytes, cut: bool) -> None:
    from distill_lit.training.checkpoint import SafeCheckpointIO

    path = tmp_path / "step=1.ckpt"
    SafeCheckpointIO().save_checkpoint({"state": torch.arange(50)}, path)
    before = path.read_bytes()
    damage(tmp_path / name, where, what, cut)
    if is_checkpoint_intact(path):
        assert path.read_bytes() == before
    with only_clean_errors():
        find_latest_checkpoint(tmp_path)
        load_checkpoint_weights_only(path)


CHECKPOINTS = st.sampled_from(["step=1.ckpt", "step=1.sha256.json"])
test_checkpoints, test_many_checkpoints = twice(checkpoint_test, name=CHECKPOINTS, **DAMAGE)


def teacher_cache_test(tmp_path: Path, name: str, where: float, what: bytes, cut: bool) -> None:
    from safetensors.torch import save_file

    shutil.rmtree(folder := tmp_path / "teacher_cache", ignore_errors=True)
    shards = Shards(folder)
    shards.write_missing({SHARD: lambda path: save_file({"hidden_states": torch.arange(64.0).reshape(2, 4, 8)}, path)})
    shards.write_manifest({"rows": 2, "shards": [SHARD]})
    before = (folder / SHARD).read_bytes()
    damage(folder / name, where, what, cut)
    if is_teacher_cache_complete(folder, 2) and shards.manifest().get("shards") == [SHARD]:
        assert (folder / SHARD).read_bytes() == before


SHARD = "hidden-00000.safetensors"
CACHE_FILES = st.sampled_from(["manifest.json", "shards.jsonl", SHARD])
test_teacher_caches, test_many_teacher_caches = twice(teacher_cache_test, name=CACHE_FILES, **DAMAGE)


def evaluation_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: float, what: bytes, cut: bool
) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path))
    row = dict.fromkeys((*DOCUMENT_COLUMNS, *RECORD_COLUMNS), 0)
    write_cached_evaluation("key", [row], {"n": 1})
    whole = read_cached_evaluation("key")
    damage(tmp_path / "evaluations/key" / name, where, what, cut)
    found = read_cached_evaluation("key")
    assert found is None or found[0] == (whole or ([],))[0]


EVALUATIONS = st.sampled_from(["meta.json", "records.parquet"])
test_evaluations, test_many_evaluations = twice(evaluation_test, name=EVALUATIONS, **DAMAGE)
