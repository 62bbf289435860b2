"""Grids: zipped axes, exclusions, inclusions, axes of variants, what is refused, and the names of keys in labels."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from distill_lit.config import ExperimentConfig, expand_grid, load_experiment
from distill_lit.config.derivation import derive_model, derive_stages
from distill_lit.config.grid_points import grid_points, shortest_names
from distill_lit.experiment.plan import plan_runs
from distill_lit.utils.exceptions import UserError

BASE = """
name: x
teacher: {model: 'file:x'}
student: d24
students: {d24: {num_layers: 24}, d18: {num_layers: 18}, d6: {num_layers: 6}}
objective: {terms: {ce: {weight: 0.5}, kl: {kind: forward_kl, weight: 0.5}}}
data: {corpora: {a: {path: 'file:a.txt'}, b: {path: 'file:b.txt'}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "x.yaml").write_text(BASE)
    return tmp_path / "x.yaml"


def loaded(file: Path, more: str = "", *overrides: str) -> ExperimentConfig:
    file.write_text(BASE + more)
    return load_experiment(file, list(overrides))


def points(file: Path, more: str = "", *overrides: str) -> list[dict[str, Any]]:
    return [values for values, _ in expand_grid(loaded(file, more, *overrides))]


def refusal(file: Path, more: str, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        points(file, more, *overrides)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---------------------------------------------------------------- zipped axes, exclusions, inclusions


def test_zipped_axes_go_together_and_are_axes_of_their_own(file: Path) -> None:
    text = 'grid: {"student, training.learning_rate": [[d24, 1e-4], [d18, 3e-4]], seed: [0, 1]}'
    found = list(expand_grid(loaded(file, text)))
    rates = {"d24": 1e-4, "d18": 3e-4}
    assert [values for values, _ in found] == [
        {"student": student, "training.learning_rate": rates[student], "seed": seed}
        for student, seed in itertools.product(rates, (0, 1))
    ]
    assert [(point.student, point.training.learning_rate, point.seed) for _, point in found] == [
        ("d24", 1e-4, 0),
        ("d24", 1e-4, 1),
        ("d18", 3e-4, 0),
        ("d18", 3e-4, 1),
    ]


def test_zipped_values_are_read_as_their_keys_want_them(file: Path) -> None:
    """A name of digits stays text beside a number."""
    text = "grid: {'data.corpora.a.name,training.max_tokens': [[2020, 2e3]]}"
    with pytest.raises(UserError, match=r"^grid: training.max_tokens: 2000.0 is not a whole number"):
        points(file, text)
    ((values, point),) = expand_grid(loaded(file, text.replace("2e3", "2000")))
    assert values == {"data.corpora.a.name": "2020", "training.max_tokens": 2000}
    assert point.data.corpora["a"].name == "2020"
    override = "grid.data.corpora.a.name,training.max_tokens=[[2021, 3000]]"
    assert points(file, "", override) == [{"data.corpora.a.name": "2021", "training.max_tokens": 3000}]


def test_excluded_points_are_left_out_and_included_ones_added(file: Path) -> None:
    """As GitHub Actions does: 3 × 3 − 1 − 3 points, one of its own, and a further key for the two of d18 that are left."""
    text = """
grid:
  student: [d24, d18, d6]
  seed: [0, 1, 2]
  exclude: [{student: d6}, {student: d18, seed: 2}]
  include:
    - {student: d18, training.beta1: 0.8}
    - {student: d6, seed: 7}
    - {student: d24, seed: 0}
"""
    assert points(file, text) == [
        *({"student": "d24", "seed": seed} for seed in (0, 1, 2)),
        *({"student": "d18", "seed": seed, "training.beta1": 0.8} for seed in (0, 1)),
        {"student": "d6", "seed": 7},
    ]


def test_a_student_that_only_an_inclusion_names_is_that_of_its_points(file: Path) -> None:
    found = list(expand_grid(loaded(file, "grid: {seed: [0, 1], include: [{seed: 1, student: d6}]}")))
    assert [(point.student, point.seed) for _, point in found] == [("d24", 0), ("d6", 1)]


def test_the_example_of_githubs_documentation() -> None:
    """docs.github.com, "Expanding or adding matrix configurations": its six combinations, but for the entry that names no
    `animal`, which would be a point without one."""
    grid = {
        "fruit": ["apple", "pear"],
        "animal": ["cat", "dog"],
        "include": [{"color": "green"}, {"color": "pink", "animal": "cat"}, {"fruit": "apple", "shape": "circle"}],
    }
    assert grid_points(grid) == [
        {"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"},
        {"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"},
        {"fruit": "pear", "animal": "cat", "color": "pink"},
        {"fruit": "pear", "animal": "dog", "color": "green"},
    ]
    with pytest.raises(UserError, match=r"^grid.include: {'fruit': 'banana'} fits no point, .* needs animal too$"):
        grid_points(grid | {"include": [{"fruit": "banana"}]})
    assert grid_points({"include": [{"a": 1}, {"b": 2}]}) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("{'student, seed': [[d24, 0]], seed: [1]}", "grid: seed is in two axes, 'student, seed' and 'seed'; take it out"),
        ("{'student, seed': [[d24]]}", "grid.student, seed: ['d24'] is not a list of 2 values, one for each key"),
        ("{'student, seed': [d24]}", "grid.student, seed: 'd24' is not a list of 2 values, one for each key"),
        ("{'student,': [[d24, 1]]}", "grid: 'student,' has a comma with no key beside it"),
        ("{seed: [0], exclude: [1]}", "grid.exclude: 1 is not a mapping of keys of the grid to values, as in {seed: 2}"),
        ("{seed: [0], exclude: [{sed: 1}]}", "grid.exclude: 'sed' is no key of the grid; did you mean 'seed'? choose"),
        ("{student: [d24, d18], exclude: [{student: d16}]}", "grid.exclude: student is never 'd16'; did you mean 'd18'?"),
        ("{seed: [0, 1], exclude: [{seed: '1'}]}", "grid.exclude: seed is never '1'; "),
        ("{'student, seed': [[d24, 0], [d18, 1]], exclude: [{student: d24, seed: 1}]}",
         "grid.exclude: no point of the grid has all of {student: d24, seed: 1}"),
        ("{seed: [0], exclude: [{seed: 0}]}", "grid.exclude: it leaves no point of the grid"),
        ("{seed: [0], include: [{evaluation.limit: 5}]}", "grid.evaluation.limit: holds for the whole experiment"),
        ("{seed: [0], include: [{training.beta3: 1}]}", "grid: unknown key 'training.beta3'; did you mean"),
    ],
)  # fmt: skip
def test_a_wrong_grid_is_one_line(file: Path, grid: str, words: str) -> None:
    assert refusal(file, f"grid: {grid}").startswith(words)


