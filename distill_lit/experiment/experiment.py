"""An experiment: its config, its grid expanded once, its runs, and where they are.

experiment = Experiment.from_yaml("experiments/quickstart.yaml", ["seed=1"])
experiment.run()
experiment.results().to_frame()
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from distill_lit import assets
from distill_lit.config import ExperimentConfig, load_experiment
from distill_lit.config.hypothesis_validation import refuse_untestable
from distill_lit.config.primary_endpoint import check_primary_endpoint
from distill_lit.config.roles import Role
from distill_lit.experiment.checks.remembered_checks import remembered_notes
from distill_lit.experiment.checks.validation import check_experiment, check_gpus, check_own_text, untestable_at_points
from distill_lit.experiment.plan import Plan, plan_runs
from distill_lit.experiment.planning.grid import GridPoint, expand_points
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.planning.precision import Dtypes, LocalDtypes, has_auto, resolve_auto
from distill_lit.experiment.planning.run_references import RunReferences, has_run_references
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import write_json
from distill_lit.utils.plugins import load_plugins

if TYPE_CHECKING:
    import pandas as pd

    from distill_lit.analysis.declarations import Declaration
    from distill_lit.analysis.results import Results
    from distill_lit.experiment.estimates.run_estimate import Estimate
    from distill_lit.experiment.launcher.display import Display
    from distill_lit.experiment.launcher.slurm.node import ClusterDtypes
    from distill_lit.experiment.state.status import RunResults
    from distill_lit.report.bundle import ReportBundle


@dataclass
class Experiment:
    """A question, its runs and its results. Nothing is loaded, downloaded or written before it is asked for, and
    what only a run needs is imported only then, so that bad input is told at once.

    Args:
        config: the checked experiment, as `load_experiment` gives it.
        root: where `runs/<name>` and `results/<name>` are.
        command: what produced the results, for their provenance.

    `chosen` are the names of the runs that are launched, with what they depend on; None for all. `notes` says, after
    `plan` or `prepare`, in what its models differ that does no harm but is to be known.
    """

    config: ExperimentConfig
    root: Path = field(default_factory=Path)
    command: str = "Experiment.run()"
    notes: list[str] = field(default_factory=list, init=False)
    chosen: frozenset[str] | None = field(default=None, init=False)
    _known_plan: Plan | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = (), root: str | Path = ".") -> "Experiment":
        """The experiment of a file, or a shipped one by its name. overrides: a list of `key=value`, for any key.

        Raises UserError for anything that can be known to be wrong before a model or a data set is touched.
        """
        if isinstance(overrides, str) or not all(isinstance(override, str) for override in overrides):
            raise UserError(f'overrides: {overrides!r} is no list of texts, such as ["training.max_tokens=200000"]')
        experiment = cls(load_experiment(Path(path), list(overrides)), Path(root))
        experiment.validate()
        experiment.check_hypotheses(Path(path), overrides)
        return experiment

    @property
    def name(self) -> str:
        """Its name, which its folders bear."""
        return self.config.name

    @property
    def runs_folder(self) -> Path:
        """Where runs keep checkpoints, event files and students."""
        return self.root / "runs" / self.name

    @property
    def results_folder(self) -> Path:
        """Where tables, figures and records go."""
        return self.root / "results" / self.name

    @property
    def notes_path(self) -> Path:
        """Where `notes` are kept beside the runs."""
        return self.runs_folder / "notes.json"

    @cached_property
    def points(self) -> list[GridPoint]:
        """Every point of the grid."""
        load_plugins(self.config.plugins)  # whether a loss of theirs compares with the teacher decides what alpha does
        points = expand_points(self.config)
        if not has_run_references(self.config):
            return points
        return [point.map_configs(RunReferences(self.root).resolve) for point in points]

    @property
    def resolved_config(self) -> ExperimentConfig:
        """The config with every `auto` that can change a result replaced, as by `resolve`."""
        return self._plan.config

    @cached_property
    def _local_dtypes(self) -> LocalDtypes:
        return LocalDtypes(self.runs_folder)

    @cached_property
    def _cluster_dtypes(self) -> "ClusterDtypes":
        from distill_lit.experiment.launcher.slurm.node import ClusterDtypes

        return ClusterDtypes(self.runs_folder.resolve())

    @property
    def _dtypes(self) -> Dtypes:
        """Of the machines that do the work."""
        return self._cluster_dtypes if self.config.launcher.engine == "slurm" else self._local_dtypes

    def resolve(self, config: ExperimentConfig) -> ExperimentConfig:
        """A config with every `auto` that can change a result replaced by the choice of the machine that does the work."""
        return resolve_auto(config, self._dtypes)

    @property
    def _plan(self) -> Plan:
        """What is planned with what is known of these machines now."""
        if self._known_plan is None:
            self._known_plan = Plan(self.resolve(self.config), self._planned_runs)
        return self._known_plan

    @property
    def runs(self) -> list[Run]:
        """All runs, in the order they are run."""
        return self._plan.runs

    def _planned_runs(self) -> list[Run]:
        load_plugins(self.config.plugins)
        if not has_run_references(self.config):
            return plan_runs(self.config, self.points, self._dtypes)
        references = RunReferences(self.root)
        identified = [point.map_configs(references.identify) for point in expand_points(self.config)]
        return [references.place(run) for run in plan_runs(self.config, identified, self._dtypes)]

    @property
    def models(self) -> list[Run]:
        """The runs that are rows of the table."""
        return [run for run in self.runs if run.is_model]

    @property
    def required_assets(self) -> list[str]:
        """References of all models, wheels and files that it needs."""
        return self._plan.required_assets

    @property
    def has_models(self) -> bool:
        """Whether all models that its runs need from elsewhere are here."""
        from distill_lit.experiment.planning.requirements import required_models

        return all(map(assets.is_fetched, required_models(self.runs)))

    def folder_of(self, run: Run) -> Path:
        """Where a run keeps its files."""
        return self.runs_folder / run.name

    def validate(self) -> None:
        """Raises UserError for anything that can be known to be wrong before a model or a data set is touched."""
        load_plugins(self.config.plugins)
        check_experiment(self.config, self.points)

    def check_hypotheses(self, path: Path, overrides: Sequence[str]) -> None:
        """Raises UserError for a hypothesis of the file that no model could decide, but where overrides are why."""

        def untestable(one: Experiment) -> dict[str, str]:
            return untestable_at_points(one.config, one.points)

        def of_file(own: list[str]) -> dict[str, str]:
            return untestable(Experiment(load_experiment(path, own, must_test=False), self.root))

        refuse_untestable(untestable(self), overrides, of_file)

    def plan(self) -> "list[tuple[Run, Estimate | None]]":
        """`estimated_runs` of a config that is compared with its text, and with its teacher where that is here already."""
        check_own_text(self.runs)
        if self.has_models:
            self.notes = remembered_notes(self.runs)
        return self.estimated_runs()

    def estimated_runs(self, roles: Collection[Role] = ()) -> "list[tuple[Run, Estimate | None]]":
        """Every run with what it will cost; None where nobody knows yet. roles: only these and what they depend on."""
        estimates = self._plan.estimates if self.has_models else {}
        return [(run, estimates.get(run.name)) for run in self.runs_with_dependencies(roles)]

    def fetch(self, note: Callable[[str, Path], None] = lambda *_: None) -> None:
        """Downloads and prepares all that it needs from elsewhere. note: told each reference and its path."""
        from distill_lit.experiment.planning.requirements import prepare_experiment_data

        for reference in self.required_assets:
            note(reference, assets.fetch(reference))
        prepare_experiment_data(self.runs)

    def measure_cluster(self) -> None:
        """Has a compute node measure what `auto` stands for, where jobs of a cluster do the work. Before anything else that
        is run: it decides what identifies a run. Raises UserError where no node answers."""
        if self.config.launcher.engine != "slurm":
            return
        for config in (self.config, *(point.config for point in self.points)):
            if has_auto(config):
                self._cluster_dtypes.measure(config)
        self._known_plan = None  # made before the measurement

    def check_gpus(self, runs: Sequence[Run]) -> None:
        """Raises UserError where this machine has too few GPUs for what is not done of these runs."""
        from distill_lit.experiment.state.completion import is_run_complete

        check_gpus(self.config.launcher, runs, lambda run: is_run_complete(run, self.folder_of(run)))

    def prepare(self, roles: Collection[Role] = ()) -> None:
        """Has all assets here and compares them with the config. roles: as of `launch`.

        Raises UserError for what does not fit, where a server is still to be asked by what is launched and its key is not
        in the environment, where there are too few GPUs, or results were declared by another endpoint.
        """
        from distill_lit.experiment.preparation import prepare_experiment

        self.notes = prepare_experiment(self, roles)

    def launch(
        self, display: "Display | None" = None, roles: Collection[Role] = (), detach: bool = False
    ) -> dict[str, str]:
        """Runs what is not done; {name of a run that failed, or was left: why}.

        roles: only runs of these roles and what they depend on; detach: return once jobs are submitted. Where runs are
        chosen, other drivers may be at work on others. Raises Terminated when asked to stop.
        """
        from distill_lit.experiment.estimates.run_estimate import require_disk_space
        from distill_lit.experiment.launcher.display import SilentDisplay
        from distill_lit.experiment.launcher.launch import launch_runs
        from distill_lit.experiment.launcher.reuse import take_runs_of_others

        display = display or SilentDisplay()
        estimates = {run.name: estimate for run, estimate in self.estimated_runs(roles)}
        runs = self.runs_with_dependencies(roles)
        require_disk_space(estimates, runs, self.runs_folder)
        folder = self.runs_folder.resolve()
        if self.config.launcher.engine == "local":
            self._local_dtypes.keep()
        if self.config.launcher.reuse_runs:
            take_runs_of_others(runs, folder, display.note)
        self.declare_hypotheses()  # after them: somebody may have seen what they say
        if self.notes or self.notes_path.is_file():  # for a report that another process draws
            write_json(self.notes_path, self.notes)
        is_shared = self.chosen is not None
        outcome = launch_runs(self.resolved_config, runs, estimates, folder, display, is_shared, detach)
        return outcome.failed | outcome.left

    def declare_hypotheses(self) -> "dict[str, Declaration]":
        """Notes those that are new, and the primary endpoint, beside the runs, with how many of these are done; all that
        were ever declared. An endpoint that the plan of the results holds already was declared at a time not on record."""
        from distill_lit.experiment.preparation import declare_experiment

        return declare_experiment(self)

    def runs_with_dependencies(self, roles: Collection[Role]) -> list[Run]:
        """The runs of these roles, and that are chosen, and what they depend on; all runs where no role is named."""
        if not roles and self.chosen is None:
            return self.runs
        of_role = [run for run in self.runs if not roles or run.role in roles]
        names = {run.name for run in of_role if self.chosen is None or run.name in self.chosen}
        for run in reversed(self.runs):  # each stands after what it depends on
            names.update(run.depends_on if run.name in names else ())
        return [run for run in self.runs if run.name in names]

    def collect(self, failed: dict[str, str] | None = None) -> Path:
        """Gathers what the runs have left into the results folder. failed: {name of a run: why}."""
        from distill_lit.experiment.collect import collect_results

        return collect_results(self, failed or {})

    def run(self, display: "Display | None" = None) -> "Results | None":
        """Runs what is not done, gathers the results and draws the report; None where no model was evaluated."""
        self.measure_cluster()
        self.prepare()
        failed = self.launch(display)
        self.collect(failed)
        if not self.is_evaluated:
            return None
        if self.config.cost.measure and not failed:
            self.measure_costs()
        self.render()
        return self.results()

    @property
    def is_evaluated(self) -> bool:
        """Whether results of at least one model have been gathered."""
        return (self.results_folder / "records.parquet").is_file()

    def measure_costs(self, note: Callable[[str], None] = lambda _: None) -> Path:
        """Measures speed, latency, memory and energy of the finished models into the results folder."""
        from distill_lit.experiment.costs import measure_experiment_costs

        return measure_experiment_costs(self, note)

    def statuses(self) -> dict[str, tuple[str, str]]:
        """{name of a run: (status, note)}, as it is on disk and, where jobs were submitted, in the queue."""
        from distill_lit.experiment.launcher.slurm.status import join_queue
        from distill_lit.experiment.state.status import get_run_status

        on_disk = {run.name: get_run_status(run, self.folder_of(run)) for run in self.runs}
        return join_queue(on_disk, self.runs_folder)

    def run_results(self) -> "dict[str, RunResults]":
        """{name of a run: what it has come to so far}, as it is on disk."""
        from distill_lit.experiment.state.status import read_run_results

        return {run.name: read_run_results(run, self.folder_of(run)) for run in self.runs}

    def status(self) -> "pd.DataFrame":
        """A row per run: run, role, status, note, and its results so far: above_chance, score, kl, seconds."""
        import pandas as pd

        statuses, results = self.statuses(), self.run_results()
        rows = [
            {"run": run.label, "role": str(run.role), "status": status, "note": note, **asdict(results[run.name])}
            for run in self.runs
            for status, note in [statuses[run.name]]
        ]
        return pd.DataFrame(rows)

    def report(self, all_formats: bool = False) -> "ReportBundle":
        """Gathers and draws what is done by now, also while another process is at the rest; the report's bundle.

        all_formats: figures as PDF and tables as TeX too. Raises UserError where no model has been evaluated yet, and for
        another primary endpoint than was declared.
        """
        from distill_lit.experiment.state.run_state import DONE, FAILED

        statuses = self.statuses()
        if all(statuses[run.name][0] != DONE for run in self.models):
            raise UserError(f"{self.runs_folder}: no model of this experiment is evaluated yet; first: {self.command}")
        check_primary_endpoint(self.results_folder, self.config.analysis)
        self.collect({name: note for name, (status, note) in statuses.items() if status == FAILED})
        return self.render(all_formats)

    def render(self, all_formats: bool = False) -> "ReportBundle":
        """Draws tables, figures and pages from the results folder; the report's bundle. What it says goes to TensorBoard
        and into the students' model cards too."""
        from distill_lit.experiment.summary import write_summaries
        from distill_lit.report import build_report_bundle, model_card_sections, render_report

        config = self.resolved_config
        bundle = build_report_bundle(
            self.results_folder, config.analysis, config.name, config.question, config.report, config.hypotheses
        )
        render_report(self.results_folder, bundle, all_formats)
        write_summaries(self, bundle.headline, model_card_sections(bundle))
        return bundle

    def results(self) -> "Results":
        """The gathered results. Raises UserError where there are none."""
        from distill_lit.analysis.results import load_results

        return load_results(self.results_folder)
