"""Several teachers and self-distillation through checks, plan, caches, training and what is logged, on two corpora."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models
from helpers.tiny_data import write_lines

from distill_lit import data
from distill_lit.config import ExperimentConfig, load_experiment
from distill_lit.data.loader import make_batch
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.estimates.run_estimate import estimate_runs
from distill_lit.experiment.execution.run import build_run, with_source_folders
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.asked_teachers import asked_teachers, teacher_references, teacher_weights
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.requirements import required_assets
from distill_lit.experiment.state.completion import is_run_built
from distill_lit.models import load_model, load_model_config, size_from_config
from distill_lit.teachers import OnlineTeacher
from distill_lit.utils.array_store import open_arrays, save_arrays
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, read_json

EXPERIMENT = """
name: tiny
teacher:
  model: "file:{teacher}"
  dtype: float32
students: {{one: {{num_layers: 1, layers: uniform}}}}
data:
  sequence_length: 32
  validation_sequences: 4
  corpora: {{prose: {{path: "file:{prose}"}}, sums: {{path: "file:{sums}"}}}}
objective: {{terms: {{kl: {{kind: forward_kl}}}}, compile: never}}
training: {{max_tokens: 512, micro_batch_size: 4, precision: float32, accelerator: cpu, learning_rate: 0.01}}
evaluation: {{tasks: [sciq], limit: 4}}
baselines: []
"""
MIXED = "teacher.mixture={{teachers: {{sums: {{model: 'file:{other}', weight: {weight}}}}}, kind: {kind}}}"
ROUTED = ("teacher.mixture={{teachers: {{sums: {{model: 'file:{other}'}}}}}}", "data.corpora.sums.teacher=sums")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of another shape with the same tokens."""
    return tiny_models.make_model(tmp_path_factory.mktemp("other"), num_layers=1, seed=5, hidden_size=16)


@pytest.fixture
def load(tmp_path: Path, tiny_teacher: Path, other: Path) -> Any:
    """The experiment with changes, in which {other} and the like are filled in."""
    prose = tiny_models.make_corpus(tmp_path / "prose.jsonl", 60)
    sums = write_lines(tmp_path / "sums.jsonl", [{"text": f"{a} + {a + 7} = {2 * a + 7}"} for a in range(80)])

    def load_config(*changes: str, **values: Any) -> ExperimentConfig:
        file = tmp_path / "tiny.yaml"
        file.write_text(EXPERIMENT.format(teacher=tiny_teacher, prose=prose, sums=sums))
        return load_experiment(file, [change.format(other=other, **values) for change in changes])

    return load_config


def build(run: Run, folder: Path) -> Any:
    folder.mkdir(parents=True)
    build_run(run, folder, lambda *_: None)
    assert is_run_built(run, folder)
    return read_json(folder / "manifest.json")


