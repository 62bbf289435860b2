"""An experiment read and analyzed once, from which every table, figure and page is drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from distill_lit.analysis.answer import Answer, answer
from distill_lit.analysis.declarations import (
    describe_declaration,
    endpoint_declaration,
    hypothesis_digest,
    read_declarations,
)
from distill_lit.analysis.endpoints import ACCURACY, endpoint_frame
from distill_lit.analysis.generation import WrittenAnswers, generation_frame, written_answers
from distill_lit.analysis.hypotheses import run_hypothesis_tests
from distill_lit.analysis.long_tail import LongTail, analyze_long_tail
from distill_lit.analysis.pareto import cost_axes, pareto_frontier
from distill_lit.analysis.probe_long_tail import ProbeLongTail, probe_long_tail
from distill_lit.analysis.results import load_results
from distill_lit.analysis.scaling_law import ScalingLaw, fit_scaling_law, scaling_data
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import Scores, compute_scores
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.config.hypotheses import HypothesisConfig
from distill_lit.config.report import ReportConfig
from distill_lit.config.schema import ExperimentConfig
from distill_lit.report.formats.table import Table
from distill_lit.report.loss_statement import loss_statement
from distill_lit.report.primary_endpoint import primary_headline
from distill_lit.report.summary import headline, verdict
from distill_lit.report.tables.hypotheses import DeclaredTest, hypothesis_sentence, hypothesis_table
from distill_lit.report.tables.probes import HeldOutText, held_out_text
from distill_lit.report.tables.scores import with_training_flops
from distill_lit.report.verdict import StudentVerdict, student_verdicts


@dataclass(frozen=True)
class ReportBundle:
    """What there is to draw."""

    name: str
    question: str
    scores: Scores
    score_frame: pd.DataFrame
    long_tail: LongTail
    answer: Answer
    students: list[StudentVerdict]
    headline: str  # the answer in a sentence
    verdict: list[str]  # what else is asked at once, a sentence each
    hypotheses: list[DeclaredTest]

    @property
    def title(self) -> str:
        """Name and question in one line."""
        return f"{self.name}: {self.question}" if self.question else self.name

    @cached_property
    def endpoint_frame(self) -> pd.DataFrame:
        """All endpoints of all models, the declared one first."""
        return endpoint_frame(self.scores, self.score_frame)

    @cached_property
    def frontiers(self) -> dict[str, pd.DataFrame]:
        """{cost axis: its frontier}; of parameters where no model has any cost."""
        return {axis: pareto_frontier(self.scores, axis) for axis in cost_axes(self.scores) or ["parameters"]}

    @cached_property
    def probe_long_tail(self) -> ProbeLongTail:
        """Bits per byte of the probes by the rarity of words."""
        return probe_long_tail(self.scores)

    @cached_property
    def held_out_text(self) -> HeldOutText | None:
        """Tables of the probes; None without probes."""
        return held_out_text(self.scores, self.endpoint_frame, self.probe_long_tail)

    @cached_property
    def scaling_data(self) -> pd.DataFrame:
        """Students by size and tokens, where that is what the grid is over."""
        return scaling_data(self.scores.results.runs, self.name)

    @cached_property
    def scaling_law(self) -> ScalingLaw | None:
        """The law through them; None where they are too few, or have one teacher."""
        return fit_scaling_law(self.scaling_data)

    @cached_property
    def written_answers(self) -> list[WrittenAnswers]:
        """What models wrote to generative tasks."""
        return written_answers(self.scores)

    @cached_property
    def generation_frame(self) -> pd.DataFrame:
        """pass@k, length and variety of `written_answers`."""
        return generation_frame(self.scores, self.written_answers)

    @cached_property
    def loss_statements(self) -> dict[str, list[str]]:
        """{label of a distilled group: paragraphs of its loss statement}."""
        labels = [group.label for group in self.scores.groups if group.role == "distilled"]
        return {label: loss_statement(self.scores, self.score_frame, self.long_tail, label) for label in labels}


def build_report_bundle(
    folder: Path,
    analysis: AnalysisConfig,
    name: str,
    question: str = "",
    display: ReportConfig | None = None,
    hypotheses: Mapping[str, HypothesisConfig] | None = None,
) -> ReportBundle:
    """Reads the records in `folder` and computes all that is drawn. Raises UserError as `load_results` does."""
    scores = compute_scores(load_results(folder, display), analysis)
    frame = with_training_flops(score_frame(scores))
    found = answer(scores, frame)
    students = student_verdicts(scores, frame, found)
    sentences = [headline(scores, students, found.axes), *verdict(scores, frame, students, found.axes)]
    if analysis.primary_endpoint != ACCURACY:
        declared = endpoint_declaration(read_declarations(folder), hypotheses or {}, analysis)
        sentences.insert(0, primary_headline(scores, endpoint_frame(scores, frame), students, declared))
    tests = declared_tests(folder, scores, hypotheses or {})
    stated = [hypothesis_sentence(tests)] if tests else []
    tail = analyze_long_tail(scores)
    return ReportBundle(
        name, question, scores, frame, tail, found, students, sentences[0], [*stated, *sentences[1:]], tests
    )


def hypotheses_of(sources: Sequence[tuple[Path, ExperimentConfig]]) -> Table:
    """One table of what several experiments declare. sources: results folders, each with its config. Raises UserError as
    `load_results` does."""
    tests, names = [], Counter(config.name for _, config in sources)
    for folder, config in sources:
        scores = compute_scores(load_results(folder, config.report), config.analysis)
        name = config.name if names[config.name] == 1 else f"{config.name} in {folder}"
        tests += declared_tests(folder, scores, config.hypotheses, name if len(sources) > 1 else "")
    return hypothesis_table(tests, min(config.analysis.confidence_level for _, config in sources))


def declared_tests(
    folder: Path, scores: Scores, hypotheses: Mapping[str, HypothesisConfig], experiment: str = ""
) -> list[DeclaredTest]:
    """Tests of the hypotheses on the results in `folder`, with when they were declared. experiment: its name, where tests
    of several stand together."""
    known = read_declarations(folder)
    return [
        DeclaredTest(test, describe_declaration(known.get(hypothesis_digest(test.hypothesis, scores.analysis))), experiment)
        for test in run_hypothesis_tests(scores, hypotheses)
    ]