def test_a_grid_on_the_command_line_replaces_and_one_key_of_it_changes_an_axis(file: Path) -> None:
    text = "grid: {student: [d24, d18], seed: [0, 1], exclude: [{student: d18, seed: 1}]}"
    assert len(points(file, text)) == 3
    assert points(file, text, "grid={seed: [5]}") == [{"seed": 5}]
    assert points(file, text, "grid.seed=[5]") == [{"student": "d24", "seed": 5}, {"student": "d18", "seed": 5}]
    assert points(file, text, "grid={seed: [5]}", "grid.training.beta1=[0.8]") == [{"seed": 5, "training.beta1": 0.8}]
    assert points(file, text, "grid.seed=[5]", "grid={student: [d6]}") == [{"student": "d6"}]
    assert points(file, text, "grid.exclude=[{seed: 0}]") == [{"student": s, "seed": 1} for s in ("d24", "d18")]
    assert points(file, text, "grid={}") == [{}]
    assert loaded(file, text, "grid={}").student == "d24"


# ---------------------------------------------------------------- variants

VARIANTS = """
variants:
  loss:
    kl: {}
    rkl: {objective.terms.kl.kind: reverse_kl}
  data:  # named like a key of the experiment, as an axis may be
    few: {data.max_tokens: 2000, training: {max_tokens: 1000}}
    alone: {data.corpora.b: null}
  fast: {training.learning_rate: 0.01}
"""


