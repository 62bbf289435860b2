"""What people who wanted to break the suite came upon: each is one clear line now, before it costs anything."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import synthetic_results, tiny_models
from helpers.training_processes import SABOTAGE, cli
from safetensors.torch import load_file, save_file

from distill_lit.analysis.results import load_results
from distill_lit.config import CorpusConfig, EvaluationConfig, StudentConfig, load_experiment
from distill_lit.data.corpora import read_documents
from distill_lit.data.tokenization import tokenize
from distill_lit.evaluation.evaluator import evaluate_model
from distill_lit.experiment import collect
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state import completion
from distill_lit.experiment.state.completion import evaluation_identity, is_run_built, is_run_evaluated
from distill_lit.models import check_student_origin, load_model, load_model_config, load_tokenizer
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_json

CONFIGS = {
    "not JSON": ("{", "its config.json is not one of a causal language model"),
    "a list": ("[]", "its config.json is not one of a causal language model"),
    "an unknown type": ('{"model_type": "nope"}', "nope"),
    "no type": ('{"hidden_size": 8}', "its config.json is not one of a causal language model"),
    "an encoder and a decoder": ('{"model_type": "t5"}', "t5 has no decoder with num_hidden_layers"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_models.make_model(tmp_path / "model")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"),
        lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 3)}),
    ],
)
def test_a_weight_that_is_missing_or_of_another_shape_is_refused(model: Path, change: Any) -> None:
    change_weights(model, change)
    with pytest.raises(UserError, match=r"the weights of model\.layers\.1\.mlp\.up_proj\.weight are missing or of another"):
        load_model(model)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_config_that_is_none_is_refused(model: Path, name: str) -> None:
    content, words = CONFIGS[name]
    (model / "config.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        load_model_config(model)
    assert str(model) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 0}, "config.num_hidden_layers: 0 is not a whole number from 1"),
        ({"num_hidden_layers": 1.5}, "config.num_hidden_layers: 1.5 is not a whole number"),
        ({"num_hidden_layers": 10**7}, "config.num_hidden_layers: 10000000 is not a whole number from 1 to 1,000"),
        ({"hidden_size": "a"}, "config.hidden_size: 'a' is not a whole number"),
        ({"num_attention_heads": 3}, "config: 3 attention heads cannot share 2 key-value heads"),
        ({"hidden_act": "nope"}, "config: no model can be built from it"),
        ({"vocab_size": 10}, "config.vocab_size: 10 is not a whole number from 300"),
        ({"tie_word_embeddings": "yes"}, "config.tie_word_embeddings: 'yes' is neither true nor false"),
        ({"model_type": "gpt2"}, "config.model_type: is the teacher's"),
        ({"num_hiden_layers": 1}, "did you mean 'num_hidden_layers'?"),
    ],
)
def test_a_student_that_cannot_be_built_is_refused(model: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        check_student_origin("students.one", StudentConfig(config=config), load_model_config(model))


def evaluate(model: Path, tasks: Path) -> None:
    settings = EvaluationConfig(tasks=["colours"], include_path=str(tasks), dtype="float32")
    evaluate_model(model, settings, "pypi")


def test_a_token_that_the_model_does_not_read_is_refused_where_it_occurs(tmp_path: Path, tasks_folder: Path) -> None:
    model = tiny_models.make_model(tmp_path / "model", vocab_size=100)
    with pytest.raises(UserError, match=r"the text holds '.*', token \d+ of a model that has 100"):
        evaluate(model, tasks_folder)


def test_weights_that_are_not_numbers_are_not_scored(model: Path, tasks_folder: Path) -> None:
    change_weights(model, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(UserError, match=r"the weights of model\.norm\.weight hold nan"):
        evaluate(model, tasks_folder)


# ---------------------------------------------------------------- experiments


@pytest.mark.parametrize(
    "override",
    [
        "grid={evaluation.limit: [5, 6]}",
        "grid={cost.measure: [true, false]}",
        "grid={name: [a, b]}",
        "grid={baselines: [[teacher]]}",
        "variants={a: {analysis.n_resamples: 100}}",
        "variants={a: {grid: {seed: [1]}}}",
    ],
)
def test_what_holds_for_the_whole_experiment_is_in_no_grid(experiment: Path, override: str) -> None:
    with pytest.raises(UserError, match="holds for the whole experiment"):
        load_experiment(experiment, [override])


@pytest.mark.parametrize("name", ["teacher", "ce_only", "teacher_int8"])
def test_names_of_other_files_are_taken(experiment: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"students.{name}: the name is taken"):
        load_experiment(experiment, [f"students.{name}.num_layers=1"])


def test_two_runs_of_one_name_are_refused(experiment: Path) -> None:
    changes = ["students.one-untrained.num_layers=2", "baselines=[untrained]", "grid={student: [one, one-untrained]}"]
    with pytest.raises(UserError, match="2 models would be called 'one-untrained'"):
        plan_of(experiment, changes)


def plan_of(file: Path, changes: list[str]) -> list[Run]:
    return plan_runs(load_experiment(file, changes))


@pytest.mark.parametrize(
    "override",
    [
        "seed=4294967296",
        f"training.max_tokens={10**22}",
        f"training.micro_batch_size={10**20}",
        "name=index.html",
        f"name={'x' * 300}",
    ],
)
def test_too_large_or_too_long_is_refused(experiment: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"above its maximum|must be a plain folder name|form that its key needs"):
        check_experiment(load_experiment(experiment, [override]))


def test_all_runs_failed_is_exit_code_3(experiment: Path, tmp_path: Path) -> None:
    code, said = cli("run", experiment, "--root", tmp_path, FAULTS="raise one train 4", PYTHONPATH=SABOTAGE)
    assert code == 3, said
    assert "no model was evaluated, so nothing" in said
    assert "a bug, with <b>markup</b>" in (tmp_path / "results/tiny/runs.csv").read_text()


@pytest.mark.parametrize("name", ["runs", "results"])
@pytest.mark.parametrize("verb", ["run", "status"])
def test_a_file_where_a_folder_should_be(experiment: Path, tmp_path: Path, name: str, verb: str) -> None:
    (tmp_path / name).write_text("")
    code, said = cli(verb, experiment, "--root", tmp_path)
    assert code == 2
    assert f"{tmp_path / name} is no folder" in " ".join(said.split())


def test_a_cache_that_is_a_file(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    for arguments in (("plan", experiment), ("doctor", "--quick")):
        code, said = cli(*arguments, DISTILL_LIT_CACHE=str(tmp_path / "cache"))
        assert (code, said.strip()) == (2, f"distill-lit: DISTILL_LIT_CACHE: {tmp_path / 'cache'} is no folder")


@pytest.mark.parametrize("port", ["-1", "99999"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    code, said = cli("tensorboard", tmp_path, "--port", port)
    assert code == 2
    assert f"--port {port}: a port is a number from 1 to 65535" in said


# ---------------------------------------------------------------- what lies on disk


@pytest.mark.parametrize("content", ["[]", "5", "null", '{"identity": "IT"}', '{"identity": "IT", "files": 3}'])
def test_a_manifest_of_another_form_is_a_run_to_build(experiment: Path, tmp_path: Path, content: str) -> None:
    (run,) = [run for run in plan_of(experiment, []) if run.is_model]
    for name in ("manifest.json", "evaluation.json"):
        (tmp_path / name).write_text(content.replace("IT", run.fingerprint))
    assert not is_run_built(run, tmp_path)
    assert not is_run_evaluated(run, tmp_path)


def test_files_of_the_users_own_are_read_for_runs_that_were_asked_alone(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be gigabytes, and a plan asks for each of its runs."""
    (run,) = [run for run in plan_of(experiment, []) if run.is_model]
    monkeypatch.delattr(completion, "own_questions_fingerprint")
    assert not is_run_evaluated(run, tmp_path)
    write_json(tmp_path / "evaluation.json", {"evaluation": "other questions"})
    assert not is_run_evaluated(run, tmp_path)
    write_json(tmp_path / "evaluation.json", {"evaluation": evaluation_identity(run)})
    with pytest.raises(NameError):
        is_run_evaluated(run, tmp_path)


