"""Did the teacher help: differences, exclusions, tasks that carry them, other endpoints, axes, retention, worst groups."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build, copy_model, edit_model

from distill_lit.analysis.answer import EQUIVALENT, HARMED, HELPED, Answer, answer
from distill_lit.analysis.axis_tests import axis_tests
from distill_lit.analysis.equivalence import exclusion
from distill_lit.analysis.pareto import efficiency_claims
from distill_lit.analysis.results import load_results
from distill_lit.analysis.retention import fieller, non_inferiority, retention
from distill_lit.analysis.score_table import MACRO_AVERAGE, score_frame
from distill_lit.analysis.scores import Scores, compute_scores, endpoint_scores, macro_difference
from distill_lit.config.evaluation import AnalysisConfig

FAST = AnalysisConfig(n_resamples=200)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """Three seeds of a student that its teacher helps: distilled it has more ability than trained without."""
    folder = build(tmp_path_factory.mktemp("answer"), seeds=(0, 1, 2), students={"deep": 0.5}, tail_logit_loss=-0.6)
    return compute_scores(load_results(folder), FAST)


@pytest.fixture(scope="module")
def found(scores: Scores) -> Answer:
    return answer(scores, score_frame(scores))


def test_the_difference_is_the_mean_over_seeds_paired_with_the_same_student(scores: Scores, found: Answer) -> None:
    (effect,) = found.effects
    records = scores.results.records
    gaps = []
    for task, chance in (("arc_easy", 0.25), ("hellaswag", 0.25), ("piqa", 0.5), ("sciq", 0.25)):
        column = "correct" if task == "sciq" else "correct_norm"
        one, two = (np.mean([records[f"deep-{role}-{s}"].loc[task, column].mean() for s in range(3)])
                    for role in ("distilled", "ce_only"))  # fmt: skip
        gaps.append((one - two) / (1 - chance))
    assert effect.difference.value == pytest.approx(np.mean(gaps))
    assert (effect.model, effect.baseline) == ("deep distilled", "deep without teacher")
    assert effect.covers_seeds and effect.num_seeds == 3
    assert effect.outcome == HELPED
    assert effect.p == effect.p_adjusted  # the only declared comparison


def test_what_is_excluded_by_hand(scores: Scores, found: Answer) -> None:
    (effect,) = found.effects
    estimate = scores.macro_estimate(scores.group_index(effect.model), scores.group_index(effect.baseline))
    reach = estimate.critical(0.975) * estimate.standard_error
    assert (-effect.excludes.loss, effect.excludes.gain) == pytest.approx(effect.difference[1:])  # as the interval shown
    assert effect.excludes.gain == pytest.approx(estimate.value + reach)
    assert effect.excludes.loss == pytest.approx(reach - estimate.value)
    wide = exclusion(estimate, effect.excludes.gain * 1.0001)
    assert wide.is_equivalent and wide.p == pytest.approx(0.05, abs=0.001)
    assert not exclusion(estimate, effect.excludes.gain * 0.98).is_equivalent


def test_leaving_out_a_task_is_the_average_of_the_others(scores: Scores, found: Answer) -> None:
    (effect,) = found.effects
    values = {task.task: (task.difference.value, task.without.value) for task in effect.tasks}
    rooms = {"arc_easy": 0.75, "hellaswag": 0.75, "piqa": 0.5, "sciq": 0.75}
    for left_out, (_, without) in values.items():
        others = [values[name][0] / room for name, room in rooms.items() if name != left_out]
        assert without == pytest.approx(np.mean(others))


def test_a_difference_that_hangs_on_one_task_says_so(tmp_path: Path) -> None:
    folder = build(tmp_path, seeds=(0, 1, 2), students={"deep": 0.6}, documents=100, tail_logit_loss=0.0)
    copies = [f"deep-distilled-{seed}" for seed in range(3)]
    for seed, model in enumerate(copies):
        copy_model(folder, f"deep-ce_only-{seed}", model)
        edit_model(folder, model, lambda f: f.assign(correct=f["correct"].mask(f["task"] == "sciq", 0)))
    scores = compute_scores(load_results(folder), FAST)
    (effect,) = answer(scores, score_frame(scores)).effects
    assert effect.outcome == HARMED
    assert effect.carried_by == ("sciq",)
    rest = next(task for task in effect.tasks if task.task == "sciq")
    assert rest.without.low < 0 < rest.without.high  # the same answers elsewhere: near 0, and still not certain to be
    assert effect.tasks[0].without.value < 0


def test_equal_students_are_equivalent_only_where_documents_say_so(tmp_path: Path) -> None:
    folder = build(tmp_path, students={"deep": 0.6}, documents=60)
    copy_model(folder, "deep-ce_only-0", "deep-distilled-0")
    scores = compute_scores(load_results(folder), FAST)
    (effect,) = answer(scores, score_frame(scores)).effects
    assert effect.difference.value == 0
    assert effect.difference.low < 0 < effect.difference.high
    assert effect.p == 1
    wide = compute_scores(load_results(folder), AnalysisConfig(n_resamples=200, equivalence_margin=0.2))
    assert answer(wide, score_frame(wide)).effects[0].outcome == EQUIVALENT


def test_the_other_metric_of_each_task_over_the_same_documents(scores: Scores, found: Answer) -> None:
    (effect,) = found.effects
    (other,) = effect.other_endpoints
    assert set(other.tasks) == {"arc_easy", "hellaswag", "piqa", "sciq"}
    records, rooms = scores.results.records, {"arc_easy": 0.75, "hellaswag": 0.75, "piqa": 0.5, "sciq": 0.75}
    gaps = []
    for task, room in rooms.items():
        column = "correct_norm" if task == "sciq" else "correct"
        one, two = (np.mean([records[f"deep-{role}-{s}"].loc[task, column].mean() for s in range(3)])
                    for role in ("distilled", "ce_only"))  # fmt: skip
        gaps.append((one - two) / room)
    assert other.difference.value == pytest.approx(np.mean(gaps))


def test_any_score_of_a_document_goes_through_the_same_tests(scores: Scores) -> None:
    models = scores.responses.models
    values = {}
    for task in scores.responses.tasks:
        columns = [scores.results.records[model].loc[task.index, "margin_norm"].to_numpy(float) for model in models]
        values[task.task] = np.column_stack(columns)
    values["piqa"][:5] = np.nan  # documents without a value are left out, for all models
    margins = endpoint_scores(scores, values, "margin_norm")
    first, second = scores.group_index("deep distilled"), scores.group_index("deep without teacher")
    per_task = [values[name][:, margins.model_columns(first)].mean(axis=1) for name in values]
    assert margins.macro(first) == pytest.approx(np.mean([np.nanmean(one) for one in per_task]))
    assert macro_difference(margins, first, second)[1] < 0.05
    assert margins.responses.tasks[2].n == 145
    frame = score_frame(margins)
    assert frame["retention"].isna().all()  # a share of the teacher's margin is no retention
    assert frame.loc[frame["task"] == MACRO_AVERAGE, "ce_only_p_adjusted"].notna().sum() == 1


# axes


def test_two_values_of_an_axis_are_one_comparison(simulation: ModuleType) -> None:
    rng = np.random.default_rng(5)
    answers = [(rng.random((80, 6)) < np.repeat([0.6, 0.5], 3)).astype(float) for _ in range(2)]
    scores = simulation.simulated_scores(answers, [("distilled", "a", 3), ("distilled", "b", 3)])
    (test,) = axis_tests(scores)
    assert (test.axis, test.values, test.df) == ("kind", ("a", "b"), pytest.approx(1))
    assert test.p == pytest.approx(scores.macro_estimate(0, 1).p(), rel=1e-6)
    assert test.pairs[0].p == pytest.approx(test.p, rel=1e-6)
    assert test.covers_seeds


def test_values_without_the_seeds_of_the_others_are_left_out(simulation: ModuleType) -> None:
    answers = [(np.random.default_rng(1).random((60, 7)) < 0.5).astype(float)]
    roles = [("distilled", "a", 3), ("distilled", "b", 3), ("distilled", "c", 1)]
    (test,) = axis_tests(simulation.simulated_scores(answers, roles))
    assert test.values == ("a", "b")
    assert test.left_out == ("distilledc",)


# retention


def test_fieller_by_hand() -> None:
    # (3 − 4 R)² ≤ 4 (.04 + .01 R²) with no covariance: 15.96 R² − 24 R + 8.84 ≤ 0
    roots = (24 + np.array([-1, 1]) * (24**2 - 4 * 15.96 * 8.84) ** 0.5) / (2 * 15.96)
    assert fieller(3, 4, 0.04, 0.01, 0.0, 2.0) == pytest.approx((0.75, *roots))
    assert np.isnan(fieller(3, 0.1, 0.04, 0.01, 0.0, 2.0).low)  # a denominator that may be 0


def test_retention_is_given_by_one_rule(scores: Scores, tmp_path: Path) -> None:
    frame, claims = score_frame(scores), efficiency_claims(scores)
    row = frame[(frame["model"] == "deep distilled") & (frame["task"] == MACRO_AVERAGE)].iloc[0]
    claim = claims[claims["model"] == "deep distilled"].iloc[0]
    here = retention(scores, scores.group_index("deep distilled"))
    for table in (row, claim):
        assert (table["retention"], table["retention_low"], table["retention_high"]) == pytest.approx(tuple(here))
    folder = build(tmp_path, documents=40, students={"deep": 0.6}, tasks={"arc_easy": (4, "acc_norm")})

    def near_chance(frame: pd.DataFrame) -> pd.DataFrame:
        order = frame.groupby("task").cumcount()
        return frame.assign(correct=(order % 5 < 2).astype(int), correct_norm=(order % 5 < 2).astype(int))

    edit_model(folder, "teacher", near_chance)
    near = compute_scores(load_results(folder), FAST)
    frame, claims = score_frame(near), efficiency_claims(near)
    assert frame.loc[frame["task"] == MACRO_AVERAGE, "score"].notna().all()  # above chance, but hardly
    assert frame["retention"].isna().all()
    assert claims["retention"].isna().all()


def test_keeping_a_share_is_a_one_sided_test(scores: Scores) -> None:
    g = scores.group_index("deep distilled")
    kept = non_inferiority(scores, g, 0.5)
    assert scores.teacher is not None
    assert kept.margin.value == pytest.approx(scores.macro(g) - 0.5 * scores.macro(scores.teacher))
    assert (kept.p < 0.025) == (kept.margin.low > 0)
    assert non_inferiority(scores, g, retention(scores, g).value).p == pytest.approx(0.5, abs=1e-6)


def test_bold_only_where_somebody_is_excluded(tmp_path: Path) -> None:
    equal = compute_scores(load_results(build(tmp_path, documents=30, students={"deep": 0.8}, tail_logit_loss=0.0)), FAST)
    frame = score_frame(equal)
    for _, rows in frame[frame["role"].isin(["untrained", "ce_only", "distilled"])].groupby("task"):
        assert rows["best"].sum() in (0, 1, 2)  # never all
