"""Where a run stands, from what is on disk: its manifests, the lease of who works on it, and the last recorded
status."""

from dataclasses import dataclass
from pathlib import Path

from distill_lit.evaluation.task_scores import mean_above_chance, mean_score
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.experiment.state.claims import holder_of
from distill_lit.experiment.state.completion import is_run_built, is_run_complete, is_run_evaluated
from distill_lit.experiment.state.run_state import DONE, FAILED, MISSING, RUNNING, STOPPED, last_status
from distill_lit.experiment.state.run_times import total_seconds
from distill_lit.utils.files import read_mapping


@dataclass(frozen=True)
class RunResults:
    """What a run has come to so far; None where it is unknown. above_chance: mean of (accuracy − chance) / (1 − chance)
    over all tasks, while a report leaves out those at which the teacher itself is at chance; score: mean over tasks of the
    main metric, where more of it is better; kl: KL to the teacher on the validation rows, in nats per token; seconds: wall
    clock of all its work."""

    above_chance: float | None = None
    score: float | None = None
    kl: float | None = None
    seconds: float | None = None

    @property
    def phrases(self) -> list[str]:
        """What is known, for one line."""
        found = []
        if self.score is not None:
            above = "" if self.above_chance is None else f" ({100 * self.above_chance:.1f}% above chance, all tasks)"
            found.append(f"score {100 * self.score:.1f}%{above}")
        if self.kl is not None:
            found.append(f"val KL {self.kl:.3f}")
        if self.seconds is not None:
            found.append(f"in {format_seconds(self.seconds)}")
        return found


def read_run_results(run: Run, folder: Path) -> RunResults:
    """The results of a run that are on disk, of the model and the questions that the experiment asks for now."""
    manifest = read_mapping(folder / "manifest.json")
    if manifest.get("identity") != run.fingerprint:
        return RunResults(seconds=total_seconds(folder))
    meta = read_mapping(folder / "records" / "meta.json") if run.is_model and is_run_evaluated(run, folder) else {}
    return RunResults(
        mean_above_chance(meta),
        mean_score(meta),
        manifest.get("metrics", {}).get("validation/teacher_kl"),
        total_seconds(folder),
    )


def format_seconds(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def get_run_status(run: Run, folder: Path) -> tuple[str, str]:
    """(status, message)."""
    if holder := holder_of(folder):
        where = str(holder) if holder.job or not holder.is_here else ""
        return RUNNING, "; ".join(part for part in (where, _progress(run, folder)) if part)
    if is_run_complete(run, folder):
        return DONE, ""
    if not folder.is_dir():
        return MISSING, ""
    status, reason = last_status(folder)
    status = status or STOPPED
    if status == FAILED:
        return status, f"{reason}; {folder / 'log.txt'}"
    return status, "; ".join(part for part in (reason, _progress(run, folder)) if part)


def _progress(run: Run, folder: Path) -> str:
    if is_run_built(run, folder):
        return "built, not evaluated"
    from distill_lit.training.checkpoint import list_checkpoints  # lightning takes seconds

    saved = list_checkpoints(folder / "checkpoints")
    return f"checkpoint {saved[0].stem}" if saved else ""
