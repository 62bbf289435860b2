"""What stands between a plan and its first run: assets that are here, checks that need them, and what is declared."""

from collections.abc import Collection
from typing import TYPE_CHECKING

from distill_lit import assets
from distill_lit.analysis.declarations import Declaration, declare, declared_names
from distill_lit.config.primary_endpoint import check_primary_endpoint, planned_endpoint
from distill_lit.config.roles import Role
from distill_lit.experiment.checks.model_checks import check_against_teacher, check_models, check_services
from distill_lit.experiment.checks.validation import check_own_text
from distill_lit.experiment.execution.run import check_sources_unchanged, check_text_unchanged
from distill_lit.experiment.state.completion import is_run_built, is_run_complete
from distill_lit.generation.corpus import check_api_keys

if TYPE_CHECKING:
    from distill_lit.experiment.experiment import Experiment


def prepare_experiment(experiment: "Experiment", roles: Collection[Role]) -> list[str]:
    """The notes of `Experiment.prepare`, which raises UserError as this does."""
    if any(is_run_complete(run, experiment.folder_of(run)) for run in experiment.models):
        check_primary_endpoint(experiment.results_folder, experiment.config.analysis)
    launched = experiment.runs_with_dependencies(roles)
    experiment.check_gpus(launched)
    to_build = [run for run in launched if not is_run_built(run, experiment.folder_of(run))]
    for run in to_build:
        if run.role == Role.GENERATED:
            check_api_keys(run.config.data)
    check_own_text(to_build)
    for reference in experiment.required_assets:
        assets.fetch(reference)
    notes = [*check_against_teacher(experiment.runs), *check_models(experiment.config, experiment.runs)]
    check_services(experiment.runs, to_build)
    check_sources_unchanged(experiment.runs, experiment.runs_folder)
    check_text_unchanged(experiment.runs, to_build, experiment.runs_folder)
    return notes


def declare_experiment(experiment: "Experiment") -> dict[str, Declaration]:
    """As `Experiment.declare_hypotheses`."""
    hypotheses, analysis = experiment.config.hypotheses, experiment.config.analysis
    if not declared_names(hypotheses, analysis):
        return {}
    # a model is done though it is asked other tasks now
    folders = [(run, experiment.folder_of(run)) for run in experiment.models]
    done = sum(is_run_built(run, folder) or is_run_complete(run, folder) for run, folder in folders)
    names = declared_names(hypotheses, analysis, planned_endpoint(experiment.results_folder))
    return declare(experiment.runs_folder, names, done, len(experiment.models))
