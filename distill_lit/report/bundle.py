"""An experiment read and analysed once, from which every table, figure and page is drawn."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from distill_lit.analysis.long_tail import LongTail, long_tail
from distill_lit.analysis.results import load_results
from distill_lit.analysis.scaling_law import scaling_runs
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import Scores, score
from distill_lit.config.schema import AnalysisConfig
from distill_lit.report.loss_statement import loss_statement
from distill_lit.report.summary import headline, verdict
from distill_lit.report.tables.scores import with_training_flops


@dataclass(frozen=True)
class Analysed:
    """What there is to draw."""

    name: str
    question: str
    scores: Scores
    frame: pd.DataFrame
    longtail: LongTail
    headline: str
    verdict: list[str]

    @property
    def title(self) -> str:
        """Name and question in one line."""
        return f"{self.name}: {self.question}" if self.question else self.name

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Students by size and tokens, where that is what the grid is over."""
        return scaling_runs(self.scores.results.cells, self.name)

    @cached_property
    def statements(self) -> dict[str, list[str]]:
        """{label of a distilled group: paragraphs of its loss statement}."""
        labels = [group.label for group in self.scores.groups if group.role == "distilled"]
        return {label: loss_statement(self.scores, self.frame, self.longtail, label) for label in labels}


def analyse(folder: Path, analysis: AnalysisConfig, name: str, question: str = "") -> Analysed:
    """Reads the records in `folder` and computes all that is drawn. Raises UserError as `load_results` does."""
    scores = score(load_results(folder), analysis)
    frame = with_training_flops(score_frame(scores))
    return Analysed(name, question, scores, frame, long_tail(scores), headline(scores, frame), verdict(scores, frame))
