"""The data behind the page: points, curves and documents as JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.calibration import choice_softmax
from distill_lit.analysis.model_groups import REFERENCE_ROLES, ROLE_LABELS
from distill_lit.analysis.pareto import COST_AXES, cost_axes, pareto_frontier
from distill_lit.analysis.scores import Scores
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.figures.style import ROLE_STYLE, line_styles, number_unique, role_style, variant_numbers
from distill_lit.report.figures.training_curves import mean_curve
from distill_lit.report.tables.long_tail import baseline_uses_other_data

CURVES = ("validation/teacher_kl", "validation/student_nll", "validation/agreement", "train/loss", "train/student_nll",
          "train/teacher_kl", "train/agreement", "train/gradient_norm", "train/tokens_per_second")  # fmt: skip
MAX_DOCUMENTS = 3000  # changed documents on the page; the rest stays in records/


MAX_PAGE_PROMPT_CHARS = 1500


CURVE_POINTS = 300


def frontiers(result: ReportBundle) -> dict[str, pd.DataFrame]:
    """{cost axis: its frontier}, of the axes on which there is a model to place."""
    found = {axis: pareto_frontier(result.scores, axis) for axis in cost_axes(result.scores)}
    return {axis: frame for axis, frame in found.items() if not frame.empty}


def page_data(result: ReportBundle, placed: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the page's script draws: frontier per cost axis, strata, and the changed documents."""
    scores, tail = result.scores, result.long_tail
    documents, left_out = changed_documents(result)
    words = {role: word for role, word in ROLE_LABELS.items() if role not in REFERENCE_ROLES}
    return {
        "costs": {axis: COST_AXES[axis] for axis in placed},
        "frontier": {axis: _points(frame, variant_numbers(scores.groups)) for axis, frame in placed.items()},
        "looks": {role: _js_style(style) for role, style in ROLE_STYLE.items()},
        "quality": scores.analysis.claim_min_quality,
        "roles": words,
        "without": "the same student without teacher" + (", on other text" if baseline_uses_other_data(scores) else ""),
        "tasks": scores.tasks,
        "students": list(tail.flips),
        "axes": [{"name": a.name, "title": a.title, "about": a.description} for a in tail.axes],
        "strata": tail.stratum_scores.astype(object).where(tail.stratum_scores.notna(), None).to_dict("records"),
        "documents": documents,
        "left_out_documents": left_out,
    }


def _points(frame: pd.DataFrame, variants: dict[str, int]) -> list[dict[str, Any]]:
    """A frontier's rows, each with its number among the variants that are on it and with its look."""
    shown = number_unique(variant for variant in variants if variant in set(frame["variant"]))
    pairs = zip(frame["role"], frame["variant"], strict=True)
    looks = [_js_style(role_style(role, variants.get(variant, 0))) for role, variant in pairs]
    points: list[dict[str, Any]] = frame.assign(place=frame["variant"].map(shown).fillna(0), look=looks).to_dict("records")
    return points


def _js_style(style: dict[str, Any]) -> dict[str, Any]:
    """What the script needs of a style; the names of matplotlib's markers are those of its shapes."""
    return {"colour": style["color"], "shape": style["marker"], "fill": style["fill"], "dash": style["dash"]}


def changed_documents(result: ReportBundle) -> tuple[list[dict[str, Any]], int]:
    """Documents that at least one student lost or gained, drawn at random when too many; and how many are left out."""
    tail, scores = result.long_tail, result.scores
    changed = {label: flips[flips["flip"].isin(["lost", "gained"])] for label, flips in tail.flips.items()}
    known = [frame.index for frame in changed.values()]
    if scores.teacher is None or not any(len(index) for index in known):
        return [], 0
    places = scores.results.documents.index.isin(pd.MultiIndex.from_tuples([key for index in known for key in index]))
    rows = np.flatnonzero(places)
    if len(rows) > MAX_DOCUMENTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_DOCUMENTS, replace=False))
    index = scores.results.documents.index[rows]
    groups = {group.label: group.models for group in scores.groups}
    probabilities = {label: _probabilities(result, groups[label], index) for label in ("teacher", *changed)}
    found = []
    for number, (key, row) in enumerate(scores.results.documents.loc[index].iterrows()):
        students = [
            _answer(tail.flips[label], key, probabilities[label][number]) if key in frame.index else None
            for label, frame in changed.items()
        ]
        first = next(tail.flips[label] for label, frame in changed.items() if key in frame.index)
        found.append({
            "task": key[0], "id": int(row["doc_id"]), "prompt": _shorten(str(row["prompt"])),
            "choices": _choices(row), "gold": int(row["gold"]), "strata": tail.stratum_codes.loc[key].tolist(),
            "teacher": {"chosen": _chosen(first, key, "chosen_t"), "p": probabilities["teacher"][number]},
            "students": students,
        })  # fmt: skip
    return found, int(places.sum()) - len(found)


def _choices(row: pd.Series) -> list[str]:
    choices = row["choices"]
    return [str(c) for c in choices] if isinstance(choices, (list, np.ndarray)) else []


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_PAGE_PROMPT_CHARS else f"… {text[-MAX_PAGE_PROMPT_CHARS:]}"


def _chosen(flips: pd.DataFrame, key: Any, column: str) -> int:
    return int(flips.at[key, column])


def _answer(flips: pd.DataFrame, key: Any, p: list[float]) -> dict[str, Any]:
    return {"chosen": _chosen(flips, key, "chosen_s"), "flip": str(flips.at[key, "flip"]), "p": p}


def _probabilities(result: ReportBundle, models: tuple[str, ...], index: pd.MultiIndex) -> list[list[float]]:
    """Per document the probability of each choice, mean over the models."""
    frames = [result.scores.results.records[model].loc[index, "ll"] for model in models]
    rows = [[choice_softmax(ll) for ll in answers if _has_finite_max(ll)] for answers in zip(*frames, strict=True)]
    return [[round(float(p), 4) for p in np.mean(answers, axis=0)] if answers else [] for answers in rows]


def _has_finite_max(likelihoods: Any) -> bool:
    """Whether these are log-likelihoods of choices of which a softmax can be taken."""
    return isinstance(likelihoods, (list, np.ndarray)) and len(likelihoods) > 0 and bool(np.isfinite(np.max(likelihoods)))


def curve_lines(scores: Scores, path: Path) -> dict[str, Any]:
    """`curves`: {quantity: {label of a trained group: [[step, value], …]}} of curves.csv, mean over seeds, thinned to
    CURVE_POINTS; `curve_looks`: {label: its look}."""
    styles = line_styles(scores.groups)
    looks = {label: _js_style(style) for label, style in styles.items()}
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError):
        frame = pd.DataFrame()
    if not {"model", "step"} <= set(frame.columns):
        return {"curves": {}, "curve_looks": {}}
    terms = [c for c in frame.columns if c.startswith("train/") and c not in (*CURVES, "train/tokens")]
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name in (*CURVES, *terms):
        if name in frame and pd.api.types.is_numeric_dtype(frame[name]):
            lines = {group.label: _thin(mean_curve(group, frame, name)) for group in scores.groups if group.label in styles}
            found[name] = {label: line for label, line in lines.items() if line}
    return {"curves": {k: v for k, v in found.items() if v}, "curve_looks": looks}


def _thin(line: pd.Series) -> list[list[float]]:
    pick = np.unique(np.linspace(0, max(len(line) - 1, 0), min(CURVE_POINTS, len(line))).astype(int))
    return [[float(step), float(f"{value:.6g}")] for step, value in line.iloc[pick].items()]