def test_axes_of_variants_are_combined(file: Path) -> None:
    found = list(expand_grid(loaded(file, VARIANTS + "grid: {variant.loss: [kl, rkl], variant.data: [few, alone]}")))
    assert [values for values, _ in found] == [
        {"variant.loss": loss, "variant.data": data} for loss in ("kl", "rkl") for data in ("few", "alone")
    ]
    terms = [point.objective.terms["kl"] for _, point in found]
    assert [term.kind for term in terms if term] == ["forward_kl", "forward_kl", "reverse_kl", "reverse_kl"]
    assert [point.data.max_tokens for _, point in found] == [2000, 0, 2000, 0]
    assert [set(point.data.corpora) for _, point in found] == [{"a", "b"}, {"a"}] * 2
    assert found[0][1].variant == {"loss": "kl", "data": "few"}


def test_one_variant_of_an_axis_is_chosen_without_a_grid_and_the_old_form_stands_beside(file: Path) -> None:
    ((_, point),) = expand_grid(loaded(file, VARIANTS, "variant.loss=rkl"))
    assert point.objective.terms["kl"].kind == "reverse_kl"  # type: ignore[union-attr]
    two = [point for _, point in expand_grid(loaded(file, VARIANTS, "variant.loss=rkl", "grid.variant.data=[few, alone]"))]
    assert [(point.objective.terms["kl"].kind, point.data.max_tokens) for point in two] == [  # type: ignore[union-attr]
        ("reverse_kl", 2000),
        ("reverse_kl", 0),
    ]
    ((_, fast),) = expand_grid(loaded(file, VARIANTS + "grid: {variant: [fast]}"))
    assert fast.training.learning_rate == 0.01 and fast.variant == "fast"


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ("{variant.los: [kl]}", "variant.los: variants has no axis of this name; did you mean 'loss'? choose from"),
        ("{variant.loss: [kll]}", "variant.loss: unknown value 'kll'; did you mean 'kl'? choose from kl, rkl"),
        ("{variant.loss: [[kl]]}", "variant.loss: unknown value ['kl']"),
        ("{variant: [loss]}", "variant: 'loss' is an axis of variants; choose from it with variant.loss"),
        ("{variant: [fats]}", "variant: unknown value 'fats'; did you mean 'fast'? choose from fast"),
        ("{variant: [fast], variant.loss: [kl]}", "variant: 'fast' and variant.loss: choose one variant, or one"),
    ],
)  # fmt: skip
def test_a_wrong_choice_of_variants_is_one_line(file: Path, grid: str, words: str) -> None:
    assert refusal(file, f"{VARIANTS}grid: {grid}").startswith(words)


def test_a_chosen_variant_stays_chosen_at_the_points_of_the_grid(file: Path) -> None:
    both = loaded(file, VARIANTS + "variant: {loss: rkl}\ngrid: {variant: [{data: few}, {loss: kl, data: few}, '']}")
    chosen = [({"loss": "rkl", "data": "few"}, "reverse_kl", 2000), ({"loss": "kl", "data": "few"}, "forward_kl", 2000),
              ("", "forward_kl", 0)]  # fmt: skip
    assert [
        (point.variant, point.objective.terms["kl"].kind, point.data.max_tokens)  # type: ignore[union-attr]
        for _, point in expand_grid(both)
    ] == chosen
    text = VARIANTS + "variant: fast\ngrid: {variant.loss: [kl, rkl]}"
    assert refusal(file, text) == "variant: 'fast' and variant.loss: choose one variant, or one of each axis"
    one_for_another = loaded(file, VARIANTS + "variant: fast\ngrid: {variant: [{loss: rkl}]}")
    ((_, point),) = expand_grid(one_for_another)
    assert (point.variant, point.training.learning_rate) == ({"loss": "rkl"}, 5e-4)


@pytest.mark.parametrize(
    ("one", "other", "key"),
    [
        ("{training.beta1: 0.8}", "{training: {beta1: 0.8}}", "training.beta1"),
        ("{data.corpora: {a: {split: test}}}", "{data.corpora.a: null}", "data.corpora.a.split"),
        ("{data.corpora.a: null}", "{data.corpora: {a: {split: test}}}", "data.corpora.a.split"),
    ],
)
def test_two_variants_that_set_one_key_are_refused_with_both_names(file: Path, one: str, other: str, key: str) -> None:
    variants = f"variants: {{first: {{x: {one}}}, second: {{y: {other}}}}}\n"
    words = refusal(file, variants + "grid: {variant.first: [x], variant.second: [y]}")
    assert words == f"variants.first.x and variants.second.y both set {key}"


