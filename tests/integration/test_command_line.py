"""The whole way through the command line on a tiny teacher, the shipped files, and the direction of the imports."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import ROOT
from helpers.command_line import run

from distill_lit.analysis.results import load_results
from distill_lit.cli.main import main
from distill_lit.config import expand_grid, load_experiment
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_experiments_are_valid(path: Path) -> None:
    config = load_experiment(path)
    check_experiment(config)
    assert len(plan_runs(config)) >= len(list(expand_grid(config)))


def test_seven_models_of_the_quickstart() -> None:
    runs = [run for run in plan_runs(load_experiment(ROOT / "experiments/quickstart.yaml")) if run.is_model]
    assert [run.label for run in runs] == [
        "teacher",
        "deep-untrained",
        "shallow-untrained",
        "deep-ce_only",
        "shallow-ce_only",
        "deep",
        "shallow",
    ]


def test_identity_ignores_what_cannot_change_a_result() -> None:
    path = ROOT / "experiments/quickstart.yaml"
    names = [
        [c.name for c in plan_runs(load_experiment(path, [change]))]
        for change in (
            "seed=0",
            "training.checkpoint_interval=7",
            "analysis.n_resamples=200",
            "training.learning_rate=1e-3",
        )
    ]
    assert names[0] == names[1] == names[2]
    assert sum(a != b for a, b in zip(names[0], names[3], strict=True)) == 4  # the trained ones


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.tokns=5", "did you mean 'max_tokens'"),
        ("objective.terms.kl.weight=-1", "objective.terms.kl.weight"),
        ("objective.terms.kl.temperature=0", "above 0"),
        ("evaluation.tasks=[arc_esy]", "arc_easy"),
        ("students.deep.num_layers=5", "students.deep"),
        ("teacher.model=smollm", "unknown kind"),
        ("name=../out", "plain folder name"),
        ("training.accelerator=cuda", "cuda"),
        ("launcher.teacher_device=cuda:7", "GPUs here"),
        ("launcher.teacher_device=tpu", "give cpu, cuda or cuda:1"),
        ("data.corpora.piqa.generated.num_samples=2", "data.corpora.piqa has both generated and dataset"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, change: str, words: str) -> None:
    result = run("run", "experiments/quickstart.yaml", change, "--root", str(tmp_path))
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def write_experiment(folder: Path, tiny_teacher: Path, tiny_corpus: Path) -> Path:
    """The file of a tiny experiment, with a student beside the one of its grid."""
    file = folder / "tiny.yaml"
    file.write_text(f"""
