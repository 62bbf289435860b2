"""The public API as a notebook uses it: lazily imported, each part alone, each example runnable."""

import os
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
import torch
from helpers import ROOT, tiny_models, tiny_tasks
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill_lit
from distill_lit import UserError, evaluate, load_results

EXAMPLES = ROOT / "examples/python"


def run_example(name: str, *arguments: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, distill_lit; distill_lit.UserError; "
        "print({'torch', 'lightning', 'transformers', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_is_there_and_documented() -> None:
    for name in distill_lit.__all__:
        assert (getattr(distill_lit, name).__doc__ or "").strip(), name
    assert set(distill_lit.__all__) <= set(dir(distill_lit))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        distill_lit.nothing  # noqa: B018


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tasks.make_tasks(tmp_path_factory.mktemp("tasks"), "colours")


def test_lm_eval_finds_the_prefix_tree_by_name_and_it_agrees_with_hflm(tiny_teacher: Path, tasks: Path) -> None:
    found = {}
    for name in ("prefix_tree", "hf"):
        found[name] = lm_eval.simple_evaluate(
            name,
            model_args={"pretrained": str(tiny_teacher), "dtype": "float32"},
            tasks=["colours"],
            device="cpu",
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            log_samples=True,
        )
    ours, theirs = ([s["resps"] for s in found[name]["samples"]["colours"]] for name in ("prefix_tree", "hf"))
    for one, other in zip(ours, theirs, strict=True):
        assert [float(a[0][0]) for a in one] == pytest.approx([float(b[0][0]) for b in other], abs=1e-3)
    assert found["prefix_tree"]["results"]["colours"]["acc,none"] == found["hf"]["results"]["colours"]["acc,none"]


def test_a_model_in_memory_and_its_folder_have_the_same_scores(tiny_teacher: Path, tasks: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_teacher)
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    options = {"tasks": ["colours"], "include_path": str(tasks)}
    loaded = evaluate(model, tokenizer, **options)
    assert loaded.scores == evaluate(tiny_teacher, **options).scores
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    expected = lm_eval.simple_evaluate(lm, tasks=["colours"], task_manager=manager)
    assert loaded.scores["colours"] in expected["results"]["colours"].values()
    with pytest.raises(UserError, match="needs its tokenizer"):
        evaluate(model, **options)


def test_results_are_frames() -> None:
    results = load_results(ROOT / "results/quickstart")
    frame = results.to_frame()
    assert set(frame["model"]) == set(results.records)
    assert len(frame) == sum(map(len, results.records.values()))
    out = run_example("analyse_results.py", ROOT / "results/quickstart")
    assert "hellaswag" in out
    for words in ("retention", "lost  gained", "rarity_question"):
        assert words in out


def test_a_file_of_ones_own_scores_is_analysed(tmp_path: Path) -> None:
    rows = [f"{model},exam,q{i},{int(i >= wrong)}" for model, wrong in (("teacher", 2), ("kd", 5)) for i in range(20)]
    (tmp_path / "own.csv").write_text("\n".join(["model,task,document,correct", *rows]))
    out = run_example("analyse_results.py", tmp_path / "own.csv")
    assert "2 models on exam; 20 documents" in out
    assert out.splitlines()[-1].split()[:4] == ["kd", "3", "0", "20"]  # lost, gained, documents


def test_pruning_alone(tiny_teacher: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(tiny_models.sentences(20)))
    out = tmp_path / "student"
    run_example(
        "prune.py", "--teacher", tiny_teacher, "--texts", texts, "--num-layers", 1, "--intermediate-size", 32, "--out", out
    )
    student = AutoModelForCausalLM.from_pretrained(out)
    assert student.config.num_hidden_layers == 1
    assert student.config.intermediate_size == 32


@pytest.mark.slow
def test_lm_eval_from_a_script_and_its_command_line(tiny_teacher: Path, tasks: Path) -> None:
    arguments = ("--model", tiny_teacher, "--tasks", "colours", "--limit", 4, "--include-path", tasks)
    assert "colours" in run_example("lm_eval_prefix_tree.py", *arguments)


@pytest.mark.slow
def test_an_experiment_from_python(tiny_teacher: Path, tiny_corpus: Path, tasks: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(f"""
name: tiny
dataset_source: hub
teacher: {{model: "file:{tiny_teacher}", dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform}}}}
data: {{sequence_length: 32, validation_sequences: 2, max_tokens: 1024, corpora: {{text: {{path: "file:{tiny_corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}, compile: never}}
training: {{max_tokens: 512, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [colours], include_path: "{tasks}"}}
analysis: {{n_resamples: 100}}
grid: {{student: [one]}}
""")
    out = run_example("run_experiment.py", file, "--root", tmp_path)
    assert "4 runs at 1 points" in out
    assert out.count(" done") == 4
    assert (tmp_path / "results/tiny/report.html").is_file()


def test_an_offline_teacher_alone(tiny_teacher: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    arguments = ("--teacher", tiny_teacher, "--corpus", tiny_corpus, "--sequence-length", 32, "--out", tmp_path / "cache")
    words = run_example("offline_teacher.py", *arguments).split()
    assert float(words[-1]) == pytest.approx(float(words[4]), abs=0.3)
    assert (tmp_path / "cache/manifest.json").is_file()
