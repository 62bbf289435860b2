"""Results alone: scores, flips and the long tail of a finished experiment as pandas frames; nothing is trained or drawn.
Of a CSV file of your own scores (columns model, task, document, correct): scores and flips.
"""

import argparse
from pathlib import Path

import pandas as pd

from distill_lit import Results, load_results
from distill_lit.analysis.flips import document_flips, flip_counts
from distill_lit.analysis.long_tail import analyze_long_tail
from distill_lit.analysis.score_table import score_frame
from distill_lit.analysis.scores import Scores, compute_scores
from distill_lit.config import AnalysisConfig

SCORES = ["task", "model", "num_seeds", "score", "low", "high", "teacher_delta", "teacher_delta_low", "teacher_delta_high",
          "retention"]  # fmt: skip
FLIPS = ["lost", "gained", "n", "agreement", "p"]
LONG_TAIL_TITLE = (
    "Long tail: student less teacher on the rarest, hardest or longest documents, less the same on the most common, "
    "easiest or shortest ones; negative where the tail loses more. excess: beyond the same student without teacher"
)
LONG_TAIL = ["model", "axis", "tail_loss", "tail_loss_low", "tail_loss_high", "excess"]


def show(title: str, frame: pd.DataFrame, index: bool = False) -> None:
    """Prints a frame below its title."""
    print(f"\n{title}\n{frame.round(3).to_string(index=index)}")


def flips(scores: Scores) -> pd.DataFrame:
    """For each model but the teacher: answers lost and gained against it."""
    models = {
        group.label: number for number, group in enumerate(scores.groups) if group.models and number != scores.teacher
    }
    found = {label: flip_counts(document_flips(scores, number)) for label, number in models.items()}
    return pd.concat(found).droplevel(1)[FLIPS]


def main(source: Path) -> None:
    """Prints scores with intervals, flips against the teacher and, of an experiment, where its students lose most."""
    results = Results.from_frame(pd.read_csv(source)) if source.is_file() else load_results(source)
    print(f"{len(results.records)} models on {', '.join(results.tasks)}; {len(results.documents)} documents")
    scores = compute_scores(results, AnalysisConfig(n_resamples=1000))
    show("Scores, and what they are less the teacher's", score_frame(scores)[SCORES])
    if scores.teacher is not None:
        show("Flips: answers lost and gained against the teacher", flips(scores), index=True)
    if not source.is_file():
        tail = analyze_long_tail(scores).tail_contrasts.reindex(columns=LONG_TAIL).dropna(subset="tail_loss")
        show(LONG_TAIL_TITLE, tail)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", type=Path, nargs="?", default=Path("results/quickstart"), help="results folder or CSV file"
    )
    main(parser.parse_args().source)
