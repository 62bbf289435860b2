"""What an experiment's report adds outside its results folder: TensorBoard's summary, scores in model cards."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill_lit.config import to_yaml
from distill_lit.experiment.execution.run import tensorboard_hparams
from distill_lit.experiment.state.completion import is_run_evaluated
from distill_lit.models import MODEL_CARD_FILENAME, add_results
from distill_lit.training.tensorboard_summary import final_folder, write_experiment_summary, write_run_summary

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment


def write_summaries(experiment: "Experiment", headline: str, card_sections: Mapping[str, str]) -> None:
    """Writes the experiment as a run of TensorBoard (figures, the verdict), and each model's scores into its student's
    model card. card_sections: {label of a model: Markdown}."""
    for run in experiment.models:
        folder = experiment.folder_of(run)
        if is_run_evaluated(run, folder) and not final_folder(folder).is_dir():  # from before there were such folders
            write_run_summary(folder, tensorboard_hparams(run, folder), to_yaml(run.config))
    figures = {path.stem: path for path in sorted(experiment.results_folder.glob("*.png"))}
    write_experiment_summary(experiment.runs_folder / "report", figures, {"verdict": headline})
    folders = {run.label: experiment.folder_of(run) / "student" for run in experiment.models}
    for label, text in card_sections.items():
        if (folders[label] / MODEL_CARD_FILENAME).is_file():  # a run may be gone whose results are not
            add_results(folders[label], text)
