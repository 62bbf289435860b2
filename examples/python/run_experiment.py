"""An experiment from Python: plan, run, results."""

import argparse

from distill_lit import Experiment


def main(file: str, overrides: list[str], root: str) -> None:
    """Runs what is not done of an experiment, and prints its table."""
    experiment = Experiment.from_yaml(file, overrides, root)
    print(f"{experiment.name}: {len(experiment.runs)} runs at {len(experiment.points)} points of the grid")
    results = experiment.run()
    print(experiment.status().to_string(index=False))
    if results is not None:
        print(results.to_frame().groupby(["model", "task"])["correct"].mean().unstack().round(3).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", nargs="?", default="experiments/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--root", default=".")
    options = parser.parse_args()
    main(options.experiment, options.overrides, options.root)
