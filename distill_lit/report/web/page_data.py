"""The data behind the page: points, curves and documents as JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.model_groups import NAMED_ROLES, role_words
from distill_lit.analysis.pareto import COST_AXES, cost_axes, pareto_frontier
from distill_lit.analysis.scores import Scores
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.figures.pareto import panel_frames, with_labels
from distill_lit.report.figures.style import ROLE_STYLE, line_styles, number_unique, role_style, variant_numbers
from distill_lit.report.figures.training_curves import seed_band
from distill_lit.report.tables.long_tail import baseline_uses_other_data, teacher_label
from distill_lit.report.web.html_page import pack_json

CURVES = ("validation/teacher_kl", "validation/student_nll", "validation/agreement", "train/loss", "train/student_nll",
          "train/teacher_kl", "train/agreement", "train/gradient_norm", "train/tokens_per_second")  # fmt: skip
MAX_DOCUMENTS = 3000  # changed documents on the page; the rest is in records.parquet alone
STRATUM_COLUMNS = ["model", "axis", "stratum", "label", "n", "delta", "low", "high", "ce_only_delta", "ce_only_delta_low",
                   "ce_only_delta_high", "lost", "gained", "note"]  # fmt: skip
MAX_PAGE_PROMPT_CHARS = 1500
CURVE_POINTS = 200


def frontiers(result: ReportBundle) -> dict[str, pd.DataFrame]:
    """{cost axis: its frontier}, of the axes on which there is a model to place."""
    display = result.scores.results.display
    found = {axis: with_labels(pareto_frontier(result.scores, axis), display) for axis in cost_axes(result.scores)}
    return {axis: frame for axis, frame in found.items() if not frame.empty}


def page_data(result: ReportBundle, placed: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the page's script draws at once, the frontier per cost axis, and what it needs to draw the long tail."""
    scores, tail = result.scores, result.long_tail
    has_derived = any(group.role == "derived" for group in scores.groups)
    role_labels = {role: word for role, word in role_words(scores.results.display).items() if role not in NAMED_ROLES}
    return {
        "costs": {axis: COST_AXES[axis] for axis in placed},
        "panel_axes": list(panel_frames(placed)),
        "deciding": {task: deciding_score(str(scores.results.settings(task).get("metric"))) for task in scores.tasks},
        "frontier": {axis: _points(frame, variant_numbers(scores.groups)) for axis, frame in placed.items()},
        "role_styles": {role: _js_style(ROLE_STYLE[role]) for role in ROLE_STYLE if role != "derived" or has_derived},
        "quality_threshold": scores.analysis.claim_min_quality,
        "role_labels": role_labels,
        "ce_only_label": "the same student without teacher"
        + (", on other data" if baseline_uses_other_data(scores) else ""),
        "tasks": {task: scores.results.display.label(task) for task in scores.tasks},
        "teacher": teacher_label(scores),
        "students": list(tail.flips),
        "axes": [{"name": a.name, "title": a.title, "about": a.description} for a in tail.axes],
    }


def _points(frame: pd.DataFrame, variants: dict[str, int]) -> list[dict[str, Any]]:
    """A frontier's rows, each with its number among the variants that are on it and with its style."""
    shown = number_unique(variant for variant in variants if variant in set(frame["variant"]))
    pairs = zip(frame["role"], frame["variant"], strict=True)
    styles = [_js_style(role_style(role, variants.get(variant, 0))) for role, variant in pairs]
    points: list[dict[str, Any]] = frame.assign(variant_index=frame["variant"].map(shown).fillna(0), style=styles).to_dict(
        "records"
    )
    return points


def _js_style(style: dict[str, Any]) -> dict[str, Any]:
    """What the script needs of a style; the names of matplotlib's markers are those of its shapes."""
    return {"color": style["color"], "shape": style["marker"], "fill": style["fill"], "dash": style["dash"]}


def packed_long_tail(result: ReportBundle, max_chars: int) -> tuple[str, int]:
    """(strata and changed documents as `pack_json` has them, in at most `max_chars`; how many documents are left out)."""
    frame = result.long_tail.stratum_scores
    frame = frame[[name for name in STRATUM_COLUMNS if name in frame]]
    strata = frame.astype(object).where(frame.notna(), None).to_dict("records")
    limit = MAX_DOCUMENTS
    while True:
        documents, omitted = changed_documents(result, limit)
        packed = pack_json({"strata": strata, "documents": documents})
        if len(packed) <= max_chars or not documents:
            return packed, omitted
        limit = int(0.95 * len(documents) * max_chars / len(packed)) if max_chars > 0 else 0