def curves(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def prepare(config: ExperimentConfig, teacher: Path) -> data.PreparedData:
    return data.prepare_datasets(config.data, teacher, config.dataset_source, with_corpus_ids=True)


def validation_batch(config: ExperimentConfig, teacher: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """All held-out rows as one batch, and which of their tokens but the last have a label after them."""
    rows = prepare(config, teacher).validation
    batch = make_batch(rows, np.arange(len(rows)), 1)
    return batch, batch["labels"][:, 1:] >= 0


# ---------------------------------------------------------------- which corpus a token is of


WEIGHTED = ("data.corpora.prose.weight=1", "data.corpora.sums.weight=2")
OWN_VALIDATION = ("data.validation={{held_out: {{path: 'file:{held_out}'}}, sums: {{path: 'file:{held_out}'}}}}",)


@pytest.mark.parametrize("changes", [(), WEIGHTED, ("data.max_tokens=900",), (*WEIGHTED, "data.max_tokens=1500")])
def test_every_token_knows_its_corpus(load: Any, tiny_teacher: Path, changes: tuple[str, ...]) -> None:
    """Against the text of every document: sums have digits, prose has none."""
    config = load(*changes)
    with_ids = prepare(config, tiny_teacher)
    without = data.prepare_datasets(config.data, tiny_teacher, config.dataset_source)
    assert with_ids.fingerprint == without.fingerprint
    assert without.train.corpus_ids is None
    tokenizer = data.pipeline.load_tokenizer(tiny_teacher)
    seen = set()
    for rows in (with_ids.train, with_ids.validation):
        batch = make_batch(rows, np.arange(len(rows)), 1)
        for row in range(len(rows)):
            for number in range(1, int(batch["document_ids"][row].max()) + 1):
                here = batch["document_ids"][row] == number
                (corpus,) = set(batch["corpus_ids"][row, here].tolist())
                text = tokenizer.decode(batch["input_ids"][row, here])
                assert corpus == int(any(letter.isdigit() for letter in text)), text
                seen.add(corpus)
    assert seen == {0, 1}
    assert np.array_equal(with_ids.train.input_ids, without.train.input_ids)


def test_text_to_validate_on_has_the_teacher_of_its_name(load: Any, tmp_path: Path, tiny_teacher: Path) -> None:
    held_out = write_lines(tmp_path / "held_out.jsonl", [{"text": f"{a} − {a} = 0"} for a in range(60)])
    config = load(*ROUTED, *OWN_VALIDATION, "data.validation_sequences=0", held_out=held_out)
    check_experiment(config)
    rows = prepare(config, tiny_teacher)
    names = ["prose", "sums", "held_out"]
    assert list(teacher_weights(config)) == names
    assert teacher_weights(config)["held_out"] == {"teacher": 1.0, "sums": 0.0}
    assert set(np.unique(rows.train.corpus_ids)) == {0, 1}
    first = rows.validation.corpus_ids[rows.validation.document_ids > 0]
    assert set(first.tolist()) <= {1, 2}  # the same texts, of which the first corpus by name has the first copy
    with pytest.raises(UserError, match="data.validation.sums.teacher: it is that of data.corpora.sums"):
        check_experiment(load(*ROUTED, *OWN_VALIDATION, "data.validation.sums.teacher=sums", held_out=held_out))


def test_tokens_from_before_corpora_were_noted_are_made_again(load: Any, tiny_teacher: Path) -> None:
    config = load("data.seed=3")
    data.prepare_datasets(config.data, tiny_teacher, config.dataset_source)
    folder = cache_root() / "tokens" / data.pipeline._keys(config.data, tiny_teacher, config.dataset_source)[0]
    arrays, manifest = open_arrays(folder)
    old = {name: np.array(array) for name, array in arrays.items() if name != "corpus_ids"}
    shutil.rmtree(folder)
    save_arrays(folder, old, {name: value for name, value in manifest.items() if name != "files"})
    without = prepare(config, tiny_teacher)
    assert "corpus_ids" not in open_arrays(folder)[0]
    shutil.rmtree(cache_root() / "packed" / f"{without.fingerprint}-corpora")
    shutil.rmtree(folder)  # and made anew
    assert np.array_equal(prepare(config, tiny_teacher).train.corpus_ids, without.train.corpus_ids)


# ---------------------------------------------------------------- plans


def test_what_is_asked_is_planned_and_fetched(load: Any, tiny_teacher: Path, other: Path) -> None:
    single, mixed = load(), load(MIXED, weight=0.3, kind="geometric")
    routed = load(*ROUTED)
    assert teacher_weights(mixed) == {name: {"teacher": 0.7, "sums": 0.3} for name in ("prose", "sums")}
    assert teacher_weights(routed) == {"prose": {"teacher": 1.0, "sums": 0.0}, "sums": {"sums": 1.0}}
    assert list(asked_teachers(load(MIXED, weight=1.0, kind="arithmetic"))) == ["sums"]
    assert teacher_references(routed) == {"teacher": f"file:{tiny_teacher}", "sums": f"file:{other}"}
    assert f"file:{other}" in required_assets(plan_runs(mixed))
    fingerprints = [
        plan_runs(config)[0].fingerprint for config in (single, mixed, load(MIXED, weight=0.3, kind="arithmetic"), routed)
    ]
    assert len(set(fingerprints)) == 4
    # students that learn nothing from teachers, and the rows, are the same whoever scores what
    baselines = [plan_runs(load("baselines=[ce_only]", *more))[0].fingerprint for more in ((), ROUTED)]
    assert baselines[0] == baselines[1]
    prepared = [data.pipeline._keys(config.data, tiny_teacher, "pypi") for config in (single, routed)]
    assert prepared[0] == prepared[1]


def test_every_teacher_that_is_asked_somewhere_is_checked(load: Any, tmp_path: Path) -> None:
    """One variant asks both teachers, the other the first alone: the tokenizer of the second is compared all the same."""
    stranger = tiny_models.make_model(tmp_path / "stranger", num_layers=1, vocab_size=310, tokens=290)
    far = f"teacher.mixture.teachers.far={{{{model: 'file:{stranger}', weight: 0.0}}}}"
    variants = "variants={{none: {{}}, some: {{data.corpora.sums.teacher: far}}}}"
    config = load(far, variants, "grid={{variant: [none, some]}}")
    check_experiment(config)
    with pytest.raises(UserError, match="far.model: .* numbers its tokens otherwise"):
        check_against_teacher(plan_runs(config))
    check_against_teacher(plan_runs(load(far)))  # nobody asks it


def test_each_teacher_has_its_cache_and_a_single_teacher_shares_it(load: Any) -> None:
    offline = load(*ROUTED, "teacher.source=offline")
    main, sums, student = plan_runs(offline)
    assert [(run.label, run.teacher) for run in (main, sums)] == [("teacher-cache", ""), ("teacher-cache-sums", "sums")]
    assert student.depends_on == (main.name, sums.name)
    assert main.fingerprint == plan_runs(load("teacher.source=offline"))[0].fingerprint
    assert Run.from_json(json.loads(json.dumps(sums.to_json())), sums.config) == sums
    estimates = estimate_runs([main, sums, student])
    assert estimates[main.name].disk_bytes == 2 * estimates[sums.name].disk_bytes  # widths 32 and 16
    top_k = ("teacher.cache_format=top_k", "objective.terms.kl.kind=truncated_kl")
    check_experiment(few := load(*ROUTED, "teacher.source=offline", *top_k))  # a few tokens of one teacher for each
    assert [run.label for run in plan_runs(few)[:2]] == ["teacher-cache-top_k_50", "teacher-cache-sums-top_k_50"]
    online = plan_runs(load(*ROUTED))
    alone = plan_runs(load())
    both, one = (estimate_runs(runs)[runs[-1].name].flops for runs in (online, alone))
    assert both > one


# ---------------------------------------------------------------- trained


@pytest.mark.parametrize("source", ["online", "offline"])
def test_documents_are_scored_by_the_teacher_of_their_corpus(
    load: Any, tmp_path: Path, tiny_teacher: Path, other: Path, source: str
) -> None:
    config = load(*ROUTED, f"teacher.source={source}")
    check_experiment(config)
    check_against_teacher(plan_runs(config))
    for run in (runs := plan_runs(config)):
        made = build(run, tmp_path / run.name)
    metrics = made["metrics"]
    batch, loss_mask = validation_batch(config, tiny_teacher)
    is_sum = batch["corpus_ids"][:, :-1][loss_mask].bool()
    labels = batch["labels"][:, 1:][loss_mask]
    logprobs = [logprobs_of(folder, batch, loss_mask) for folder in (tiny_teacher, other)]
    log_p = torch.where(is_sum[:, None], logprobs[1], logprobs[0])
    assert metrics["validation/teacher_nll"] == pytest.approx(-float(log_p.gather(-1, labels[:, None]).mean()), rel=1e-4)
    log_q = logprobs_of(tmp_path / runs[-1].name / "student", batch, loss_mask)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert metrics["validation/kl"] == pytest.approx(float(kl.mean()), rel=1e-3)
    for name, here in (("teacher", ~is_sum), ("sums", is_sum)):
        assert metrics[f"validation/teacher_kl/{name}"] == pytest.approx(float(kl[here].mean()), rel=1e-3)
        assert metrics[f"validation/teacher_share/{name}"] == pytest.approx(float(here.double().mean()), rel=1e-5)
    shares = [
        (line["train/teacher_share/teacher"], line["train/teacher_share/sums"])
        for line in curves(tmp_path / runs[-1].name)
        if "train/loss" in line
    ]
    assert all(one + other == pytest.approx(1.0) for one, other in shares)
    assert len({one for one, _ in shares}) > 1  # another share in every batch
    sizes = [size_from_config(load_model_config(folder)).flops_per_token() for folder in (tiny_teacher, other)]
    rows = prepare(config, tiny_teacher).train  # of a cache all rows are read, beside the student those that matter
    shares = [((rows.corpus_ids == n) & rows.loss_mask).any(1).mean() if source == "online" else 1.0 for n in (0, 1)]
    expected = made["training_tokens"] * (sizes[0] * shares[0] + sizes[1] * shares[1])
    assert made["teacher_training_flops"] == pytest.approx(expected)


def logprobs_of(folder: Path, batch: dict[str, torch.Tensor], loss_mask: torch.Tensor) -> torch.Tensor:
    target = OnlineTeacher(load_model(folder), 300).target(batch, loss_mask)
    return target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states)).log_softmax(-1)


