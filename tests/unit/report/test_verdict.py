"""The answer in words: whether the teacher helped, by how much, how surely, and what is excluded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build

from distill_lit.analysis.answer import EQUIVALENT, HARMED, HELPED, MIXED, NOT_SHOWN, UNKNOWN, EndpointEffect
from distill_lit.analysis.axis_tests import AxisTest, PairTest
from distill_lit.analysis.declarations import Declaration
from distill_lit.analysis.model_groups import ModelGroup, role_words
from distill_lit.analysis.pareto import efficiency_claims, pareto_frontier
from distill_lit.analysis.score_table import MACRO_AVERAGE
from distill_lit.analysis.scores import Scores
from distill_lit.analysis.significance import Interval
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.config.report import ReportConfig
from distill_lit.report.bundle import ReportBundle, build_report_bundle
from distill_lit.report.figures.calibration import calibration_figure
from distill_lit.report.figures.long_tail import long_tail_figure
from distill_lit.report.figures.pareto import pareto_figure, with_labels
from distill_lit.report.figures.style import variant_numbers
from distill_lit.report.loss_report import loss_report_frame, loss_report_markdown, tail_answer
from distill_lit.report.loss_statement import larger_or_smaller, loss_statement
from distill_lit.report.model_card import model_card_sections
from distill_lit.report.number_format import format_points
from distill_lit.report.primary_endpoint import primary_headline, primary_outcome
from distill_lit.report.summary import finding, headline, verdict
from distill_lit.report.tables import efficiency_claim
from distill_lit.report.tables.answer import leave_one_out_table, pair_table, task_signal_table
from distill_lit.report.tables.efficiency_claim import claim_table
from distill_lit.report.tables.endpoints import endpoint_sentence, endpoint_table
from distill_lit.report.tables.footnotes import training_text_notes
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.long_tail import calibration_table, flip_table, with_adjusted_p
from distill_lit.report.tables.score_notes import ties_note
from distill_lit.report.tables.scores import score_table
from distill_lit.report.verdict import StudentVerdict, outcome, short_names, verdict_numbers
from distill_lit.report.web.page_data import page_data

FAST = AnalysisConfig(n_resamples=300)
STUDENTS = {"d24": 0.3, "d18": 0.6, "d12": 0.9, "d6": 1.2}
NONE = Interval(np.nan, np.nan, np.nan)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ReportBundle:
    folder = build(tmp_path_factory.mktemp("verdict"), documents=30, students=STUDENTS, seeds=(0, 1))
    return build_report_bundle(folder, FAST, "depths", "does it help?")


def effects(result: ReportBundle, *deltas: tuple[float, float, float, float]) -> list[StudentVerdict]:
    """The students' effects with these (delta, low, high, adjusted p), in points."""
    return [
        replace(
            effect,
            delta=Interval(d / 100, low / 100, high / 100),
            excluded_gain=high / 100,
            carried_by=("sciq",) if d == -2.9 else (),
            p=p,
            outcome=NOT_SHOWN if p > 0.05 else HELPED if d > 0 else HARMED,
        )
        for effect, (d, low, high, p) in zip(result.students, deltas, strict=False)
    ]


PUBLISHED = ((-2.9, -4.6, -1.2, 0.01), (0.2, -1.2, 1.6, 1.0), (-0.1, -1.4, 1.2, 1.0), (1.0, -0.2, 2.2, 0.9))


def test_the_first_sentence_answers_by_how_much_how_surely_and_what_is_excluded(result: ReportBundle) -> None:
    assert headline(result.scores, effects(result, *PUBLISHED)) == (
        "The teacher did not help, it harmed 1 of 4 students: against the same student trained without it, distillation "
        "changed the score by "
        "−2.9 [−4.6, −1.2] points for d24 (significant, due to sciq, p = .010) and by −0.1 to +1.0 points for d18, d12 and "
        "d6 (not significant; gains above 2.2 are excluded)."
    )
    assert (
        finding(effects(result, *PUBLISHED)) == "With the teacher −2.9 points for d24; no other difference is significant"
    )


@pytest.mark.parametrize(
    ("deltas", "found", "words"),
    [
        ([(2, 1, 3, 0.0004), (3, 1, 5, 0.02)], HELPED, "The teacher helped: against"),
        ([(2, 1, 3, 0.01), (1, -1, 3, 0.9)], HELPED, "The teacher helped 1 of 2 students: against"),
        ([(2, 1, 3, 0.01), (-2, -3, -1, 0.01)], MIXED, "The teacher helped 1 and harmed 1 of 2 students: against"),
        ([(-2, -3, -1, 0.01), (-3, -5, -1, 0.01)], HARMED, "The teacher did not help, it harmed: against"),
        ([(0.2, -4, 4.5, 1.0), (0.7, -3, 4.3, 1.0)], NOT_SHOWN, "gains above 4.5 are excluded"),
        (
            [(-2, -3, -0.1, 0.2), (1, -1, 3, 0.9)],
            NOT_SHOWN,
            "by −2.0 [−3.0, −0.1] points for d24 (not significant after correction for 2 comparisons, p = .200) and by "
            "+1.0 [−1.0, +3.0] points for d18 (not significant; gains above 3.0 are excluded).",
        ),
    ],
)
def test_every_outcome_has_its_words(
    result: ReportBundle, deltas: list[tuple[float, float, float, float]], found: str, words: str
) -> None:
    chosen = effects(result, *deltas)
    assert outcome(chosen) == found
    if len(chosen) > 1:
        assert words in headline(result.scores, chosen)
    assert "<.001" in headline(result.scores, effects(result, (2, 1, 3, 0.0004)))


