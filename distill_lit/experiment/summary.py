"""What an experiment's report adds outside its results folder: TensorBoard's summary, scores in model cards."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill_lit.experiment.run import is_run_evaluated, tensorboard_hparams
from distill_lit.models import MODEL_CARD_FILENAME, add_results
from distill_lit.training.tensorboard_summary import write_experiment_summary

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment


def write_summaries(experiment: "Experiment", headline: str, card_sections: Mapping[str, str]) -> None:
    """Writes the experiment as a run of TensorBoard (columns to compare runs by, figures, the verdict), and each model's
    scores into its student's model card. card_sections: {label of a model: Markdown}."""
    done = [run for run in experiment.models if is_run_evaluated(run, experiment.folder_of(run))]
    sessions = [tensorboard_hparams(run, experiment.folder_of(run)) for run in done]
    figures = {path.stem: path for path in sorted(experiment.results_folder.glob("*.png"))}
    write_experiment_summary(experiment.runs_folder / "report", sessions, figures, {"verdict": headline})
    folders = {run.label: experiment.folder_of(run) / "student" for run in experiment.models}
    for label, text in card_sections.items():
        if (folders[label] / MODEL_CARD_FILENAME).is_file():  # a run may be gone whose results are not
            add_results(folders[label], text)