def test_what_a_variant_of_an_axis_may_not_set_is_said_with_its_name(file: Path) -> None:
    assert refusal(file, "variants: {a: {x: {evaluation.limit: 5}}}").startswith(
        "variants.a.x.evaluation.limit: holds for the"
    )
    assert (
        refusal(file, "variants: {a: {x: {variant.b: y}}}") == "variants.a.x.variant.b: a variant cannot choose another one"
    )
    wrong = "variants: {a: {x: {training.beta1: 2}}}\ngrid: {variant.a: [x]}"
    assert refusal(file, wrong).startswith("variants.a.x: training.beta1: 2 is above its maximum")


@pytest.mark.parametrize(
    "changes",
    [
        "{training: {max_tokens: 10}, training.max_tokens: 20}",
        "{training.max_tokens: 20, training: {beta1: 0.8, max_tokens: 10}}",
    ],
)
@pytest.mark.parametrize("where", ["variants.a", "stages.a", "models.a"])
def test_a_dotted_key_beside_the_same_one_nested_is_refused(file: Path, where: str, changes: str) -> None:
    section = where.partition(".")[0]
    own = changes if section != "models" else changes.replace("{", "{from: teacher, ", 1)
    grid = "\ngrid: {variant: [a]}" if section == "variants" else ""
    config = loaded(file, f"{section}: {{a: {own}}}{grid}")

    def derive_all() -> None:
        for _, point in expand_grid(config):
            derive_stages(point)
            for name in point.models:
                derive_model(point, name)

    with pytest.raises(UserError, match=rf"^{where}\.training.* and {where}\.training.* both set training.max_tokens$"):
        derive_all()


# ---------------------------------------------------------------- names of keys


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["training.learning_rate", "seed"], ["learning_rate", "seed"]),
        (["objective.terms.kl.weight", "objective.terms.ce.weight", "student"], ["kl.weight", "ce.weight", "student"]),
        (["data.seed", "seed"], ["data.seed", "seed"]),
        (["data.corpora.a.weight", "objective.terms.a.weight", "x.b"], ["corpora.a.weight", "terms.a.weight", "b"]),
        ([], []),
    ],
)
def test_a_key_is_called_by_its_shortest_ending_that_no_other_key_has(keys: list[str], names: list[str]) -> None:
    assert list(shortest_names(keys).values()) == names


def test_labels_tell_axes_apart_that_end_alike(file: Path) -> None:
    text = """
baselines: []
variants: {loss: {kl: {}, rkl: {objective.terms.kl.kind: reverse_kl}}}
grid:
  {objective.terms.kl.weight: [0.5, 1.0], objective.terms.ce.weight: [1.0], variant.loss: [kl], data.seed: [3], seed: [0]}
"""
    assert [run.label for run in plan_runs(loaded(file, text))] == [
        "d24-kl.weight=0.5-ce.weight=1.0-loss=kl-data.seed=3-seed=0",
        "d24-kl.weight=1.0-ce.weight=1.0-loss=kl-data.seed=3-seed=0",
    ]


def test_baselines_of_a_grid_with_zipped_axes_have_labels_and_points_of_their_own(file: Path) -> None:
    """Without the teacher, the loss's temperature is nothing: one baseline for both temperatures of a rate."""
    zipped = "'training.learning_rate, objective.terms.kl.temperature': [[1e-4, 1.0], [1e-4, 2.0], [3e-4, 1.0]]"
    text = f"""
baselines: [ce_only]
grid: {{{zipped}, seed: [0, 1], exclude: [{{training.learning_rate: 3e-4, seed: 1}}]}}
"""
    found = [run.label for run in plan_runs(loaded(file, text))]
    assert found == [
        "d24-ce_only-learning_rate=0.0001-seed=0",
        "d24-ce_only-learning_rate=0.0003-temperature=1.0-seed=0",
        "d24-learning_rate=0.0001-temperature=1.0-seed=0",
        "d24-learning_rate=0.0001-temperature=2.0-seed=0",
        "d24-learning_rate=0.0003-temperature=1.0-seed=0",
        "d24-ce_only-learning_rate=0.0001-seed=1",
        "d24-learning_rate=0.0001-temperature=1.0-seed=1",
        "d24-learning_rate=0.0001-temperature=2.0-seed=1",
    ]


