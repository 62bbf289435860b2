"""Results alone: scores, flips and the long tail of a finished experiment as pandas frames; nothing is trained or drawn."""

import argparse
from pathlib import Path

from distill_lit import load_results


def main(folder: Path) -> None:
    """Prints what is in a results folder, and where the students are worst against the teacher."""
    results = load_results(folder)
    print(f"{len(results.records)} models on {', '.join(results.tasks)}; {len(results.documents)} documents")
    print(results.runs[["model", "role", "student", "seed"]].to_string(index=False))
    wide = results.to_frame().pivot_table(index=["task", "key"], columns="model", values="correct")
    students = [model for model in wide.columns if model != "teacher"]
    print((wide[students].sub(wide["teacher"], axis=0)).groupby("task").mean().round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/quickstart"))
    main(parser.parse_args().folder)