@pytest.mark.parametrize("kind", ["arithmetic", "geometric"])
def test_a_student_of_a_mixture(load: Any, tmp_path: Path, tiny_teacher: Path, other: Path, kind: str) -> None:
    config = load(MIXED, weight=0.4, kind=kind)
    check_experiment(config)
    check_against_teacher(plan_runs(config))
    (run,) = plan_runs(config)
    metrics = build(run, tmp_path / "run")["metrics"]
    batch, loss_mask = validation_batch(config, tiny_teacher)
    first, second = (logprobs_of(folder, batch, loss_mask) for folder in (tiny_teacher, other))
    mixed = (
        (0.6 * first.exp() + 0.4 * second.exp()).log()
        if kind == "arithmetic"
        else (0.6 * first + 0.4 * second).log_softmax(-1)
    )
    labels = batch["labels"][:, 1:][loss_mask]
    assert metrics["validation/teacher_nll"] == pytest.approx(-float(mixed.gather(-1, labels[:, None]).mean()), rel=1e-4)
    if kind == "geometric":
        assert metrics["validation/teacher_share/sums"] == pytest.approx(0.4, rel=1e-5)
    losses = [line["train/loss"] for line in curves(tmp_path / "run") if "train/loss" in line]
    assert losses[-1] < losses[0]