def changed_documents(result: ReportBundle, max_documents: int = MAX_DOCUMENTS) -> tuple[list[dict[str, Any]], int]:
    """Documents that at least one student lost or gained, drawn at random when too many; and how many are left out."""
    tail, scores = result.long_tail, result.scores
    changed = {label: flips[flips["flip"].isin(["lost", "gained"])] for label, flips in tail.flips.items()}
    known = [frame.index for frame in changed.values()]
    if scores.teacher is None or not any(len(index) for index in known):
        return [], 0
    is_changed = scores.results.documents.index.isin(pd.MultiIndex.from_tuples([key for index in known for key in index]))
    rows = np.flatnonzero(is_changed)
    if len(rows) > max_documents:
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:max_documents])
    index = scores.results.documents.index[rows]
    groups = {group.label: group.models for group in scores.groups}
    shown = {label: _choice_scores(result, groups[label], index) for label in ("teacher", *changed)}
    found = []
    for number, (key, row) in enumerate(scores.results.documents.loc[index].iterrows()):
        students = [
            _answer(tail.flips[label], key, shown[label][number]) if key in frame.index else None
            for label, frame in changed.items()
        ]
        first = next(tail.flips[label] for label, frame in changed.items() if key in frame.index)
        found.append({
            "task": key[0], "id": int(row["doc_id"]), "prompt": _shorten(str(row["prompt"])),
            "choices": _choices(row), "gold": int(row["gold"]), "strata": tail.stratum_codes.loc[key].tolist(),
            "teacher": {"choice": int(first.at[key, "teacher_choice"]), "scores": shown["teacher"][number]},
            "students": students,
        })  # fmt: skip
    return found, int(is_changed.sum()) - len(found)


def _choices(row: pd.Series) -> list[str]:
    choices = row["choices"]
    return [str(c) for c in choices] if isinstance(choices, (list, np.ndarray)) else []


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_PAGE_PROMPT_CHARS else f"… {text[-MAX_PAGE_PROMPT_CHARS:]}"


def _answer(flips: pd.DataFrame, key: Any, scores: list[int | None]) -> dict[str, Any]:
    return {"choice": int(flips.at[key, "student_choice"]), "flip": str(flips.at[key, "flip"]), "scores": scores}


def deciding_score(metric: str) -> str:
    """What the choice of a task's metric is made by, in words with its unit."""
    return "log-likelihood, nats per character" if metric == "acc_norm" else "log-likelihood, nats"


def _choice_scores(result: ReportBundle, models: tuple[str, ...], index: pd.MultiIndex) -> list[list[int | None]]:
    """Per document what each choice was judged by (`deciding_score`), in thousandths, mean over the models that know it."""
    results = result.scores.results
    is_norm = {task: results.settings(task).get("metric") == "acc_norm" for task in results.tasks}
    frames = [results.records[model].loc[index] for model in models]
    answers = zip(*([*zip(frame["ll"], frame["len_chars"], strict=True)] for frame in frames), strict=True)
    found: list[list[int | None]] = []
    for task, seeds in zip(index.get_level_values("task"), answers, strict=True):
        known = [(np.asarray(ll, float), np.asarray(chars)) for ll, chars in seeds if _has_finite_max(ll)]
        scores = [ll / np.maximum(chars, 1) if is_norm[task] else ll for ll, chars in known]
        means = np.mean(scores, axis=0) if scores else []
        found.append([round(1000 * float(value)) if np.isfinite(value) else None for value in means])
    return found


def _has_finite_max(likelihoods: Any) -> bool:
    """Whether these are log-likelihoods of choices of which a softmax can be taken."""
    return isinstance(likelihoods, (list, np.ndarray)) and len(likelihoods) > 0 and bool(np.isfinite(np.max(likelihoods)))


def curve_lines(scores: Scores, path: Path) -> dict[str, Any]:
    """`curves`: {quantity: {label of a trained group: [[step, mean, min, max], …]}} of curves.csv, over seeds, thinned to
    CURVE_POINTS (of one seed its value alone); `curve_styles`: {label: its style}."""
    styles = line_styles(scores.groups)
    curve_styles = {label: _js_style(style) for label, style in styles.items()}
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError):
        frame = pd.DataFrame()
    if not {"model", "step"} <= set(frame.columns):
        return {"curves": {}, "curve_styles": {}}
    terms = [c for c in frame.columns if c.startswith("train/") and c not in (*CURVES, "train/tokens")]
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name in (*CURVES, *terms):
        if name in frame and pd.api.types.is_numeric_dtype(frame[name]):
            lines = {group.label: _thin(seed_band(group, frame, name)) for group in scores.groups if group.label in styles}
            found[name] = {label: line for label, line in lines.items() if line}
    return {"curves": {k: v for k, v in found.items() if v}, "curve_styles": curve_styles}


def _thin(band: pd.DataFrame) -> list[list[float]]:
    pick = np.unique(np.linspace(0, max(len(band) - 1, 0), min(CURVE_POINTS, len(band))).astype(int))
    columns = ["mean", "min", "max"] if (band["max"] > band["min"]).any() else ["mean"]
    return [[float(step), *(float(f"{value:.5g}") for value in row)]
            for step, row in zip(band.index[pick], band[columns].to_numpy()[pick], strict=True)]  # fmt: skip