name: tiny
question: Does it run?
teacher: {{model: "file:{tiny_teacher}", source: offline}}
students: {{one: {{num_layers: 1, layers: block_influence}}, fresh: {{config: {{num_hidden_layers: 1}}}}}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 2048, corpora: {{text: {{path: "file:{tiny_corpus}"}}}}}}
objective: {{terms: {{ce: {{weight: 0.5}}, kl: {{kind: forward_kl, temperature: 2}}}}, compile: never}}
training: {{max_tokens: 2048, micro_batch_size: 4, gradient_accumulation_steps: 2, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [sciq], limit: 12, probes: {{sentences: {{path: "file:{tiny_corpus}"}}}}}}
grid: {{student: [one]}}
hypotheses: {{helps: {{claim: The teacher helps}}}}
""")
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_corpus: Path) -> tuple[Path, Path]:
    """A tiny experiment that has been run: (its root, its file)."""
    root = tmp_path_factory.mktemp("suite")
    file = write_experiment(root, tiny_teacher, tiny_corpus)
    result = run("run", str(file), "--root", str(root))
    assert result.returncode == 0, result.stdout + result.stderr
    return root, file


def test_results_are_complete(finished: tuple[Path, Path]) -> None:
    folder = finished[0] / "results" / "tiny"
    for name in (
        "table.md",
        "table.csv",
        "frontier.png",
        "longtail.md",
        "runs.csv",
        "plan.yaml",
        "curves.csv",
        "records.parquet",
    ):
        assert (folder / name).stat().st_size > 0, name
    runs = pd.read_csv(folder / "runs.csv")
    assert len(runs) == 4
    assert set(runs["status"]) == {"done"}
    trained = runs[runs["role"].isin(["ce_only", "distilled"])]
    assert (trained["training_tokens"] == 2048).all()
    assert (runs.loc[runs["role"] == "ce_only", "teacher_training_flops"] == 0).all()


def test_probes_and_words_read_are_in_the_results(finished: tuple[Path, Path]) -> None:
    folder = finished[0] / "results" / "tiny"
    results = load_results(folder)
    assert results.tasks == ["sciq"]
    assert results.probes is not None
    assert len(results.probes.documents) == 12  # the limit holds for them too
    for model, rows in results.probes.records.items():
        assert rows["bits_per_byte"].between(0, 50).all()
        assert model == "teacher" or rows["draft_acceptance"].between(0, 1).all()
    assert 0 < results.read_words <= 2048  # of the tokens that students read, not of the whole corpus
    assert 0 < sum(results.read_word_counts.values()) <= results.read_words
    runs = pd.read_csv(folder / "runs.csv")
    assert runs.loc[runs["role"] == "distilled", "val_draft_acceptance"].between(0, 1).all()
    assert (folder / "probes.csv").stat().st_size > 0


def test_hypotheses_are_declared_before_the_run_or_are_said_not_to_be(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    text = run("hypotheses", str(tmp_path / "results/tiny"), "--format", "csv").stdout
    header, row = csv.reader(text.splitlines())
    told = dict(zip(header, row, strict=True))
    assert (told["hypothesis"], told["claim"], told["declared"]) == ("helps", "The teacher helps", "before the run")
    assert told["results"] == "not tested: no task is averaged, see the notes below the scores"  # the teacher is at chance
    changed = run("report", str(tmp_path / "tiny.yaml"), "--root", str(tmp_path), "hypotheses.helps.expect=not_worse")
    assert changed.returncode == 0, changed.stderr
    assert "None declared before the run." in (tmp_path / "results/tiny/table.md").read_text()
    assert "after 4 of 4 runs" in run("hypotheses", str(tmp_path / "results/tiny"), "--format", "csv").stdout


@pytest.mark.parametrize("command", ["report", "run"])
def test_no_command_declares_another_endpoint_once_results_are_seen(command: str, finished: tuple[Path, Path]) -> None:
    root, file = finished
    plan = (root / "results/tiny/plan.yaml").read_text()
    result = run(command, str(file), "--root", str(root), "analysis.primary_endpoint=margin")
    assert result.returncode == 2
    assert "analysis.primary_endpoint: it is declared in plan.yaml, as accuracy" in " ".join(result.stderr.split())
    assert (root / "results/tiny/plan.yaml").read_text() == plan


def test_second_run_does_nothing_and_says_the_same(finished: tuple[Path, Path]) -> None:
    root, file = finished
    table = (root / "results/tiny/table.md").read_text()
    manifests = {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}
    result = run("run", str(file), "--root", str(root))
    assert result.returncode == 0
    assert (root / "results/tiny/table.md").read_text() == table
    assert manifests == {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}
    assert "5 done" in run("status", str(file), "--root", str(root)).stdout


def test_model_card_has_recipe_and_scores(finished: tuple[Path, Path]) -> None:
    folders = (finished[0] / "runs/tiny").glob("one-*")
    folder = next(path for path in folders if "only" not in path.name and "untrained" not in path.name)
    card = (folder / "student" / "README.md").read_text()
    score = pd.read_parquet(folder / "records" / "records.parquet")["correct_norm"].mean()
    assert re.search(rf"\| sciq \| acc_norm, 0-shot \| 12 \| [\d.]+ \| {100 * score:.1f} \|", card), card
    assert "forward_kl" in card
    assert card.count("## Results") == 1
    assert "teacher" in card.split("## Results")[1]


def test_student_opens_without_this_suite(finished: tuple[Path, Path]) -> None:
    student = next((finished[0] / "runs/tiny").glob("one-*")) / "student"
    code = (
        'import sys; sys.modules["distill_lit"] = None\n'  # as where it is not installed
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        f"m = M.from_pretrained({str(student)!r}); t = T.from_pretrained({str(student)!r})\n"
        "print(m(**t('river stone', return_tensors='pt')).logits.shape[-1])"
    )
    words, environment = [sys.executable, "-I", "-c", code], {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert result.stdout.strip() == "300", result.stderr


def test_tensorboard_has_curves_and_final_scores(finished: tuple[Path, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = (finished[0] / "runs/tiny").glob("one-*")
    folder = next(path for path in folders if "only" not in path.name and "untrained" not in path.name)
    board = EventAccumulator(str(folder)).Reload()
    tags = set(board.Tags()["scalars"])
    assert {
        "train/loss",
        "train/ce",
        "train/kl",
        "train/agreement",
        "train/teacher_nll",
        "train/student_entropy",
        "train/teacher_entropy",
        "train/tokens_per_second",
        "train/gradient_norm",
        "weight/kl",
        "temperature/kl",
        "validation/teacher_kl",
        "validation/loss",
    } <= tags
    steps = {tag: [event.step for event in board.Scalars(tag)] for tag in tags}
    assert steps["train/loss"] == [step * steps["train/loss"][1] for step in range(8)]
    assert {tag for tag, found in steps.items() if found != sorted(set(found))} == set()
    final = EventAccumulator(str(folder.parent / "final" / folder.name)).Reload()
    assert {"final/sciq", "final/above_chance", "final/teacher_kl"} <= set(final.Tags()["scalars"])
    assert "_hparams_/session_start_info" in final.summary_metadata


@pytest.mark.slow
def test_real_teacher_from_end_to_end(tmp_path: Path) -> None:
    result = run(
        "run",
        "experiments/quickstart.yaml",
        "--root",
        str(tmp_path),
        "training.max_tokens=2048",
        "data.max_tokens=2048",
        "training.micro_batch_size=4",
        "data.validation_sequences=2",
        "evaluation.limit=4",
        "grid.student=[shallow]",
        "baselines=[teacher,untrained]",
        "objective.compile=never",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    runs = pd.read_csv(tmp_path / "results/quickstart/runs.csv").set_index("model")
    assert set(runs["status"]) == {"done"}
    assert runs.loc["teacher", "parameters"] == 134_515_008
    assert runs.loc["shallow", "val_kl"] < runs.loc["shallow-untrained", "val_kl"]


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path) -> None:
    file = write_experiment(tmp_path, tiny_teacher, tiny_corpus)
    changes = ("grid.student=[fresh,one]", "students.fresh.config.hidden_size=33", "evaluation.limit=4")
    result = run("run", str(file), "--root", str(tmp_path), *changes)
    assert result.returncode == 3, result.stdout + result.stderr
    runs = pd.read_csv(tmp_path / "results/tiny/runs.csv").set_index("model")
    assert set(runs.loc[runs["student"] == "fresh", "status"]) == {"failed"}
    assert set(runs.loc[runs["student"] != "fresh", "status"]) == {"done"}
    assert runs.loc[runs["student"] == "fresh", "reason"].str.len().min() > 0


def test_report_and_lists_run(finished: tuple[Path, Path]) -> None:
    assert run("report", str(finished[0] / "results/tiny"), "analysis.n_resamples=200").returncode == 0
    for what in ("objectives", "experiments", "assets", "fields", "tasks"):
        assert run("list", what).stdout.strip(), what
    students = run("list", "students").stdout
    assert all(name in students for name in ("quantization_aware: scheme", "quantize: recipe", "int8_weight_only, int4"))
    assert "decides: differences of at least" in run("plan", "experiments/quickstart.yaml").stdout
    of_records = run("list", "tasks", "sciq", "--records", "results/quickstart").stdout
    assert of_records.startswith("sciq ") and "signal to noise" in of_records and len(of_records.splitlines()) == 1
    refused = run("list", "students", "--records", "results/quickstart")
    assert refused.returncode == 2 and "--records goes with `list tasks`" in refused.stderr
    assert "examples:" in run("--help").stdout


def test_report_of_a_folder_draws_each_results_folder_in_it(finished: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree(finished[0] / "results/tiny", tmp_path / name)
        (tmp_path / name / "table.md").unlink()
    (tmp_path / "no_results").mkdir()
    (tmp_path / "index.html").unlink(missing_ok=True)
    result = run("report", str(tmp_path), "analysis.n_resamples=200")
    assert result.returncode == 0, result.stdout + result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        str(tmp_path / name / "report.html") for name in ("one", "other")
    ]
    assert all((tmp_path / name / "table.md").is_file() for name in ("one", "other"))
    assert all(f'href="{name}/report.html' in (tmp_path / "index.html").read_text() for name in ("one", "other"))
    empty = run("report", str(tmp_path / "no_results"))
    assert empty.returncode == 2 and "it is no results folder" in empty.stderr


def test_report_of_an_experiment_that_is_not_done_yet(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "results")
    file, root = str(tmp_path / "tiny.yaml"), ("--root", str(tmp_path))
    for path in (tmp_path / "runs/tiny").glob("one-ce_only-*/evaluation.json"):
        path.unlink()
    result = run("report", file, *root)
    assert result.returncode == 0, result.stdout + result.stderr
    folder = tmp_path / "results/tiny"
    runs = pd.read_csv(folder / "runs.csv").set_index("model")
    assert set(runs.loc[runs["role"] == "ce_only", "status"]) == {"missing"}
    assert set(runs.loc[runs["role"] != "ce_only", "status"]) == {"done"}
    assert "missing" in (folder / "table.md").read_text() and (folder / "report.html").is_file()
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["one"]["command"] == f"distill-lit run {file}"
    result = run("report", file, *root, "name=other")
    assert result.returncode == 2 and "no model of this experiment is evaluated yet" in result.stderr
    assert not (tmp_path / "results/other").exists()


def test_another_axis_of_the_grid_trains_no_run_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    made = {path.parent.name[-8:]: path.stat().st_mtime_ns for path in (tmp_path / "runs/tiny").glob("*/manifest.json")}
    file = tmp_path / "tiny.yaml"
    result = run("run", str(file), "--root", str(tmp_path), "grid={student: [one], seed: [0]}")
    assert result.returncode == 0, result.stdout + result.stderr
    found = {path.parent.name: path.stat().st_mtime_ns for path in (tmp_path / "runs/tiny").glob("*/manifest.json")}
    assert {name[-8:]: when for name, when in found.items()} == made
    planned = plan_runs(load_experiment(file, ["grid={student: [one, fresh], seed: [0]}"]))
    assert {run.name for run in planned} > set(found)
    assert {name[:-9] for name in found} >= {"one-seed=0", "one-ce_only-seed=0", "one-untrained"}
    assert "fresh-untrained-seed=0" in {run.name[:-9] for run in planned}


def test_experiments_of_ones_own_are_listed_whatever_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").mkdir()
    for name, content in {"a": b"# What?\nname: a\n", "b": b"", "c": b"\xff\xfe"}.items():
        (tmp_path / "experiments" / f"{name}.yaml").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["list", "experiments"])
    assert end.value.code == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:2]] == [
        ["experiments/a.yaml", "What?"],
        ["experiments/b.yaml"],
    ]
