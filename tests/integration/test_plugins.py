"""Plugins beside an experiment, a commented start, and shipped experiments by name from anywhere."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, tiny_tasks
from helpers.warm_processes import MAY_BE_WARM

from distill_lit.config import load_experiment
from distill_lit.experiment.experiment import Experiment
from distill_lit.utils.exceptions import UserError

PLUGIN = """
import torch
from distill_lit import losses
from distill_lit.generation.filters import register_filter
from distill_lit.models.initializers import register_initializer

@losses.register("squared_hellinger", is_divergence=True)
def squared_hellinger(log_q, log_p):
    return 1 - ((log_q + log_p) / 2).exp().sum(-1)

@register_filter("short_words")
def short_words(completion):
    return all(len(word) < 9 for word in completion.text.split())

@register_initializer("zero_bias")
def zero_bias(student, teacher):
    student.get_input_embeddings().weight.data[0] = 7.0
"""


def write_experiment(folder: Path, teacher: Path, corpus: Path, tasks: Path, **more: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_losses.py").write_text(more.get("plugin", PLUGIN))
    file = folder / "tiny.yaml"
    file.write_text(f"""
name: tiny
dataset_source: hub
plugins: [my_losses.py]
teacher: {{model: "file:{teacher}", dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform, initializer: {more.get("initializer", "zero_bias")}}}}}
data: {{sequence_length: 32, validation_sequences: 2, max_tokens: 1024, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{hellinger: {{kind: {more.get("kind", "squared_hellinger")}}}}}, compile: never}}
training: {{max_tokens: 512, micro_batch_size: 4, precision: float32, accelerator: cpu}}
evaluation: {{tasks: [colours], include_path: "{tasks}"}}
analysis: {{n_resamples: 100}}
baselines: [teacher, untrained]
grid: {{student: [one]}}
""")
    return file


def command(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "distill_lit", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tasks.make_tasks(tmp_path_factory.mktemp("tasks"), "colours")


def test_an_experiment_trains_with_a_loss_and_an_initializer_of_its_own(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, tasks: Path
) -> None:
    """Through the command, from another folder: workers know the plugin too, and it is said aloud that it is run."""
    file = write_experiment(tmp_path / "mine", tiny_teacher, tiny_corpus, tasks)
    done = command("run", file, "baselines=[untrained]", "--root", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my_losses.py is run" in " ".join(done.stdout.split())
    curves = (tmp_path / "results/tiny/curves.csv").read_text()
    assert "train/hellinger" in curves.splitlines()[0]
    from safetensors.torch import load_file

    (untrained,) = (tmp_path / "runs/tiny").glob("one-untrained-*/student/model.safetensors")
    weights = load_file(untrained)
    assert (weights["model.embed_tokens.weight"][0] == 7).all()


def test_the_code_of_a_plugin_is_part_of_the_fingerprint(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, tasks: Path
) -> None:
    names = []
    for change in ("", "# another comment\n"):
        file = write_experiment(tmp_path / f"v{len(change)}", tiny_teacher, tiny_corpus, tasks, plugin=PLUGIN + change)
        code = (
            f"{MAY_BE_WARM}import sys; from distill_lit import Experiment; "
            "print([run.name for run in Experiment.from_yaml(sys.argv[1]).runs])"
        )
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
        names.append(eval(done.stdout))
    teacher = [name for name in names[0] if name.startswith("teacher")]
    assert set(names[0]) & set(names[1]) == set(teacher)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"plugin": "import nothing_of_this_name"}, "plugins: .*my_losses.py: ModuleNotFoundError: No module named"),
        ({"plugin": "def f(:\n"}, "plugins: .*my_losses.py, line 1: SyntaxError"),
        ({"plugin": "", "kind": "squared_helinger", "initializer": "''"}, "unknown loss 'squared_helinger'"),
        (
            {"plugin": "# empty", "kind": "forward_kl", "initializer": "zero"},
            "students.one.initializer: unknown 'zero'.*a plugin",
        ),
    ],
    ids=["import", "syntax", "loss", "initializer"],
)
def test_a_plugin_that_fails_is_one_line(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, tasks: Path, more: dict[str, str], words: str
) -> None:
    file = write_experiment(tmp_path, tiny_teacher, tiny_corpus, tasks, **more)
    with pytest.raises(UserError, match=words):
        Experiment.from_yaml(file)


def test_a_missing_plugin_is_named(tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, tasks: Path) -> None:
    file = write_experiment(tmp_path, tiny_teacher, tiny_corpus, tasks)
    (tmp_path / "my_losses.py").unlink()
    with pytest.raises(UserError, match=r"plugins: my_losses.py: no such file or folder; a relative path is looked for"):
        Experiment.from_yaml(file)


def test_a_plugin_that_ends_the_process_is_named(
    tmp_path: Path, tiny_teacher: Path, tiny_corpus: Path, tasks: Path
) -> None:
    """Its exit code would be taken for that of the command."""
    file = write_experiment(tmp_path, tiny_teacher, tiny_corpus, tasks)
    (tmp_path / "my_losses.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=r"plugins: .*my_losses.py: SystemExit: 3"):
        Experiment.from_yaml(file)


@pytest.mark.parametrize("overrides", ["name=x", [("name", "x")]])
def test_overrides_are_a_list_of_texts(overrides: Any) -> None:
    with pytest.raises(UserError, match="overrides: .* is no list of texts"):
        Experiment.from_yaml("quickstart", overrides)


def test_init_writes_an_experiment_that_can_be_planned(tmp_path: Path) -> None:
    done = command("init", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    experiment = Experiment.from_yaml(tmp_path / "mine.yaml")
    assert experiment.name == "mine"
    assert len(experiment.runs) == 9
    for name in ("null", "1e5", "true"):  # what YAML takes for no text
        assert command("init", name, cwd=tmp_path).returncode == 0
        assert load_experiment(tmp_path / f"{name}.yaml").name == name
    refused = command("init", "a..b", cwd=tmp_path)
    assert refused.returncode == 2 and "'a..b' must be a plain folder name" in refused.stderr
    assert not (tmp_path / "a..b.yaml").exists()
    again = command("init", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_shipped_experiment_is_known_by_its_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_experiment(Path("quickstart")) == load_experiment(ROOT / "experiments/quickstart.yaml")
    Experiment.from_yaml("synthetic_textbook")
    with pytest.raises(UserError, match="no experiment file quickstat; did you mean quickstart"):
        load_experiment(Path("quickstat"))
