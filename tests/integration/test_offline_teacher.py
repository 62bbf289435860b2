"""Sparse caches: what is kept against the whole distribution, draws without bias, shards, faults, training from them."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.caches import new_cache
from helpers.distillation import LENGTH, TRAINING, VOCABULARY, run, weights
from helpers.warm_processes import MAY_BE_WARM

from distill_lit import data
from distill_lit.config import TermConfig, load_experiment
from distill_lit.data.loader import ValidationLoader, make_batch
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.execution.run import build_run
from distill_lit.experiment.plan import plan_runs
from distill_lit.losses import build_objective, fused_linear_loss
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.sparse import sampled_kl
from distill_lit.losses.targets import DenseTarget, SampledTarget, TopKTarget
from distill_lit.models import load_model
from distill_lit.teachers import OfflineTeacher, OnlineTeacher, write_teacher_cache
from distill_lit.teachers.compression import (
    CACHE_SAMPLED,
    CACHE_TOP_K,
    CACHE_TOP_P,
    TeacherCacheFormat,
    compress_logprobs,
    decompress_target,
)
from distill_lit.teachers.teacher_cache import (
    is_teacher_cache_complete,
    measure_bytes_per_token,
    teacher_cache_folder,
    teacher_cache_metadata,
)
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import read_json

TOP = TeacherCacheFormat(CACHE_TOP_K, 7)
NUCLEUS = TeacherCacheFormat(CACHE_TOP_P, 40, top_p=0.3)
DRAWN = TeacherCacheFormat(CACHE_SAMPLED, 5)
BEST_TOKENS = ("top_k_kl", "truncated_kl", "top_k_tail_kl")


def write(folder: Path, teacher: Path, prepared: data.PreparedData, form: TeacherCacheFormat) -> OfflineTeacher:
    model = load_model(teacher).requires_grad_(False)
    write_teacher_cache(folder, model, prepared.train, prepared.validation, 8, form, VOCABULARY)
    return OfflineTeacher(folder, prepared.train, get_lm_head(model, VOCABULARY), len(prepared.validation))


def rows_of(prepared: data.PreparedData, *numbers: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    batch = make_batch(prepared.train, np.array(numbers), 1)
    return batch, batch["labels"][:, 1:] >= 0


def whole(teacher: Path, batch: dict[str, torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
    target = OnlineTeacher(load_model(teacher), VOCABULARY).target(batch, chosen)
    return target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)


# ---------------------------------------------------------------- what is kept


def random_log_p(rows: int = 40, words: int = 90, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, words, generator=draw) * scale
    return logits.log_softmax(-1), torch.randint(words, (rows,), generator=draw)


def test_top_k_keeps_the_best_tokens_and_the_mass_of_the_rest() -> None:
    log_p, labels = random_log_p()
    arrays = compress_logprobs(log_p, labels, TOP, torch.Generator())
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "ids": "uint16",
        "logprobs": "float16",
        "tail_logprob": "float16",
        "label_logprobs": "float16",
    }
    target = decompress_target(arrays, TOP)
    assert isinstance(target, TopKTarget)
    values, ids = log_p.topk(7)
    assert torch.equal(target.ids, ids)
    torch.testing.assert_close(target.logprobs, values, atol=5e-3, rtol=2e-3)
    # the sum is as good as the mass of the rest is known, better than 7 rounded probabilities would make it
    torch.testing.assert_close(1 - target.logprobs.exp().sum(-1), 1 - values.exp().sum(-1), atol=1e-5, rtol=2e-3)
    torch.testing.assert_close(target.label_logprobs, log_p.gather(-1, labels[:, None])[:, 0], atol=5e-3, rtol=2e-3)


def test_a_certain_teacher_is_kept_finite() -> None:
    log_p = torch.tensor([[100.0, 0.0, -50.0, -100.0] + [-100.0] * 6]).log_softmax(-1)
    for form in (
        TeacherCacheFormat(CACHE_TOP_K, 3),
        TeacherCacheFormat(CACHE_TOP_P, 3, top_p=0.9),
        TeacherCacheFormat(CACHE_SAMPLED, 3),
        TeacherCacheFormat(CACHE_SAMPLED, 3, 0.5),
    ):
        target = decompress_target(
            compress_logprobs(log_p, torch.tensor([0]), form, torch.Generator().manual_seed(0)), form
        )
        assert torch.isfinite(target.logprobs[:, :1]).all()
        assert not any(torch.isnan(part).any() for part in target if part.is_floating_point())


def test_ids_take_32_bits_where_they_must() -> None:
    log_p = torch.zeros(2, 70_000).log_softmax(-1)
    log_p[:, 69_999] = -1.0
    arrays = compress_logprobs(log_p, torch.tensor([69_999, 0]), TeacherCacheFormat(CACHE_TOP_K, 2), torch.Generator())
    assert arrays["ids"].dtype == np.uint32
    assert decompress_target(arrays, TeacherCacheFormat(CACHE_TOP_K, 2)).ids[:, 0].tolist() == [69_999, 69_999]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_estimate_the_kl_without_bias(temperature: float) -> None:
    """The mean over 4,000 times 12 draws against the whole KL, within five standard errors, token by token."""
    log_p, labels = random_log_p(rows=6, words=50, scale=1.5)
    log_q = random_log_p(rows=12, words=50, scale=1.5)[0][6:]
    exact = (log_p.exp() * (log_p - log_q)).sum(-1)
    form, generator = TeacherCacheFormat(CACHE_SAMPLED, 12, temperature), torch.Generator().manual_seed(1)
    many = torch.stack(
        [sampled_kl(log_q, decompress_target(compress_logprobs(log_p, labels, form, generator), form)) for _ in range(4000)]
    )
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - exact).abs() < 5 * error + 2e-3).all()


def test_weights_of_tempered_draws_by_hand() -> None:
    log_p = torch.tensor([[0.8, 0.2]]).log()
    form = TeacherCacheFormat(CACHE_SAMPLED, 4, 2.0)
    target = decompress_target(compress_logprobs(log_p, torch.tensor([0]), form, torch.Generator().manual_seed(0)), form)
    assert isinstance(target, SampledTarget)
    proposal = np.sqrt([0.8, 0.2]) / np.sqrt([0.8, 0.2]).sum()
    right = [[0.8, 0.2][i] / proposal[i] / 4 for i in target.ids[0].tolist()]
    assert target.weights[0].tolist() == pytest.approx(right, rel=1e-2)


# ---------------------------------------------------------------- shards


@pytest.mark.parametrize(
    "form",
    [TOP, NUCLEUS, DRAWN, TeacherCacheFormat(CACHE_SAMPLED, 5, 2.0)],
    ids=lambda form: f"{form.kind}-{form.sampling_temperature}",
)
def test_a_cache_says_what_the_live_teacher_says(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, form: TeacherCacheFormat
) -> None:
    cached = write(tmp_path, tiny_teacher, prepared, form)
    batch, chosen = rows_of(prepared, 70, 3, 64, 63, len(prepared.train) - 1)  # of two shards, in no order
    target, log_p = cached.target(batch, chosen), whole(tiny_teacher, batch, chosen)
    is_token = target.logprobs > -torch.inf
    torch.testing.assert_close(target.logprobs[is_token], log_p.gather(-1, target.ids)[is_token], atol=5e-3, rtol=2e-3)
    labels = batch["labels"][:, 1:][chosen]
    torch.testing.assert_close(target.label_logprobs, log_p.gather(-1, labels[:, None])[:, 0], atol=5e-3, rtol=2e-3)
    if form.kind == CACHE_TOP_K:
        assert torch.equal(target.ids.sort().values, log_p.topk(7).indices.sort().values)
    if form.kind == CACHE_TOP_P:
        ranked = log_p.exp().sort(descending=True).values
        assert is_token.sum(-1).tolist() == ((ranked.cumsum(-1) < 0.3).sum(-1) + 1).clamp(max=40).tolist()


@pytest.mark.parametrize("form", [TOP, NUCLEUS, DRAWN], ids=lambda form: form.kind)
def test_a_batch_without_labels_has_an_empty_target(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, form: TeacherCacheFormat
) -> None:
    """Chats whose responses have been cut off: a micro-batch of a step in which others have labels."""
    questions = dataclasses.replace(
        prepared.train, loss_mask=prepared.train.loss_mask & (np.arange(len(prepared.train)) > 1)[:, None]
    )
    cached = write(tmp_path, tiny_teacher, dataclasses.replace(prepared, train=questions), form)
    batch = make_batch(questions, np.array([1, 0]), 1)
    target = cached.target(batch, batch["labels"][:, 1:] >= 0)
    full = cached.target(*rows_of(prepared, 5))
    assert type(target) is type(full)
    assert [part.shape[1:] for part in target] == [part.shape[1:] for part in full] or form.is_ragged
    assert [part.ndim for part in target] == [part.ndim for part in full]
    assert [part.dtype for part in target] == [part.dtype for part in full]
    assert {len(part) for part in target} == {0}


def test_held_out_rows_are_whole(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    cached = write(tmp_path, tiny_teacher, prepared, DRAWN)
    loader = ValidationLoader(prepared.validation, micro_batch_size=3, first_row=len(prepared.train), rank=1, world_size=2)
    for batch in loader:
        chosen = batch["labels"][:, 1:] >= 0
        target = cached.target(batch, chosen)
        assert isinstance(target, DenseTarget)
        log_p = target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)
        torch.testing.assert_close(log_p, whole(tiny_teacher, batch, chosen), atol=1e-4, rtol=1e-4)


def test_a_row_without_labels_takes_nothing_from_the_cache(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    cached = write(tmp_path, tiny_teacher, prepared, TOP)
    batch, chosen = rows_of(prepared, 5, 0)
    alone = cached.target(*rows_of(prepared, 5))
    chosen[1] = False
    assert torch.equal(cached.target(batch, chosen).ids, alone.ids)
    chosen[0, 3] = ~chosen[0, 3]
    with pytest.raises(UserError, match="other positions"):
        cached.target(batch, chosen)


@pytest.mark.parametrize("form", [NUCLEUS, DRAWN], ids=lambda form: form.kind)
def test_shards_are_mended_one_by_one_and_come_out_the_same(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, form: TeacherCacheFormat
) -> None:
    write(tmp_path, tiny_teacher, prepared, form)
    shards = sorted(tmp_path.glob(f"{form.kind}-*"))
    before, times = [p.read_bytes() for p in shards], [p.stat().st_mtime_ns for p in shards]
    broken = bytearray(before[1])
    broken[-3] ^= 4
    shards[1].write_bytes(broken)
    assert not is_teacher_cache_complete(tmp_path, len(prepared.train) + 4)
    with pytest.raises(UserError, match="corrupt"):
        OfflineTeacher(tmp_path, prepared.train, get_lm_head(load_model(tiny_teacher), VOCABULARY), 4)
    write(tmp_path, tiny_teacher, prepared, form)
    assert [p.read_bytes() for p in shards] == before
    assert shards[0].stat().st_mtime_ns == times[0]


WRITER = (
    MAY_BE_WARM
    + """
