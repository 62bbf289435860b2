"""What the stages before that of a run have done, as their manifests say: its curves go on from there, and its reading."""

from pathlib import Path
from typing import Any, NamedTuple

from distill_lit.data.datamodule import PackedDataModule
from distill_lit.data.loader import rows_per_step
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.utils.files import read_json


class EarlierStages(NamedTuple):
    """steps: optimizer steps; tokens: positions that were read; rows_read: {fingerprint of prepared data: rows of it}."""

    steps: int
    tokens: int
    rows_read: dict[str, int]


def earlier_stages(run: Run, folder: Path) -> EarlierStages:
    """Of a run whose folder is `folder`; zeros for a first stage."""
    if not run.previous_stage:
        return EarlierStages(0, 0, {})
    last = read_json(folder.parent / run.previous_stage / "manifest.json")
    tokens = int(last.get("training_tokens", 0))
    rows = last.get("rows_read", {})
    if not rows and tokens:  # a first stage of a version that did not count rows, in rows of this length then
        rows = {last["origin"]["data"]: tokens // run.config.data.sequence_length}
    return EarlierStages(
        int(last.get("first_step", 0) + last.get("steps", 0)), int(last.get("first_tokens", 0)) + tokens, rows
    )


def rows_read(run: Run, folder: Path, data_fingerprint: str, module: PackedDataModule) -> dict[str, Any]:
    """{rows_read: as of `EarlierStages`, with the stage of the run}, for its manifest; empty where nothing is trained."""
    if not run.is_trained:
        return {}
    last = module.rows_before + module.steps * rows_per_step(module.training)
    return {"rows_read": earlier_stages(run, folder).rows_read | {data_fingerprint: last}}
