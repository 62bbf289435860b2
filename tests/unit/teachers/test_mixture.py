"""Several teachers as one, against each asked alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models

from distill_lit import data
from distill_lit.data.loader import make_batch
from distill_lit.losses.lm_head import LMHead, get_lm_head
from distill_lit.losses.targets import DenseTarget, MixtureTarget, TopKTarget
from distill_lit.models import load_model
from distill_lit.teachers import MixtureTeacher, OfflineTeacher, OnlineTeacher, TeacherCacheFormat, write_teacher_cache
from distill_lit.utils.exceptions import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> list[Any]:
    other = tiny_models.make_model(tmp_path_factory.mktemp("other"), num_layers=1, seed=5, hidden_size=16)
    return [load_model(folder).requires_grad_(False) for folder in (tiny_teacher, other)]


def batch_of(prepared: data.PreparedData, corpus_of_row: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rows 0, 1, …, all of whose tokens are of a corpus; the second half of row 0 is of corpus 1."""
    batch = make_batch(prepared.train, np.arange(len(corpus_of_row)), 1)
    corpus_ids = torch.tensor(corpus_of_row)[:, None].repeat(1, batch["input_ids"].shape[1])
    corpus_ids[0, 16:] = 1
    return {**batch, "corpus_ids": corpus_ids}, batch["labels"][:, 1:] >= 0


class CountingTeacher(OnlineTeacher):
    """Notes how many rows it has read."""

    rows = 0

    def target(self, batch: dict[str, torch.Tensor], loss_mask: torch.Tensor) -> DenseTarget:
        self.rows += len(batch["input_ids"])
        return super().target(batch, loss_mask)


def test_each_is_asked_about_its_rows_and_speaks_of_its_tokens(models: list[Any], prepared: data.PreparedData) -> None:
    one, other = (CountingTeacher(model) for model in models)
    batch, loss_mask = batch_of(prepared, [0, 0, 1, 0])
    target = MixtureTeacher({"one": one, "other": other}, [{"one": 1.0}, {"other": 1.0}]).target(batch, loss_mask)
    assert isinstance(target, MixtureTarget)
    assert (one.rows, other.rows) == (3, 2)
    corpus = batch["corpus_ids"][:, :-1][loss_mask]
    for number, model in enumerate(models):
        alone = OnlineTeacher(model).target(batch, loss_mask).hidden_states
        tokens = (corpus == number).nonzero()[:, 0]
        assert torch.equal(target.tokens[number], tokens)
        torch.testing.assert_close(target.targets[number].hidden_states, alone[tokens], rtol=1e-5, atol=1e-5)
        assert target.counts_before[number].tolist() == [0, *torch.cumsum(corpus == number, 0).tolist()]
    assert target.weights.tolist() == torch.eye(2)[corpus].tolist()


def test_a_teacher_without_a_token_in_a_batch_is_not_asked(models: list[Any], prepared: data.PreparedData) -> None:
    one, other = (CountingTeacher(model) for model in models)
    batch, loss_mask = batch_of(prepared, [1, 1])
    target = MixtureTeacher({"one": one, "other": other}, [{"one": 1.0}, {"other": 1.0}]).target(
        {**batch, "corpus_ids": torch.ones_like(batch["corpus_ids"])}, loss_mask
    )
    assert isinstance(target, MixtureTarget)
    assert target.targets[0] is None
    assert one.rows == 0
    nothing = MixtureTeacher({"one": one, "other": other}, {"other": 1.0}).target(batch, torch.zeros_like(loss_mask))
    assert isinstance(nothing, MixtureTarget) and nothing.targets == (None, None)


