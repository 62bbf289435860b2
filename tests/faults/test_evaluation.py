"""faults.md, evaluation: lines 19 to 22."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT, synthetic_results, training_processes
from helpers.training_processes import cli, command, outcome

from distill_lit.analysis.results import load_results
from distill_lit.config import load_experiment
from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.evaluator import evaluate_model
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.utils.exceptions import UserError

QUICKSTART = ROOT / "experiments/quickstart.yaml"


class Hub(BaseHTTPRequestHandler):
    """A hub on which every dataset is gated."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Any:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def task_on(folder: Path, repository: str) -> Path:
    """A folder with a task whose documents are a dataset of the hub."""
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        f"task: mine\ndataset_path: {repository}\noutput_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\ndoc_to_target: "{{l}}"\nmetric_list: [{metric: acc}]\n'
    )
    return folder


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        ("org/gated", "/datasets/org/gated, and set HF_TOKEN or run `hf auth login`"),
        ("org/none", "the hub has no dataset 'org/none'"),
        ("org/off", "the hub cannot be reached for dataset 'org/off'"),
    ],
)
def test_19_gated_unknown_and_unreachable_data_sets_are_refused_first(
    tmp_path: Path, hub: str, repository: str, words: str
) -> None:
    """Against a real server, before a model is loaded: there is none at the reference."""
    folder = task_on(tmp_path / "tasks", repository)
    nothing = tmp_path / "model"
    nothing.mkdir()
    endpoint = "http://127.0.0.1:9" if repository == "org/off" else hub
    arguments = ("evaluate", f"file:{nothing}", "tasks=[mine]", f"include_path={folder}", "--dataset-source", "hub")
    code, said = cli(*arguments, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
    assert code == 2
    assert words in said


def test_19_an_unknown_task_is_refused_first(tmp_path: Path) -> None:
    nothing = tmp_path / "model"
    nothing.mkdir()
    code, said = cli("evaluate", f"file:{nothing}", "tasks=[helaswag]")
    assert code == 2
    assert "unknown task 'helaswag'; did you mean 'hellaswag'?" in said


@pytest.mark.parametrize(
    ("change", "is_timed"),
    [
        ("training.tokns=5", False),
        ("training.accelerator=tpu", False),
        ("teacher.model=file:/nowhere", False),
        ("students.deep.num_layers=5", False),
        ("data.corpora.hellaswag.path=/nowhere.jsonl", False),
        ("evaluation.tasks=[arc_esy]", True),  # the last of all
    ],
)
def test_19_bad_input_is_refused_within_two_seconds(change: str, is_timed: bool, tmp_path: Path) -> None:
    """Processor time of the whole command, since other work may slow the clock; lm-eval's task index is warm. On a slow
    machine, twice what torch alone takes to import just then. What is refused earlier on the same way is not timed."""

    def refused() -> None:
        code, said = outcome(command("run", QUICKSTART, change, "--root", tmp_path))
        assert code == 2
        assert len(said.strip().splitlines()) == 1

    def is_quick() -> bool:
        spent = training_processes.processor_seconds(refused)
        return spent < 2.0 or spent < 2 * training_processes.processor_seconds(
            lambda: training_processes.python("import torch")
        )

    if is_timed:
        check_experiment(load_experiment(QUICKSTART))
        assert any(is_quick() for _ in range(3))
    else:
        refused()
    assert not list(tmp_path.iterdir())


def test_19_nothing_heavy_is_imported_for_that(tmp_path: Path) -> None:
    code = (
        "import sys; from distill_lit.cli import main as cli\n"
        f"try: cli.main(['run', {str(QUICKSTART)!r}, 'evaluation.tasks=[arc_esy]', '--root', {str(tmp_path)!r}])\n"
        "except SystemExit as end: assert end.code == 2\n"
        "heavy = {'lightning', 'transformers', 'datasets', 'pandas', 'matplotlib', 'accelerate'}\n"
        "heavy |= {'torch.distributed.tensor'}\n"
        "heavy &= sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    found, said = training_processes.python(code)
    assert found == 0, said


@pytest.mark.parametrize(("setting", "value"), [("limit", 7), ("num_fewshot", 5), ("dtype", "bfloat16"), ("seed", 7)])
def test_21_other_limits_or_shots_are_not_compared(tmp_path: Path, setting: str, value: Any) -> None:
    folder = synthetic_results.build(tmp_path, documents=10)
    synthetic_results.edit_settings(folder, "deep-ce_only-0", "piqa", **{setting: value})
    with pytest.raises(UserError, match=f"piqa: {setting} is .* for 'teacher' and .* for 'deep-ce_only-0'"):
        load_results(folder)


def test_21_samples_that_do_not_match_are_not_compared(tmp_path: Path) -> None:
    folder = synthetic_results.build(tmp_path, documents=10)
    synthetic_results.edit_model(folder, "deep-ce_only-0", lambda frame: frame[frame["key"] != "piqa-00003.0"])
    with pytest.raises(UserError, match="answered different prompts"):
        load_results(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_22_cuda_that_is_not_there_is_refused(tmp_path: Path, tiny_teacher: Path, tasks_folder: Path) -> None:
    code, said = cli("run", QUICKSTART, "training.accelerator=cuda", "--root", tmp_path)
    assert code == 2
    assert "training.accelerator: cuda was asked for and there is none; use cpu or auto" in said
    settings = EvaluationConfig(tasks=["colours"], include_path=str(tasks_folder))
    with pytest.raises(UserError, match="cuda"):
        evaluate_model(tiny_teacher, settings, "pypi", device="cuda")
