"""A teacher cache that is damaged when a training over two ranks begins is written again, once, and nobody waits on."""

from pathlib import Path
from typing import Any

import pytest
from helpers import served_model
from helpers.mock_openai_server import serving

from distill_lit.config import load_experiment
from distill_lit.experiment.execution.run import build_run, build_run_on_rank
from distill_lit.experiment.plan import plan_runs
from distill_lit.models import load_model, load_tokenizer
from distill_lit.teachers.teacher_cache import is_teacher_cache_complete
from distill_lit.utils.distributed.spawn import spawn_ranks
from distill_lit.utils.files import cache_root, read_json

EXPERIMENT = """
name: ranks
teacher: {{model: "file:{teacher}", top_k: 7, {source}}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 3, max_tokens: 2000, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: top_k_tail_kl, options: {{k: 7}}}}}}, compile: never}}
training: {{max_tokens: 256, micro_batch_size: 2, precision: float32, accelerator: cpu, devices: 2, strategy: {strategy}}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""
SERVED = 'source: served, server: {{base_url: "{url}", model: m, max_retries: 1}}'
QUIET = lambda *_: None  # noqa: E731


def write_and_damage(tmp_path: Path, text: str) -> tuple[Any, Path]:
    """(the student's run, the folder of a cache whose first shard is damaged)."""
    (file := tmp_path / "x.yaml").write_text(text)
    cache, student = plan_runs(load_experiment(file, []))
    (tmp_path / cache.name).mkdir()
    build_run(cache, tmp_path / cache.name, QUIET)
    facts = read_json(tmp_path / cache.name / "manifest.json")
    folder = Path(facts["teacher_cache"])
    shard = min(folder.glob("top_k-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8] + b"DAMAGED!")
    assert not is_teacher_cache_complete(folder, facts["rows"])
    (tmp_path / student.name).mkdir()
    return student, folder


def train_on_ranks(tmp_path: Path, student: Any, cache: Path) -> None:
    spawn_ranks(2, build_run_on_rank, student, tmp_path / student.name)
    assert is_teacher_cache_complete(cache, read_json(cache / "manifest.json")["rows"])
    assert 0 < read_json(tmp_path / student.name / "manifest.json")["metrics"]["validation/loss"] < 10


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_of_a_model_by_all_ranks_together(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    source = "source: offline, cache_format: top_k"
    text = EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus, source=source, strategy="ddp")
    train_on_ranks(tmp_path, *write_and_damage(tmp_path, text))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_of_a_server_by_one_rank(strategy: str, tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    pytest.importorskip("openai")
    answer = served_model.vllm(load_model(tiny_teacher).requires_grad_(False).eval(), load_tokenizer(tiny_teacher))
    with serving(answer) as server:
        source = SERVED.format(url=server.url)
        text = EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus, source=source, strategy=strategy)
        student, cache = write_and_damage(tmp_path, text)
        for kept in (cache_root() / "served").rglob("*.safetensors"):
            kept.unlink()  # so that the server is asked again
        before = len(server.requests)
        train_on_ranks(tmp_path, student, cache)
        asked = [tuple(request["prompt"]) for request in server.requests[before:] if "tokens" not in request]
    documents = [ids for ids in asked if ids not in set(map(tuple, asked[:2]))]  # without probes
    assert len(documents) == len(set(documents)) > 0
