"""Experiments on tiny models with models made from models and stages, and their plans."""

from pathlib import Path

from distill_lit.config import load_experiment
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from helpers import tiny_tasks

MODELS = """
models:
  corrected: {from: teacher, objective: {terms: {ce: {}}}, training: {max_tokens: 1024, learning_rate: 0.01}}
  assistant: {student: three, teacher: corrected}
"""
STAGES = """
stages:
  warm_up: {objective: {terms: {ce: {}}}, training.max_tokens: 512}
  off_policy: {training: {max_tokens: 1024}}
  on_policy: {on_policy: {fraction: 1.0, max_new_tokens: 8}, training.learning_rate: 0.002}
"""


def write(folder: Path, teacher: Path, corpus: Path, text: str = "", grid: str = "{seed: [0]}", more: str = "") -> Path:
    """The file of an experiment in `folder`, of students of three and of two layers; text, more: lines at its end."""
    tasks = tiny_tasks.make_tasks(folder / "tasks", "colours")
    file = folder / "tiny.yaml"
    file.write_text(f"""
name: tiny
teacher: {{model: "file:{teacher}", dtype: float32}}
students:
  three: {{num_layers: 3, layers: uniform}}
  two: {{num_layers: 2, layers: uniform}}
data: {{sequence_length: 32, validation_sequences: 4, max_tokens: 2048, corpora: {{text: {{path: "file:{corpus}"}}}}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}, compile: never}}
training: {{max_tokens: 1024, micro_batch_size: 4, precision: float32, accelerator: cpu, val_check_interval: 1.0}}
evaluation: {{tasks: [colours], include_path: "{tasks}", limit: 4}}
loggers: {{tensorboard: null}}
student: two
grid: {grid}
{text}
{more}
""")
    return file


def plan(file: Path, *overrides: str) -> dict[str, Run]:
    """{label: run} of a checked experiment."""
    config = load_experiment(file, list(overrides))
    check_experiment(config)
    return {run.label: run for run in plan_runs(config)}
