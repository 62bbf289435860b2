"""What README and docs tell people to type is what works: commands, make targets, experiments, Python, links."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from helpers import ROOT, tiny_models
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from distill_lit.cli.commands.hypotheses import EXAMPLE as HYPOTHESES_EXAMPLE
from distill_lit.cli.main import build_parser
from distill_lit.config import load_experiment
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.generation.filters import CUSTOM_FILTERS
from distill_lit.losses import FEATURE_LOSSES, LOGIT_LOSSES
from distill_lit.models.initializers import STUDENT_INITIALIZERS
from distill_lit.teachers.registry import TEACHER_SOURCES
from distill_lit.utils.exceptions import UserError

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS = LOGIT_LOSSES | FEATURE_LOSSES
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(language: str, pages: list[Path] = PAGES) -> list[str]:
    """The code blocks in a language, of all pages."""
    return [text for page in pages for found, text in BLOCK.findall(page.read_text()) if found == language]


def lines(start: str) -> list[str]:
    """The lines of all shell blocks that begin so, each once."""
    return sorted({line for block in blocks("bash") for line in block.splitlines() if line.startswith(start)})


@pytest.mark.parametrize("command", lines("distill-lit "))
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.split(" > ")[0], comments=True)[1:]
    options = build_parser().parse_args(words)
    if getattr(options, "experiment", None):
        check_experiment(load_experiment(options.experiment, options.overrides))


@pytest.mark.parametrize(
    "name", re.findall(r"(?:results|experiments)/\S+", " ".join([*lines("distill-lit hypotheses "), HYPOTHESES_EXAMPLE]))
)
def test_hypotheses_are_read_where_some_are_declared(name: str) -> None:
    assert load_experiment(ROOT / name / "plan.yaml" if name.startswith("results") else ROOT / name).hypotheses


@pytest.mark.parametrize("target", sorted({line.split()[1] for line in lines("make ")}))
def test_make_targets_exist(target: str) -> None:
    shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_readme_says_how_to_begin() -> None:
    first, second, *_ = blocks("bash", PAGES[:1])
    assert "make install" in first
    assert "distill-lit run quickstart" in second


def test_the_experiment_of_the_readme_is_one(tmp_path: Path) -> None:
    (text,) = blocks("yaml", PAGES[:1])
    assert len(text.splitlines()) == 10
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    config = load_experiment(file)
    check_experiment(config)
    points = len(yaml.safe_load(text)["grid"]["objective.terms.kl.temperature"]) * len(yaml.safe_load(text)["grid"]["seed"])
    assert sum(run.role == "distilled" for run in plan_runs(config)) == points


@pytest.mark.parametrize("text", blocks("yaml", PAGES[1:]))
def test_other_yaml_has_keys_that_exist(text: str, tmp_path: Path) -> None:
    """Parts of experiments, completed by what every experiment needs; whole ones are runs that could begin. Files of others
    are only parsed."""
    part = yaml.safe_load(text)
    if "task" in part or "plugins" in part:
        return
    file = tmp_path / "part.yaml"
    needed = {"name": "part", "teacher": {"model": "hf:org/name"}, "students": {"one": {"num_layers": 1}}}
    file.write_text(yaml.safe_dump({**needed, **part}))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    config = load_experiment(file)
    for name, term in (config.objective.terms if not config.objective.preset else {}).items():
        assert term is None or (term.kind or name) in KINDS, name
    if {"name", "objective"} <= set(part):  # a whole one
        check_experiment(config)


def test_text_without_the_columns_of_its_template_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    (text,) = blocks("yaml", PAGES[:1])
    file = tmp_path / "mine.yaml"
    corpora = {"corpora": {"notes": {"path": "notes.jsonl"}}}
    part = yaml.safe_load(text)
    file.write_text(yaml.safe_dump({**part, "data": {**part["data"], **corpora}}))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "notes.jsonl").write_text('{"body": "a note"}\n')
    experiment = Experiment.from_yaml(file, root=tmp_path)
    for step in (experiment.plan, experiment.prepare):
        with pytest.raises(UserError, match="'text' is undefined; the columns are body"):
            step()


def test_the_python_of_the_readme_trains_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but for the names of the models and the steps, on models that are stored in bfloat16 as most are: the
    student that is saved has learned, in float32."""
    (text,) = blocks("python", PAGES[:1])
    assert len([line for line in text.splitlines() if line]) <= 10
    teacher = tiny_models.make_model(tmp_path / "teacher", num_layers=2)
    initial = tiny_models.make_model(tmp_path / "initial", num_layers=1, seed=1)
    for folder in (teacher, initial):
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    code = text.replace("HuggingFaceTB/SmolLM2-360M", str(teacher)).replace("HuggingFaceTB/SmolLM2-135M", str(initial))
    code = code.replace("max_steps=1000", "max_steps=2, accelerator='cpu', logger=False, enable_checkpointing=False")
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.pad_token = tokenizer.eos_token
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = [tokenizer(line) for line in tiny_models.sentences(32)]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"train_loader": DataLoader(rows, batch_size=4, collate_fn=collate)})
    batch = collate(rows)

    def loss(folder: Path) -> float:
        with torch.no_grad():
            return float(AutoModelForCausalLM.from_pretrained(folder)(**batch).loss)

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student").dtype == torch.float32
    assert loss(tmp_path / "student") < loss(initial)


