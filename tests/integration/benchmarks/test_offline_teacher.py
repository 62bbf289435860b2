"""The benchmark of teacher caches on a tiny teacher: what it says of gradients is said of a student before any step."""

from pathlib import Path

import pytest

from benchmarks import offline_teacher as benchmark
from distill_lit.config import load_experiment


@pytest.fixture(scope="module")
def bench(teacher: Path, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> benchmark.BenchmarkSetup:
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    corpora = f"{{text: {{path: 'file:{tiny_corpus}'}}}}"
    teaching = f"teacher: {{model: 'file:{teacher}'}}\nstudents: {{half: {{num_layers: 2}}}}"
    path.write_text(f"name: tiny\n{teaching}\ndata: {{sequence_length: 32, corpora: {corpora}}}\n")
    return benchmark.BenchmarkSetup(load_experiment(path), rows=2, batches=2, compiled=False)


def test_timed_steps_leave_the_gradients_as_they_were(
    bench: benchmark.BenchmarkSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eighty steps of eight losses once trained the student whose gradients were compared: 123° where it was 48°."""
    monkeypatch.setattr(benchmark, "STUDENT_LAYERS", {2: [0, 3]})
    teachers, _ = bench.write_caches(tmp_path)
    fresh = benchmark.compare_gradients(bench, teachers, 1)
    benchmark.time_steps(bench, teachers, 3, 2)
    assert benchmark.compare_gradients(bench, teachers, 1) == fresh
    assert fresh["hidden_states"]["angle"] < 1 < fresh["truncated_12"]["angle"] < 90
    assert {"angle_sd", "bias_sd"} <= fresh["sampled_12"].keys()