def test_caches_of_a_few_tokens_are_routed_and_never_mixed(
    models: list[Any], prepared: data.PreparedData, tmp_path: Path
) -> None:
    teachers = {}
    for name, model in zip(("one", "other"), models, strict=True):
        folder = tmp_path / name
        write_teacher_cache(folder, model, prepared.train, cache_format=TeacherCacheFormat("top_k", 4))
        teachers[name] = OfflineTeacher(folder, prepared.train, get_lm_head(model, 300))
    batch, loss_mask = batch_of(prepared, [0, 1, 1])
    target = MixtureTeacher(teachers, [{"one": 1.0}, {"other": 1.0}]).target(batch, loss_mask)
    assert isinstance(target, TopKTarget)
    corpus = batch["corpus_ids"][:, :-1][loss_mask]
    alone = [teacher.target(batch, loss_mask) for teacher in teachers.values()]
    for part, (first, second) in zip(target, zip(*alone, strict=True), strict=True):
        chosen = corpus.bool() if part.ndim == 1 else corpus.bool()[:, None]
        assert torch.equal(part, torch.where(chosen, second, first))
    nothing = MixtureTeacher(teachers, [{"one": 1.0}, {"other": 1.0}]).target(batch, torch.zeros_like(loss_mask))
    assert isinstance(nothing, TopKTarget)  # as of a batch with tokens, so that ranks log the same metrics
    assert nothing.ids.shape == (0, 4)
    with pytest.raises(UserError, match="a few tokens per position cannot be mixed"):
        MixtureTeacher(teachers, {"one": 0.5, "other": 0.5}).target(batch, loss_mask)


def test_nuclei_of_unequal_widths_are_routed(models: list[Any], prepared: data.PreparedData, tmp_path: Path) -> None:
    teachers = {}
    for name, limit, model in zip(("one", "other"), (3, 6), models, strict=True):
        cache_format = TeacherCacheFormat("top_p", limit, top_p=0.9)
        write_teacher_cache(tmp_path / name, model, prepared.train, cache_format=cache_format)
        teachers[name] = OfflineTeacher(tmp_path / name, prepared.train, get_lm_head(model, 300))
    batch, loss_mask = batch_of(prepared, [0, 1, 1])
    target = MixtureTeacher(teachers, [{"one": 1.0}, {"other": 1.0}]).target(batch, loss_mask)
    assert isinstance(target, TopKTarget) and target.ids.shape[1] == 6
    is_other = batch["corpus_ids"][:, :-1][loss_mask].bool()
    first, second = (teacher.target(batch, loss_mask) for teacher in teachers.values())
    assert torch.equal(target.logprobs[is_other], second.logprobs[is_other])
    assert torch.equal(target.logprobs[~is_other, :3], first.logprobs[~is_other])
    assert bool((target.logprobs[~is_other, 3:] == -torch.inf).all())
    assert torch.equal(target.label_logprobs, torch.where(is_other, second.label_logprobs, first.label_logprobs))


def test_weights_that_are_no_mean_are_refused(models: list[Any], prepared: data.PreparedData) -> None:
    teachers = {"one": OnlineTeacher(models[0]), "other": OnlineTeacher(models[1])}
    for weights, words in (
        ({"one": 0.5, "other": 0.6}, "at least 0, and 1 in sum"),
        ({"one": 1.5, "other": -0.5}, "at least 0, and 1 in sum"),
        ([{"one": 1.0}, {"othr": 1.0}], "there is no teacher 'othr'; there are one, other"),
    ):
        with pytest.raises(UserError, match=words):
            MixtureTeacher(teachers, weights)
    batch, loss_mask = batch_of(prepared, [0, 1])
    del batch["corpus_ids"]
    with pytest.raises(UserError, match="batch: it has no corpus_ids"):
        MixtureTeacher(teachers, [{"one": 1.0}, {"other": 1.0}]).target(batch, loss_mask)
    with pytest.raises(UserError, match="300 and 290 tokens; one tokenizer"):
        MixtureTeacher({**teachers, "other": OnlineTeacher(models[1], 290)}, {"one": 0.5, "other": 0.5})
    assert isinstance(MixtureTeacher(teachers, {"one": 1.0}).target(batch, loss_mask).targets[0].lm_head, LMHead)
