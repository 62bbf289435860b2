"""Declared hypotheses: which models are compared, regions and their tests, what a claim needs, and when it was declared."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.grid_results import above_chance, build_grid
from helpers.synthetic_results import build
from scipy import stats

from distill_lit.analysis import declarations
from distill_lit.analysis.declarations import (
    Declaration,
    declare,
    declared_names,
    describe_declaration,
    endpoint_declaration,
    hypothesis_digest,
    read_declarations,
)
from distill_lit.analysis.hypotheses import (
    AGREES,
    CONTRADICTS,
    NOT_TESTED,
    UNDECIDED,
    HypothesisTest,
    run_hypothesis_tests,
)
from distill_lit.analysis.results import load_results
from distill_lit.analysis.scores import Scores, compute_scores, macro_difference
from distill_lit.analysis.significance import holm
from distill_lit.config import load_experiment
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.config.hypotheses import HypothesisConfig
from distill_lit.experiment.experiment import Experiment
from distill_lit.utils.exceptions import UserError

FAST = AnalysisConfig(n_resamples=200)
HOTTER = HypothesisConfig(claim="hotter is better", models={"temperature": 2}, against={"temperature": 1})


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    right = {("deep", "1", "0.5"): [10, 12, 11], ("deep", "2", "0.5"): [30, 31, 32], ("deep", "2", "0.9"): [26, 25, 24],
             ("deep", "1", "0.9"): [12, 10, 14], ("wide", "1", "0.5"): [20]}  # fmt: skip
    folder = build_grid(tmp_path_factory.mktemp("grid"), right)
    return compute_scores(load_results(folder), FAST)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    folder = build(tmp_path_factory.mktemp("two"), seeds=(0, 1, 2), students={"deep": 0.4, "shallow": 1.2})
    return compute_scores(load_results(folder), FAST)


def only(scores: Scores, **fields: object) -> HypothesisTest:
    (test,) = run_hypothesis_tests(scores, {"h": HypothesisConfig(**{"claim": "c", **fields})})
    return test


def test_pairs_differ_by_what_is_said_alone(grid: Scores) -> None:
    test = only(grid, models={"temperature": 2}, against={"temperature": 1})
    assert test.pairs == (
        ("deep distilled (temperature=2, weight=0.5)", "deep distilled (temperature=1, weight=0.5)"),
        ("deep distilled (temperature=2, weight=0.9)", "deep distilled (temperature=1, weight=0.9)"),
    )
    by_hand = (above_chance(31) - above_chance(11) + above_chance(25) - above_chance(12)) / 2
    assert test.difference.value * 100 == pytest.approx(by_hand)
    assert (test.num_seeds, test.outcome) == (3, AGREES)


def test_one_pair_is_the_difference_of_all_other_tables(grid: Scores) -> None:
    test = only(grid, models={"temperature": 2, "weight": [0.9]}, against={"temperature": 1})
    first, second = (grid.group_index(label) for label in test.pairs[0])
    interval, p = macro_difference(grid, first, second)
    assert test.difference == pytest.approx(interval)
    assert test.p == test.p_adjusted == pytest.approx(p)


def test_expecting_the_opposite_is_contradicted(grid: Scores) -> None:
    test = only(grid, models={"temperature": 2}, against={"temperature": 1}, expect="worse")
    assert test.outcome == CONTRADICTS


def test_a_gain_is_what_the_teacher_adds(two: Scores) -> None:
    test = only(two, models={"student": "deep"}, against={"student": "shallow"}, measure="gain")
    macro = {group.label: two.macro(g) for g, group in enumerate(two.groups)}
    gains = [macro[f"{name} distilled"] - macro[f"{name} without teacher"] for name in ("deep", "shallow")]
    assert test.difference.value == pytest.approx(gains[0] - gains[1])
    seeds = [two.seed_averages(two.group_index(f"{name} {role}"))
             for name in ("deep", "shallow") for role in ("distilled", "without teacher")]  # fmt: skip
    by_seed = seeds[0] - seeds[1] - seeds[2] + seeds[3]
    assert by_seed.mean() == pytest.approx(test.difference.value)


def test_tasks_are_averaged_as_asked(two: Scores) -> None:
    test = only(two, models={"student": "deep"}, tasks=["piqa", "sciq"])
    deep, alone = two.group_index("deep distilled"), two.group_index("deep without teacher")
    gaps = [
        two.centered[two.tasks.index(task), deep] - two.centered[two.tasks.index(task), alone] for task in ("piqa", "sciq")
    ]
    assert test.difference.value == pytest.approx(np.mean(gaps))


def with_losses(tmp_path: Path, differences: list[float]) -> Scores:
    """Students whose validation loss is that much above the same student without teacher, by seed."""
    folder = build(tmp_path, seeds=tuple(range(len(differences))), students={"deep": 0.5}, documents=20)
    runs = pd.read_csv(folder / "runs.csv")
    of = {f"deep-distilled-{seed}": 3.0 + value for seed, value in enumerate(differences)}
    runs["val_ce"] = runs["model"].map(of).fillna(3.0)
    runs.to_csv(folder / "runs.csv", index=False)
    return compute_scores(load_results(folder), FAST)


@pytest.mark.parametrize(
    ("expect", "margin", "outside", "inside"),  # of the loss less that without teacher, below 0 is better
    [
        ("better", 0.0, [("less", 0.0)], [("greater", 0.0)]),
        ("better", 0.05, [("less", -0.05)], [("greater", -0.05)]),
        ("worse", 0.0, [("greater", 0.0)], [("less", 0.0)]),
        ("not_better", 0.08, [("greater", -0.08)], [("less", -0.08)]),
        ("not_worse", 0.02, [("less", 0.02)], [("greater", 0.02)]),
        ("equal", 0.3, [("less", 0.3), ("greater", -0.3)], None),
    ],
)
def test_regions_against_scipy(tmp_path: Path, expect: str, margin: float, outside: list, inside: list | None) -> None:
    values = [-0.11, -0.07, -0.1, -0.06]
    test = only(with_losses(tmp_path, values), endpoint="val_ce", expect=expect, margin=margin)
    assert test.difference.value == pytest.approx(np.mean(values))

    def p(alternative: str, bound: float) -> float:
        return float(stats.ttest_1samp(values, bound, alternative=alternative).pvalue)

    against = [p(*one) for one in inside] if inside else [2 * min(p("greater", margin), p("less", -margin))]
    smallest = min(max(p(*one) for one in outside), *against)
    assert test.p == pytest.approx(min(1.0, 2 * smallest), rel=1e-5)


def test_holm_is_over_all_hypotheses(grid: Scores) -> None:
    asked = {"a": HOTTER, "b": HypothesisConfig(claim="c", models={"weight": 0.9}, against={"weight": 0.5}),
             "c": HypothesisConfig(claim="c", models={"student": "gone"})}  # fmt: skip
    first, second, third = run_hypothesis_tests(grid, asked)
    assert [first.p_adjusted, second.p_adjusted] == pytest.approx(holm([first.p, second.p]))
    assert (third.outcome, third.reason) == (NOT_TESTED, "no model that it is about has results")


def test_a_claim_needs_three_seeds(tmp_path: Path) -> None:
    folder = build_grid(tmp_path, {("deep", "1", "0.5"): [5], ("deep", "2", "0.5"): [39]})
    test = only(compute_scores(load_results(folder), FAST), models={"temperature": 2}, against={"temperature": 1})
    assert test.p_adjusted < 0.001
    assert (test.outcome, test.reason) == (UNDECIDED, "significant, but a claim needs 3 seeds")


def test_a_significant_difference_that_would_not_be_found_again_decides_nothing(tmp_path: Path) -> None:
    values = [-0.11, -0.03, -0.08, -0.06]
    test = only(with_losses(tmp_path, values), endpoint="val_ce")
    mean, error = np.mean(values), np.std(values, ddof=1) / 2
    detectable = (stats.t.ppf(0.975, 3) + stats.t.ppf(0.8, 3)) * error
    assert (test.p < 0.05, -mean < detectable) == (True, True)
    assert test.detectable == pytest.approx(detectable, rel=1e-4)
    # so many seeds find the mean that was seen: their error is smaller, and its spread better known
    seeds = 4 * test.factor
    found = (stats.t.ppf(0.975, seeds - 1) + stats.t.ppf(0.8, seeds - 1)) * error * (4 / seeds) ** 0.5
    assert found == pytest.approx(-mean, rel=2e-3)
    assert (test.outcome, test.reason[:11]) == (UNDECIDED, "significant")


def test_why_nothing_is_tested(two: Scores) -> None:
    assert only(two, endpoint="probe_kl").reason == "nothing was measured by this endpoint"
    assert only(two, against={"student": "gone"}).reason == "nothing that its models are compared with has results"
    assert only(two, models={"role": "ce_only"}, measure="gain", against="without_teacher").reason


def test_what_is_changed_after_runs_are_done_says_so(tmp_path: Path) -> None:
    declare(tmp_path, declared_names({"a": HOTTER}, FAST), 0, 6)
    changed = HypothesisConfig(claim=HOTTER.claim, models=HOTTER.models, against=HOTTER.against, expect="not_worse")
    declare(tmp_path, declared_names({"a": HOTTER}, FAST), 4, 6)
    known = declare(tmp_path, declared_names({"a": changed}, FAST), 4, 6)
    assert known == read_declarations(tmp_path)
    assert describe_declaration(known[hypothesis_digest(HOTTER, FAST)]) == "before the run"
    assert describe_declaration(known[hypothesis_digest(changed, FAST)]) == "after 4 of 6 runs"
    other = AnalysisConfig(n_resamples=200, primary_endpoint="margin")  # another endpoint is another hypothesis
    assert describe_declaration(known.get(hypothesis_digest(HOTTER, other))) == "after the run"
    cited = HypothesisConfig(claim=HOTTER.claim, models=HOTTER.models, against=HOTTER.against, paper="arXiv:1503.02531")
    assert hypothesis_digest(cited, FAST) == hypothesis_digest(HOTTER, FAST)


def test_of_two_that_declare_at_once_the_first_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second has read the file before the first wrote it."""
    read, by_margin = declarations.read_declarations, AnalysisConfig(n_resamples=200, primary_endpoint="margin")
    hotter = declared_names({"a": HOTTER}, FAST)

    def read_before(folder: Path) -> dict[str, Declaration]:
        monkeypatch.setattr(declarations, "read_declarations", read)
        known = read(folder)
        declare(folder, hotter, 0, 6)
        return known

    monkeypatch.setattr(declarations, "read_declarations", read_before)
    known = declare(tmp_path, hotter, 4, 6) | declare(tmp_path, declared_names({}, by_margin), 4, 6)
    assert known == read_declarations(tmp_path) and sorted(one.runs_done for one in known.values()) == [0, 4]


