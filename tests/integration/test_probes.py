"""Held-out text: against lm-eval's rolling log-likelihoods and plain logits, from the store, and through an experiment."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_models, tiny_tasks
from helpers.caches import new_cache
from helpers.synthetic_results import build, edited_records
from lm_eval.models.huggingface import HFLM

from distill_lit.analysis.endpoints import BITS_PER_BYTE, KL, endpoint_frame, probe_scores
from distill_lit.analysis.probe_long_tail import ProbeLongTail, probe_long_tail
from distill_lit.analysis.records_file import INDEX
from distill_lit.analysis.results import Results, load_results
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import compute_scores
from distill_lit.cli.main import main
from distill_lit.config import EvaluationConfig, ProbeConfig, load_experiment
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.config.report import ReportConfig
from distill_lit.evaluation import probes
from distill_lit.evaluation.probes import Passage, evaluate_probes
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.models import load_model, load_tokenizer
from distill_lit.report.bundle import build_report_bundle
from distill_lit.report.render import write_long_tail_files, write_score_tables
from distill_lit.report.tables.probes import probe_table, rare_word_answer
from distill_lit.report.web.report_page import write_report_page
from distill_lit.utils.exceptions import UserError


@pytest.fixture
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path_factory.mktemp("store") / "cache")))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_model(tmp_path_factory.mktemp("student"), num_layers=1, seed=3)


def settings(folder: Path, count: int = 6, **changes: Any) -> EvaluationConfig:
    """Sentences, and one text longer than the 256 positions of a tiny model."""
    texts = [*tiny_models.sentences(count, seed=9), " ".join(tiny_models.sentences(60, seed=10)) + " Größe naïve."]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    probe = ProbeConfig(path=f"file:{folder}/text.jsonl", split="test")
    return EvaluationConfig(tasks=["sciq"], probes={"stories": probe}, **changes)


@pytest.mark.usefixtures("own_store")
def test_equals_rolling_log_likelihoods_of_lm_eval(student: Path, tmp_path: Path) -> None:
    result = evaluate_probes(student, settings(tmp_path, token_logprobs=True), "pypi")
    rows = result.documents.merge(result.records, on=["task", "key"])
    lm = HFLM(pretrained=load_model(student), tokenizer=load_tokenizer(student), batch_size=1, softmax_dtype="float32")
    expected = lm.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in rows["prompt"]], disable_tqdm=True)
    assert len(rows) == 7
    assert max(rows["tokens"].str[0]) > 512  # three windows
    assert rows["ll"].str[0].tolist() == pytest.approx(expected, abs=2e-3)
    assert rows["len_bytes"].str[0].tolist() == [len(text.encode()) for text in rows["prompt"]]
    assert [sum(cell[0]) for cell in rows["token_logprobs"]] == pytest.approx(rows["ll"].str[0].tolist())
    bits = -rows["ll"].str[0].sum() / math.log(2) / rows["len_bytes"].str[0].sum()
    assert result.scores == {"stories": pytest.approx(bits)}
    assert "kl" not in rows  # nobody to compare with


@pytest.mark.usefixtures("own_store")
def test_beside_the_teacher_equals_plain_logits(student: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    rows = evaluate_probes(student, settings(tmp_path), "pypi", teacher=tiny_teacher)
    row = rows.documents.merge(rows.records, on=["task", "key"]).iloc[2]
    tokenizer = load_tokenizer(student)
    ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
    read = torch.tensor([[tokenizer.bos_token_id, *ids[:-1]]])
    with torch.no_grad():
        q, p = (load_model(folder)(read).logits[0].double().softmax(-1) for folder in (student, tiny_teacher))
    assert row["kl"] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), abs=1e-5)
    assert row["draft_acceptance"] == pytest.approx(float(torch.minimum(p, q).sum(-1).mean()), abs=1e-5)
    assert row["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert row["ll"][0] == pytest.approx(float(q[range(len(ids)), ids].log().sum()), abs=1e-4)


@pytest.mark.usefixtures("own_store")
def test_a_teacher_with_other_tokens_is_not_compared_with(student: Path, tmp_path: Path) -> None:
    other = tiny_models.make_model(tmp_path / "other", tokens=290)
    found = evaluate_probes(student, settings(tmp_path), "pypi", teacher=other)
    assert "kl" not in found.records
    assert found.meta["stories"]["compared_with_teacher"] is False


@pytest.mark.usefixtures("own_store")
def test_a_second_time_no_model_is_loaded(
    student: Path, tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(tmp_path)
    first = evaluate_probes(student, asked, "pypi", teacher=tiny_teacher)
    monkeypatch.setattr(probes, "load_model", lambda *_: pytest.fail("loaded"))
    second = evaluate_probes(student, asked, "pypi", teacher=tiny_teacher)
    pd.testing.assert_frame_equal(first.records, second.records)
    assert second.cached_tasks == ["stories"]
    monkeypatch.undo()
    assert evaluate_probes(student, settings(tmp_path, 5), "pypi", teacher=tiny_teacher).cached_tasks == []  # other text


@pytest.mark.usefixtures("own_store")
def test_as_many_passages_as_are_asked_for(student: Path, tmp_path: Path) -> None:
    assert len(evaluate_probes(student, settings(tmp_path, limit=3), "pypi").documents) == 3
    assert ProbeConfig().max_documents == 500


def test_bands_of_word_frequency_by_hand() -> None:
    """Tokens: "The", " mito", "sis", ",", " of"; the second begins before its word with a blank."""
    text = "The mitosis, of"
    passage = Passage(text, [1, 2, 3, 4, 5], [(0, 3), (3, 8), (8, 11), (11, 12), (12, 15)])
    nats, sizes = probes._band_sums(passage, [1.0, 2.0, 4.0, 8.0, 16.0])
    rare = next(n for n, edge in enumerate([*probes.ZIPF_EDGES, 9.0]) if probes._zipf("mitosis") < edge)
    assert probes._zipf("the") > 6 < probes._zipf("of")
    assert nats == [6.0 if band == rare else 17.0 if band == 4 else 0.0 for band in range(5)]
    assert sizes == [7 if band == rare else 5 if band == 4 else 0 for band in range(5)]
    assert probes._band_sums(Passage(text, [1], []), [1.0]) == ([], [])


# beside the tasks of an experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, student: Path) -> Path:
    """A results folder of a teacher and one student with and without it, two seeds each, that were asked a task too."""
    folder = build(tmp_path_factory.mktemp("results"), documents=30, students={"one": 0.5}, seeds=(0, 1))
    texts = [" ".join(tiny_models.sentences(6, seed=n)) for n in range(40)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"passage": text}) + "\n" for text in texts))
    probe = ProbeConfig(path=f"file:{folder}/text.jsonl", text="{{ passage }}")
    asked = EvaluationConfig(tasks=["sciq"], probes={"stories": probe})
    models = {"teacher": tiny_teacher, "one-untrained": student}
    for n, name in enumerate(("one-distilled-0", "one-distilled-1", "one-ce_only-0", "one-ce_only-1")):
        models[name] = tiny_models.make_model(folder / name, num_layers=1, seed=20 + n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_LIT_CACHE", str(folder / "cache"))
        found = {
            name: evaluate_probes(place, asked, "pypi", teacher=None if name == "teacher" else tiny_teacher)
            for name, place in models.items()
        }
    with edited_records(folder) as content:
        content.documents = pd.concat([content.documents, found["teacher"].documents.set_index(INDEX)])
        for name, result in found.items():
            answers = content.records[name].drop(columns=["bits_per_byte", "tie_norm"])  # derived when they are read
            content.records[name] = pd.concat([answers, result.records.set_index(INDEX)])
            content.settings[name] |= json.loads(json.dumps(result.meta))
    plan = "name: probed\nteacher: {model: 'file:t'}\nstudents: {one: {num_layers: 1}}\n"
    (folder / "plan.yaml").write_text(plan + "evaluation: {probes: {stories: {path: 'file:.'}}}\n"
                                      "analysis: {n_resamples: 100, primary_endpoint: probe_bits_per_byte}\n")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def results(finished: Path) -> Results:
    return load_results(finished)


def test_probes_are_no_tasks_and_have_their_own_records(results: Results) -> None:
    assert results.tasks == ["arc_easy", "hellaswag", "piqa", "sciq"]
    assert results.probes is not None
    assert results.probes.tasks == ["stories"]
    assert len(results.probes.documents) == 40
    assert list(results.probes.records) == list(results.records)
    rows = results.probes.records["one-distilled-0"]
    assert rows["bits_per_byte"].to_numpy() == pytest.approx(-rows["ll"].str[0] / math.log(2) / rows["len_bytes"].str[0])
    assert rows["kl"].between(0, 20).all()
    assert rows["draft_acceptance"].between(0, 1).all()
    assert "kl" not in results.probes.records["teacher"]
    by_kl = probe_scores(compute_scores(results, AnalysisConfig(n_resamples=100)), KL)
    assert by_kl is not None and by_kl.tasks == ["stories"]


def test_the_declared_endpoint_stands_first_and_is_paired(results: Results) -> None:
    scores = compute_scores(results, AnalysisConfig(n_resamples=200, primary_endpoint="probe_bits_per_byte"))
    frame = endpoint_frame(scores, score_frame(scores))
    assert frame["is_primary"].tolist() == sorted(frame["is_primary"], reverse=True)
    primary = frame[frame["is_primary"] & (frame["role"] == "distilled") & (frame["task"] == "average over probes")].iloc[0]
    bits = {m: rows["bits_per_byte"].to_numpy(float) for m, rows in results.probes.records.items()}  # type: ignore[union-attr]
    pairs = np.stack([bits[f"one-distilled-{s}"] - bits[f"one-ce_only-{s}"] for s in (0, 1)], axis=1)
    assert primary["ce_only_delta"] == pytest.approx(pairs.mean())
    assert primary["score"] == pytest.approx(np.mean([bits["one-distilled-0"], bits["one-distilled-1"]]))
    assert primary["ce_only_delta_low"] < pairs.mean() < primary["ce_only_delta_high"]
    assert {"accuracy", "margin", "p_gold", "kl", "draft_acceptance"} <= set(frame["endpoint"])


def test_the_long_tail_of_probes_by_hand(results: Results) -> None:
    scores = compute_scores(results, AnalysisConfig(n_resamples=200, num_strata=2))
    found = probe_long_tail(scores)
    assert {axis.title for axis in found.axes} <= {"words of the passage", "passage length", "words never read in training"}
    probed = probe_scores(scores, BITS_PER_BYTE)
    assert probed is not None
    student = results.probes.records["one-distilled-0"], results.probes.records["one-distilled-1"]  # type: ignore[union-attr]
    rows = found.bands[found.bands["role"] == "distilled"].set_index("band")
    for band in (b for b in rows.index if b != "contrast"):
        ratios = [
            rows_["band_nats"].str[band].sum() / rows_["band_bytes"].str[band].sum() / math.log(2) for rows_ in student
        ]
        assert rows.loc[band, "score"] == pytest.approx(np.mean(ratios))
        assert rows.loc[band, "low"] < rows.loc[band, "score"] < rows.loc[band, "high"]
    bands = [b for b in rows.index if b != "contrast"]
    assert rows.loc["contrast", "score"] == pytest.approx(rows.loc[bands[0], "score"] - rows.loc[bands[-1], "score"])


def test_the_report_shows_endpoints_and_probes(finished: Path) -> None:
    bundle = build_report_bundle(
        finished, AnalysisConfig(n_resamples=100, primary_endpoint="probe_bits_per_byte"), "probed"
    )
    write_score_tables(finished, bundle)
    assert set(pd.read_csv(finished / "probes.csv")["table"]) >= {"stratum", "contrast", "band"}
    endpoints = pd.read_csv(finished / "endpoints.csv")
    assert endpoints.iloc[0]["endpoint"] == "bits_per_byte"
    page = (finished / "table.md").read_text()
    assert "| stories" not in page
    assert "Probes: stories v1 (40 passages, file:" in page


def test_the_long_tail_and_the_page_show_words_by_frequency(finished: Path) -> None:
    """Numbers by hand from the records: bits per byte of all bytes of a band."""
    bundle = build_report_bundle(finished, AnalysisConfig(n_resamples=100), "probed")
    write_long_tail_files(finished, bundle)
    markdown, page = (finished / "longtail.md").read_text(), write_report_page(finished, bundle).read_text()
    rows = bundle.scores.results.probes.records["teacher"]  # type: ignore[union-attr]
    used = [band for band in range(5) if rows["band_bytes"].str[band].sum()]
    shares = [rows["band_nats"].str[b].sum() / rows["band_bytes"].str[b].sum() / math.log(2) for b in used]
    words = markdown.partition("**Bits per byte by how frequent the words are**")[2]
    row = next(line for line in words.splitlines() if line.startswith("| teacher |"))
    cells = [cell.split()[0].replace("−", "-") for cell in row.split("|")[2:-1]]
    assert cells == [f"{value:.3f}" for value in [*shares, shares[0] - shares[-1]]]
    answer = "On held-out text, whether rare words lose more than common ones against the same student trained without"
    assert answer in markdown and answer in page
    assert "## Held-out text" in markdown and 'id="h-probes"' in page and "probes.csv" in page
    mean = bundle.endpoint_frame.query("is_probe and endpoint == 'bits_per_byte' and task == 'average over probes'")
    assert f"{mean.set_index('model').at['one distilled', 'ce_only_delta']:+.3f}".replace("-", "−") in page


def test_labels_are_those_of_probes_too(finished: Path) -> None:
    """The declared endpoint is found under the labels, and its averages are called by them."""
    analysis = AnalysisConfig(n_resamples=100, primary_endpoint="probe_bits_per_byte")
    shown = build_report_bundle(
        finished, analysis, "probed", display=ReportConfig(labels={"one": "1 layer", "stories": "Tales"})
    )
    assert shown.headline.startswith("By probes, bits per byte (less is better), the primary endpoint (when ")
    table = probe_table(shown.scores, shown.endpoint_frame)
    assert [row[0].text for row in table.rows][1:] == [
        "1 layer before training",
        "1 layer without teacher",
        "1 layer distilled",
    ]
    assert table.footnotes[0].startswith("Mean over probes: Tales.")
    assert not any("own teacher" in note for note in table.footnotes)
    runs = shown.scores.results.runs
    runs["validation_data_fingerprint"], runs["val_teacher_nll"] = "text", [3.8 - 0.1 * row for row in range(len(runs))]
    assert "they do not compare between teachers" in probe_table(shown.scores, shown.endpoint_frame).footnotes[1]


def test_rare_words_that_lose_more_are_said_to(results: Results) -> None:
    scores = compute_scores(results, AnalysisConfig(n_resamples=100))
    row = {"model": "one distilled", "role": "distilled", "band": "contrast", "ce_only_delta": 0.25,
           "ce_only_delta_high": 0.3, "ce_only_delta_p": 0.001}  # fmt: skip
    found = ProbeLongTail(bands=pd.DataFrame([row]))
    assert rare_word_answer(scores, found) == (
        "On held-out text the rarest words change by +0.25 bits per byte more than the most common against the same "
        "student trained without the teacher (negative: rare words gain more), significantly."
    )
    other = {**row, "model": "two", "ce_only_delta": 0.0, "ce_only_delta_p": 0.9}
    both = ProbeLongTail(bands=pd.DataFrame([row, other]))
    assert rare_word_answer(scores, both).endswith("significantly for 1 of 2 students.")
    assert rare_word_answer(scores, ProbeLongTail()) == ""


def test_probes_without_a_task_are_refused_in_a_line(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("cache", "one-*"))
    with edited_records(folder) as content:
        content.documents = content.documents.loc[["stories"]]
        for model, frame in content.records.items():
            content.records[model] = frame.loc[["stories"]]
            content.settings[model] = {"stories": content.settings[model]["stories"]}
    with pytest.raises(UserError, match=r"alone: its records hold probes alone \(stories\); a report needs a task"):
        load_results(folder)


def test_another_primary_endpoint_afterwards_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(finished), "analysis.primary_endpoint=margin"])
    assert ended.value.code == 2
    assert "it is declared in plan.yaml, as probe_bits_per_byte" in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("own_store")
def test_a_single_model_is_scored_on_probes_too(student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings(tmp_path)
    tiny_tasks.make_tasks(tmp_path / "tasks", "colours")
    changes = ["tasks=[colours]", f"include_path={tmp_path}/tasks", f"probes.stories.path=file:{tmp_path}/text.jsonl"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", f"file:{student}", "--accelerator", "cpu", *changes])
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0, shown
    assert "stories" in shown and "bits_per_byte" in shown and "colours" in shown


# bad input


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["evaluation.probes.w.dataset=aps/super_gleu"], "evaluation.probes.w.dataset: 'aps/super_gleu' is not in the"),
        (["evaluation.probes.w.split=test"], "evaluation.probes.w needs exactly one of dataset and path"),
        (["evaluation.probes.w.path=nowhere.jsonl"], "evaluation.probes.w.path: nowhere.jsonl: no such file"),
        (["evaluation.probes.sciq.dataset=allenai/sciq"], "evaluation.probes.sciq: "),
        (
            ["evaluation.probes.w.dataset=allenai/sciq", "evaluation.probes.w.text={{ x"],
            "evaluation.probes.w.text: template",
        ),
        (["analysis.primary_endpoint=probe_kl"], "evaluation.probes names no text"),
        (["analysis.primary_endpoint=perplexity"], "analysis.primary_endpoint"),
        (["evaluation.probes.w.max_documents=-1"], "evaluation.probes.w.max_documents"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(changes: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        check_experiment(load_experiment(Path("quickstart"), changes))
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_fields_that_are_not_used_change_no_fingerprint() -> None:
    from distill_lit.experiment.planning.fingerprint import evaluation_fingerprint

    plain = load_experiment(Path("quickstart"))
    declared = load_experiment(Path("quickstart"), ["analysis.primary_endpoint=margin"])
    assert evaluation_fingerprint(plain) == evaluation_fingerprint(declared) == evaluation_fingerprint(plain, "a")
    probe = ["evaluation.probes.w.dataset=EleutherAI/lambada_openai"]
    with_probe = load_experiment(Path("quickstart"), probe)
    assert evaluation_fingerprint(with_probe) != evaluation_fingerprint(plain)
    assert evaluation_fingerprint(with_probe, "a") != evaluation_fingerprint(with_probe, "b")
