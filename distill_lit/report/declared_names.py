"""Which names the `report:` section of an experiment may give labels, an order and decimals: those of what it declares."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from distill_lit.analysis.endpoints import PROBE_ENDPOINTS, PROBE_PREFIX, QUESTION_ENDPOINTS
from distill_lit.analysis.inference_cost import MEASURED
from distill_lit.analysis.model_groups import ROLE_LABELS
from distill_lit.analysis.score_table import COSTS
from distill_lit.config import ExperimentConfig
from distill_lit.config.grid_points import grid_points, short_texts, shortest_names, value_text
from distill_lit.config.schema import GRID_VALUE_SEPARATOR
from distill_lit.report.paper.quantities import QUANTITIES
from distill_lit.report.paper.request import GROUP_KEYS, TASK, TASKS, split_list
from distill_lit.utils.exceptions import UserError, suggest

NEARLY = 0.8  # by difflib's ratio, from which on a name is taken for a misspelt one
OTHER_DATA = "other data"  # what a variant says of a student without teacher, beside values of the grid
AFTER_STAGE = "_after_"  # between the name of a student and that of a stage before its last
FRAME_COLUMNS = ("score", "low", "high", "seed_std", "document_se", "minimum_detectable_effect", "retention", "best")
COLUMNS = frozenset(
    [
        *QUANTITIES,
        *(quantity.column for quantity in QUANTITIES.values()),
        *FRAME_COLUMNS,
        *COSTS,
        *MEASURED,
        "price_per_million_tokens",
        *(endpoint.name for endpoint in QUESTION_ENDPOINTS),
        *(PROBE_PREFIX + endpoint.name for endpoint in PROBE_ENDPOINTS),
    ]
)


def check_report_section(config: ExperimentConfig, tasks: Iterable[str], others: Iterable[str] = ()) -> None:
    """Raises UserError for a name in `report` that is nearly, but not, one of the experiment: it would change nothing, and
    nobody would be told. Names like nothing in it may be of others that share the section, or of values left out today.

    tasks: the names of its tasks; others: names of what has been gathered, as of an experiment that was changed since.
    """
    report = config.report
    if report.is_empty:
        return
    values = _grid_values(config)
    own = [*_models(config), *tasks, *config.evaluation.tasks, *config.evaluation.probes, *shortest_names(values).values()]
    shown = [*GROUP_KEYS, TASK, TASKS, *ROLE_LABELS, *ROLE_LABELS.values(), *(one.label for one in QUANTITIES.values())]
    known = {name for name in (*own, *shown, *COLUMNS, *_grid_names(values), config.name, *others) if name}
    parts = known | set(report.labels.values())
    for section, names in (("labels", report.labels), ("order", report.order)):
        for name in names:
            if name not in known and not _is_made_of(name, parts) and not _is_earlier_stage(name, known):
                _refuse_misspelt(f"report.{section}", name, known)
    columns = COLUMNS | {*others}
    for name in report.decimals:
        if name not in columns:
            raise UserError(f"report.decimals: no table has a column {name!r}{suggest(name, QUANTITIES)}")


def _models(config: ExperimentConfig) -> Iterator[str]:
    """Students, models that are made, models to compare with, the teacher."""
    yield from ("teacher", *config.baselines, *config.students, *config.models, *config.external_models)
    yield from (name.replace("/", "_") for name in config.external_models)


def _grid_values(config: ExperimentConfig) -> dict[str, list[Any]]:
    """{key of the grid: its values}."""
    values: dict[str, list[Any]] = {}
    for point in grid_points(config.grid) if config.grid else ():
        for key, value in point.items():
            if value not in (known := values.setdefault(key, [])):
                known.append(value)
    return values


def _grid_names(values: Mapping[str, list[Any]]) -> Iterator[str]:
    """Keys of the grid in full; their values as they may be shown, and `key=value` by any ending of the key."""
    for key, every in values.items():
        yield key
        texts = dict.fromkeys([*map(value_text, every), *short_texts(every)])
        parts = key.split(".")
        for text in texts:
            yield text
            yield from (f"{'.'.join(parts[start:])}={text}" for start in range(len(parts)))


def _is_made_of(name: str, parts: Collection[str]) -> bool:
    """Whether a name is that of a row, `STUDENT ROLE (KEY=VALUE, …)`, of parts that are known or labels of such, or several
    values that one baseline stands for."""
    if all(value in parts for value in name.split(GRID_VALUE_SEPARATOR)):
        return True
    base, _, variant = name.removesuffix(")").partition(" (") if name.endswith(")") else (name, "", "")
    words = base.split(" ")
    splits = ((" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(1, len(words) + 1))
    is_base = any(model in parts and (not role or role in parts) for model, role in splits)
    return is_base and all(_is_value(one, parts) for one in split_list(variant))


def _is_value(text: str, parts: Collection[str]) -> bool:
    key, _, value = text.partition("=")
    every = (value or key).split(GRID_VALUE_SEPARATOR)
    return text == OTHER_DATA or text in parts or ((not value or key in parts) and all(one in parts for one in every))


def _is_earlier_stage(name: str, known: Collection[str]) -> bool:
    return AFTER_STAGE in name and name.partition(AFTER_STAGE)[0] in known


def _refuse_misspelt(where: str, name: str, known: Collection[str]) -> None:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=NEARLY)
    if close:
        raise UserError(f"{where}: nothing in this experiment is called {name!r}; did you mean {close[0]!r}?")
