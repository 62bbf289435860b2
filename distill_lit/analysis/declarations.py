"""When each hypothesis of an experiment, and its primary endpoint, was declared: how many of its runs were done by then."""

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.config.hypotheses import HypothesisConfig, endpoint_of, margin_of
from distill_lit.config.loading import to_dict
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import merge_json, read_json

DECLARATIONS_FILE = "hypotheses.json"  # beside the runs and in the results, {digest of what is declared: its declaration}
BEFORE, AFTER = "before the run", "after the run"


class Declaration(NamedTuple):
    """on: date, UTC; runs_done of all `runs`: when it was first seen, by `run` before it began or by a later report."""

    name: str
    on: str
    runs_done: int
    runs: int


def hypothesis_digest(hypothesis: HypothesisConfig, analysis: AnalysisConfig) -> str:
    """Of all that it claims and by which rule; where the claim is from is no part of it."""
    try:
        margin: float | None = margin_of(hypothesis, analysis)
    except UserError:  # by another endpoint than declared, of which nobody has said what matters
        margin = None
    rule = {"endpoint": endpoint_of(hypothesis, analysis), "margin": margin}
    text = json.dumps({**to_dict(hypothesis), **rule, "paper": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def declared_names(
    hypotheses: Mapping[str, HypothesisConfig], analysis: AnalysisConfig, planned_endpoint: str = ""
) -> dict[str, str]:
    """{digest: name} of all that an experiment declares: its hypotheses, and an endpoint that is neither the default one
    nor `planned_endpoint`, which its results hold already."""
    names = {hypothesis_digest(one, analysis): name for name, one in hypotheses.items()}
    if analysis.primary_endpoint not in (AnalysisConfig().primary_endpoint, planned_endpoint):
        names[_endpoint_digest(analysis)] = "primary_endpoint"
    return names


def _endpoint_digest(analysis: AnalysisConfig) -> str:
    return f"primary_endpoint={analysis.primary_endpoint}"


def endpoint_declaration(
    known: Mapping[str, Declaration], hypotheses: Mapping[str, HypothesisConfig], analysis: AnalysisConfig
) -> Declaration | None:
    """The first record of the primary endpoint: its own, or that of a hypothesis from before the run whose rule it is part
    of; a later one may be by an endpoint that was declared long before. None without one, as in older results."""
    digests = (hypothesis_digest(one, analysis) for one in hypotheses.values() if not one.endpoint)
    early = (known[digest] for digest in digests if digest in known and not known[digest].runs_done)
    return next(early, known.get(_endpoint_digest(analysis)))


def read_declarations(folder: Path) -> dict[str, Declaration]:
    """{digest: declaration} of a folder; empty where none was ever declared. Raises UserError where the file is damaged, as
    a claim that was declared before the run would else seem to be from after it."""
    path = folder / DECLARATIONS_FILE
    try:
        found = read_json(path) if path.is_file() else {}
        known = {str(digest): Declaration(**facts) for digest, facts in found.items()}
        _check_types(known.values())
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: it is damaged; restore it, or remove it to have all declared as of now") from error
    return known


def _check_types(declarations: Iterable[Declaration]) -> None:
    for one in declarations:
        if not all(isinstance(value, kind) for value, kind in zip(one, (str, str, int, int), strict=True)):
            raise TypeError(one)


def declare(folder: Path, names: Mapping[str, str], runs_done: int, runs: int) -> dict[str, Declaration]:
    """Notes what the folder does not know yet of `declared_names` as declared now; returns all that it knows. A hypothesis
    that was changed is another one."""
    known = read_declarations(folder)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found = {digest: Declaration(name, today, runs_done, runs) for digest, name in names.items()}
    if not found.keys() - known.keys():
        return known
    merge_json(folder / DECLARATIONS_FILE, _facts(found), lambda _: _facts(read_declarations(folder)))
    return read_declarations(folder)


def _facts(declarations: Mapping[str, Declaration]) -> dict[str, Any]:
    return {digest: one._asdict() for digest, one in declarations.items()}


def describe_declaration(declaration: Declaration | None) -> str:
    """`before the run`, or after how many runs. None: not known to the results at all."""
    if declaration is None:
        return AFTER
    if not declaration.runs_done:
        return BEFORE
    return f"after {declaration.runs_done} of {declaration.runs} runs"