def test_a_difference_that_is_excluded_both_ways_is_none(result: ReportBundle) -> None:
    chosen = [replace(effect, outcome=EQUIVALENT, margin=0.02) for effect in effects(result, (0.2, -1.2, 1.6, 1.0))]
    text = headline(result.scores, chosen)
    assert text.startswith("The teacher made no difference: against the same student trained without it, ")
    assert "+0.2 [−1.2, +1.6] points (differences of 2.0 points or more are excluded)" in text


def axis(p: float, best: tuple[str, ...] = ()) -> AxisTest:
    return AxisTest(
        "kind", "d24", "", ("kl", "tv"), ("a", "b"), (0.2, 0.3), 1.0, (1.0, 9.0), p, True, (), 0.034, 1.0, best, ()
    )


NOT_TOLD_APART = (
    "The 2 values of kind do not differ measurably (p = .430 for all at once; between two, 3.4 points would have been "
    "found with 80% power), and the teacher did not measurably help: against"
)


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (axis(0.43), NOT_TOLD_APART),
        (
            axis(0.003, ("kl",)),
            "The 2 values of kind differ (p = .003 for all at once; not surpassed: kl), and the teacher ",
        ),
        (axis(0.04), "The 2 values of kind differ (p = .040 for all at once; no single pair does), and the teacher did "),
        (axis(float("nan")), "The teacher did not measurably help: against"),
    ],
)
def test_of_one_axis_the_first_sentence_says_whether_its_values_differ(
    result: ReportBundle, test: AxisTest, words: str
) -> None:
    text = headline(result.scores, effects(result, (0.2, -1.2, 1.6, 1.0)), [test])
    assert text.startswith(words)
    both = verdict(result.scores, result.score_frame, result.students, [axis(0.43), axis(0.003, ("kl",))])
    assert both[1] == "The 2 values of kind differ (p = .003 for all at once; not surpassed: kl)."
    of_two = [axis(0.43), replace(axis(0.003, ("kl",)), student="d18")]
    each = verdict(result.scores, result.score_frame, result.students, of_two)
    assert each[0].startswith("The 2 values of kind for d24 do not differ measurably (p = .430 ")
    assert each[1] == "The 2 values of kind for d18 differ (p = .003 for all at once; not surpassed: kl)."


def test_a_significant_difference_is_checked_by_the_other_metric(result: ReportBundle) -> None:
    other = EndpointEffect("acc", ("sciq",), Interval(-0.02, -0.04, 0.001), 0.06)
    chosen = [replace(effect, other_endpoints=(other,)) for effect in effects(result, *PUBLISHED)]
    text = " ".join(verdict(result.scores, result.score_frame, chosen))
    assert "by the other metric, not corrected: −2.0 [−4.0, +0.1] points for d24 by acc." in text


def test_no_student_without_teacher_leaves_the_answer_unknown(result: ReportBundle) -> None:
    chosen = [replace(effect, delta=NONE, outcome=UNKNOWN) for effect in result.students]
    assert outcome(chosen) == UNKNOWN
    assert headline(result.scores, chosen).startswith("Whether the teacher helped is unknown:")
    assert finding(chosen) == ""


FITS_NO_BETTER = (
    "the teacher fits this text no better than the student trained without it, so little is to be learnt from it there"
)


def test_the_teachers_own_loss_on_the_text_says_who_has_little_to_learn_from_it(result: ReportBundle) -> None:
    """The student without it is below the teacher at 24 and 18 layers, above it at 12 and 6."""
    losses = (3.27, 3.74, 4.55, 5.56)
    chosen = [replace(e, teacher_loss=3.80, ce_only_loss=loss) for e, loss in zip(result.students, losses, strict=True)]
    text = " ".join(verdict(result.scores, result.score_frame, chosen))
    assert (
        "On held-out training text the teacher's own loss is 3.80 nats per token, those of the students trained without it "
        f"3.27, 3.74, 4.55 and 5.56: for d24 and d18 {FITS_NO_BETTER}." in text
    )
    two_teachers = chosen[:2] + [replace(effect, teacher_loss=2.92) for effect in chosen[2:]]
    text = " ".join(verdict(result.scores, result.score_frame, two_teachers))
    assert (
        "On held-out training text the teacher of d24 and d18 has a loss of 3.80 nats per token, those of the students "
        f"trained without it 3.27 and 3.74: {FITS_NO_BETTER}; the teacher of d12 and d6 has a loss of 2.92 "
        "nats per token, those of the students trained without it 4.55 and 5.56." in text
    )


def test_a_teacher_that_all_students_share_is_not_the_one_that_is_evaluated(result: ReportBundle) -> None:
    """Of a teacher that was corrected on the text: its own validation has the loss of the teacher as released."""
    chosen = [replace(effect, teacher_loss=2.92, ce_only_loss=3.9) for effect in result.students]
    runs = result.scores.results.runs.assign(val_teacher_nll=2.92)
    for first, whose in ((2.92, "teacher's own loss is"), (3.73, "teacher of d24, d18, d12 and d6 has a loss of")):
        runs.loc[runs.index[-1], "val_teacher_nll"] = first
        scores = replace(result.scores, results=replace(result.scores.results, runs=runs))
        text = " ".join(verdict(scores, result.score_frame, chosen))
        assert f"On held-out training text the {whose} 2.92 nats per token, that of the student" in text


