"""Tables, figures and pages, drawn from a results folder alone. Heavy imports wait until something is drawn."""

from pathlib import Path
from typing import Any

from distill_lit.config.schema import AnalysisConfig


def draw(folder: Path, analysis: AnalysisConfig, name: str, question: str = "") -> list[Path]:
    """Draws every table, figure and page of an experiment into its results folder, and the index of all beside it.

    Returns the paths written. Raises UserError when records are missing or models cannot be compared.
    """
    from distill_lit.report.analysed import analyse
    from distill_lit.report.drawing import draw_analysed

    return draw_analysed(folder, analyse(folder, analysis, name, question))


def draw_index(results_root: Path) -> Path:
    """Draws the page over all experiments, `index.html` in the folder that holds their results folders."""
    from distill_lit.report.index import draw_index as drawn

    return drawn(results_root)


def terminal_table(folder: Path, analysis: AnalysisConfig, name: str = "", question: str = "") -> Any:
    """A rich renderable of the score table and the verdict, as wide as the console it is printed on."""
    from distill_lit.report.analysed import analyse
    from distill_lit.report.terminal import TerminalTable

    return TerminalTable(analyse(folder, analysis, name or folder.name, question))


def loss_statements(folder: Path, analysis: AnalysisConfig) -> dict[str, str]:
    """{model id of a distilled student: Markdown paragraphs that say what it lost}, for its model card."""
    from distill_lit.report.analysed import analyse
    from distill_lit.report.table import paragraphs

    result = analyse(folder, analysis, folder.name)
    texts = {label: "\n".join(paragraphs(said)) for label, said in result.statements.items()}
    return {model: texts[g.label] for g in result.scores.groups if g.label in texts for model in g.models}