from pathlib import Path
from distill_lit import data
from distill_lit.config import CorpusConfig, DataConfig
from distill_lit.models import load_model
from distill_lit.teachers import write_teacher_cache
from distill_lit.teachers.compression import CACHE_SAMPLED, TeacherCacheFormat
config = DataConfig(corpora={{"text": CorpusConfig(path={corpus!r})}}, sequence_length={length}, validation_sequences=4)
prepared = data.prepare_datasets(config, Path({teacher!r}), "pypi")
form, model = TeacherCacheFormat(CACHE_SAMPLED, 5), load_model(Path({teacher!r})).requires_grad_(False)
write_teacher_cache(Path({folder!r}), model, prepared.train, prepared.validation, 8, form, {vocab_size})
"""
)


def test_two_writers_make_one_cache(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, prepared: data.PreparedData
) -> None:
    values = {"length": LENGTH, "vocab_size": VOCABULARY, "corpus": f"file:{tiny_corpus}", "folder": str(tmp_path / "two")}
    code = WRITER.format(teacher=str(tiny_teacher), **values)
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    write(tmp_path / "one", tiny_teacher, prepared, DRAWN)
    names = sorted(path.name for path in (tmp_path / "one").glob("*.safetensors"))
    assert names == sorted(path.name for path in (tmp_path / "two").glob("*.safetensors"))
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_another_fact_is_another_cache() -> None:
    base = teacher_cache_metadata({"model": "a"}, "data", torch.float32, DRAWN)
    others = [
        teacher_cache_metadata({"model": "b"}, "data", torch.float32, DRAWN),
        teacher_cache_metadata({"model": "a", "tokenizer.json": "x"}, "data", torch.float32, DRAWN),
        teacher_cache_metadata({"model": "a"}, "other length, order or packing", torch.float32, DRAWN),
        teacher_cache_metadata({"model": "a"}, "data", torch.bfloat16, DRAWN),
        teacher_cache_metadata({"model": "a"}, "data", torch.float32, TeacherCacheFormat(CACHE_SAMPLED, 6)),
        teacher_cache_metadata({"model": "a"}, "data", torch.float32, TeacherCacheFormat(CACHE_SAMPLED, 5, 2.0)),
        teacher_cache_metadata({"model": "a"}, "data", torch.float32, TeacherCacheFormat(CACHE_TOP_K, 5)),
        teacher_cache_metadata({"model": "a"}, "data", torch.float32),
        teacher_cache_metadata({"model": "a"}, "data", torch.float32, TeacherCacheFormat(hidden_layers=(1, 3))),
    ]
    assert len({teacher_cache_folder(facts) for facts in [base, *others]}) == 10


def test_bytes_per_token_are_what_the_format_says(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    for form, size in ((TOP, 7 * 4 + 4), (DRAWN, 5 * 4 + 2), (TeacherCacheFormat(CACHE_SAMPLED, 5, 2.0), 5 * 4 + 6)):
        folder = tmp_path / str(size)
        write(folder, tiny_teacher, prepared, form)
        measured = measure_bytes_per_token(folder, prepared.train, form)
        assert form.bytes_per_token(VOCABULARY) == size
        assert size < measured < size * 1.2  # the headers of small shards


# ---------------------------------------------------------------- training


def test_many_draws_and_a_wide_top_k_give_the_gradient_of_the_whole_kl(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    """The gradient with respect to the hidden states, from caches so wide that they must agree with the live teacher."""
    batch, chosen = rows_of(prepared, *range(12))
    student = load_model(tiny_teacher)
    labels = batch["labels"][:, 1:][chosen]
    torch.manual_seed(0)
    hidden = torch.randn(len(labels), 32)
    live = OnlineTeacher(load_model(tiny_teacher), VOCABULARY)

    def gradient(kind: str, target: object) -> torch.Tensor:
        leaf = hidden.clone().requires_grad_()
        objective = build_objective({"kl": TermConfig(kind=kind, options={"k": 300} if kind in BEST_TOKENS else {})})
        losses = fused_linear_loss(
            objective, leaf, get_lm_head(student, VOCABULARY), target, labels, denominator=torch.tensor(len(labels))
        )
        return torch.autograd.grad(losses.total, leaf)[0]

    exact = gradient("forward_kl", live.target(batch, chosen))
    top = write(tmp_path / "top", tiny_teacher, prepared, TeacherCacheFormat(CACHE_TOP_K, 300)).target(batch, chosen)
    form = TeacherCacheFormat(CACHE_TOP_P, 300, top_p=1.0)
    nucleus = write(tmp_path / "nucleus", tiny_teacher, prepared, form).target(batch, chosen)
    for kind in BEST_TOKENS:
        torch.testing.assert_close(gradient(kind, top), exact, atol=2e-5, rtol=2e-2)
        torch.testing.assert_close(gradient(kind, nucleus), exact, atol=2e-5, rtol=2e-2)
    drawn = write(tmp_path / "drawn", tiny_teacher, prepared, TeacherCacheFormat(CACHE_SAMPLED, 2000)).target(batch, chosen)
    found = gradient("sampled_kl", drawn)
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), 0) > 0.995


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (TeacherCacheFormat(CACHE_TOP_K, 200), "top_k_tail_kl"),
        (TeacherCacheFormat(CACHE_TOP_P, 200, top_p=0.7), "top_k_tail_kl"),
        (DRAWN, "sampled_kl"),
    ],
    ids=["top_k", "top_p", "sampled"],
)
def test_a_student_learns_from_a_sparse_cache(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData, form: TeacherCacheFormat, kind: str
) -> None:
    cached = write(tmp_path / "cache", tiny_teacher, prepared, form)
    longer = dataclasses.replace(TRAINING, max_tokens=LENGTH * 8 * 40)
    options = {"k": 200} if form.kind == CACHE_TOP_K else {}
    _, final = run(tmp_path / "run", tiny_teacher, prepared, longer, {"kl": TermConfig(kind=kind, options=options)}, cached)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    start = json.loads(lines[0])["validation/teacher_kl"]
    assert final["validation/teacher_kl"] < 0.8 * start


def test_hidden_cache_and_live_teacher_train_alike(tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData) -> None:
    model = load_model(tiny_teacher).requires_grad_(False)
    write_teacher_cache(tmp_path / "cache", model, prepared.train, prepared.validation, 8)
    cached = OfflineTeacher(tmp_path / "cache", prepared.train, get_lm_head(model, VOCABULARY), len(prepared.validation))
    one, _ = run(tmp_path / "a", tiny_teacher, prepared)
    other, _ = run(tmp_path / "b", tiny_teacher, prepared, signal=cached)
    torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)


EXPERIMENT = """
name: nuclei
teacher: {{model: "file:{teacher}", source: offline, dtype: float32, cache_format: top_p, top_p: 0.5, top_k: 200}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 3, max_tokens: 2000, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: top_k_tail_kl}}}}, compile: never}}
training: {{max_tokens: 2048, micro_batch_size: 2, learning_rate: 0.01, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""


@pytest.mark.slow
def test_an_experiment_learns_from_nuclei(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its file to the metrics of a student, by the run of the cache."""
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    (file := tmp_path / "x.yaml").write_text(EXPERIMENT.format(teacher=tiny_teacher, corpus=tiny_corpus))
    cache, student = plan_runs(load_experiment(file))
    assert cache.label == "teacher-cache-top_p_0.5_200"
    manifests = []
    for planned in (cache, student):
        (folder := tmp_path / planned.name).mkdir()
        build_run(planned, folder, lambda *_: None)
        manifests.append(read_json(folder / "manifest.json"))
    assert 4 + 5 < manifests[0]["bytes_per_token"] < 200 * 4 + 5
    first = json.loads((tmp_path / student.name / "metrics.jsonl").read_text().splitlines()[0])
    assert manifests[1]["metrics"]["validation/teacher_kl"] < 0.8 * first["validation/teacher_kl"]


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["teacher.cache_format=top_k"], "teacher.source offline with cache_format top_k is top_k"),
        (
            ["teacher.cache_format=sampled", "objective.terms.kl.kind=top_k_kl"],
            "teacher.source offline with cache_format sampled is sampled",
        ),
        (
            ["teacher.cache_format=sampled", "objective.terms.kl.kind=sampled_kl", "objective.terms.kl.temperature=2"],
            "soften",
        ),
        (["teacher.cache_format=top_q"], "choose from hidden_states, hidden_states_int8, sampled, top_k, top_p"),
        (["teacher.cache_format=top_k", "teacher.top_k=0"], "teacher.top_k"),
        (["teacher.sampling_temperature=0"], "teacher.sampling_temperature"),
        (["teacher.source=none"], "teacher.source: none"),
    ],
)
def test_an_objective_the_cache_cannot_feed_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load_experiment(ROOT / "experiments/quickstart.yaml", changes))


def test_no_two_models_of_a_shipped_experiment_have_one_name() -> None:
    """A baseline that all variants share has a plain name, one per variant has the variant's."""
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        labels = [run.label for run in plan_runs(load_experiment(path)) if run.is_model]
        assert len(set(labels)) == len(labels), path.stem
        if path.stem == "offline_teacher":
            assert labels[:3] == ["teacher", "shallow-untrained", "shallow-ce_only"]
        if path.stem == "reasoning_traces":
            assert labels[1:3] == ["shallow-untrained-all", "shallow-untrained-right"]


def test_baselines_are_the_same_runs_whatever_the_cache_keeps() -> None:
    kinds = {"hidden_states": "forward_kl", "top_k": "top_k_kl", "sampled": "sampled_kl"}
    plans = {}
    for cache, kind in kinds.items():
        changes = [
            f"teacher.cache_format={cache}",
            f"objective.terms.kl.kind={kind}",
            "baselines=[teacher,untrained,ce_only]",
        ]
        runs = plan_runs(load_experiment(ROOT / "experiments/quickstart.yaml", changes))
        plans[cache] = {
            role: {c.fingerprint for c in runs if c.role == role} for role in ("ce_only", "teacher_cache", "distilled")
        }
    for role, same in (("ce_only", True), ("teacher_cache", False), ("distilled", False)):
        assert (plans["hidden_states"][role] == plans["top_k"][role] == plans["sampled"][role]) == same
        assert bool(plans["top_k"][role] & plans["sampled"][role]) == same


# ---------------------------------------------------------------- hidden states in 8 bits


def test_hidden_states_in_8_bits_are_nearly_the_whole_distribution(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    """Each channel within half a step of 1/127 of the largest, the held-out rows exact, a quarter of the bytes."""
    form = TeacherCacheFormat("hidden_states_int8")
    cached = write(tmp_path / "8", tiny_teacher, prepared, form)
    batch, chosen = rows_of(prepared, 70, 3, 64)
    exact = OnlineTeacher(load_model(tiny_teacher), VOCABULARY).target(batch, chosen).hidden_states
    target = cached.target(batch, chosen)
    assert isinstance(target, DenseTarget)
    steps = exact.abs().amax(-1, keepdim=True) / 127
    assert bool(((target.hidden_states - exact).abs() <= 0.51 * steps).all())
    assert bool((target.hidden_states != exact).any())
    log_p = target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)
    right = whole(tiny_teacher, batch, chosen)
    assert float((right.exp() * (right - log_p)).sum(-1).mean()) < 1e-3
    held_out = make_batch(prepared.validation, np.array([1]), 1)
    held_out["rows"] += len(prepared.train)
    mask = held_out["labels"][:, 1:] >= 0
    expected = OnlineTeacher(load_model(tiny_teacher), VOCABULARY).target(held_out, mask).hidden_states
    torch.testing.assert_close(cached.target(held_out, mask).hidden_states, expected, atol=1e-5, rtol=1e-5)
    size = measure_bytes_per_token(tmp_path / "8", prepared.train, form)
    assert size == pytest.approx(32 + 2, rel=0.05)  # 32 channels and a scale
