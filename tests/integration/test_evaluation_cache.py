"""Each model × task × settings is evaluated once ever; what is damaged is noticed and done again."""

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import tiny_models, tiny_tasks
from helpers.caches import new_cache

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation import cache as store
from distill_lit.evaluation import evaluator
from distill_lit.evaluation import prefix_tree_lm as harness
from distill_lit.evaluation.evaluator import EvaluationResult, evaluate, evaluate_model
from distill_lit.evaluation.generation_settings import GenerationSettings
from distill_lit.evaluation.task_index import built_in_index
from distill_lit.evaluation.tasks import resolve_tasks
from distill_lit.models import drawing
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root


@pytest.fixture
def world(tmp_path: Path, tiny_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> "World":
    built_in_index()  # from the shared cache, before ours takes its place
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(new_cache(tmp_path / "cache")))
    return World(tmp_path, tiny_teacher, monkeypatch)


class World:
    """A model, two small tasks, an empty store, and a count of how often a model is loaded."""

    def __init__(self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.loads = shutil.copytree(model, folder / "model"), 0
        self.tasks = tiny_tasks.make_tasks(folder / "tasks", "first", "second")
        load = harness.load_prefix_tree_lm

        def counting(*arguments: Any) -> harness.PrefixTreeLM:
            self.loads += 1
            return load(*arguments)

        monkeypatch.setattr(harness, "load_prefix_tree_lm", counting)

    def settings(self, *tasks: str, **changes: Any) -> EvaluationConfig:
        return EvaluationConfig(tasks=list(tasks), include_path=str(self.tasks), **changes)

    def evaluate(self, *tasks: str, **changes: Any) -> EvaluationResult:
        return evaluate_model(self.model, self.settings(*tasks, **changes), "pypi")

    def evaluate_reference(self, *tasks: str, **changes: Any) -> EvaluationResult:
        return evaluate(f"file:{self.model}", tasks=list(tasks), include_path=str(self.tasks), **changes)

    def entries(self) -> list[Path]:
        return sorted(p for p in (cache_root() / "evaluations").iterdir() if p.is_dir())

    def key(self, **changes: Any) -> str:
        settings = self.settings("first", **changes)
        return store.evaluation_cache_key("model", resolve_tasks(settings, "pypi")[0], settings)


def test_once_ever(world: World) -> None:
    first = world.evaluate("first", "second")
    assert (world.loads, first.cached_tasks) == (1, [])
    second = world.evaluate("first", "second")
    assert (world.loads, second.cached_tasks) == (1, ["first", "second"])
    assert second.records.equals(first.records)
    assert second.documents.equals(first.documents)
    assert second.meta == first.meta
    assert isinstance(second.records["ll"][0], list)
    assert isinstance(second.records["greedy"][0][0], bool)
    assert list(second.documents.columns) == list(store.DOCUMENT_COLUMNS)
    assert list(second.records.columns) == list(store.RECORD_COLUMNS)


def test_only_what_is_missing_is_done(world: World) -> None:
    world.evaluate("first")
    stamp = world.entries()[0].stat().st_mtime_ns
    both = world.evaluate("second", "first")
    assert both.cached_tasks == ["first"]
    assert list(both.meta) == ["second", "first"]
    assert list(dict.fromkeys(both.records["task"])) == ["second", "first"]
    assert stamp in {entry.stat().st_mtime_ns for entry in world.entries()}
    assert world.loads == 2


def test_the_name_of_the_folder_and_the_model_card_do_not_count(world: World) -> None:
    world.evaluate("first")
    world.model = world.model.rename(world.model.with_name("renamed"))
    (world.model / "README.md").write_text("a card")
    assert world.evaluate("first").cached_tasks == ["first"]


def test_other_weights_or_tokenizer_count(world: World) -> None:
    world.evaluate("first")
    tiny_models.make_model(world.model, seed=1)
    assert world.evaluate("first").cached_tasks == []
    tiny_models.make_tokenizer(world.model, size=290)
    assert world.evaluate("first").cached_tasks == []
    assert len(world.entries()) == 3


def test_every_setting_counts(world: World) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"limit": 3}, {"limit": 4}, {"limit": 3, "seed": 5}, {"num_fewshot": 1}, {"num_fewshot": 1, "seed": 5},
        {"apply_chat_template": True}, {"dtype": "bfloat16"}, {"system_instruction": "Be brief."},
    ]  # fmt: skip
    keys = [world.key(**change) for change in changes]
    assert len(set(keys)) == len(keys)
    assert world.key(seed=5) == keys[0]  # nothing is drawn
    assert world.key(pack_tokens=64) == keys[0]  # the same numbers
    (world.tasks / "first.jsonl").write_text((world.tasks / "second.jsonl").read_text())
    other_data = world.key()
    text = (world.tasks / "first.yaml").read_text()
    (world.tasks / "first.yaml").write_text(text.replace("Question:", "Q:"))
    assert len({keys[0], other_data, world.key()}) == 3


