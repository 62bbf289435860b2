"""What a prompt is worth to the teacher: against the logits of transformers, from the store, and as long-tail axes."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_tasks
from helpers.caches import new_cache
from helpers.synthetic_results import build, edited_records
from lm_eval.models.huggingface import HFLM

from distill_lit.analysis.document_axes import axis_values, stratify
from distill_lit.analysis.results import load_results
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation import packing_support
from distill_lit.evaluation import prefix_tree_lm as harness
from distill_lit.evaluation.evaluator import EvaluationResult, evaluate_model
from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM
from distill_lit.evaluation.surprisal import gold_text, last_question, measure_surprisal
from distill_lit.models import load_model, load_tokenizer


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))


@pytest.fixture
def settings(tmp_path: Path) -> EvaluationConfig:
    tiny_tasks.make_tasks(tmp_path / "tasks", "colours", "shapes")
    return EvaluationConfig(tasks=["colours", "shapes"], include_path=str(tmp_path / "tasks"), limit=7)


def evaluated(folder: Path, settings: EvaluationConfig) -> EvaluationResult:
    return evaluate_model(folder, settings, "pypi")


def test_equals_logits_and_records(tiny_teacher: Path, settings: EvaluationConfig) -> None:
    result = evaluated(tiny_teacher, settings)
    found = measure_surprisal(tiny_teacher, result.documents, settings, "pypi")
    assert list(zip(found["task"], found["key"], strict=True)) == list(
        zip(result.documents["task"], result.documents["key"], strict=True)
    )
    model, tokenizer = load_model(tiny_teacher), load_tokenizer(tiny_teacher)
    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    rows = result.documents.merge(result.records, on=["task", "key"]).merge(found, on=["task", "key"])
    for row in rows.to_dict("records"):
        ids = torch.tensor([tokenizer(row["prompt"])["input_ids"]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
        nats = -float(logprobs.gather(1, ids[0, 1:, None]).sum())
        assert row["prompt_bits_per_byte"] == pytest.approx(nats / math.log(2) / len(row["prompt"].encode()), abs=1e-5)
        gold = f" {row['choices'][row['gold']]}"
        request = (("", gold), [plain.prefix_token_id], plain.tok_encode(gold))
        alone = plain._loglikelihood_tokens([request], disable_tqdm=True)
        assert row["gold_gain"] == pytest.approx(row["ll"][row["gold"]] - alone[0][0], abs=1e-4)


def test_a_second_time_no_model_is_loaded(
    tiny_teacher: Path, settings: EvaluationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = evaluated(tiny_teacher, settings).documents
    first = measure_surprisal(tiny_teacher, documents, settings, "pypi")
    monkeypatch.setattr(harness, "load_prefix_tree_lm", lambda *_: pytest.fail("loaded"))
    pd.testing.assert_frame_equal(measure_surprisal(tiny_teacher, documents, settings, "pypi"), first)
    assert evaluated(tiny_teacher, settings).cached_tasks == ["colours", "shapes"]  # its own entries are as they were


def test_a_model_that_cannot_be_packed_has_none(
    tiny_teacher: Path, settings: EvaluationConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = evaluated(tiny_teacher, settings).documents
    monkeypatch.setattr(packing_support, "packing_unsupported_reason", lambda *_: "no")
    found = measure_surprisal(tiny_teacher, documents, settings, "pypi")
    assert len(found) == 14
    assert found[["prompt_bits_per_byte", "gold_gain"]].isna().all(axis=None)


def test_longer_than_the_context_has_none(tiny_teacher: Path, settings: EvaluationConfig) -> None:
    documents = evaluated(tiny_teacher, settings).documents
    documents.loc[2, "prompt"] = "river stone " * 200
    found = measure_surprisal(tiny_teacher, documents, settings, "pypi")
    assert found.loc[2, ["prompt_bits_per_byte", "gold_gain"]].isna().all()
    assert found.drop(index=2).notna().all(axis=None)


def test_tokens_of_sequences_are_those_of_the_model(tiny_teacher: Path) -> None:
    model = load_model(tiny_teacher)
    lm = PrefixTreeLM(model, load_tokenizer(tiny_teacher))
    sequences = [[5, 9, 40, 7], [5, 9, 41], [8]]
    found = lm.score_token_logprobs(sequences)
    assert found is not None and found[2] == []
    for tokens, logprobs in zip(sequences[:2], found, strict=False):
        with torch.no_grad():
            expected = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        assert logprobs == pytest.approx([float(expected[i, t]) for i, t in enumerate(tokens[1:])], abs=1e-4)


def test_text_by_hand() -> None:
    assert last_question("Q: a\nA: b\n\nQ: c\nA:", 1) == "Q: c\nA:"
    assert last_question("a passage\n\nQ: c\nA:", 0) == "a passage\n\nQ: c\nA:"
    assert gold_text({"choices": ["x", "y"], "gold": 1, "prompt": "A:"}) == " y"
    assert gold_text({"choices": ["Bob left"], "gold": 0, "prompt": "because "}) == "Bob left"
    assert gold_text({"choices": ["x"], "gold": -1, "prompt": "A:"}) == ""


def test_axes_of_the_long_tail(tmp_path: Path) -> None:
    folder = build(tmp_path / "results", documents=20)
    assert axis_values(load_results(folder))["surprisal"].isna().all()
    with edited_records(folder) as content:
        rank = np.arange(len(content.documents))
        values = {"prompt_bits_per_byte": rank / 10.0, "gold_gain": rank * 1.0}
        # the order of rows says nothing
        content.surprisal = pd.DataFrame(values, content.documents.index).iloc[::-1]
    results = load_results(folder)
    axes, codes = stratify(results, axis_values(results), 5)
    assert {"surprisal", "gold_gain"} <= {axis.name for axis in axes}
    one = codes.xs("piqa", level="task")
    assert one["surprisal"].tolist() == sorted(one["surprisal"])  # the last documents surprise most
    assert one["gold_gain"].tolist() == sorted(one["gold_gain"], reverse=True)  # and gain most: the head