def test_a_student_learns_from_its_start_and_from_its_average(load: Any, tmp_path: Path) -> None:
    found = {}
    for source in ("self", "ema"):
        decay = ["teacher.ema_decay=0.5"] if source == "ema" else []
        config = load(f"teacher.source={source}", *decay, "objective.terms.ce={{weight: 1.0}}")
        check_experiment(config)
        check_against_teacher(plan_runs(config))
        (run,) = plan_runs(config)
        made = build(run, tmp_path / source)
        validations = [line["validation/teacher_kl"] for line in curves(tmp_path / source) if "validation/loss" in line]
        assert validations[0] == pytest.approx(0.0, abs=1e-6)  # they begin as one
        found[source] = validations[-1]
        assert made["teacher_training_flops"] == made["flops_per_token"] * made["training_tokens"]
    assert 0 < found["ema"] < found["self"]  # an average comes along


def test_a_mixture_of_an_average_and_a_teacher_on_the_students_own_text(load: Any, tmp_path: Path) -> None:
    config = load(
        "teacher.mixture={{teachers: {{own: {{source: ema, weight: 0.5}}, sums: {{model: 'file:{other}'}}}}}}",
        "data.corpora.sums.teacher=sums",
        "on_policy={{fraction: 1.0, max_new_tokens: 8}}",
    )
    check_experiment(config)
    (run,) = plan_runs(config)
    build(run, tmp_path / "run")
    lines = [line for line in curves(tmp_path / "run") if "train/loss" in line]
    shares = [sum(line[f"train/teacher_share/{name}"] for name in ("teacher", "own", "sums")) for line in lines]
    assert shares == pytest.approx([1.0] * len(lines))
    assert all(line["on_policy/length"] > 0 for line in lines)
    assert any(0 < line["train/scored_by/sums"] < 1 for line in lines)  # its corpus gives some of the prompts


# ---------------------------------------------------------------- made here


MADE = (
    "models={{math: {{from: teacher, data: {{corpora: {{prose: null}}}}, objective: {{terms: {{ce: {{}}}}}},"
    " training: {{max_tokens: 256}}}}}}",
    "teacher.mixture.teachers={{math: {{model: math, weight: 0.5}}}}",
    "data.corpora.prose.teacher=teacher",
    "teacher.source=offline",
)