def test_the_range_of_many_losses_is_one_of_numbers(result: ReportBundle) -> None:
    """As texts, 10.02 would come before 9.50."""
    losses = (9.5, 9.6, 10.02, 9.7, 9.8)
    five = [*result.students, replace(result.students[0], label="fifth")]
    chosen = [replace(e, teacher_loss=3.8, ce_only_loss=loss) for e, loss in zip(five, losses, strict=True)]
    text = " ".join(verdict(result.scores, result.score_frame, chosen))
    assert "those of the students trained without it 9.50 to 10.02" in text
    worse = [replace(one, teacher_loss=9.8) for one in [*chosen, replace(chosen[0], ce_only_loss=9.1)]]
    text = " ".join(verdict(result.scores, result.score_frame, worse))
    assert "9.10 to 10.02: for d24, d18, d6 and d24 the teacher fits this text no better" in text
    text = " ".join(verdict(result.scores, result.score_frame, [*worse, worse[-1]]))
    assert "9.10 to 10.02: for 5 students the teacher fits this text no better" in text


def test_bits_that_are_not_known_are_not_said(result: ReportBundle) -> None:
    label = result.students[0].label
    known = result.long_tail.calibration.assign(excess_bits_per_byte=0.25, cvar_bits_per_byte=1.5, ece_all=0.05)
    said = {}
    for unknown in ((), ("cvar_bits_per_byte",), ("excess_bits_per_byte", "cvar_bits_per_byte")):
        tail = replace(result.long_tail, calibration=known.assign(**dict.fromkeys(unknown, np.nan)))
        said[unknown] = loss_statement(result.scores, result.score_frame, tail, label)[1]
    assert said.pop(()).startswith(
        "The right answer costs 0.25 bits per byte more than under the teacher, in the worst tenth of documents 1.50 bits "
        "per byte more. Calibration error"
    )
    some, none = said.values()
    assert some.startswith("The right answer costs 0.25 bits per byte more than under the teacher. Calibration error")
    assert none.startswith("Calibration error")


def test_several_teachers_of_one_student_are_told_in_one_breath(result: ReportBundle) -> None:
    """One student, the same without a teacher, with three teachers, of which the last is worse on the text than it."""
    losses = (2.92, 3.25, 4.70)
    chosen = [
        replace(e, label=f"d12 ({name})", teacher_loss=loss, ce_only_loss=4.59)
        for e, loss, name in zip(result.students, losses, "abc", strict=False)
    ]
    text = " ".join(verdict(result.scores, result.score_frame, chosen))
    names = [student.name for student in chosen]
    assert (
        f"the teachers of {names[0]}, {names[1]} and {names[2]} have losses of 2.92, 3.25 and 4.70 nats per token, that of "
        f"the student trained without it 4.59: for {names[2]} {FITS_NO_BETTER}." in text
    )