def test_when_the_primary_endpoint_was_declared_is_on_record(tmp_path: Path) -> None:
    """By itself, or by a hypothesis that is tested by it; not by one that names an endpoint of its own."""
    by_margin = AnalysisConfig(n_resamples=200, primary_endpoint="margin")
    own = HypothesisConfig(claim="c", endpoint="margin")
    assert declared_names({}, FAST) == {}  # accuracy needs no declaration
    known = declare(tmp_path / "alone", declared_names({}, by_margin), 3, 6)
    assert describe_declaration(endpoint_declaration(known, {}, by_margin)) == "after 3 of 6 runs"
    older = {hypothesis_digest(HOTTER, by_margin): Declaration("a", "2026-01-01", 0, 6)}  # from before it had a record
    assert describe_declaration(endpoint_declaration(known | older, {"a": HOTTER}, by_margin)) == "before the run"
    late = {digest: one._replace(runs_done=6) for digest, one in older.items()}  # of an endpoint that was known before
    assert endpoint_declaration(late, {"a": HOTTER}, by_margin) is None
    assert endpoint_declaration({hypothesis_digest(own, by_margin): older.popitem()[1]}, {"a": own}, by_margin) is None


def test_numbers_of_the_grid_are_those_of_the_table(grid: Scores) -> None:
    for number in (2.0, "2.0", [2.0]):
        test = only(grid, models={"temperature": number, "weight": 0.5}, against={"temperature": 1.0})
        assert [label for label, _ in test.pairs] == ["deep distilled (temperature=2, weight=0.5)"]