def test_versions_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.key()
    monkeypatch.setattr(store, "lm_eval_version", lambda: "0.4.99")
    other_version = world.key()
    monkeypatch.setattr(store, "RECORDS_FORMAT_VERSION", store.RECORDS_FORMAT_VERSION + 1)
    assert len({before, other_version, world.key()}) == 3


@pytest.mark.parametrize(("temperature", "is_new"), [(0.7, True), (0.0, False)])
def test_answers_that_are_drawn_otherwise_are_other_answers(
    world: World, monkeypatch: pytest.MonkeyPatch, temperature: float, is_new: bool
) -> None:
    settings = world.settings("first")
    written = GenerationSettings(1, temperature > 0, temperature, None, 16, {})
    spec = dataclasses.replace(resolve_tasks(settings, "pypi")[0], generation=written)
    before = store.evaluation_cache_key("model", spec, settings)
    monkeypatch.setattr(drawing, "SAMPLING_VERSION", 99)
    assert (store.evaluation_cache_key("model", spec, settings) != before) == is_new


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no_meta", "no_rows", "not_json"])
def test_damage_is_noticed_said_and_repaired(world: World, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    first = world.evaluate("first")
    entry = world.entries()[0]
    rows, meta = entry / "records.parquet", entry / "meta.json"
    content = bytearray(rows.read_bytes())
    content[len(content) // 2] ^= 1
    {"flipped": lambda: rows.write_bytes(content), "truncated": lambda: rows.write_bytes(content[:99]),
     "no_meta": meta.unlink, "no_rows": rows.unlink, "not_json": lambda: meta.write_text("{")}[damage]()  # fmt: skip
    again = world.evaluate("first")
    assert again.cached_tasks == []
    assert "is damaged" in capsys.readouterr().err
    assert again.records.equals(first.records)
    assert world.evaluate("first").cached_tasks == ["first"]


def test_interrupted_work_leaves_what_is_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = evaluator.evaluate_task

    def dying(lm: Any, spec: Any, *rest: Any) -> Any:
        if spec.name == "second":
            raise KeyboardInterrupt
        return one(lm, spec, *rest)

    monkeypatch.setattr(evaluator, "evaluate_task", dying)
    with pytest.raises(KeyboardInterrupt):
        world.evaluate("first", "second")
    assert len(world.entries()) == 1
    monkeypatch.setattr(evaluator, "evaluate_task", one)
    assert world.evaluate("first", "second").cached_tasks == ["first"]


def test_two_at_once_do_the_work_once(world: World) -> None:
    key, order = world.key(), []
    entered = threading.Event()

    def wait_for_it() -> None:
        entered.set()
        with store.lock_cached_evaluation(key):
            order.append("second")

    with store.lock_cached_evaluation(key):
        other = threading.Thread(target=wait_for_it)
        other.start()
        entered.wait()
        other.join(0.2)
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_unknown_task_is_refused_before_a_model_is_loaded(world: World) -> None:
    with pytest.raises(UserError, match="unknown task 'firts'"):
        world.evaluate("firts")
    assert world.loads == 0


def test_auto_must_be_resolved_first(world: World) -> None:
    with pytest.raises(UserError, match="evaluation.dtype: auto"):
        world.evaluate("first", dtype="auto")


def test_progress_is_told_per_task(world: World) -> None:
    told: list[tuple[str, int, int, str]] = []
    settings = world.settings("first", "second")
    evaluate_model(world.model, settings, "pypi", progress_callback=lambda *step: told.append(step))
    assert [step[0] for step in told] == sorted(step[0] for step in told)
    for task in ("first", "second"):
        steps = [step for step in told if step[0] == f"evaluate {task}"]
        assert steps[-1][1:3] == (84, 84)  # 24 questions of three and four choices


def test_a_reference_finds_what_a_folder_has_stored(world: World) -> None:
    folder = world.evaluate("first")
    reference = world.evaluate_reference("first")
    assert reference.cached_tasks == ["first"] and world.loads == 1
    pd.testing.assert_frame_equal(reference.records, folder.records)


def test_probes_of_a_reference_are_scored_beside_its_tasks(world: World, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("a passage\n")
    result = world.evaluate_reference("first", probes={"own": {"path": f"file:{tmp_path}/own.txt"}})
    assert set(result.scores) == {"first", "own"}
