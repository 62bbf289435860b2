"""Pipelines of which one word means another thing than it seems to: each means what it says, or is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.pipelines import MODELS, plan, write

from distill_lit.config import load_experiment
from distill_lit.config.roles import Role
from distill_lit.experiment.checks.model_checks import check_against_teacher
from distill_lit.experiment.collect import _costs
from distill_lit.experiment.experiment import Experiment
from distill_lit.experiment.planning.fingerprint import versioned_fingerprint
from distill_lit.experiment.planning.pipeline import referred_models
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.run_references import RunReferences
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_json

FLOAT32 = ["evaluation.dtype=float32"]  # nothing is measured


@pytest.fixture
def make(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> Any:
    """Plans the tiny experiment with these lines and this grid: {label: run}."""

    def planned(text: str = "", grid: str = "{seed: [0]}", *overrides: str) -> dict[str, Run]:
        return plan(write(tmp_path, teacher, tiny_corpus, text, grid), *overrides)

    return planned


def weights(run: Run) -> dict[str, Any]:
    return {name: term.weight for name, term in run.config.objective.terms.items() if term is not None}


# ---------------------------------------------------------------- objectives of stages


def test_a_stage_changes_the_alpha_and_not_what_it_has_become(make: Any) -> None:
    runs = make("stages: {a: {}, b: {objective.alpha: 0.5}}", "{objective.alpha: [0.25, 1.0], seed: [0]}")
    assert weights(runs["two_after_a-alpha=0.25-seed=0"]) == {"kl": 0.25, "ce": 0.75}
    assert weights(runs["two-alpha=0.25-seed=0"]) == {"kl": 0.5, "ce": 0.5}


def test_a_stage_changes_the_preset_and_not_its_terms(make: Any) -> None:
    changes = ("objective.terms={kl: null}", "objective.preset=hinton")
    text = "stages: {a: {}, b: {objective.preset: gkd}}"
    runs = make(text, "{seed: [0]}", "objective={preset: hinton}", "objective.terms.kl={kind: forward_kl}", *changes[1:])
    assert set(weights(runs["two_after_a-seed=0"])) == {"ce", "kl"}
    assert set(weights(runs["two-seed=0"])) == {"jsd", "kl"}  # kl stands in the file, beside the preset


def test_the_objective_of_an_only_stage_is_spelled_out(make: Any) -> None:
    (run,) = (run for run in make("stages: {only: {objective: {preset: hinton}}}").values() if run.role == Role.DISTILLED)
    assert weights(run) == {"ce": 0.5, "kl": 0.5} and not run.config.objective.preset


# ---------------------------------------------------------------- names


def test_the_teacher_may_stand_beside_its_students_under_another_name(make: Any, teacher: Path) -> None:
    assert make("external_models: {original: teacher}")["original"].model_reference == f"file:{teacher}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "models: {a: {from: two, lora: {rank: 2}}}",
            "'two', which is a student; what others are made from is one of",
        ),
        ("models: {a: {from: teacher, teacher: three, lora: {rank: 2}}}", "'three', which is a student"),
        (
            "stages: {one: {}, last: {}}\nmodels: {a: {from: two_after_one, lora: {rank: 2}}}",
            "'two_after_one', which is a student",
        ),
        ("stages: {quantize: {quantize: int4}}", "stages.quantize: students.two.quantize adds a stage of this name"),
        ("stages: {teacher: {}}", "stages.teacher: a name is made of letters"),
        (f"{MODELS}stages: {{corrected: {{}}, b: {{teacher: corrected}}}}", "'corrected' is a stage and one of `models`"),
        (
            "stages: {a: {data: {corpora: {txt: null}}}, b: {}}",
            "stages.a.data.corpora.txt: null, and nothing here is called 'txt'",
        ),
        (
            "models: {a: {from: teacher, data: {corpora: {txt: null}}}}",
            "models.a.data.corpora.txt: null, and nothing here is called 'txt'; did you mean 'text'",
        ),
    ],
)
def test_a_name_that_stands_for_nothing_or_for_two_things_is_refused(text: str, words: str, make: Any) -> None:
    overrides = ("students.two.quantize=int8",) if "quantize" in text else ()
    with pytest.raises(UserError) as refused:
        make(text, "{seed: [0]}", *overrides)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("{teacher: [corrected], teacher.model: [teacher]}", "grid.teacher and grid.teacher.model both set teacher.model"),
        ("{stages.warmup.training.max_tokens: [512]}", "stages has no 'warmup'; did you mean 'warm_up'"),
        ("{models.corected.training.max_tokens: [512]}", "models has no 'corected'; did you mean 'corrected'"),
        ("{students.tow.layers: [uniform]}", "students has no 'tow'; did you mean 'two'"),
    ],
)
def test_an_axis_that_would_say_nothing_is_refused(grid: str, words: str, make: Any) -> None:
    with pytest.raises(UserError) as refused:
        make(f"{MODELS}stages: {{warm_up: {{objective: {{terms: {{ce: {{}}}}}}}}, rest: {{}}}}", grid)
    assert words in str(refused.value)


def test_an_axis_may_tune_a_stage_of_a_variant(make: Any) -> None:
    variants = "variants: {staged: {stages.a: {}, stages.b: {}}}"
    runs = make(variants, "{variant: [staged], stages.a.training.max_tokens: [512, 640]}")
    assert len([run for run in runs.values() if run.role == Role.DISTILLED]) == 2


def test_many_models_made_from_one_another_are_planned_in_time(make: Any) -> None:
    """Each refers twice to the one before it: walked without memory, twenty would be a million walks."""
    chain = [f"  m{i}: {{from: m{i - 1}, teacher: m{i - 1}}}" for i in range(1, 20)]
    runs = make("\n".join(["models:", "  m0: {from: teacher, lora: {rank: 2}}", *chain]))
    assert len([run for run in runs.values() if run.role == Role.DERIVED]) == 20


@pytest.mark.parametrize("spec", ["{teacher: a}", "{teacher: {model: a}}", "{teacher.model: a}"])
def test_an_earlier_stage_is_named_as_teacher_in_each_way_of_writing_it(spec: str, make: Any) -> None:
    runs = make(f"stages: {{a: {{}}, b: {spec}}}")
    assert runs["two-seed=0"].config.teacher.model == "two_after_a"


def test_an_override_of_text_in_a_stage_is_text(make: Any) -> None:
    template = "stages.a.data.corpora.text.text={{ text }}"
    runs = make("stages: {a: {}, b: {}}", "{seed: [0]}", template)
    assert runs["two_after_a-seed=0"].config.data.corpora["text"].text == "{{ text }}"


def test_an_empty_mapping_that_changes_nothing_is_refused(make: Any) -> None:
    with pytest.raises(UserError, match="stages={}: it changes nothing"):
        make("stages: {a: {}, b: {}}", "{seed: [0]}", "stages={}")
    assert make("", "{seed: [0]}", "stages={}", "students.full={}", "variants={}")


def test_corpora_of_several_writers_are_told_apart(make: Any, tiny_corpus: Path) -> None:
    prompts = f"{{path: 'file:{tiny_corpus}', text: '{{{{ text }}}}'}}"
    written = f"{{text: null, own: {{generated: {{chat: false, prompts: {prompts}}}}}}}"
    text = f"{MODELS.partition('  assistant')[0]}variants: {{w: {{data.corpora: {written}}}}}"
    runs = make(text, "{teacher: [teacher, corrected], variant: [w], seed: [0, 1]}")
    found = [label for label, run in runs.items() if run.role == Role.GENERATED]
    assert found == ["generated-own", "generated-own-corrected-seed=0", "generated-own-corrected-seed=1"]


# ---------------------------------------------------------------- rounded weights


@pytest.mark.parametrize(
    ("text", "grid", "words"),
    [
        (
            "models: {q: {from: teacher, quantize: int8}, r: {from: q, quantize: int4}}",
            "{seed: [0]}",
            "r: it begins as 'q'",
        ),
        (
            "models: {q: {from: teacher, quantize: int8}, r: {from: q, lora: {rank: 2}}}",
            "{seed: [0]}",
            "r: it begins as 'q'",
        ),
        ("models: {q: {from: teacher, quantize: int4}}", "{teacher: [q], seed: [0]}", "it is cut out of with `from`"),
        ("stages: {a: {}, b: {quantize: int8}, c: {}}", "{seed: [0]}", "two: it begins as 'two_after_b'"),
        ("stages: {a: {}, b: {quantize: int8}, c: {quantize: int4}}", "{seed: [0]}", "two: it begins as 'two_after_b'"),
    ],
)
def test_rounded_weights_are_neither_trained_nor_rounded_again(text: str, grid: str, words: str, make: Any) -> None:
    with pytest.raises(UserError) as refused:
        make(text, grid)
    assert words in str(refused.value)


def test_rounded_weights_from_elsewhere_are_no_beginning(make: Any, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "int8")
    config = json.loads((teacher / "config.json").read_text())
    (tmp_path / "int8/config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "torchao"}}))
    runs = make("", "{seed: [0]}", f"students.two.from=file:{tmp_path / 'int8'}")
    with pytest.raises(UserError, match=r"students\.two: it begins as file:.*, whose weights are rounded"):
        check_against_teacher(list(runs.values()))


def test_a_rounded_teacher_teaches_a_student_of_another(make: Any) -> None:
    models = "models: {q: {from: teacher, quantize: int8}}"
    assert make(models, "{teacher: [teacher, q], seed: [0]}", "students.two.from=teacher")


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize(
    "text",
    [
        MODELS.replace("{student: three,", "{seed: 0, student: three,"),
        f"{MODELS}  fixed: {{from: corrected, seed: 0}}",
        f"{MODELS}  fixed: {{from: corrected, seed: 0, quantize: int8}}",
        f"{MODELS}  small: {{from: corrected, quantize: int8}}\n  fixed: {{seed: 0, from: teacher, teacher: small}}",
    ],
)
def test_one_model_for_all_seeds_is_not_made_from_one_of_each(text: str, make: Any) -> None:
    with pytest.raises(UserError, match=r"\.seed: it is made from '\w+', of which there is one for each seed; give models"):
        make(text, "{teacher: [corrected], seed: [0, 1]}")
    whole = text.replace("{from: teacher,", "{from: teacher, seed: 3,")
    assert make(whole, "{teacher: [corrected], seed: [0, 1]}")


# ---------------------------------------------------------------- baselines and costs


def test_a_stage_on_text_of_the_teacher_has_no_baseline_without_it(make: Any, tiny_corpus: Path) -> None:
    prompts = f"{{path: 'file:{tiny_corpus}', text: '{{{{ text }}}}'}}"
    written = f"{{data.corpora: {{text: null, own: {{generated: {{chat: false, prompts: {prompts}}}}}}}}}"
    runs = make(f"stages: {{one: {{}}, last: {written}}}")
    assert not [run for run in runs.values() if run.role == Role.CE_ONLY]


def test_a_model_that_only_validates_is_no_part_of_the_cost(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    file = write(tmp_path, teacher, tiny_corpus, MODELS, "{teacher: [corrected], student: [two, three], seed: [0]}")
    experiment = Experiment.from_yaml(file, ["students.two.from=teacher"], tmp_path)
    runs = {run.label: run for run in experiment.runs}
    flops = {"student_training_flops": 3.0, "teacher_training_flops": 4.0, "training_tokens": 5}
    for run in experiment.runs:
        write_json(experiment.folder_of(run) / "manifest.json", flops)
    without, with_teacher = runs["two-ce_only-seed=0"], runs["two-teacher=corrected-seed=0"]
    assert without.sources
    assert _costs(without, experiment)["pipeline_training_flops"] == 7.0
    assert _costs(with_teacher, experiment)["pipeline_training_flops"] == 14.0
    cut = runs["three-ce_only-seed=0"]  # begins as the corrected one
    assert _costs(cut, experiment)["pipeline_training_flops"] == 14.0


# ---------------------------------------------------------------- models of other experiments


def finished(root: Path, name: str, label: str) -> Path:
    """The folder of the student of a finished run, whose manifest bears the label that it had when it was built."""
    folder = root / "runs/other" / name
    (folder / "student").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"label": label, "fingerprint": "x"}))
    return folder / "student"


def test_a_model_that_was_called_otherwise_is_found_under_the_name_of_its_folder(
    tmp_path: Path, teacher: Path, tiny_corpus: Path
) -> None:
    """`corrected` was built before the grid had a seed; it is no model for all seeds now."""
    zero = finished(tmp_path, "corrected-seed=0-01234567", "corrected")
    one = finished(tmp_path, "corrected-seed=1-89abcdef", "corrected-seed=1")
    file = write(tmp_path, teacher, tiny_corpus, "external_models: {x: 'run:other/corrected'}")
    found = [RunReferences(tmp_path).resolve(load_experiment(file, [f"seed={seed}"])) for seed in (0, 1)]
    assert [config.external_models["x"] for config in found] == [f"file:{zero}", f"file:{one}"]


def test_of_two_models_of_one_name_the_user_chooses(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    for name in ("corrected-01234567", "corrected-89abcdef"):
        finished(tmp_path, name, "corrected")
    file = write(tmp_path, teacher, tiny_corpus, "external_models: {x: 'run:other/corrected'}")
    with pytest.raises(UserError, match="name one folder, corrected-01234567 or corrected-89abcdef"):
        RunReferences(tmp_path).resolve(load_experiment(file))
    chosen = load_experiment(file, ["external_models.x=run:other/corrected-89abcdef"])
    assert RunReferences(tmp_path).resolve(chosen).external_models["x"].endswith("corrected-89abcdef/student")


def test_a_model_with_its_own_seed_is_made_from_models_of_that_seed(
    tmp_path: Path, teacher: Path, tiny_corpus: Path
) -> None:
    places = [finished(tmp_path, f"corrected-seed={seed}-0123456{seed}", "corrected") for seed in (0, 1)]
    models = "models: {a: {from: run:other/corrected, seed: 1, lora: {rank: 2}}, b: {from: run:other/corrected}}"
    found = RunReferences(tmp_path).resolve(load_experiment(write(tmp_path, teacher, tiny_corpus, models)))
    assert [found.models[name]["from"] for name in ("a", "b")] == [f"file:{places[1]}", f"file:{places[0]}"]


def test_runs_are_the_same_wherever_the_root_is_and_however_it_is_written(
    tmp_path: Path, teacher: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the command is given in the root; their models are where they are."""
    text = """
baselines: [teacher, ce_only]
models: {a: {from: run:other/corrected, seed: 1, lora: {rank: 2}}}
external_models: {x: run:other/corrected}
"""
    grid = "{teacher: [run:other/corrected, teacher], student: [two], seed: [0, 1]}"
    (root := tmp_path / "here").mkdir()
    for seed in (0, 1):
        finished(root, f"corrected-seed={seed}-0123456{seed}", "corrected")
    file = write(tmp_path, teacher, tiny_corpus, text, grid)
    monkeypatch.chdir(root)
    usual = Experiment.from_yaml(file, FLOAT32).runs
    (external,) = (run for run in usual if run.role == Role.EXTERNAL)
    assert external.model_reference == (own := "file:runs/other/corrected-seed=0-01234560/student")
    assert external.fingerprint == versioned_fingerprint(external=own)  # as before there was another way
    assert len(usual) > 8
    for place, written in ((tmp_path, "here"), (root, str(root)), (root, "../here")):
        monkeypatch.chdir(place)
        check_same_runs(Experiment.from_yaml(file, FLOAT32, written).runs, usual, written)
    root.rename(moved := tmp_path / "there")
    check_same_runs(Experiment.from_yaml(file, FLOAT32, moved).runs, usual, str(moved))


def check_same_runs(runs: list[Run], usual: list[Run], root: str) -> None:
    """Their names and what they need are those of the usual root, and so are their models but for the root."""
    assert [(run.name, run.depends_on) for run in runs] == [(run.name, run.depends_on) for run in usual]
    for run, one in zip(runs, usual, strict=True):
        here = {key: name.replace("file:runs/", f"file:{root}/runs/") for key, name in referred_models(one.config).items()}
        assert referred_models(run.config) == here
        assert run.model_reference == one.model_reference.replace("file:runs/", f"file:{root}/runs/")


def test_text_that_begins_like_a_reference_is_text(tmp_path: Path, teacher: Path, tiny_corpus: Path) -> None:
    text = "teacher.prompt.system=run: {{ text }}", "data.corpora.text.text=run:{{ text }}"
    config = load_experiment(write(tmp_path, teacher, tiny_corpus), list(text))
    assert RunReferences(tmp_path).resolve(config) == config
