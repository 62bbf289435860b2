"""The code of a plugin identifies every run that it can change: other code, other runs; and no other run."""

import copy
from pathlib import Path

import pytest

from distill_lit.config import load_experiment
from distill_lit.experiment.execution.run_data import generation_context
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.generation import filters
from distill_lit.generation.corpus import generated_corpus_path
from distill_lit.models import initializers
from distill_lit.teachers import registry
from distill_lit.utils.plugins import load_plugins

PLUGIN = """
from distill_lit.generation.filters import register_filter
from distill_lit.models.initializers import register_initializer
from distill_lit.teachers import CachedTeacherSource, TeacherCapabilities, register_teacher

class Longer:
    def __init__(self, length): self.length = length
    def __call__(self, completion): return len(completion.text) > self.length

register_filter("longer")(Longer(3))
register_initializer("same")(lambda student, teacher: None)

@register_teacher("counts")
class Counts(CachedTeacherSource):
    def capabilities(self, config): return TeacherCapabilities(target_form="dense", needs_cache=True)
    def build(self, context): ...
    def cache_label(self, config): return "counts"
    def write_cache(self, context, progress): ...
    def is_cache_complete(self, facts): ...
    def estimate_cache_bytes(self, config, model, rows): ...
"""
EXPERIMENT = """
name: tiny
dataset_source: hub
plugins: [plugin.py]
teacher: {{model: "file:{folder}/teacher", source: {source}, dtype: float32}}
students: {{one: {{num_layers: 1, layers: uniform}}, rounded: {{from: made, quantize: int8}}}}
models: {{made: {{from: teacher, num_layers: 2, layers: uniform}}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}}}
training: {{precision: float32, accelerator: cpu}}
data:
  corpora:
    plain: {{path: "file:{folder}/text.jsonl"}}
    written: {{generated: {{prompts: {{path: "file:{folder}/text.jsonl"}}, filters: {{custom: {custom}}}}}}}
evaluation: {{tasks: [piqa]}}
baselines: [teacher, teacher_int8, untrained, ce_only]
external_models: {{other: "file:{folder}/other"}}
grid: {{student: [one, rounded]}}
"""
AS_THEY_ARE = {"teacher", "teacher_int8", "other"}
REGISTRIES = (
    (registry, "TEACHER_SOURCES"),
    (filters, "CUSTOM_FILTERS"),
    (initializers, "STUDENT_INITIALIZERS"),
)
OF_PLUGIN = {"source": "counts", "custom": "[longer]"}


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they were, after each test."""
    for module, name in REGISTRIES:
        monkeypatch.setattr(module, name, copy.copy(getattr(module, name)))


def plan(folder: Path, code: str, **chosen: str) -> dict[str, Run]:
    """{label: run} beside a plugin with this code."""
    folder.mkdir()
    (folder / "plugin.py").write_text(code)
    (folder / "tiny.yaml").write_text(EXPERIMENT.format(folder="/nowhere", **chosen))
    config = load_experiment(folder / "tiny.yaml")
    for module, name in REGISTRIES:  # another process each time
        for entry in ("counts", "longer", "by_length", "same"):
            getattr(module, name).pop(entry, None)
    load_plugins(config.plugins)
    return {run.label: run for run in plan_runs(config)}


def by_change(tmp_path: Path, **chosen: str) -> tuple[set[str], set[str]]:
    """(roles of the runs that are others with another plugin, labels of those that stay)."""
    before, after = plan(tmp_path / "a", PLUGIN, **chosen), plan(tmp_path / "b", f"{PLUGIN}# more\n", **chosen)
    assert before.keys() == after.keys()
    stay = {label for label, run in before.items() if run.fingerprint == after[label].fingerprint}
    return {run.role for label, run in before.items() if label not in stay}, stay


def test_runs_of_every_kind_that_a_plugin_builds_are_others_when_it_changes(tmp_path: Path) -> None:
    """What is left is taken as it is: the teacher, the teacher rounded, and a model from elsewhere."""
    new, stay = by_change(tmp_path, **OF_PLUGIN)
    assert stay == AS_THEY_ARE
    assert new == {"teacher_cache", "generated", "derived", "untrained", "distilled"}


def test_a_cache_and_a_corpus_that_no_plugin_builds_stay(tmp_path: Path) -> None:
    """They may have cost days, and only students learn by a loss of a plugin."""
    _, stay = by_change(tmp_path, source="offline", custom="[]")
    assert stay == AS_THEY_ARE | {"teacher-cache", "generated-written"}


def test_a_cache_of_a_shipped_teacher_is_another_where_a_filter_of_a_plugin_chooses_its_rows(tmp_path: Path) -> None:
    _, stay = by_change(tmp_path, source="offline", custom="[longer]")
    assert stay == AS_THEY_ARE


def test_a_corpus_of_another_filter_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the plugin only calls what is defined elsewhere, as here with another length."""
    monkeypatch.setattr("distill_lit.generation.corpus.model_fingerprint", lambda folder: {})
    monkeypatch.setattr("distill_lit.generation.corpus.model_folder", Path)
    helper = tmp_path / "longer_than.py"
    helper.write_text("def longer_than(n):\n    return lambda completion: len(completion.text) > n\n")
    monkeypatch.syspath_prepend(tmp_path)
    paths = set()
    for length in (3, 4):
        code = f"from longer_than import longer_than\n{PLUGIN}register_filter('by_length')(longer_than({length}))\n"
        (run,) = (
            r
            for r in plan(tmp_path / str(length), code, source="counts", custom="[by_length]").values()
            if r.role == "generated"
        )
        generated = run.config.data.corpora["written"].generated
        monkeypatch.setattr("distill_lit.generation.corpus.prompt_source_fingerprint", lambda *_: "")
        paths.add(generated_corpus_path("written", generated, generation_context(run.config), "hub"))
    assert len({path.parent for path in paths}) == 1 and len(paths) == 2
