"""The primary endpoint that the plan of results declares: it stays the same."""

from pathlib import Path

import yaml

from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.utils.exceptions import UserError


def planned_endpoint(folder: Path) -> str:
    """The primary endpoint of the plan of a results folder; empty without a plan, or one that can be read."""
    try:
        endpoint = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))["analysis"]["primary_endpoint"]
    except (OSError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return ""
    return str(endpoint)


def check_primary_endpoint(folder: Path, analysis: AnalysisConfig) -> None:
    """Raises UserError where the plan of a results folder declares another one: whoever has seen results could choose."""
    declared = planned_endpoint(folder)
    if declared and declared != analysis.primary_endpoint:
        raise UserError(
            f"analysis.primary_endpoint: it is declared in plan.yaml, as {declared}; all others are in endpoints.csv"
        )
