"""What makes a run another run: every value that can change its result, and nothing else."""

import pytest
import yaml
from helpers import ROOT

from distill_lit.config import (
    CorpusConfig,
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    ProbeConfig,
    StudentConfig,
    TeacherConfig,
    TermConfig,
    TrainingConfig,
    expand_grid,
    load_experiment,
    non_default_fields,
    to_dict,
)
from distill_lit.experiment.collect import _made_from
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.fingerprint import (
    FINGERPRINT_VERSION,
    _objective_fingerprint_fields,
    validation_data_fingerprint,
)
from distill_lit.utils.exceptions import UserError

SECTIONS = (
    TeacherConfig,
    StudentConfig,
    CorpusConfig,
    DataConfig,
    TermConfig,
    ObjectiveConfig,
    TrainingConfig,
    EvaluationConfig,
    ProbeConfig,
)
DEFAULTS = ROOT / "tests/data" / f"defaults_{FINGERPRINT_VERSION}.yaml"
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"


def test_defaults_are_those_of_this_version() -> None:
    """Fingerprints leave defaults out, so a default that changes must raise FINGERPRINT_VERSION (and get a file here)."""
    known = yaml.safe_load(DEFAULTS.read_text())
    for section in SECTIONS:
        now = to_dict(section())
        changed = {key: now.get(key) for key, value in known[section.__name__].items() if now.get(key) != value}
        assert not changed, section.__name__
        assert set(now) == set(known[section.__name__]), f"add the new fields of {section.__name__} to {DEFAULTS.name}"


def test_non_default_fields_leave_defaults_out_at_every_depth() -> None:
    data = DataConfig(corpora={"a": CorpusConfig(path="file:x"), "b": CorpusConfig(dataset="d", max_documents=5)}, seed=0)
    assert non_default_fields(data) == {"corpora": {"a": {"path": "file:x"}, "b": {"dataset": "d", "max_documents": 5}}}
    assert non_default_fields(StudentConfig(from_="hf:a/b")) == {"from": "hf:a/b"}


def test_baselines_are_planned_once_and_named_by_what_they_stand_for() -> None:
    """Three variants, of which two differ in the objective alone, times two lengths of training."""
    variants = "{a: {objective.terms.kl.temperature: 2.0}, b: {teacher.source: online}, c: {training.learning_rate: 0.001}}"
    changes = (
        f"variants={variants}",
        "grid={student: [deep], variant: [a, b, c], training.max_tokens: [10000, 20000], seed: [0, 1]}",
    )
    runs = plan_runs(load_experiment(QUICKSTART, list(changes)))
    of = {role: [run.label for run in runs if run.role == role] for role in ("untrained", "ce_only", "distilled")}
    assert of["untrained"] == ["deep-untrained"]
    assert of["ce_only"] == [
        f"deep-ce_only-{variant}-max_tokens={tokens}-seed={seed}"
        for seed in (0, 1)
        for variant, tokens in (("a+b", 10000), ("a+b", 20000), ("c", 10000), ("c", 20000))
    ]
    assert len(of["distilled"]) == 12
    axes = {run.label: run.grid_values for run in runs}
    assert axes["deep-ce_only-a+b-max_tokens=10000-seed=0"] == {"variant": "a or b", "training.max_tokens": 10000}


def test_a_point_that_no_teacher_tells_anything_is_training_without_teacher_for_all_others() -> None:
    """Text of the teacher is no training without it; text of people instead is, and answers to both others."""
    runs = plan_runs(load_experiment(ROOT / "experiments" / "synthetic_textbook.yaml"))
    roles = {run.label: run.role for run in runs if run.seed == 0}
    assert roles == {
        "shallow-ce_only-seed=0": "ce_only",
        "shallow-both-seed=0": "distilled",
        "shallow-text-seed=0": "distilled",
    }
    plain = next(run for run in runs if run.label == "shallow-ce_only-seed=0")
    assert plain.grid_values == {} and plain.depends_on == ()
    assert list(plain.config.data.corpora) == ["facts"]


def test_training_without_teacher_stands_for_students_that_are_trained_like_it_alone() -> None:
    """`plain` reads more than `kd` and is no baseline of it; `far` draws from the teacher and is none of anybody."""
    variants = (
        "variants={kd: {}, plain: {objective.terms: {kl: null}, training.max_tokens: 100000}, "
        "far: {objective.terms: {kl: null}, teacher.source: online, on_policy: {fraction: 0.5, teacher_mix_fraction: 0.3}}}"
    )
    changes = [variants, "grid={student: [deep], variant: [kd, plain, far]}", "baselines=[teacher]"]
    runs = plan_runs(load_experiment(QUICKSTART, changes))
    found = {run.label: (run.role, run.grid_values) for run in runs if run.student}
    assert found == {
        "deep-ce_only-plain": ("ce_only", {"variant": "plain"}),
        "deep-kd": ("distilled", {"variant": "kd"}),
        "deep-far": ("distilled", {"variant": "far"}),
    }


def test_null_takes_an_inherited_corpus_away_and_only_one_that_is_there() -> None:
    corpora = load_experiment(QUICKSTART).data.corpora
    assert set(load_experiment(QUICKSTART, ["data.corpora.piqa=null"]).data.corpora) == set(corpora) - {"piqa"}
    with pytest.raises(UserError, match=r"data.corpora.piqua: null, .* did you mean 'piqa'"):
        load_experiment(QUICKSTART, ["data.corpora.piqua=null"])
    with pytest.raises(UserError, match=r"variants.a.data.corpora.piqua: null"):
        list(expand_grid(load_experiment(QUICKSTART, ["variants={a: {data.corpora: {piqua: null}}}", "grid.variant=[a]"])))