def test_a_corpus_that_a_server_writes_at_one_point_alone_has_a_label_at_the_others(file: Path) -> None:
    text = """
data: {corpora: {g: {generated: {prompts: {path: 'file:q', text: q}, remote: null}}}}
baselines: []
grid: {student: [d24, d6], include: [{student: d6, data.corpora.g.generated.remote.model: gpt}]}
"""
    file.write_text(BASE.partition("data:")[0] + text)
    labels = [run.label for run in plan_runs(load_experiment(file))]
    assert labels == ["generated-g", "generated-g-model=gpt", "d24", "d6-model=gpt"]


# ---------------------------------------------------------------- values of other keys


@pytest.mark.parametrize(
    ("more", "source"),
    [
        ("grid: {data.max_tokens: [10, 20]}", "the grid"),
        ("grid: {data: [{max_tokens: 10}]}", "the grid"),
        ("grid: {seed: [0], include: [{seed: 0, data.max_tokens: 10}]}", "the grid"),
        ("variants: {few: {data: {max_tokens: 10}}}", "variants.few"),
        ("variants: {size: {few: {data.max_tokens: 10}}}", "variants.size.few"),
    ],
)
def test_a_value_of_a_key_that_points_change_is_refused_as_it_would_stay_the_same(
    file: Path, more: str, source: str
) -> None:
    words = f"training.max_tokens: ${{data.max_tokens}} is replaced before {source} changes data.max_tokens; give "
    for text in ("${data.max_tokens}", "${..data.max_tokens}"):
        assert refusal(file, more, f"training.max_tokens={text}", "data.max_tokens=5").startswith(words)


def test_a_value_of_a_key_may_be_given_where_that_key_is(file: Path) -> None:
    value = "training.max_tokens=${data.max_tokens}"
    grid = "grid.data.max_tokens,training.max_tokens=[[10, 30], [20, 40]]"
    found = [point.training.max_tokens for _, point in expand_grid(loaded(file, "", value, "data.max_tokens=5", grid))]
    assert found == [30, 40]
    assert points(file, "variants: {few: {data.max_tokens: 1, training.max_tokens: 2}}", value, "data.max_tokens=5")
    assert points(file, "variants: {few: {data.seed: 1}}", value, "data.max_tokens=5")
    assert points(file, "grid: {seed: [0]}", "question=costs \\${seed}")


@pytest.mark.parametrize(
    "more",
    [
        "grid: {student: [d24]}",
        "grid: {'student, seed': [[d18, 0], [d6, 1]]}",
        "student: d6",
        "models: {a: {student: d18}, b: {student: d6}}",
        "models: {a: {student: d18}}\ngrid: {models.a.student: [d18, d6]}",
        "variants: {a: {student: d18}, b: {student: d6}}\ngrid: {variant: [a, b]}",
        "grid: {seed: [0], include: [{seed: 1, student: d18}, {seed: 2, student: d6}]}",
    ],
)
def test_several_students_are_fine_where_something_names_all_but_the_first_or_one_is_chosen(file: Path, more: str) -> None:
    file.write_text(BASE.replace("student: d24\n", "") + more)
    assert list(expand_grid(load_experiment(file)))


@pytest.mark.parametrize(
    ("more", "left"),
    [("", "d24, d18, d6"), ("grid: {seed: [0, 1]}", "d24, d18, d6"), ("models: {a: {student: d18}}", "d24, d6")],
)
def test_a_student_that_would_never_run_is_refused(file: Path, more: str, left: str) -> None:
    """Only the first one ran, and nothing was said of the others."""
    file.write_text(BASE.replace("student: d24\n", "") + more)
    words = f"nothing says which of {left} to train; all: grid: {{student: [{left}]}}, one: student: d24"
    with pytest.raises(UserError, match=re.escape(words)):
        load_experiment(file)
