"""records.parquet: what is written is read again, what is left out follows from the rest, and it is small."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT

from distill_lit.analysis.derived_columns import count_ties, derive_columns
from distill_lit.analysis.records_file import INDEX, ExperimentRecords, read_records, write_records

RESULTS = ROOT / "results"
SETTINGS = {"t": {"metrics": ["acc", "acc_norm"], "dtype": "float32"}}


def example() -> ExperimentRecords:
    """Three documents: four choices, a single continuation, and text that is written freely."""
    documents = pd.DataFrame({
        "task": "t", "key": ["a.0", "b.0", "c.0"], "doc_id": [0, 1, 2], "cluster": ["passage", "b.0", "c.0"],
        "prompt": ["Q", "The sky is", "Write"], "choices": [["w", "xx", "y", "z"], [" blue"], []], "gold": [1, 0, -1],
        "n_choices": [4, 0, 0], "prompt_chars": [1, 10, 5], "metadata": ["{}"] * 3,
    }).set_index(INDEX)  # fmt: skip
    rows = pd.DataFrame({
        "ll": [[-3.0, -2.0, -1.5, -9.0], [-0.5], []], "tokens": [[1, 2, 1, 1], [1], []],
        "greedy": [[False] * 4, [True], []], "len_chars": [[1, 2, 1, 1], [5], []], "len_bytes": [[1, 2, 1, 1], [5], []],
        "response": ["", "", "a poem"], "pred": [2, 0, -1], "pred_norm": [1, -1, -1], "correct": [0.0, 1.0, 0.25],
        "correct_norm": [1.0, np.nan, np.nan],
    }, documents.index)  # fmt: skip
    return ExperimentRecords(documents, {"teacher": rows, "half": rows.iloc[:2]}, {"teacher": SETTINGS, "half": SETTINGS})


def test_what_follows_from_likelihoods_by_hand() -> None:
    content = example()
    found = derive_columns(content.documents, content.records["teacher"], SETTINGS)
    assert found["pred"].tolist() == [2, 0, -1]  # the likeliest; the only one; none
    assert found["pred_norm"].tolist() == [1, -1, -1]  # −2 nats over two characters
    assert found["correct"].iloc[:2].tolist() == [0.0, 1.0]
    assert np.isnan(found["correct"].iloc[2])
    assert found["margin"].iloc[0] == pytest.approx(-2.0 - -1.5)
    assert found["margin_norm"].iloc[0] == pytest.approx(-1.0 - -1.5)
    assert found["p_gold"].iloc[0] == pytest.approx(np.exp(-2.0) / np.exp([-3.0, -2.0, -1.5, -9.0]).sum())
    assert found["p_gold"].iloc[1] == pytest.approx(np.exp(-0.5))
    assert json.loads(found["metrics"].iloc[0]) == {"acc": 0.0, "acc_norm": 1.0}
    assert found["tie"].tolist() == [False] * 3
    tied = content.records["teacher"].assign(ll=[[-2.0, -2.0, -3.0, -4.0], [-0.5], []])
    assert derive_columns(content.documents, tied, SETTINGS)["tie"].tolist() == [True, False, False]


def test_bits_per_byte_of_the_right_answer_and_of_a_text_by_hand() -> None:
    content = example()
    found = derive_columns(content.documents, content.records["teacher"], SETTINGS)["bits_per_byte"]
    assert found.iloc[0] == pytest.approx(2.0 / np.log(2) / 2)  # the gold choice: 2 nats on 2 bytes
    assert found.iloc[1] == pytest.approx(0.5 / np.log(2) / 5)
    assert np.isnan(found.iloc[2])  # nothing was scored
    passage = content.documents.iloc[:1].assign(gold=-1, n_choices=0)
    text = content.records["teacher"].iloc[:1].assign(ll=[[-40.0]], len_bytes=[[20]], len_chars=[[20]])
    assert derive_columns(passage, text, {})["bits_per_byte"].tolist() == pytest.approx([2.0 / np.log(2)])
    without = content.records["teacher"].drop(columns="len_bytes")  # of older records
    assert derive_columns(content.documents, without, SETTINGS)["bits_per_byte"].isna().all()


def test_ties_are_those_of_the_tasks_own_metric() -> None:
    """−2 nats on 2 characters and −1 on 1 tie per character; −2 and −2 tie as sums."""
    documents = example().documents.iloc[:1].assign(n_choices=3, gold=0)
    rows = example().records["teacher"].iloc[:1].assign(len_chars=[[2, 1, 2]], len_bytes=[[2, 1, 2]])
    task = documents.index[0][0]
    for ll, metric, ties in (
        ([-2.0, -1.0, -9.0], "acc_norm", 1),
        ([-2.0, -1.0, -9.0], "acc", 0),
        ([-2.0, -3.0, -2.0], "acc", 1),
        ([-2.0, -0.5, -2.0], "acc_norm", 0),
    ):
        given = rows.assign(ll=[ll]).drop(columns=["pred", "pred_norm", "correct", "correct_norm", "response"])
        frame = given.assign(**derive_columns(documents, given, SETTINGS))
        assert count_ties(frame, {task: metric}) == (ties, 1)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    content, path = example(), tmp_path / "records.parquet"
    content.surprisal = pd.DataFrame({"prompt_bits_per_byte": [1.0, 2.0], "gold_gain": [0.5, np.nan]},
                                     content.documents.index[:2])  # fmt: skip
    content.word_counts, content.corpus_words = {"sky": 3, "unseen": 0}, 2_000_000
    write_records(path, content)
    found = read_records(path)
    pd.testing.assert_frame_equal(found.documents[content.documents.columns], content.documents, check_dtype=False)
    assert found.settings == content.settings
    assert (found.word_counts, found.corpus_words) == ({"sky": 3}, 2_000_000)
    assert found.surprisal is not None
    assert found.surprisal["prompt_bits_per_byte"].tolist()[:2] == [1.0, 2.0]
    for model, rows in content.records.items():
        assert found.records[model].index.equals(rows.index)
        for name in rows:
            as_lists = found.records[model][name].map(lambda v: list(v) if isinstance(v, np.ndarray) else v)
            pd.testing.assert_series_equal(as_lists, rows[name], check_dtype=False)
    # a grade and a text cannot be derived; of the model that has neither nothing but likelihoods and greedy is stored
    stored = pd.read_parquet(path).columns
    assert {"teacher/correct", "teacher/response"} <= set(stored)
    assert [name for name in stored if name.startswith("half/")] == ["half/ll", "half/greedy"]
    assert "tokens" in stored


def test_likelihoods_are_kept_in_single_precision(tmp_path: Path) -> None:
    content, path = example(), tmp_path / "records.parquet"
    content.records["teacher"]["ll"] = [[-1 / 3, -200 / 3, -2.0, -np.inf], [-0.1], []]
    write_records(path, content)
    found = read_records(path).records["teacher"]["ll"].iloc[0]
    assert found.dtype == np.float64
    assert found.tolist() == np.float32([-1 / 3, -200 / 3, -2.0, -np.inf]).astype(float).tolist()


def test_an_answer_that_rounding_would_change_is_stored(tmp_path: Path) -> None:
    """Two likelihoods that differ by less than single precision tells apart: the answer is the one that was given."""
    content, path = example(), tmp_path / "records.parquet"
    content.records["teacher"]["ll"] = [[-2.0, -3.0, -2.0 + 1e-9, -9.0], [-0.5], []]
    write_records(path, content)
    assert read_records(path).records["teacher"]["pred"].tolist() == [2, 0, -1]


@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/plan.yaml")), ids=lambda path: path.name)
def test_committed_results_are_small(folder: Path) -> None:
    """depth_frontier has 30 models on 4,000 documents. One example of PDF and TeX is in quickstart."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes.pop("records.parquet") <= 3_000_000
    assert sizes["report.html"] <= 400_000
    assert max(size for name, size in sizes.items() if name.endswith(".png")) <= 100_000
    assert sum(sizes.values()) <= 1_200_000
    assert folder.name == "quickstart" or not {".pdf", ".tex"} & {Path(name).suffix for name in sizes}
