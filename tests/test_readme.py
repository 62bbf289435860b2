"""What the README tells people to type is what works: commands, make targets, and its own experiment."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from distill_lit.cli.main import build_parser
from distill_lit.config import load_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.validation import check_experiment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [
    "\n".join(line[4:] for line in block.splitlines()) for block in re.findall(r"(?:^    .*\n|^\n(?=    ))+", README, re.M)
]
COMMANDS = [line for line in "\n".join(BLOCKS).splitlines() if line.startswith("distill-lit ")]
TARGETS = sorted(set(re.findall(r"^    make ([a-z-]+)", README, re.M)))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = build_parser().parse_args(shlex.split(command, comments=True)[1:])
    if hasattr(options, "experiment"):
        check_experiment(load_experiment(options.experiment, options.overrides))


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_exist(target: str) -> None:
    shown = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_readme_names_commands_and_targets() -> None:
    assert {"quickstart", "test", "tensorboard"} <= set(TARGETS)
    assert len(COMMANDS) >= 5


def test_the_experiment_of_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = next(block for block in BLOCKS if "grid:" in block)
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    config = load_experiment(file)
    check_experiment(config)
    points = len(yaml.safe_load(text)["grid"]["objective.terms.kl.temperature"]) * len(yaml.safe_load(text)["grid"]["seed"])
    distilled = [cell for cell in plan_runs(config) if cell.role == "distilled"]
    assert len(distilled) == points
