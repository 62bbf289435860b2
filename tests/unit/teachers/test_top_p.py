"""Caches of the nucleus, by hand: what is kept of a distribution, how it lies on disk, and what its padding does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.distillation import VOCABULARY
from safetensors.numpy import load_file
from torch import Tensor

from distill_lit import data
from distill_lit.config import TeacherConfig, TermConfig, load_experiment
from distill_lit.data.loader import make_batch
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.losses import build_objective, distillation_loss
from distill_lit.losses import sparse as sp
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.targets import TopKTarget, concatenate_targets
from distill_lit.models import ModelSize, load_model
from distill_lit.teachers import OfflineTeacher, teacher_source, write_teacher_cache
from distill_lit.teachers.base import CachedTeacherSource, CacheRows
from distill_lit.teachers.compression import (
    CACHE_TOP_K,
    CACHE_TOP_P,
    TeacherCacheFormat,
    compress_logprobs,
    decompress_target,
)
from distill_lit.teachers.teacher_cache import measure_bytes_per_token, teacher_cache_folder, teacher_cache_metadata
from distill_lit.utils.exceptions import UserError

LOSSES: dict[str, Callable[..., Tensor]] = {
    "top_k_kl": sp.top_k_kl,
    "truncated_kl": sp.truncated_kl,
    "top_k_tail_kl": sp.top_k_tail_kl,
    "hinge": lambda log_q, teacher: sp.pairwise_ranking(log_q, teacher),
    "margin": lambda log_q, teacher: sp.pairwise_ranking(log_q, teacher, margin=0.2),
    "logistic": lambda log_q, teacher: sp.pairwise_ranking(log_q, teacher, "logistic"),
}


def nucleus_of(probabilities: list[float], top_p: float, limit: int | None = None) -> list[int]:
    """The tokens that are kept of one distribution, most probable first."""
    form = TeacherCacheFormat(CACHE_TOP_P, limit or len(probabilities), top_p=top_p)
    arrays = compress_logprobs(torch.tensor([probabilities]).log(), torch.tensor([0]), form, torch.Generator())
    assert arrays["counts"].tolist() == [len(arrays["ids"])] == [len(arrays["logprobs"])]
    return [int(token) for token in arrays["ids"]]


# ---------------------------------------------------------------- what is kept


@pytest.mark.parametrize("kind", [CACHE_TOP_K, CACHE_TOP_P])
def test_more_tokens_than_there_are_keep_all(kind: str) -> None:
    """`teacher.top_k` may be the rows of a padded head, of which a config tells, and not how many are tokens."""
    form, logprobs = TeacherCacheFormat(kind, 9), torch.randn(3, 5).log_softmax(-1)
    target = decompress_target(compress_logprobs(logprobs, torch.tensor([0, 1, 2]), form, torch.Generator()), form)
    assert isinstance(target, TopKTarget)
    torch.testing.assert_close(torch.zeros(3, 5).scatter(1, target.ids, target.logprobs), logprobs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.05, [2]),  # 0.4 has more alone
        (0.4, [2]),  # just as much
        (0.41, [2, 0]),
        (0.7, [2, 0]),  # 0.4 + 0.3
        (0.85, [2, 0, 3]),  # 0.4 + 0.3 + 0.2
        (0.95, [2, 0, 3, 1]),
        (1.0, [2, 0, 3, 1]),
    ],
)
def test_the_nucleus_is_the_fewest_tokens_with_that_mass(top_p: float, expected: list[int]) -> None:
    assert nucleus_of([0.3, 0.1, 0.4, 0.2], top_p) == expected


def test_tokens_of_one_probability_are_not_all_kept() -> None:
    kept = nucleus_of([0.2, 0.3, 0.2, 0.3], 0.7)
    assert sorted(kept[:2]) == [1, 3]
    assert len(kept) == 3 and kept[2] in (0, 2)
    assert len(nucleus_of([0.25] * 4, 0.5)) == 2


def test_a_limit_cuts_a_nucleus_that_is_larger() -> None:
    assert nucleus_of([0.3, 0.1, 0.4, 0.2], 1.0, limit=3) == [2, 0, 3]
    assert nucleus_of([0.3, 0.1, 0.4, 0.2], 0.5, limit=3) == [2, 0]


def test_a_token_that_is_certain_is_kept_alone_with_nothing_beside_it() -> None:
    log_p = torch.tensor([[200.0, 0.0, -200.0, -1e6]]).log_softmax(-1)
    form = TeacherCacheFormat(CACHE_TOP_P, 4, top_p=1.0)
    target = decompress_target(compress_logprobs(log_p, torch.tensor([0]), form, torch.Generator()), form)
    assert target.ids.tolist() == [[0]] and target.logprobs.tolist() == [[0.0]]


def test_what_is_stored_of_two_positions_by_hand() -> None:
    """Of (0.5, 0.3, 0.2) two tokens have 0.7, of (0.05, 0.9, 0.05) one; the rest is 0.2 and 0.1."""
    log_p = torch.tensor([[0.5, 0.3, 0.2], [0.05, 0.9, 0.05]]).log()
    form = TeacherCacheFormat(CACHE_TOP_P, 3, top_p=0.7)
    arrays = compress_logprobs(log_p, torch.tensor([2, 0]), form, torch.Generator())
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "ids": "uint16",
        "logprobs": "float16",
        "tail_logprob": "float16",
        "label_logprobs": "float16",
        "counts": "uint8",
    }
    assert arrays["counts"].tolist() == [2, 1] and arrays["ids"].tolist() == [0, 1, 1]
    assert np.exp(arrays["tail_logprob"].astype(float)).tolist() == pytest.approx([0.2, 0.1], rel=1e-3)
    target = decompress_target(arrays, form)
    assert isinstance(target, TopKTarget)
    assert target.ids[0].tolist() == [0, 1] and target.ids[1, 0] == 1
    assert target.logprobs.exp().flatten().tolist() == pytest.approx([0.5, 0.3, 0.9, 0.0], rel=1e-3)
    assert target.label_logprobs.exp().tolist() == pytest.approx([0.2, 0.05], rel=1e-3)


@pytest.mark.parametrize(("limit", "dtype", "size"), [(255, "uint8", 5), (256, "uint16", 6), (70_000, "uint32", 8)])
def test_counts_take_the_smallest_type_that_holds_the_limit(limit: int, dtype: str, size: int) -> None:
    form = TeacherCacheFormat(CACHE_TOP_P, limit, top_p=1.0)
    log_p = torch.zeros(1, 70_000).log_softmax(-1)
    arrays = compress_logprobs(log_p, torch.tensor([0]), form, torch.Generator())
    assert str(arrays["counts"].dtype) == dtype and arrays["counts"].tolist() == [limit]
    assert form.bytes_per_token(70_000) == 6 * limit + size == sum(array.nbytes for array in arrays.values())


# ---------------------------------------------------------------- padding


def padded_and_alone() -> tuple[Tensor, TopKTarget, list[TopKTarget]]:
    """(log q (3, V), a target whose rows hold 2, 5 and 1 tokens, each row as a target without padding)."""
    torch.manual_seed(0)
    log_q = torch.randn(3, 12, dtype=torch.float64).log_softmax(-1)
    best = torch.randn(3, 12, dtype=torch.float64).log_softmax(-1).topk(5)
    alone = [
        TopKTarget(best.indices[row : row + 1, :count], best.values[row : row + 1, :count], best.values[row : row + 1, 0])
        for row, count in enumerate((2, 5, 1))
    ]
    return log_q, concatenate_targets(alone), alone


@pytest.mark.parametrize("name", LOSSES)
def test_padding_changes_neither_value_nor_gradient(name: str) -> None:
    log_q, padded, alone = padded_and_alone()
    assert padded.ids.shape == (3, 5) and (padded.logprobs == -torch.inf).sum() == 3 + 4
    leaf = log_q.clone().requires_grad_()
    values = LOSSES[name](leaf, padded)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    for row, target in enumerate(alone):
        own = log_q[row : row + 1].clone().requires_grad_()
        value = LOSSES[name](own, target)
        (expected,) = torch.autograd.grad(value.sum(), own)
        assert values[row].item() == pytest.approx(value.item(), abs=1e-15)
        torch.testing.assert_close(gradient[row : row + 1], expected, rtol=0, atol=1e-15)
        others = sorted(set(range(12)) - set(target.ids[0].tolist()))
        assert not gradient[row, others].any()  # token 0 too, whose number stands in the padding


@pytest.mark.parametrize("temperature", [1.0, 3.0, 1e6])
@pytest.mark.parametrize("kind", ["top_k_kl", "truncated_kl"])
def test_padding_stays_nothing_when_it_is_softened(kind: str, temperature: float) -> None:
    _, padded, alone = padded_and_alone()
    logits, labels = torch.randn(3, 12) * 30, torch.tensor([0, 1, 2])
    objective = build_objective({kind: TermConfig(temperature=temperature)})

    def gradient(target: TopKTarget, rows: slice) -> Tensor:
        leaf = logits[rows].clone().requires_grad_()
        single = TopKTarget(target.ids, target.logprobs.float(), target.label_logprobs.float())
        loss = distillation_loss(objective, leaf, single, labels[rows], denominator=torch.tensor(1)).total
        return torch.autograd.grad(loss, leaf)[0]

    rows = [gradient(target, slice(row, row + 1)) for row, target in enumerate(alone)]
    torch.testing.assert_close(gradient(padded, slice(None)), torch.cat(rows), rtol=1e-6, atol=1e-7)


def test_the_tail_holds_what_the_nucleus_does_not_by_hand() -> None:
    """p = (0.5, 0.3, rest 0.2) beside (0.9, rest 0.1) against q = (0.25, 0.25, rest 0.5) and (0.25, rest 0.75)."""
    log_q = torch.tensor([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]]).log()
    ids, p = torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.5, 0.3], [0.9, 0.0]])
    expected = [
        0.5 * np.log(0.5 / 0.25) + 0.3 * np.log(0.3 / 0.25) + 0.2 * np.log(0.2 / 0.5),
        0.9 * np.log(0.9 / 0.25) + 0.1 * np.log(0.1 / 0.75),
    ]
    assert sp.top_k_tail_kl(log_q, TopKTarget(ids, p.log(), p[:, 0])).tolist() == pytest.approx(expected, abs=1e-6)


def test_without_k_all_that_is_kept_is_read_and_64_of_a_whole_distribution() -> None:
    torch.manual_seed(0)
    log_q, log_p = torch.randn(2, 100).log_softmax(-1), torch.randn(2, 100).log_softmax(-1)
    best = log_p.topk(80)
    kept = TopKTarget(best.indices, best.values, best.values[:, 0])
    assert torch.equal(sp.top_k_tail_kl(log_q, kept), sp.top_k_tail_kl(log_q, kept, k=80))
    assert torch.equal(sp.top_k_tail_kl(log_q, log_p), sp.top_k_tail_kl(log_q, log_p, k=64))


# ---------------------------------------------------------------- on disk


def test_a_cache_pays_for_what_it_keeps_and_reads_each_row_again(
    tmp_path: Path, tiny_teacher: Path, prepared: data.PreparedData
) -> None:
    """Every shard has 4 bytes for each token kept and 5 for each position, and its header."""
    form = TeacherCacheFormat(CACHE_TOP_P, 40, top_p=0.3)
    model = load_model(tiny_teacher).requires_grad_(False)
    write_teacher_cache(tmp_path, model, prepared.train, cache_format=form, vocab_size=VOCABULARY)
    shards = sorted(tmp_path.glob("top_p-*"))
    counts = [load_file(path)["counts"].astype(int) for path in shards]
    for path, kept in zip(shards, counts, strict=True):
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert path.stat().st_size - header == 4 * kept.sum() + 5 * len(kept)
    assert len(shards) > 1 and len(np.unique(np.concatenate(counts))) > 5
    positions = int(prepared.train.targets_per_row.sum())
    assert sum(map(len, counts)) == positions
    measured = measure_bytes_per_token(tmp_path, prepared.train, form)
    assert measured == sum(path.stat().st_size for path in shards) / positions
    teacher = OfflineTeacher(tmp_path, prepared.train, get_lm_head(model, VOCABULARY))
    together, start = teacher.target(*rows_of(prepared, 70, 3, 64, 63)), 0
    for row in (70, 3, 64, 63):  # of two shards, in no order
        alone = teacher.target(*rows_of(prepared, row))
        same = slice(start, start := start + len(alone.ids))
        is_token = alone.logprobs > -torch.inf
        assert torch.equal(together.ids[same, : alone.ids.shape[1]][is_token], alone.ids[is_token])
        assert torch.equal(together.logprobs[same, : alone.ids.shape[1]], alone.logprobs)
        assert (together.logprobs[same, alone.ids.shape[1] :] == -torch.inf).all()
    assert start == len(together.ids)


def rows_of(prepared: data.PreparedData, *numbers: int) -> tuple[dict[str, Tensor], Tensor]:
    batch = make_batch(prepared.train, np.array(numbers), 1)
    return batch, batch["labels"][:, 1:] >= 0


def test_another_mass_is_another_cache_and_other_formats_stay_where_they_are() -> None:
    forms = [TeacherCacheFormat(CACHE_TOP_P, 50, top_p=p) for p in (0.8, 0.9)] + [TeacherCacheFormat("top_k", 50)]
    facts = [teacher_cache_metadata({}, "data", torch.float32, form) for form in forms]
    assert len({teacher_cache_folder(one) for one in facts}) == 3
    assert all(TeacherCacheFormat.from_metadata(form.metadata()) == form for form in forms)
    assert facts[2]["cache_format"] == {
        "kind": "top_k",
        "tokens_per_position": 50,
        "sampling_temperature": 1.0,
        "hidden_layers": [],
    }


# ---------------------------------------------------------------- the plan


def test_the_disk_of_a_nucleus_is_estimated_by_what_it_is_assumed_to_keep() -> None:
    """At p = ½ a median of 3 tokens: 3 ln(1 + 255 / 3) of at most 255, 13.4. All of them for p = 1."""
    config = TeacherConfig(model="file:x", source="offline", dtype="float32", cache_format="top_p", top_k=255, top_p=0.5)
    source, size = teacher_source(config), ModelSize(1, 1, 1, 1, 1, True, 1, 32, 1, 49_152)
    assert isinstance(source, CachedTeacherSource)
    assert source.cache_label(config) == "top_p_0.5_255"
    # 13.4 tokens of 4 bytes are 53, and 5 for the position; held-out rows keep 32 channels of 4 bytes
    assert source.estimate_cache_bytes(config, size, CacheRows(2000, 1000, 10)) == 1000 * (53 + 5) + 10 * 32 * 4
    assert TeacherCacheFormat(CACHE_TOP_P, 255, top_p=1.0).bytes_per_token(49_152) == 4 * 255 + 5
    assert TeacherCacheFormat(CACHE_TOP_P, 255, top_p=0.001).bytes_per_token(49_152) == 4 + 5


TOP_P = ["teacher.cache_format=top_p", "objective.terms.kl={kind: top_k_tail_kl}"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["teacher.top_p=0"], "teacher.top_p: 0 "),
        (["teacher.top_p=1.5"], "teacher.top_p: 1.5"),
        (["teacher.top_k=0"], "teacher.top_k: 0, and at least 1 is kept"),
        (["teacher.top_k=-1"], "teacher.top_k: -1, and at least 1 is kept"),
        (
            ["objective.terms.kl.options={k: 51}"],
            r"objective.terms.kl.options.k: 51, and teacher.source offline with cache_format top_p has at most 50 tokens "
            r"of each position \(teacher.top_k\)",
        ),
        (["objective.terms.kl.temperature=2"], "cannot soften"),
        (["objective.terms.kl.kind=forward_kl"], "forward_kl needs a teacher that is dense"),
        (["objective.terms.kl.kind=sampled_kl"], "sampled_kl needs a teacher that is dense or sampled"),
        (["teacher.source=self"], "teacher.cache_format: teacher.source self is a copy"),
    ],
)
def test_what_does_not_fit_is_refused(changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_experiment(load_experiment(ROOT / "experiments/quickstart.yaml", [*TOP_P, *changes]))


@pytest.mark.parametrize(
    "changes", [[], ["objective.terms.kl.options={k: 50}"], ["teacher.top_p=1.0", "teacher.top_k=300"]]
)
def test_what_fits_is_planned(changes: list[str]) -> None:
    check_experiment(load_experiment(ROOT / "experiments/quickstart.yaml", [*TOP_P, *changes]))


def test_a_limit_beyond_the_vocabulary_is_refused(tiny_teacher: Path) -> None:
    config = TeacherConfig(model="file:x", source="offline", cache_format="top_p", top_k=301)
    with pytest.raises(UserError, match="teacher.top_k: 301 is above the teacher's vocabulary of 300"):
        teacher_source(config).check_model(config, load_model(tiny_teacher).config)