def with_axis(tmp_path: Path, name: str, values: dict[str, str]) -> Scores:
    """The students of `build_grid`, with another axis for their temperature: {temperature: value as runs.csv has it}."""
    right = {("deep", temperature, "0.5"): [10 + 9 * i] * 3 for i, temperature in enumerate(values)}
    folder = build_grid(tmp_path, right)
    runs = pd.read_csv(folder / "runs.csv", dtype=str)
    runs[name] = runs.pop("grid.objective.terms.kl.temperature").map(values)
    runs.to_csv(folder / "runs.csv", index=False)
    return compute_scores(load_results(folder), FAST)


def test_values_that_are_mappings_lists_or_null(tmp_path: Path) -> None:
    mappings = with_axis(tmp_path / "m", "grid.teacher", {"1": "{model: file:t, dtype: float32}",
                                                          "2": "{model: file:u, dtype: float32}"})  # fmt: skip
    one, other = ({"teacher": {"model": f"file:{name}", "dtype": "float32"}} for name in "ut")
    assert only(mappings, models=one, against=other).difference.value * 100 == pytest.approx(9 / 40 / 0.75 * 100)
    lists = with_axis(tmp_path / "l", "grid.students.deep.layers", {"1": "[0, 1]", "2": "[0, 2]"})
    assert len(only(lists, models={"layers": [0, 2]}, against={"layers": [0, 1]}).pairs) == 1
    assert len(only(lists, models={"layers": [[0, 2], [0, 1]]}, against="teacher").pairs) == 2
    nulls = with_axis(tmp_path / "n", "grid.training.seconds", {"1": "", "2": "3"})
    assert len(only(nulls, models={"seconds": 3}, against={"seconds": None}).pairs) == 1
    assert len(only(nulls, models={"seconds": None}, against="teacher").pairs) == 1