def test_a_teacher_that_is_made_here_is_one_of_several(load: Any, tmp_path: Path, tiny_teacher: Path) -> None:
    """Corrected on the sums alone, for these half of the target; its cache waits for it, that of the other does not."""
    config = load(*MADE, "grid={{seed: [0, 1]}}", "baselines=[ce_only]")
    check_experiment(config)
    runs = plan_runs(config)
    check_against_teacher(runs)
    by_label = {run.label: run for run in runs}
    assert set(by_label) == {
        "teacher-cache",
        *(f"{name}-seed={seed}" for name in ("math", "teacher-cache-math", "one-ce_only", "one") for seed in (0, 1)),
    }
    names = ("teacher-cache", "math-seed=1", "teacher-cache-math-seed=1", "one-seed=1")
    main, made, cache, student = (by_label[name] for name in names)
    assert (main.depends_on, made.depends_on, cache.depends_on) == ((), (), (made.name,))
    assert set(student.depends_on) == {main.name, cache.name, made.name}
    assert by_label["one-ce_only-seed=1"].depends_on == (main.name,)
    assert not made.config.teacher.mixture.teachers  # it has one teacher, and itself is none of them
    assert estimate_runs(runs)[cache.name].disk_bytes > 0
    for run in (main, made, cache, student):
        found = build(with_source_folders(run, tmp_path), tmp_path / run.name)
    batch, loss_mask = validation_batch(config, tiny_teacher)
    is_sum = batch["corpus_ids"][:, :-1][loss_mask].bool()
    labels = batch["labels"][:, 1:][loss_mask]
    first, second = (logprobs_of(f, batch, loss_mask) for f in (tiny_teacher, tmp_path / made.name / "student"))
    mixed = torch.where(is_sum[:, None], torch.logaddexp(first, second) - np.log(2), first)
    nll = -float(mixed.gather(-1, labels[:, None]).mean())
    assert found["metrics"]["validation/teacher_nll"] == pytest.approx(nll, rel=1e-4)


def test_models_and_warm_ups_have_no_average_of_a_student_that_comes_later(load: Any) -> None:
    stages = "stages={{warm_up: {{objective: {{terms: {{ce: {{}}}}}}}}, last: {{}}}}"
    config = load("teacher.source=ema", stages, "models={{big: {{from: teacher, objective: {{terms: {{ce: {{}}}}}}}}}}")
    check_experiment(config)
    sources = {run.label: run.config.teacher.source for run in plan_runs(config)}
    assert sources == {"big": "online", "one_after_warm_up": "online", "one": "ema"}


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.corpora.sums.teacher=smus"], "data.corpora.sums.teacher: unknown teacher 'smus'"),
        ([ROUTED[0], "data.corpora.sums.teacher=smus"], "unknown teacher 'smus'; did you mean 'sums'"),
        ([ROUTED[0]], "teacher.mixture.teachers.sums: it has no weight, and no corpus names it"),
        (["teacher.mixture.teachers.teacher={{weight: 0.5}}"], "teacher.mixture.teachers.teacher: a name is made of"),
        (["teacher.mixture.teachers={{a: {{weight: 0.6}}, b: {{weight: 0.6}}}}"], "their weights are 1.2 in sum"),
        (["teacher.mixture.teachers.a={{weight: 0.5, source: cross_tokenizer}}"], "a.source: cross_tokenizer, and several"),
        (["teacher.mixture.teachers.a={{weight: 0.5, source: none}}"], "a.source: none says nothing"),
        (["teacher.mixture.teachers.a={{weight: 0.5, source: offlne}}"], "unknown value 'offlne'"),
        (["teacher.mixture.teachers.a={{weight: 0.5, model: 'floppy:x'}}"], "floppy:x"),
        (
            [MIXED, "teacher.source=offline", "teacher.cache_format=top_k", "objective.terms.kl.kind=truncated_kl"],
            "teacher.mixture: a cache of top_k keeps too few tokens of each teacher to mix them",
        ),
        ([MIXED, "objective.terms.h={{kind: hidden_states}}"], "inner states, which a teacher.mixture does not show"),
        ([MIXED, "on_policy={{fraction: 0.5, teacher_mix_fraction: 0.2}}"], "tokens cannot be drawn from a teacher.mix"),
        (["teacher.source=ema", "objective.terms={{kl: null, ce: {{}}}}"], "teacher.source: ema follows the student"),
        (["teacher.source=ema", "teacher.cache_format=top_k"], "teacher.cache_format: teacher.source ema is a copy of"),
        (["teacher.source=self", "teacher.hidden_layers=[0]"], "of which there can be no cache"),
        (["teacher.source=self", "teacher.options={{decay: 0.5}}"], "teacher.options: 'decay' is given"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(load: Any, changes: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check_experiment(load(*changes, weight=0.5, kind="arithmetic"))
    assert "\n" not in str(caught.value)


def test_teachers_need_one_tokenizer(load: Any, tmp_path: Path) -> None:
    stranger = tiny_models.make_model(tmp_path / "stranger", num_layers=1, vocab_size=310, tokens=290)
    config = load(f"teacher.mixture.teachers.far={{{{model: 'file:{stranger}', weight: 0.5}}}}")
    check_experiment(config)
    with pytest.raises(UserError, match="teacher.mixture.teachers.far.model: .* numbers its tokens otherwise than"):
        check_against_teacher(plan_runs(config))
