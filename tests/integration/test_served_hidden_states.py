"""A server that gives hidden states (`teacher.server.outputs`): the whole distribution as the model itself has it, by what
stands for vLLM and by a real one (slow)."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import served_model
from helpers.distillation import VOCABULARY, run
from helpers.mock_openai_server import failure, serving
from helpers.tiny_models import make_model

from distill_lit import data
from distill_lit.config import ExperimentConfig, TeacherConfig, TeacherServerConfig
from distill_lit.data.loader import make_batch
from distill_lit.data.packing import pack
from distill_lit.data.tokenization import join_documents
from distill_lit.generation import api_client
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.targets import DenseTarget
from distill_lit.models import load_model, load_tokenizer
from distill_lit.teachers import OnlineTeacher, teacher_capabilities, teacher_source
from distill_lit.teachers.base import CachedTeacherSource, CacheRows, TeacherContext
from distill_lit.teachers.hidden_state_server import FLAGS, load_lm_head
from distill_lit.utils.exceptions import UserError

pytest.importorskip("openai")
SHARED_CACHE = os.environ.get("DISTILL_LIT_CACHE", str(Path("~/.cache/distill-lit").expanduser()))
QUIET = lambda *_: None  # noqa: E731


@pytest.fixture(autouse=True)
def _fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(api_client, "INITIAL_BACKOFF_SECONDS", 0.01)


@pytest.fixture(scope="module")
def model(tiny_teacher: Path) -> Any:
    return load_model(tiny_teacher).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_teacher: Path) -> Any:
    return load_tokenizer(tiny_teacher)


@pytest.fixture(scope="module")
def few(prepared: data.PreparedData) -> data.PreparedData:
    """Eight rows and two held-out ones."""
    return data.PreparedData(
        prepared.train.take(np.arange(8)), prepared.validation.take(np.arange(2)), prepared.fingerprint, {}
    )


def context(url: str, folder: Path, rows: data.PreparedData, **fields: Any) -> TeacherContext:
    known = {"base_url": url, "model": "m", "outputs": "hidden_states", "max_retries": 1}
    server = TeacherServerConfig(**(known | fields))
    teacher = TeacherConfig(model=f"file:{folder}", source="served", dtype="float32", server=server)
    return TeacherContext(ExperimentConfig(name="x", teacher=teacher), folder, folder, rows)


def log_p(target: Any) -> torch.Tensor:
    assert isinstance(target, DenseTarget)
    return target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)


def check_against(folder: Path, vocab_size: int, teacher: Any, batch: dict[str, torch.Tensor], tolerance: float) -> None:
    """The whole distribution at every supervised token is that of the model in a folder."""
    mask = batch["labels"][:, 1:] >= 0
    right = log_p(OnlineTeacher(load_model(folder), vocab_size).target(batch, mask))
    torch.testing.assert_close(log_p(teacher.target(batch, mask)), right, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("live", [False, True])
def test_the_whole_distribution_is_that_of_the_model(
    live: bool, model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    with serving(served_model.vllm_pooling(model, tokenizer)) as server:
        asked = context(server.url, tiny_teacher, few, live=live)
        source = teacher_source(asked.config.teacher)
        source.check(asked.config.teacher)
        teacher = source.build(asked)
        held_out = make_batch(few.validation, np.arange(2), 1)
        held_out["rows"] += len(few.train)
        for batch in (make_batch(few.train, np.array([5, 1]), 1), held_out):
            check_against(tiny_teacher, VOCABULARY, teacher, batch, 1e-4)
        count = len(server.requests)
        source.build(asked).target(batch, batch["labels"][:, 1:] >= 0)
        assert len(server.requests) == count + live  # at most the probe again


def test_a_student_learns_the_same_as_beside_the_model(
    tmp_path: Path, model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    _, beside = run(tmp_path / "a", tiny_teacher, few)
    with serving(served_model.vllm_pooling(model, tokenizer)) as server:
        asked = context(server.url, tiny_teacher, few)
        source = teacher_source(asked.config.teacher)
        assert isinstance(source, CachedTeacherSource)
        facts = source.write_cache(asked, QUIET)
    _, cached = run(tmp_path / "b", tiny_teacher, few, signal=source.build(asked))
    for name in ("validation/loss", "validation/teacher_kl", "validation/agreement"):
        assert cached[name] == pytest.approx(beside[name], abs=1e-4), name
    assert source.is_cache_complete(facts)
    rows = CacheRows(len(few.train) * 32, 0, len(few.validation) * 32)
    size = source.estimate_cache_bytes(asked.config.teacher, model.config, rows)
    assert facts["bytes_per_token"] == pytest.approx(size / (10 * 32), rel=0.05)


def test_a_server_of_both_kinds_is_one_model(
    model: Any, tokenizer: Any, tiny_teacher: Path, tmp_path: Path, few: data.PreparedData
) -> None:
    """What it says of the probe is the same by either way, and another model is noticed by either."""
    other = load_model(make_model(tmp_path / "other", seed=1)).eval()
    with serving(served_model.vllm(model, tokenizer, max_logprobs=50)) as server:
        asked = context(server.url, tiny_teacher, few, outputs="logprobs").config.teacher
        teacher_source(asked).check_service(asked, tiny_teacher)
        server.respond = served_model.vllm_pooling(model, tokenizer)
        asked = context(server.url, tiny_teacher, few).config.teacher
        teacher_source(asked).check_service(asked, tiny_teacher)
        server.respond = served_model.vllm_pooling(other, tokenizer)
        with pytest.raises(UserError, match="another model answers as 'm'"):
            teacher_source(asked).check_service(asked, tiny_teacher)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda states: states[:-2], "about .* of .* tokens; does it truncate prompts"),
        (lambda states: states * torch.nan, "no finite numbers"),
        (lambda states: states / states.norm(dim=-1, keepdim=True), "divides hidden states by their length"),
        (lambda states: -20 * states, "less probable than chance"),
        (lambda states: states.flatten()[:-1], "its reply cannot be read"),
    ],
    ids=["truncated", "nan", "normalized", "other head", "malformed"],
)
def test_states_that_are_none_are_refused(
    change: Any, words: str, model: Any, tokenizer: Any, tiny_teacher: Path, few: data.PreparedData
) -> None:
    with serving(served_model.vllm_pooling(model, tokenizer, change)) as server:
        asked = context(server.url, tiny_teacher, few).config.teacher
        with pytest.raises(UserError, match=words):
            teacher_source(asked).check_service(asked, tiny_teacher)


@pytest.mark.parametrize("status", [400, 404])
def test_a_server_that_gives_none_is_told_with_how_to_start_one(
    status: int, tiny_teacher: Path, few: data.PreparedData
) -> None:
    with serving(lambda body, number: failure(status)) as server:
        asked = context(server.url, tiny_teacher, few).config.teacher
        with pytest.raises(UserError, match="gives no hidden states; start it with --runner pooling --convert embed"):
            teacher_source(asked).check_service(asked, tiny_teacher)


def test_what_cannot_be_is_refused_by_the_config(tiny_teacher: Path, few: data.PreparedData) -> None:
    for fields, words in (({"engine": "sglang"}, "asked of vllm alone"), ({"local_validation": True}, "held-out rows too")):
        asked = context("http://localhost:1/v1", tiny_teacher, few, **fields).config.teacher
        with pytest.raises(UserError, match=words):
            teacher_source(asked).check(asked)
    asked = context("http://localhost:1/v1", tiny_teacher, few).config.teacher
    assert teacher_capabilities(asked).target_form == "dense"
    assert not teacher_capabilities(asked).needs_model


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_alone_is_read(tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model(tmp_path / "m", tie_word_embeddings=tied)
    right = get_lm_head(load_model(folder), VOCABULARY)
    monkeypatch.setattr("distill_lit.teachers.hidden_state_server.load_model", None)
    found = load_lm_head(folder, torch.float32, VOCABULARY)
    assert torch.equal(found.weight, right.weight)
    assert found[1:] == right[1:]


@pytest.mark.slow
@pytest.mark.skipif(
    "VLLM_POOLING_SERVER" not in os.environ,
    reason=f"VLLM_POOLING_SERVER: address of `vllm serve SMOLLM2 --served-model-name smollm2 --dtype float32 {FLAGS}`",
)
def test_a_real_vllm_gives_the_states_of_the_model() -> None:
    folder = next((Path(SHARED_CACHE) / "models").glob("SmolLM2-135M-Instruct*/config.json")).parent
    texts = [
        "The capital of France is Paris, and the river that flows through it is the Seine, which ends at Le Havre.",
        "Water is made of hydrogen and oxygen. It freezes at zero degrees and boils at one hundred.",
    ]
    ids = [np.array(text) for text in load_tokenizer(folder)(texts)["input_ids"]]
    rows, _ = pack(join_documents(ids, [np.ones(len(text), dtype=bool) for text in ids]), 16)
    split = data.PreparedData(rows.take(np.arange(len(rows) - 1)), rows.take(np.array([len(rows) - 1])), "x", {})
    asked = context(os.environ["VLLM_POOLING_SERVER"], folder, split, model="smollm2", timeout=600.0)
    teacher = teacher_source(asked.config.teacher).build(asked)
    check_against(folder, asked.vocab_size, teacher, make_batch(split.train, np.arange(len(split.train)), 1), 1e-3)