def test_the_loss_of_the_teacher_stands_beside_the_students(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv")
    runs.loc[runs["role"] == "teacher", "val_ce"] = np.nan
    runs.assign(val_teacher_nll=runs["val_ce"].notna().map({True: 3.8, False: np.nan})).to_csv(
        folder / "runs.csv", index=False
    )
    found = build_report_bundle(folder, FAST, "name")
    table = score_table(found.scores, found.score_frame, "")
    place = table.columns.index("loss on the corpus, nats")
    assert [row[place].text for row in table.rows] == ["3.80", "4.50", "4.50", "4.50"]
    assert "not in these records" not in " ".join(table.footnotes)
    assert found.students[0].teacher_loss == 3.8
    assert found.students[0].ce_only_loss == pytest.approx(4.5)
    runs.to_csv(folder / "runs.csv", index=False)  # as older experiments have it
    older = build_report_bundle(folder, FAST, "name")
    notes = " ".join(score_table(older.scores, older.score_frame, "").footnotes)
    assert "The teacher's own loss on the corpus is not in these records." in notes


def test_the_loss_of_another_teacher_is_not_that_of_the_model_in_its_row(tmp_path: Path) -> None:
    """Of a uniform teacher, say, beside the scores of a model that was never asked about the text."""
    folder = build(tmp_path, documents=10, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv").assign(val_teacher=None, val_teacher_nll=np.nan)
    runs.loc[runs["role"] == "teacher", "val_ce"] = np.nan
    asked = runs["val_ce"].notna()
    runs.loc[asked, ["val_teacher_nll", "val_teacher"]] = 3.8, "uniform"
    runs.to_csv(folder / "runs.csv", index=False)
    found = build_report_bundle(folder, FAST, "name")
    table = score_table(found.scores, found.score_frame, "")
    own, theirs = (table.columns.index(name) for name in ("loss on the corpus, nats", "teacher's loss there"))
    assert [row[own].text for row in table.rows] == ["", "4.50", "4.50", "4.50"]
    assert [row[theirs].text for row in table.rows] == ["", "3.80", "3.80", "3.80"]
    notes = " ".join(table.footnotes)
    assert "KL and the teacher's loss on the corpus are of uniform, not of the model in the row teacher." in notes
    text = " ".join(verdict(found.scores, found.score_frame, found.students))
    assert "teacher of deep (uniform) has a loss of 3.80 nats per token" in text and "teacher's own loss" not in text
    # those that learn from no teacher were compared with the model itself
    alone = runs.assign(val_teacher=runs["val_teacher"].where(runs["role"] == "distilled"))
    alone.loc[asked & (runs["role"] != "distilled"), "val_teacher_nll"] = 3.7
    alone.to_csv(folder / "runs.csv", index=False)
    found = build_report_bundle(folder, FAST, "name")
    table = score_table(found.scores, found.score_frame, "")
    assert [row[own].text for row in table.rows] == ["3.70", "4.50", "4.50", "4.50"]
    words = "the corpus: of deep distilled to uniform, not of the model in the row teacher."
    assert words in " ".join(table.footnotes)


def test_no_winner_is_named_among_equals(result: ReportBundle) -> None:
    five = [*result.students, replace(result.students[0], label="fifth")]
    known = [replace(effect, retention=Interval(0.5 + i / 100, 0.4, 0.6)) for i, effect in enumerate(five)]
    equal = result.score_frame.assign(best=True)
    assert "5 distilled students retain 50 to 54% of the teacher's score above chance; none is significantly below" in (
        " ".join(verdict(result.scores, equal, [replace(e, relative_size=np.nan) for e in known]))
    )


def test_statements_are_of_the_teacher_that_was_asked_and_say_which_way(result: ReportBundle) -> None:
    """Students that may learn from other teachers are still compared with the one that is evaluated as it is."""
    scores, label = result.scores, result.students[0].label

    def stated(groups: list[ModelGroup], gain: float) -> str:
        known = result.long_tail.calibration.assign(
            coverage=0.4, coverage_gain=gain, coverage_gain_low=gain - 0.01, coverage_gain_high=gain + 0.01
        )
        tail = replace(result.long_tail, calibration=known)
        return " ".join(loss_statement(replace(scores, groups=groups), result.score_frame, tail, label))

    own = stated(scores.groups, -0.006)
    assert "of its teacher's score above chance. Of the " in own and " documents its teacher answers correctly " in own
    assert "there the two are right 0.6 points less often [1.6 less, 0.4 more] than the teacher alone." in own
    corrected = replace(scores.groups[0], role="derived", label="corrected", models=(), seeds=())
    others = stated([*scores.groups, corrected], 0.017)
    assert "of the score above chance of the teacher as released. Of the " in others
    assert " documents the teacher as released answers correctly " in others and "its teacher" not in others
    assert "right 1.7 points more often [0.7 more, 2.7 more] than the teacher alone." in others


def test_of_students_of_several_sizes_each_size_is_named(result: ReportBundle) -> None:
    sizes = [replace(one, relative_size=share) for one, share in zip(result.students, (0.84, 0.84, 0.68), strict=False)]
    text = " ".join(verdict(result.scores, result.score_frame, sizes))
    assert "score above chance, with 84%, 84% and 68% of its parameters." in text
    text = " ".join(verdict(result.scores, result.score_frame, sizes[:2]))
    assert "score above chance, with 84% of its parameters." in text


def test_the_page_calls_the_line_of_quality_as_the_figure_does(result: ReportBundle) -> None:
    frame = pareto_frontier(result.scores, "parameters")
    assert page_data(result, {"parameters": frame})["quality_label"] == "90% of the teacher"
    made = page_data(result, {"parameters": frame.assign(role=frame["role"].replace("untrained", "derived"))})
    assert made["quality_label"] == "90% of the teacher as released"


def test_many_students_that_the_correction_made_insignificant_are_not_the_others(result: ReportBundle) -> None:
    near, far = effects(result, (2, 1, 3, 0.2), (1, -1, 3, 0.9))
    text = headline(result.scores, [*[near] * 5, *[far] * 6])
    assert "by +2.0 points for 5 of 11 students (not significant after correction for 11 comparisons, p ≥ .200)" in text
    assert "and by +1.0 points for the other 6 distilled students (not significant; gains above 3.0" in text


def test_a_share_of_a_teacher_near_chance_is_a_dash(result: ReportBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    claims = efficiency_claims(result.scores).assign(retention=np.nan, raw_retention=0.756)
    monkeypatch.setattr(efficiency_claim, "efficiency_claims", lambda _: claims)
    assert {tuple(cell.text for cell in row[1:3]) for row in claim_table(result.scores).rows} == {("75.6%", "—")}


def test_the_verdict_for_other_programs_has_no_nan(result: ReportBundle) -> None:
    numbers = verdict_numbers([replace(result.students[0], retention=NONE)])
    assert numbers["students"][0]["retention"] == {"value": None, "low": None, "high": None}
    assert numbers["students"][0]["delta_without_teacher"]["value"] == pytest.approx(
        result.students[0].delta.value, rel=1e-5
    )


def test_larger_and_smaller_losses_in_words() -> None:
    assert larger_or_smaller(-0.055, -0.122, 0.017) == "5.5 points larger [12.2 larger, 1.7 smaller]"
    assert larger_or_smaller(0.02, 0.01, 0.03) == "2.0 points smaller [1.0 smaller, 3.0 smaller]"


def scores_with_plan(folder: Path, plan: str) -> Scores:
    build(folder, documents=10, students={"deep": 0.8})
    (folder / "plan.yaml").write_text(plan)
    return build_report_bundle(folder, FAST, "name").scores


def test_the_training_text_is_named_with_the_tasks_it_is_the_training_split_of(tmp_path: Path) -> None:
    plan = """data:
  corpora:
    piqa: {dataset: baber/piqa, name: default, split: train}
    arc_easy: {dataset: allenai/ai2_arc, name: ARC-Easy, split: validation}
    answers: {split: train, generated: {model: teacher}}
variants:
  human: {data.corpora: {answers: null}}
"""
    (text,) = training_text_notes(scores_with_plan(tmp_path, plan))
    assert text.startswith(
        "Training text: piqa (baber/piqa, train), arc_easy (allenai/ai2_arc ARC-Easy, validation) and answers "
    )
    assert "Of 4 tasks it holds the training split of 1 (not of arc_easy, hellaswag and sciq)" in text
    assert text.endswith("Other text for human: see plan.yaml.")
    assert training_text_notes(scores_with_plan(tmp_path, "data: [")) == []


def test_ties_are_those_of_the_tasks_own_metric(tmp_path: Path) -> None:
    """Ties of likelihoods count where the metric is acc, those per character where it is acc_norm."""
    folder = build(tmp_path, documents=5, students={}, tasks={"piqa": (2, "acc_norm"), "sciq": (4, "acc")})
    scores = build_report_bundle(folder, FAST, "name").scores
    (frame,) = scores.results.records.values()
    said = {}
    for ties in ((False, False), (True, False), (False, True)):
        frame["tie"], frame["tie_norm"] = ties
        frame.loc[("sciq", slice(None)), "tie_norm"] = False
        said[ties] = ties_note(scores)
    assert said[False, False] == ""
    assert all(text.startswith("In 5 of 10 answers among choices") for ties, text in said.items() if any(ties))


def test_students_are_named_as_short_as_tells_them_apart() -> None:
    labels: dict[str, str] = {}

    def names(*pairs: tuple[str, str]) -> list[str]:
        groups = [ModelGroup("distilled", s, _point(v), ("m",), (0,), 1, f"{s} {v}", variant=v) for s, v in pairs]
        return list(short_names(groups, ReportConfig(labels=labels)).values())

    assert names(("deep", ""), ("shallow", "")) == ["deep", "shallow"]
    assert names(("deep", "kind=kl"), ("deep", "kind=tv")) == ["kl", "tv"]
    assert names(("deep", "kind=kl"), ("shallow", "kind=tv")) == ["deep (kl)", "shallow (tv)"]
    assert names(("deep", "kind=kl, weight=1"), ("deep", "kind=kl, weight=2")) == ["kind=kl, weight=1", "kind=kl, weight=2"]
    assert names(("deep", "kind=kl"), ("shallow", "kind=kl")) == ["deep", "shallow"]
    labels |= {"deep": "18 layers", "kl": "KL=forward, exact"}
    assert names(("deep", "kind=kl"), ("deep", "kind=tv")) == ["KL=forward, exact", "tv"]
    assert names(("deep", ""), ("shallow", "")) == ["18 layers", "shallow"]


def _point(variant: str) -> tuple[tuple[str, str], ...]:
    pairs = [part.partition("=") for part in variant.split(", ") if part]
    return tuple((f"grid.objective.{key}", value) for key, _, value in pairs)


def test_labels_reach_sentences_tables_and_figures(tmp_path: Path) -> None:
    labels = {"deep": "18 layers", "shallow": "6 layers", "sciq": "SciQ", "ce_only": "alone", "teacher": "Guru",
              "distilled": "taught"}  # fmt: skip
    folder = build(tmp_path, documents=40, students={"deep": 0.8, "shallow": 1.4}, seeds=(0, 1))
    shown = build_report_bundle(folder, FAST, "labels", display=ReportConfig(labels=labels))
    scores, tail = shown.scores, shown.long_tail
    tables = [score_table(scores, shown.score_frame, ""), flip_table(scores, tail), calibration_table(scores, tail),
              task_signal_table(scores), leave_one_out_table(scores, shown.answer), cost_table(scores)]  # fmt: skip
    words = [shown.headline, *shown.verdict, loss_report_markdown(scores, tail, "x", shown.loss_statements, False)]
    words += ["\n".join(table.footnotes) for table in tables]
    words += [cell.text for table in tables for row in table.rows for cell in row]
    for name in ("deep", "shallow", "sciq"):
        assert not [text for text in words if name in text]
    assert {"18 layers taught", "6 layers alone", "Guru", "SciQ"} <= set(words)
    assert "points for 18 layers" in shown.headline or "for 18 layers and 6 layers" in shown.headline
    legends = [text.get_text() for figure in (calibration_figure(scores), long_tail_figure(tail, "", "alone"))
               for legend in figure.legends for text in legend.get_texts()]  # fmt: skip
    assert {"Guru", "18 layers taught", "6 layers taught"} <= set(legends)
    frame = with_labels(pareto_frontier(scores, "parameters"), ReportConfig(labels=labels))
    assert set(frame["student"]) == {"", "18 layers", "6 layers"} and "teacher" not in set(frame["model"])
    named = variant_numbers(scores.groups), "", role_words(ReportConfig(labels=labels))
    figure = pareto_figure({"parameters": frame}, 0.9, 0.95, "", *named)
    assert {"alone", "taught"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_values_of_an_axis_go_by_their_labels(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=40, students={"deep": 0.8, "flat": 0.8}, seeds=(0, 1))
    runs = pd.read_csv(folder / "runs.csv")
    values = runs["student"].map({"deep": "kl", "flat": "tv"}).where(runs["role"] == "distilled")
    runs.assign(**{"student": runs["student"].replace("flat", "deep"), "grid.objective.terms.kl.kind": values}).to_csv(
        folder / "runs.csv", index=False
    )
    labels = {"objective.terms.kl.kind": "Divergence", "kind=tv": "total variation", "kl": "KL"}
    shown = build_report_bundle(folder, FAST, "labels", display=ReportConfig(labels=labels))
    assert shown.headline.startswith(("The 2 values of Divergence ", "The teacher"))
    (test,) = shown.answer.axes
    assert (test.axis, test.values) == ("Divergence", ("KL", "total variation"))
    assert {student.name for student in shown.students} == {"KL", "total variation"}


def test_the_example_of_a_frequency_is_a_word_that_is_counted(result: ReportBundle) -> None:
    words = result.scores.results.word_counts
    most = max(words, key=lambda word: words[word])
    zipf = np.log10(words[most] / result.scores.results.corpus_words * 1e9)
    text = loss_report_markdown(result.scores, result.long_tail, "x", {}, False)
    assert f'the most frequent word that is counted is "{most}" ({zipf:.1f})' in text
    assert "of which each student read 200k tokens" in text
    runs = result.scores.results.runs
    longer = runs.assign(training_tokens=runs["training_tokens"].mask(runs["student"] == "d24", np.nan))
    longer.loc[longer["student"] == "d18", "training_tokens"] = 4e5
    others = replace(result.scores, results=replace(result.scores.results, runs=longer, word_counts={}))
    text = loss_report_markdown(others, result.long_tail, "x", {}, False)
    assert "Flips compare the answer of the first seed (fewer than 3 seeds)." in text
    third = [replace(group, models=(*group.models, "x")) if group.label == "d24 distilled" else group
             for group in result.scores.groups]  # fmt: skip
    some = loss_report_markdown(replace(others, groups=third), result.long_tail, "x", {}, False)
    assert "Flips compare the modal answer over seeds, or the answer of the first seed (fewer than 3 seeds)." in some
    assert "of which students read 200k to 400k tokens; none of the words that tasks ask about is in it." in text


def test_a_model_card_tells_the_shots_of_a_benchmark_whose_tasks_have_several_numbers(result: ReportBundle) -> None:
    frame = result.score_frame
    shots = frame["num_fewshot"].astype(object).mask(frame["task"] == "sciq", "0 / 5")
    card = model_card_sections(replace(result, score_frame=frame.assign(num_fewshot=shots)))["d24-distilled-0"]
    assert "| sciq | acc, 0 / 5-shot | 30 |" in card
    assert "| piqa | acc_norm, 0-shot | 30 |" in card


def test_the_csv_of_the_long_tail_has_calibration_and_slices(result: ReportBundle) -> None:
    slices = {"d24 distilled": pd.DataFrame([{"slice": "rare", "rule": {}, "confirmed": True}])}
    frame = loss_report_frame(replace(result.long_tail, slices=slices))
    rows = frame[frame["table"] == "calibration"].set_index("model")
    known = result.long_tail.calibration.set_index("model")
    for name in ("ece_all", "brier_all", "coverage", "cvar_bits_per_byte"):
        assert rows.loc["d24 distilled", name] == pytest.approx(known.loc["d24 distilled", name], nan_ok=True)
    assert frame.loc[frame["table"] == "slice", "slice"].tolist() == ["rare"]


def test_gains_that_are_more_than_there_is_are_not_excluded(result: ReportBundle) -> None:
    few = headline(result.scores, effects(result, (0.0, -333, 333, 1.0)))
    assert few.endswith("(not significant; there are too few documents to exclude any gain).")
    assert finding(effects(result, (0.0, -333, 333, 1.0))) == (
        "The teacher adds nothing measurable (there are too few documents to exclude any gain)"
    )
    assert finding(effects(result, (0.0, -2, 2.1, 1.0))).endswith("(gains above 2.1 points are excluded)")
    assert finding(effects(result, (0.0, -2, 2.1, 1.0)), "bits per byte") == (
        "By score above chance (declared: bits per byte), the teacher adds nothing measurable (gains above 2.1 points are "
        "excluded)"
    )
    below = [replace(student, excluded_gain=-0.001) for student in effects(result, (-2.0, -4.1, 0.1, 0.06))]
    assert headline(result.scores, below).endswith("(not significant; any gain is excluded).")


def test_losses_per_token_of_two_vocabularies_are_not_compared(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10, students={"deep": 0.8})
    runs = pd.read_csv(folder / "runs.csv").assign(val_kl=np.nan, val_teacher_nll=3.8)
    runs.loc[runs["role"] == "teacher", "val_ce"] = np.nan
    runs.to_csv(folder / "runs.csv", index=False)
    found = build_report_bundle(folder, FAST, "name")
    table = score_table(found.scores, found.score_frame, "")
    assert table.rows[0][table.columns.index("loss on the corpus, nats")].text == ""
    assert "the teacher's has another" in " ".join(table.footnotes)
    assert "held-out" not in " ".join(found.verdict)


def test_a_teacher_that_was_not_asked_has_no_other_vocabulary(tmp_path: Path) -> None:
    folder = build(tmp_path, documents=10, students={"deep": 0.8})
    pd.read_csv(folder / "runs.csv").assign(val_kl=np.nan).to_csv(folder / "runs.csv", index=False)
    said = {}
    for source in ("none", "online"):
        (folder / "plan.yaml").write_text(f"teacher: {{source: {source}}}\n")
        found = build_report_bundle(folder, FAST, "name")
        said[source] = score_table(found.scores, found.score_frame, "").footnotes[-1]
    reason = ": no teacher is asked in training (source: none), so there is no KL to it either."
    assert said["none"] == f"The teacher's own loss on the corpus is not in these records{reason}"
    assert said["online"] == "The teacher's own loss on the corpus is not in these records."


def test_a_title_does_not_hide_what_only_the_correction_made_insignificant(result: ReportBundle) -> None:
    chosen = effects(result, (-2.9, -4.9, -0.9, 0.068), (0.2, -0.9, 1.4, 1.0), (-0.1, -1.2, 0.9, 1.0), (1.0, 0.1, 2.0, 0.1))
    assert finding(chosen) == (
        "With the teacher −2.9 points for d24 and +1.0 points for d6, not significant after correction for 4 comparisons"
    )


def test_every_task_is_left_out_once(result: ReportBundle) -> None:
    """Δ of the average without a task is the mean of the differences above chance on the others."""
    table = leave_one_out_table(result.scores, result.answer)
    assert len(table.headings_before) == len(STUDENTS)
    scores, effect = result.scores, result.answer.effects[0]
    first, second = scores.group_index(effect.model), scores.group_index(effect.baseline)
    difference = scores.centered[:, first] - scores.centered[:, second]
    rows = {row[0].text: row for row in table.rows[: len(scores.tasks)]}
    for t, task in enumerate(scores.tasks):
        expected = format_points(np.delete(difference, t).mean(), signed=True)
        assert rows[task][2].text.startswith(f"{expected} ["), task


def test_pairs_and_signals_by_hand(result: ReportBundle) -> None:
    pair = PairTest("kl", "tv", Interval(0.01, -0.02, 0.04), 0.2, 0.6)
    table = pair_table(result.scores, replace(axis(0.43), pairs=(pair,), left_out=("odd",)))
    assert [cell.text for cell in table.rows[0]] == ["kl less tv", "+1.0 [−2.0, +4.0]", ".200", ".600"]
    assert "Left out, for they have other seeds: odd." in table.footnotes[0]
    signals = {row[0].text: row for row in task_signal_table(result.scores).rows}
    raw = result.scores.raw[result.scores.tasks.index("piqa")]
    assert signals["piqa"][4].text == format_points(raw.std(ddof=1))
    assert signals["piqa"][2].text == "50.0"


def test_a_declared_endpoint_answers_first(result: ReportBundle) -> None:
    """Bits per byte: less is better, so that a significant fall is help."""
    frame = result.endpoint_frame
    mine = (frame["endpoint"] == "bits_per_byte") & (frame["role"] == "distilled") & (frame["task"] == MACRO_AVERAGE)
    frame = frame.assign(is_primary=mine)
    numbers = ["ce_only_delta", "ce_only_delta_low", "ce_only_delta_high", "ce_only_p_adjusted"]
    frame.loc[mine, numbers] = [
        [-0.02, -0.03, -0.01, 0.01],
        [0.01, -0.01, 0.03, 0.9],
        [0.0, -0.1, 0.1, 1],
        [0.0, -0.1, 0.1, 1],
    ]
    declared = replace(result.scores, analysis=replace(FAST, primary_endpoint="bits_per_byte"))
    text = primary_headline(declared, frame, result.students)
    assert text.startswith(
        "By bits per byte (less is better), the primary endpoint (when it was declared is not on record), the teacher "
        "helped 1 of 4 students: against the same student trained without it, −0.020 [−0.030, −0.010] for d24 "
        "(significant, p = .010), +0.010 [−0.010, +0.030] for "
    )
    worse = frame.assign(ce_only_delta=0.02, ce_only_p_adjusted=0.01)
    for runs_done, when in ((0, "before the run"), (2, "after 2 of 6 runs")):
        found = primary_headline(declared, worse, result.students, Declaration("e", "2026-01-01", runs_done, 6))
        assert found.startswith(
            f"By bits per byte (less is better), declared {when}, the teacher did not help, it harmed: "
        )
    assert primary_headline(result.scores, frame, result.students) == ""  # accuracy is declared
    assert primary_outcome(declared, frame, result.students) == HELPED
    assert primary_outcome(declared, worse, result.students) == HARMED
    assert primary_outcome(declared, frame.assign(ce_only_p_adjusted=0.9), result.students) == NOT_SHOWN
    assert primary_outcome(declared, frame.assign(is_primary=False), result.students) == UNKNOWN
    assert primary_outcome(result.scores, worse, result.students) == outcome(result.students)
    said = endpoint_sentence(result.scores, frame.assign(is_primary=frame["endpoint"] == "accuracy"))
    assert said.startswith("Other endpoints (significant after Holm, of 4 students): ")
    assert said.endswith("bits per byte 1 better.")
    alone = frame[frame["model"] == result.students[0].label].assign(is_primary=False)
    assert endpoint_sentence(result.scores, alone).startswith("Other endpoints (significant after Holm, of 1 student): ")
    table = endpoint_table(result.scores, frame)
    assert table.columns[:3] == ["model", "bits per byte (less is better)", "above chance, points"]
    assert table.rows[0][1].text == "−0.020 [−0.030, −0.010]‡"
    assert [row[0].text for row in table.rows] == [student.label for student in result.students]


def tail_of(result: ReportBundle, **columns: list[float]) -> str:
    """The answer of the long tail where rare answers of four students have these numbers, and rare questions are undecided;
    p values as adjusted."""
    rows = []
    for axis_name in ("rarity_question", "rarity_answer"):
        for place, student in enumerate(result.students):
            known = {"tail_loss": -0.05, "tail_loss_low": -0.2, "tail_loss_high": 0.1, "student_change": -0.05}
            known |= {"tail_loss_p_adjusted": 0.9}
            known |= {"student_change_p_adjusted": 0.9, "teacher_change": 0.07, "excess": 0.0, "excess_p_adjusted": 0.9}
            changes = {name: values[place] for name, values in columns.items()}
            rows.append({"model": student.label, "axis": axis_name} | known | (changes if "answer" in axis_name else {}))
    return tail_answer(result.scores, replace(result.long_tail, tail_contrasts=pd.DataFrame(rows)))


UNDECIDED_QUESTIONS = (
    " Whether rare questions lose more is undecided (an additional loss above 20.0 points is excluded for every student)."
)
LOSSES = {"tail_loss": [-0.144, -0.266, -0.281, -0.02], "tail_loss_p_adjusted": [0.01, 0.001, 0.001, 0.9]}
LOSE_MORE = (
    "14.4 to 28.1 points more on the rarest fifth than on the most common, significantly for 3 of 4 students; their own "
)


def test_the_long_tail_names_what_students_change_by_themselves(result: ReportBundle) -> None:
    """A loss beside a teacher that is better on rare words is not yet a student that is worse there."""
    own = {"student_change": [-0.074, -0.196, -0.212, 0.05], "student_change_p_adjusted": [0.2, 0.001, 0.001, 0.9]}
    assert tail_of(result, **LOSSES, **own) == (
        f"Rare answers lose more: {LOSE_MORE}scores change by −21.2 to −7.4 (significant for 2), the teacher's by +7.0; no "
        f"more loss is shown than that of the student trained without the teacher.{UNDECIDED_QUESTIONS}"
    )
    own["student_change_p_adjusted"] = [0.2, 0.3, 0.3, 0.9]
    assert tail_of(result, **LOSSES, **own).startswith(
        f"Rare answers lose more beside the teacher: {LOSE_MORE}scores change by −21.2 to −7.4 (not significant), the "
    )


def test_an_undecided_long_tail_says_what_is_excluded_and_whether_the_correction_left_it_so(result: ReportBundle) -> None:
    alone = tail_of(result, tail_loss_high=[0.1, 0.1, 0.1, -0.01])
    assert alone.startswith(
        "Whether rare answers lose more is undecided after correction (an additional loss above 20.0 points is excluded "
    )
    few = tail_of(result, tail_loss_low=[-0.2, -0.2, -1.04, -0.2])
    assert few.startswith(
        "Whether rare answers lose more is undecided (there are too few documents to exclude any additional loss). Whether"
    )


def test_only_a_negative_excess_is_a_loss_of_the_distillation(result: ReportBundle) -> None:
    """The third student loses significantly less on rare answers than the same without teacher, the fourth is not counted:
    its rare answers do not lose more."""
    surely = {"excess_p_adjusted": [0.9, 0.01, 0.01, 0.01]}
    one = tail_of(result, **LOSSES, **surely, excess=[-0.1, -0.1, 0.1, -0.1])
    assert "; in 1 more and in 1 less than the student trained without the teacher loses. Whether" in one
    less = tail_of(result, **LOSSES, **surely, excess=[0.1, 0.1, 0.1, 0.1])
    assert "; in 2 less than the student trained without the teacher loses. Whether" in less
    gain = tail_of(result, tail_loss=[0.1] * 4, tail_loss_p_adjusted=[0.01] * 4)
    assert gain.startswith("Rare answers lose less in 4 of 4 students. ")


def test_the_axis_on_which_students_are_worse_themselves_comes_first(result: ReportBundle) -> None:
    contrasts = with_adjusted_p(result.long_tail.tail_contrasts)
    worse = {"tail_loss": -0.2, "tail_loss_p_adjusted": 0.01, "student_change": -0.2, "teacher_change": 0.05}
    first = {}
    for surer in ("rarity_question", "rarity_answer"):
        rows = contrasts.assign(**worse, student_change_p_adjusted=np.where(contrasts["axis"] == surer, 0.01, 0.9))
        first[surer] = tail_answer(result.scores, replace(result.long_tail, tail_contrasts=rows), 1)[:25]
    assert first == {"rarity_question": "Rare questions lose more:", "rarity_answer": "Rare answers lose more: 2"}