@pytest.fixture
def registries() -> Iterator[None]:
    """What plugins register is forgotten afterwards."""
    with ExitStack() as stack:
        for registry in (LOGIT_LOSSES, TEACHER_SOURCES, STUDENT_INITIALIZERS, CUSTOM_FILTERS):
            stack.enter_context(patch.dict(registry))
        yield


def test_the_loss_of_the_docs_is_a_plugin(tmp_path: Path, registries: None) -> None:
    page = [ROOT / "docs/how_to/add_a_loss.md"]
    (tmp_path / "my_losses.py").write_text(blocks("python", page)[0])
    readme, losses = (yaml.safe_load(blocks("yaml", pages)[0]) for pages in (PAGES[:1], page))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**readme, **losses, "grid": {}, "hypotheses": {}}))
    experiment = Experiment.from_yaml(tmp_path / "mine.yaml")
    (run,) = [run for run in experiment.runs if run.role == "distilled"]
    assert "hellinger" in LOGIT_LOSSES
    before = run.fingerprint
    (tmp_path / "my_losses.py").write_text(blocks("python", page)[0] + "# changed\n")
    assert next(run for run in plan_runs(experiment.config) if run.role == "distilled").fingerprint != before


def test_the_teacher_of_the_docs_is_uniform(registries: None) -> None:
    namespace: dict[str, Any] = {}
    exec(blocks("python", [ROOT / "docs/how_to/add_a_teacher.md"])[0], namespace)
    mask = torch.tensor([[True, False, True]])
    target = namespace["UniformTeacher"](7).target({}, mask)
    logprobs = target.lm_head.project(target.hidden_states).log_softmax(-1)
    torch.testing.assert_close(logprobs, torch.full((2, 7), 1 / 7).log())
    assert isinstance(TEACHER_SOURCES["uniform"], namespace["UniformSource"])


def test_the_plugin_of_the_docs_registers(registries: None) -> None:
    exec(blocks("python", [ROOT / "docs/how_to/add_a_plugin.md"])[0], {})
    assert "scaled_embeddings" in STUDENT_INITIALIZERS
    assert "ends_in_a_full_stop" in CUSTOM_FILTERS


@pytest.mark.parametrize("text", blocks("python", PAGES[1:]))
def test_other_python_imports_what_exists(text: str) -> None:
    for line in text.splitlines():
        if line.startswith(("import ", "from ")):
            exec(line, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
