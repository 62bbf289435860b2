"""What `distill-lit evaluate --out` writes: lm-eval's shape and standard errors, and nothing over what is there."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import tiny_tasks
from helpers.caches import new_cache
from lm_eval.api.metrics import mean_stderr

from distill_lit.cli.main import main
from distill_lit.evaluation import prefix_tree_lm


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tasks.make_tasks(tmp_path_factory.mktemp("tasks"), "colours")


@pytest.fixture(scope="module", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path_factory.mktemp("store") / "cache")))
        yield


def evaluate(model: Path, tasks: Path, out: Path) -> int:
    changes = ("tasks=[colours]", f"include_path={tasks}", "limit=10", "seed=7")
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", f"file:{model}", *changes, "--accelerator", "cpu", "--out", str(out)])
    return int(ended.value.code or 0)


def test_a_folder_has_the_file_and_the_records_behind_it(tiny_teacher: Path, tasks: Path, tmp_path: Path) -> None:
    assert evaluate(tiny_teacher, tasks, tmp_path / "mine") == 0
    assert evaluate(tiny_teacher, tasks, tmp_path / "mine.json") == 0
    names = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert names == ["documents.parquet", "meta.json", "records.parquet", "results.json"]
    found, alone = (json.loads(p.read_text()) for p in (tmp_path / "mine/results.json", tmp_path / "mine.json"))
    measured_once = ("date", "total_evaluation_time_seconds", "cached_tasks")
    assert {k: v for k, v in found.items() if k not in measured_once} == {
        k: v for k, v in alone.items() if k not in measured_once
    }
    records = pd.read_parquet(tmp_path / "mine/records.parquet")
    assert len(records) == 10
    scores = found["results"]["colours"]
    for metric, column in (("acc", "correct"), ("acc_norm", "correct_norm")):
        right = records[column].astype(float).tolist()
        assert scores[f"{metric},none"] == pytest.approx(sum(right) / 10)
        assert scores[f"{metric}_stderr,none"] == pytest.approx(mean_stderr(right))
    assert found["n-samples"] == {"colours": {"original": 24, "effective": 10}}
    assert (found["n-shot"], found["versions"]) == ({"colours": 0}, {"colours": 3.0})
    assert found["higher_is_better"] == {"colours": {"acc_norm": True}}
    config = found["config"]
    assert (config["model"], config["limit"], config["seed"]) == (f"file:{tiny_teacher}", 10, 7)
    assert config["dtype"] == "float32" and len(config["model_revision"]) > 10
    assert {"lm_eval", "torch", "transformers"} <= set(found["package_versions"])


def test_what_is_there_is_not_written_over(
    tiny_teacher: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prefix_tree_lm, "load_prefix_tree_lm", lambda *_: pytest.fail("loaded"))
    (tmp_path / "folder").mkdir()
    for name in ("mine.json", "notes", "folder/records.parquet"):
        (tmp_path / name).write_text("precious")
    for name, words in (
        ("mine.json", "is there already"),
        ("notes", "is there already"),
        ("folder", "records.parquet: is there already"),
        ("none/mine.json", "is no folder that can be written to"),
        ("none/mine", "is no folder that can be written to"),
    ):
        assert evaluate(tiny_teacher, tasks, tmp_path / name) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "mine.json", "notes"]
    assert (tmp_path / "mine.json").read_text() == "precious"