def test_damaged_lines_of_a_curve_are_left_out(experiment: Path, tmp_path: Path) -> None:
    (run,) = [run for run in plan_of(experiment, []) if run.is_model]
    place = tmp_path / run.name
    place.mkdir()
    (place / "metrics.jsonl").write_bytes(b'{"step": 1}\nx\n[]\n\xff\xfe\n{"step": 2}\n{"st')
    experiment_of_one = SimpleNamespace(runs=[run], runs_folder=tmp_path)
    assert collect._curves([run], experiment_of_one)["step"].tolist() == [1, 2]


def test_records_that_are_gone_or_of_another_form(tmp_path: Path) -> None:
    folder = synthetic_results.build(tmp_path, documents=8)
    with synthetic_results.edited_records(folder) as content:
        content.records, content.settings = {}, {}
    with pytest.raises(UserError, match="no model has records; run the experiment again"):
        load_results(folder)
    path = folder / "records.parquet"
    pd.DataFrame({"task": ["piqa"]}).to_parquet(path)
    with pytest.raises(UserError, match=r"records\.parquet: not the records of an experiment in format 1"):
        load_results(folder)
    path.unlink()
    with pytest.raises(UserError, match=r"records\.parquet: not found; run the experiment first"):
        load_results(folder)


def test_a_table_of_runs_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    """Copied in part, it would be that of fewer models."""
    folder = synthetic_results.build(tmp_path, documents=8)
    path = folder / "runs.csv"
    whole = path.read_bytes()
    for end in (len(whole) // 2, whole.rindex(b"\n", 0, -1) + 3):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"runs\.csv: its last line is cut short; copy the results folder again"):
            load_results(folder)
    path.write_bytes(whole + b"\n\n")
    load_results(folder)


# ---------------------------------------------------------------- corpora


def documents_of(path: Path) -> list[Any]:
    return read_documents({"mine": CorpusConfig(path=f"file:{path}", text="{{text}}")}, 0, "pypi").items


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
    assert [document.text for document in documents_of(tmp_path / "x.jsonl")] == ["one"]


def test_a_parquet_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(UserError, match=r"x\.parquet: not a whole parquet file"):
        documents_of(tmp_path / "x.parquet")


def test_half_a_surrogate_pair_is_named(tmp_path: Path, model: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "before \ud800 after"}) + "\n")
    with pytest.raises(UserError, match=r"half a surrogate pair.*before .ud800 after"):
        tokenize(documents_of(tmp_path / "x.jsonl"), load_tokenizer(model), 0, 0, 0)


def test_a_tokenizer_file_that_is_damaged(model: Path) -> None:
    shutil.copy(model / "config.json", model / "tokenizer.json")
    with pytest.raises(UserError, match="no tokenizer: "):
        load_tokenizer(model)