def test_a_baseline_is_found_by_a_value_for_which_it_stands(grid: Scores) -> None:
    test = only(grid, models={"role": "ce_only", "temperature": 2, "student": "deep"}, against="teacher")
    assert test.pairs == (("deep without teacher", "teacher"),)


def test_an_opponent_of_one_seed_counts_as_one(tmp_path: Path) -> None:
    folder = build_grid(tmp_path, {("deep", "1", "0.5"): [5], ("deep", "2", "0.5"): [39, 38, 39]})
    test = only(compute_scores(load_results(folder), FAST), models={"temperature": 2}, against={"temperature": 1})
    assert (test.num_seeds, test.outcome, test.factor >= 3) == (1, UNDECIDED, True)


def test_what_has_no_spread_has_no_p_and_is_not_counted(tmp_path: Path) -> None:
    for name, values in (("one", [-0.1]), ("same", [-0.1, -0.1, -0.1])):
        scores = with_losses(tmp_path / name, values)
        loss, other = HypothesisConfig(claim="c", endpoint="val_ce"), HypothesisConfig(claim="c")
        first, second = run_hypothesis_tests(scores, {"loss": loss, "other": other})
        assert (first.outcome, np.isnan(first.p), np.isnan(first.p_adjusted)) == (UNDECIDED, True, True)
        assert "nothing says how much others would differ" in first.reason
        assert second.p_adjusted == second.p


