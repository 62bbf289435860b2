"""The names that labels, order and decimals may be given for: those of what is in the experiments."""

from collections.abc import Iterable

import pandas as pd

from distill_lit.analysis.model_groups import ROLE_LABELS, group_label, short_axis_names
from distill_lit.analysis.scores import Scores
from distill_lit.config import ExperimentConfig
from distill_lit.config.report import ReportConfig
from distill_lit.report.declared_names import check_report_section
from distill_lit.report.paper.quantities import QUANTITIES
from distill_lit.report.paper.request import GROUP_KEYS, axis_names, group_keys, model_label
from distill_lit.report.paper.values import other_quantities
from distill_lit.utils.exceptions import UserError, suggest


def check_display(scores: Scores, frame: pd.DataFrame, display: ReportConfig) -> None:
    """Raises UserError for a name in `--rename`, `--order` or `--decimals` that nothing in the experiments has."""
    quantities = [*QUANTITIES, *other_quantities(scores, frame)]
    names = list(dict.fromkeys([*_names(scores), *quantities, *(one.label for one in QUANTITIES.values())]))
    _check("--rename", display.labels, names)
    _check("--order", display.order, names)
    _check("--decimals", display.decimals, quantities)


def check_report_sections(scores: Scores, frame: pd.DataFrame, configs: Iterable[ExperimentConfig]) -> None:
    """Raises UserError for a name in the `report:` section of an experiment that neither it nor what has been gathered of
    it, and of those beside it, has."""
    for config in configs:
        if not config.report.is_empty:
            check_report_section(config, scores.tasks, [*_names(scores), *other_quantities(scores, frame)])


def _names(scores: Scores) -> list[str]:
    """Models, students, roles, tasks, keys, their values, `key=value`, experiments: as they are called without labels."""
    results, keys = scores.results, group_keys(scores)
    short = short_axis_names(results.runs)
    found = ["teacher", *scores.tasks, *GROUP_KEYS, *ROLE_LABELS, *ROLE_LABELS.values(), *keys["model"]]
    for group in scores.groups:
        plain = ", ".join(f"{short[axis]}={value}" for axis, value in group.varied_point if axis != "grid.experiment")
        found += [group.student, group_label(ReportConfig(), group.role, group.student, plain)]
        found.append(model_label(results.display, group, short))
    for axis, name in axis_names(results).items():
        values = [value for value in keys[name] if value]
        found += [axis.removeprefix("grid."), name, *values, *(f"{name}={value}" for value in values)]
    return [name for name in dict.fromkeys([*found, *keys["experiment"]]) if name]


def _check(option: str, given: Iterable[str], known: list[str]) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{option} {name!r}: nothing here is called so{suggest(name, known)}")
