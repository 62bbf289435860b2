"""The rate-distortion curve from finished runs: what is averaged, and what it says where a run is missing."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from helpers import ROOT

from distill_lit.experiment.experiment import Experiment
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_json


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rate_distortion", ROOT / "benchmarks/rate_distortion.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_has_the_bytes_of_its_cache_and_the_mean_over_seeds(benchmark: ModuleType, tmp_path: Path) -> None:
    changes = ["grid={variant: [top_4, nucleus_80, hidden_8], seed: [0, 1]}"]
    experiment = Experiment.from_yaml(ROOT / "experiments/rate_distortion.yaml", changes, tmp_path)
    with pytest.raises(UserError, match="is not done; run the experiment first"):
        benchmark.collect(experiment)
    for run in experiment.runs:
        size = next((size for name, size in {"top_k_4": 20.0, "top_p_0.8_255": 218.0}.items() if name in run.label), 578.0)
        facts = {"bytes_per_token": size}
        if run.student:
            facts = {"metrics": {"validation/teacher_kl": 0.5 + 0.25 * (run.seed or 0)}}
        write_json(experiment.runs_folder / run.name / "manifest.json", facts)
    table = benchmark.summarize(benchmark.collect(experiment))
    assert table["kind"].tolist() == ["hidden", "labels", "nucleus", "top"]
    assert table["bytes_per_token"].tolist() == [578.0, 0.0, 218.0, 20.0]  # a student without teacher has read no cache
    assert table["kl"].tolist() == [0.625] * 4
    assert table["kl_least"].tolist() == [0.5] * 4
    assert table["kl_most"].tolist() == [0.75] * 4
    benchmark.draw(pd.concat([table]), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_runs_that_are_not_done_are_one_line_and_no_file(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["rate_distortion.py", "--root", str(tmp_path), "name=other"])
    with pytest.raises(SystemExit) as ended:
        benchmark.main()
    assert ended.value.code == 2
    assert "run the experiment first" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "results").exists()