def test_models_that_are_not_compared_may_have_another_teacher(tmp_path: Path) -> None:
    scores = with_losses(tmp_path, [-0.11, -0.07, -0.1])
    runs = scores.results.runs
    runs["val_kl"] = runs["val_ce"]
    is_compared = runs["role"].isin(["distilled", "ce_only"])
    runs["val_teacher_nll"], runs["validation_data_fingerprint"] = np.where(is_compared, 2.9, 3.7), "a"
    assert not only(scores, endpoint="val_kl").reason
    assert only(scores, endpoint="val_kl", against="before_training").reason == "KLs to different teachers do not compare"
    runs.loc[~is_compared, "validation_data_fingerprint"] = "b"
    assert not only(scores, endpoint="val_ce").reason
    assert only(scores, endpoint="val_ce", against="before_training").reason == "students are validated on different text"


def test_an_endpoint_of_unknown_margin_is_not_tested(two: Scores, tmp_path: Path) -> None:
    by_margin = dataclasses.replace(two, analysis=AnalysisConfig(n_resamples=200, primary_endpoint="margin"))
    test = only(by_margin, expect="equal")
    assert (test.outcome, test.reason) == (NOT_TESTED, "margin: needed to expect equal by margin, in its unit")
    names = declared_names({"h": test.hypothesis}, by_margin.analysis)
    assert hypothesis_digest(test.hypothesis, by_margin.analysis) in declare(tmp_path, names, 0, 1)


@pytest.mark.parametrize("text", ["[", "[]", "3", '{"a": 3}', '{"a": {"name": "h"}}',
                                  '{"a": {"name": "h", "on": 3, "runs_done": null, "runs": 1}}'])  # fmt: skip
def test_damaged_declarations_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "hypotheses.json").write_text(text)
    with pytest.raises(UserError, match=r"hypotheses.json: it is damaged"):
        declare(tmp_path, declared_names({"a": HOTTER}, FAST), 0, 6)
    assert (tmp_path / "hypotheses.json").read_text() == text


def test_trained_models_are_done_whatever_they_are_asked_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `evaluation.tasks` has changed with the hypotheses: all models are trained, none is evaluated."""
    monkeypatch.setattr("distill_lit.experiment.preparation.is_run_built", lambda run, folder: True)
    monkeypatch.setattr("distill_lit.experiment.preparation.is_run_complete", lambda run, folder: False)
    (declaration,) = make_experiment(tmp_path, "").declare_hypotheses().values()
    assert declaration.runs_done == declaration.runs > 0


def test_an_endpoint_that_older_results_hold_is_not_declared_late(tmp_path: Path) -> None:
    """One that nobody noted when it was declared is not noted afterwards; one that was noted stays so."""
    experiment = make_experiment(tmp_path, "analysis: {primary_endpoint: margin}\n")
    analysis, hypotheses = experiment.config.analysis, experiment.config.hypotheses
    plan = experiment.results_folder / "plan.yaml"
    plan.parent.mkdir(parents=True)
    plan.write_text("analysis: {primary_endpoint: margin}\n")
    assert [one.name for one in experiment.declare_hypotheses().values()] == ["h"]
    assert endpoint_declaration(read_declarations(experiment.runs_folder), {}, analysis) is None
    plan.write_text("analysis: {primary_endpoint: accuracy}\n")  # none of its models is done, else it would be refused
    assert {one.name for one in experiment.declare_hypotheses().values()} == {"h", "primary_endpoint"}
    plan.write_text("analysis: {primary_endpoint: margin}\n")
    known = experiment.declare_hypotheses()
    assert known == read_declarations(experiment.runs_folder)
    assert describe_declaration(endpoint_declaration(known, hypotheses, analysis)) == "before the run"


def make_experiment(tmp_path: Path, more: str) -> Experiment:
    """Of one student and one hypothesis, h."""
    path = tmp_path / "x.yaml"
    path.write_text(
        'name: x\nteacher: {model: "file:t"}\nstudents: {deep: {num_layers: 2}}\nstudent: deep\n'
        "objective: {terms: {kl: {kind: forward_kl, weight: 1.0}}}\nevaluation: {tasks: [sciq]}\n"
        "hypotheses: {h: {claim: c}}\n" + more
    )
    return Experiment(load_experiment(path), root=tmp_path)