def test_an_objective_without_a_teacher_is_kept_as_it_is() -> None:
    change = "objective.terms={kl: null, ce: {weight: 2.0}}"
    runs = plan_runs(load_experiment(QUICKSTART, [change, "baselines=[teacher]"]))
    (deep,) = (run for run in runs if run.student == "deep")
    assert deep.role == "ce_only" and deep.config.objective.terms["ce"].weight == 2.0


def names(*changes: str) -> dict[str, str]:
    return {run.label: run.name for run in plan_runs(load_experiment(QUICKSTART, list(changes)))}


@pytest.mark.parametrize(
    "change",
    [
        "seed=0",
        "training.checkpoint_interval=7",
        "training.log_every_n_steps=1",
        "analysis.n_resamples=200",
        "launcher.workers=2",
        "objective.chunk_size=64",
        "evaluation.limit=50",
        "name=other",
        "question=why",
        "objective.terms.none={kind: reverse_kl, weight: 0}",
    ],
)
def test_what_cannot_change_a_student_does_not_change_its_cell(change: str) -> None:
    assert names(change) == names()


def test_ranks_that_share_out_the_same_rows_are_the_same_run() -> None:
    one = ("training.micro_batch_size=12",)
    shared = ("training.devices=2", "training.nodes=3", "training.micro_batch_size=2")
    assert names(*shared) == names(*one) != names()
    assert names("training.devices=2", "training.micro_batch_size=4") == names("training.micro_batch_size=8")
    written = ("on_policy.fraction=0.5",)  # each rank writes a text of its own
    assert names(*shared, *written)["deep"] != names(*one, *written)["deep"]


def test_what_writes_a_text_decides_it_and_how_that_is_run_does_not() -> None:
    written = ("on_policy.fraction=0.5",)
    by_vllm = (*written, "generation.backend=vllm")
    assert names(*by_vllm)["deep"] != names(*written)["deep"]
    assert names(*by_vllm, "generation.kv_cache_gib=9.5", "generation.vllm_python=/x", "generation.eager=true") == names(
        *by_vllm
    )
    assert names(*written, "generation.backend=auto") == names(*written)  # where it is not installed
    assert names("generation.backend=vllm") == names()  # nobody writes


@pytest.mark.parametrize(
    ("change", "new"),
    [
        ("training.learning_rate=1e-3", {"deep", "shallow", "deep-ce_only", "shallow-ce_only"}),
        ("objective.terms.kl.temperature=2", {"deep", "shallow"}),
        ("objective.temperature_scaling=none", {"deep", "shallow"}),
        ("students.deep.layers=[0,1,2]", {"deep", "deep-ce_only", "deep-untrained"}),
        ("seed=1", {"deep", "shallow", "deep-ce_only", "shallow-ce_only"}),
        ("data.seed=1", set(names()) - {"teacher"}),
        ("teacher.quantize=int8", set(names()) - {"teacher"}),  # their KL is that to the rounded teacher
    ],
)
def test_what_changes_a_student_makes_a_new_cell(change: str, new: set[str]) -> None:
    before, after = names(), names(change)
    assert {label for label in before if before[label] != after[label]} == new


def test_an_initializer_may_draw_weights_and_read_the_teacher() -> None:
    """So an untrained student has a seed, and beside each teacher it is another one."""
    students = "students={own: {from: 'hf:a/b', initializer: f}, plain: {from: 'hf:a/b'}}"
    others = "models={x: {from: 'hf:a/x'}, y: {from: 'hf:a/y'}}"
    grid = "grid={student: [own, plain], teacher: [x, y], seed: [0, 1]}"
    runs = plan_runs(load_experiment(QUICKSTART, [students, others, grid, "baselines=[untrained, ce_only]"]))
    untrained = [run.label for run in runs if run.role == "untrained"]
    assert sorted(untrained) == [
        *(f"own-untrained-teacher={teacher}-seed={seed}" for teacher in "xy" for seed in (0, 1)),
        "plain-untrained",
    ]
    assert len({run.fingerprint for run in runs if run.role == "untrained"}) == 5
    baselines = [run for run in runs if run.role == "ce_only"]
    assert [run.student for run in baselines].count("own") == 4 and len(baselines) == 6
    assert {(run.student, len(_made_from(run))) for run in baselines} == {("own", 1), ("plain", 0)}  # whose cost is theirs


def test_losses_that_read_all_of_a_wide_cache_are_told_from_those_that_read_64() -> None:
    """Once they read no more than 64 tokens, however many a cache held."""
    wide = ["teacher.cache_format=top_k", "teacher.top_k=144", "objective.terms={kl: {kind: truncated_kl}, ce: null}"]

    def facts(*changes: str) -> dict:
        return _objective_fingerprint_fields(load_experiment(QUICKSTART, [*wide, *changes]))

    assert facts()["k"] == "all"
    assert "k" not in facts("teacher.top_k=50")
    assert "k" not in facts("objective.terms.kl.options={k: 100}")
    assert "k" not in facts("objective.terms.kl.kind=pairwise_ranking")


def test_rows_of_another_chat_template_are_other_held_out_text() -> None:
    config = load_experiment(QUICKSTART, ["student=deep"])
    others = [
        load_experiment(QUICKSTART, ["student=deep", f"data.chat_template={name}"]) for name in ("a.jinja", "b.jinja")
    ]
    assert len({validation_data_fingerprint(one) for one in (config, *others)}) == 3
