"""What this suite computed at one time, and must compute still: plans, tables, losses, trainings.

The files beside this one are written by `python tests/golden/regenerate.py`; the tables are those below results/.
"""

import ast
import base64
import functools
import json
import math
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.golden_values import CHOICES, OPTIONS, losses, plans, representations, trainings

from distill_lit.config import ExperimentConfig, load_experiment, to_dict
from distill_lit.config.key_paths import type_adapter
from distill_lit.losses import FEATURE_LOSSES, LOGIT_LOSSES
from distill_lit.report import build_report_bundle, render, render_report

HERE = Path(__file__).parent
RESULTS = sorted(path.parent for path in (HERE.parents[1] / "results").glob("*/plan.yaml"))
PACKAGE = HERE.parents[1] / "distill_lit"
QUICK = ("cross_tokenizer", "quickstart")  # the others are drawn by the slow tests
PACKED = re.compile(r'(?<=id="packed-long-tail">)[A-Za-z0-9+/=]+')
NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")


def golden(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def as_read(value: Any) -> Any:
    return json.loads(json.dumps(value))


def assert_close(found: Any, known: Any, relative: float, absolute: float = 0.0, where: str = "") -> None:
    """The same keys and texts, and numbers within a tolerance."""
    if isinstance(known, dict):
        assert sorted(found) == sorted(known), where
        for key in known:
            assert_close(found[key], known[key], relative, absolute, f"{where} {key}")
    elif isinstance(known, list):
        assert len(found) == len(known), where
        for number, (one, other) in enumerate(zip(found, known, strict=True)):
            assert_close(one, other, relative, absolute, f"{where} {number}")
    elif isinstance(known, float):
        assert math.isclose(found, known, rel_tol=relative, abs_tol=absolute), f"{where}: {found} was {known}"
    else:
        assert found == known, where


@functools.cache
def planned() -> Any:
    return as_read(plans())


@pytest.mark.parametrize("name", golden("plans")["experiments"])
def test_every_experiment_plans_the_same_runs(name: str) -> None:
    found, known = planned()["experiments"][name], golden("plans")["experiments"][name]
    assert [run["label"] for run in found["runs"]] == [run["label"] for run in known["runs"]]
    for one, other in zip(_spelled_out(found), _spelled_out(known), strict=True):
        assert one == other


def _spelled_out(plan: Any) -> list[Any]:
    """Runs with their whole config; keys that configs have gained since have their defaults."""
    runs = []
    for run in plan["runs"]:
        tree = {name: plan["sections"][name][number] for name, number in run["config"].items()}
        config = type_adapter(ExperimentConfig).validate_python(tree, by_alias=True, by_name=False)
        runs.append({**run, "config": as_read(to_dict(config))})
    return runs


def test_the_same_runs_are_shared_by_experiments() -> None:
    known = golden("plans")
    assert set(planned()["experiments"]) >= set(known["experiments"])  # and those that have come since
    shared = [[name for name in names if name.split()[0] in known["experiments"]] for names in planned()["same"]]
    assert sorted(names for names in shared if len(names) > 1) == known["same"]


@pytest.mark.parametrize(
    "folder", [pytest.param(p, marks=() if p.name in QUICK else pytest.mark.slow, id=p.name) for p in RESULTS]
)
def test_committed_results_are_drawn_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "save_figure", lambda _, path, *__: [path])
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    drawn = [path for path in copy.iterdir() if path.suffix in (".csv", ".json", ".md", ".tex", ".html")]
    before = {path.name: path.stat().st_mtime_ns for path in drawn}
    config = load_experiment(copy / "plan.yaml")
    parts = config.analysis, config.name, config.question, config.report, config.hypotheses
    render_report(copy, build_report_bundle(copy, *parts))
    assert {path.name for path in copy.iterdir()} == {path.name for path in folder.iterdir()}
    again = {path.name for path in drawn if path.stat().st_mtime_ns != before[path.name]}
    assert {"table.csv", "table.md", "frontier.csv", "longtail.csv", "longtail.md", "summary.json"} <= again
    for path in drawn:
        found, known = (unpacked(one.read_text()) for one in (path, folder / path.name))
        assert NUMBER.split(found) == NUMBER.split(known), path.name
        for one, other in zip(NUMBER.findall(found), NUMBER.findall(known), strict=True):
            assert math.isclose(float(one), float(other), rel_tol=1e-6, abs_tol=1.1e-6), f"{path.name}: {one} was {other}"


def unpacked(text: str) -> str:
    """The text of a file with the compressed documents of a page spelled out."""
    return PACKED.sub(lambda block: zlib.decompress(base64.b64decode(block[0])).decode(), text)


def test_every_loss_and_every_option_is_known() -> None:
    for kind, loss in LOGIT_LOSSES.items():
        assert {name for options in OPTIONS.get(kind, []) for name in options} == set(loss.options), kind
    assert {kind: set(choices) for kind, choices in CHOICES.items()} == {
        kind: set(said.options) for kind, said in FEATURE_LOSSES.items()
    }


@pytest.mark.parametrize("make", [losses, representations])
def test_losses_and_gradients_are_the_same(make: Any) -> None:
    assert_close(as_read(make()), golden(make.__name__), 1e-9, 1e-12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of all trainings, and what is known of them."""
    folder = tmp_path_factory.mktemp("golden")
    return folder, as_read(trainings(folder))


def test_trainings_are_the_same(trained: tuple[Path, Any]) -> None:
    """Losses of every step and the last weights. Other processors round otherwise, and the gradient of `uld` then jumps."""
    known = golden("trainings")
    assert set(trained[1]) == set(known)
    for label, facts in known.items():
        for name, value in facts.items():
            assert_close(trained[1][label][name], value, 1e-3 if "gradient" in name else 5e-5, 1e-6, f"{label} {name}")


def test_nothing_stored_names_a_class(trained: tuple[Path, Any]) -> None:
    """Neither manifests, caches nor checkpoints: whoever renames a class, or moves it, finds them again."""
    sources = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    classes = {node.name for source in sources for node in ast.walk(source) if isinstance(node, ast.ClassDef)}
    named = re.compile(rf"\b({'|'.join(sorted(classes))})\b|\b{PACKAGE.name}\.\w")
    ours = [path for name in ("runs", "cache") for path in (trained[0] / name).rglob("*") if path.parent.name != "student"]
    stored = {path: path.read_text() for path in ours if path.suffix in (".json", ".jsonl", ".yaml", ".log")}
    for path in (path for path in ours if path.suffix == ".ckpt"):
        stored[path] = "\n".join(texts(torch.load(path, weights_only=True)))
    assert sum(path.name == "manifest.json" for path in stored) > 10
    assert sum(path.suffix == ".ckpt" for path in stored) >= 10
    for path, text in stored.items():
        assert named.search(text) is None, f"{path.relative_to(trained[0])}: {named.search(text)}"


def texts(value: Any) -> Iterator[str]:
    """All keys and texts in nested containers."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for part in pair for text in texts(part))
    elif isinstance(value, (list, tuple)):
        yield from (text for part in value for text in texts(part))
