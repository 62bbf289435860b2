"""The data behind the page: points, curves and documents as JSON."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from distill_lit.analysis.model_groups import NAMED_ROLES, role_words
from distill_lit.analysis.pareto import COST_AXES
from distill_lit.analysis.scores import Scores
from distill_lit.report.bundle import ReportBundle
from distill_lit.report.figures.pareto import panel_frames, quality_label, with_labels
from distill_lit.report.figures.style import ROLE_STYLE, line_styles, number_unique, role_style, variant_numbers
from distill_lit.report.figures.training_curves import seed_band
from distill_lit.report.tables.long_tail import baseline_uses_other_data, teacher_label
from distill_lit.report.web.html_page import pack_json

CURVES = ("validation/teacher_kl", "validation/student_nll", "validation/agreement", "train/loss", "train/student_nll",
          "train/teacher_kl", "train/agreement", "train/gradient_norm", "train/tokens_per_second")  # fmt: skip
CHANGES = ("lost", "gained")
FLIP_FACTS = ["flip", "teacher_choice", "student_choice"]
MAX_DOCUMENTS = 3000  # changed documents on the page; the rest is in records.parquet alone
STRATUM_COLUMNS = ["model", "axis", "stratum", "label", "n", "delta", "low", "high", "ce_only_delta", "ce_only_delta_low",
                   "ce_only_delta_high", "lost", "gained", "note"]  # fmt: skip
MAX_PAGE_PROMPT_CHARS = 1500
CURVE_POINTS = 200


def frontiers(result: ReportBundle) -> dict[str, pd.DataFrame]:
    """{cost axis: its frontier}, of the axes on which there is a model to place."""
    display = result.scores.results.display
    return {axis: with_labels(frame, display) for axis, frame in result.frontiers.items() if not frame.empty}


def page_data(result: ReportBundle, placed: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the page's script draws at once, the frontier per cost axis, and what it needs to draw the long tail."""
    scores, tail = result.scores, result.long_tail
    has_derived = any(group.role == "derived" for group in scores.groups)
    roles = pd.concat([frame["role"] for frame in placed.values()]) if placed else pd.Series(dtype=object)
    role_labels = {role: word for role, word in role_words(scores.results.display).items() if role not in NAMED_ROLES}
    return {
        "costs": {axis: COST_AXES[axis] for axis in placed},
        "panel_axes": list(panel_frames(placed)),
        "deciding": {task: deciding_score(str(scores.results.settings(task).get("metric"))) for task in scores.tasks},
        "frontier": {axis: _points(frame, variant_numbers(scores.groups)) for axis, frame in placed.items()},
        "role_styles": {role: _js_style(ROLE_STYLE[role]) for role in ROLE_STYLE if role != "derived" or has_derived},
        "quality_threshold": scores.analysis.claim_min_quality,
        "quality_label": quality_label(scores.analysis.claim_min_quality, roles),
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
    changed = changed_rows(result)
    shown = drawn_rows(changed, MAX_DOCUMENTS)
    known = dict(zip(shown.tolist(), _documents(result, shown), strict=True))  # of which fewer are drawn below
    while True:
        documents = [known[row] for row in shown.tolist()]
        packed = pack_json({"strata": strata, "documents": documents})
        if len(packed) <= max_chars or not documents:
            return packed, len(changed) - len(documents)
        limit = int(0.95 * len(documents) * max_chars / len(packed)) if max_chars > 0 else 0
        shown = drawn_rows(changed, limit)


def changed_documents(result: ReportBundle, max_documents: int = MAX_DOCUMENTS) -> tuple[list[dict[str, Any]], int]:
    """Documents that at least one student lost or gained, drawn at random when too many; and how many are left out."""
    changed = changed_rows(result)
    shown = drawn_rows(changed, max_documents)
    return _documents(result, shown), len(changed) - len(shown)


def changed_rows(result: ReportBundle) -> NDArray[np.integer]:
    """Row numbers of the documents that at least one student lost or gained."""
    index = result.scores.results.documents.index
    is_changed = np.zeros(len(index), bool)
    for flips in result.long_tail.flips.values() if result.scores.teacher is not None else ():
        is_changed[index.get_indexer(flips.index[flips["flip"].isin(CHANGES)])] = True
    return np.flatnonzero(is_changed)


def drawn_rows(rows: NDArray[np.integer], max_rows: int) -> NDArray[np.integer]:
    """`rows`, or where they are too many, some of them at random; fewer of them are some of more."""
    return rows if len(rows) <= max_rows else np.sort(np.random.default_rng(0).permutation(rows)[:max_rows])


def _documents(result: ReportBundle, rows: NDArray[np.integer]) -> list[dict[str, Any]]:
    """What the page shows of documents that changed, by their row numbers."""
    if not len(rows):
        return []
    tail, scores = result.long_tail, result.scores
    documents = scores.results.documents.iloc[rows]
    groups = {group.label: group.models for group in scores.groups}
    shown = {label: _choice_scores(result, groups[label], documents.index) for label in ("teacher", *tail.flips)}
    answers = [flips.reindex(documents.index)[FLIP_FACTS].to_dict("records") for flips in tail.flips.values()]
    strata = tail.stratum_codes.iloc[rows].to_numpy().tolist()
    facts = zip(*(documents[name] for name in ("doc_id", "prompt", "choices", "gold")), strict=True)
    found = []
    for number, (task, (doc_id, prompt, choices, gold)) in enumerate(
        zip(documents.index.get_level_values("task"), facts, strict=True)
    ):
        own = [records[number] for records in answers]
        students = [
            {"choice": int(one["student_choice"]), "flip": one["flip"], "scores": shown[label][number]}
            if one["flip"] in CHANGES else None
            for label, one in zip(tail.flips, own, strict=True)
        ]  # fmt: skip
        first = next(one for one in own if one["flip"] in CHANGES)
        found.append({
            "task": task, "id": int(doc_id), "prompt": _shorten(str(prompt)),
            "choices": [str(c) for c in choices] if isinstance(choices, (list, np.ndarray)) else [],
            "gold": int(gold), "strata": strata[number],
            "teacher": {"choice": int(first["teacher_choice"]), "scores": shown["teacher"][number]},
            "students": students,
        })  # fmt: skip
    return found


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_PAGE_PROMPT_CHARS else f"… {text[-MAX_PAGE_PROMPT_CHARS:]}"


def deciding_score(metric: str) -> str:
    """What the choice of a task's metric is made by, in words with its unit."""
    return "log-likelihood, nats per character" if metric == "acc_norm" else "log-likelihood, nats"


def _choice_scores(result: ReportBundle, models: tuple[str, ...], index: pd.MultiIndex) -> list[list[int | None]]:
    """Per document what each choice was judged by (`deciding_score`), in thousandths, mean over the models that know it."""
    results = result.scores.results
    is_norm = {task: results.settings(task).get("metric") == "acc_norm" for task in results.tasks}
    frames = [results.records[model] for model in models]
    frames = [frame[["ll", "len_chars"]].take(frame.index.get_indexer(index)) for frame in frames]
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
    own = {g.label: frame[frame["model"].isin(g.models)] for g in scores.groups if g.label in styles}
    for name in (*CURVES, *terms):
        if name in frame and pd.api.types.is_numeric_dtype(frame[name]):
            lines = {label: _thin(seed_band(curves, name)) for label, curves in own.items()}
            found[name] = {label: line for label, line in lines.items() if line}
    return {"curves": {k: v for k, v in found.items() if v}, "curve_styles": curve_styles}


def _thin(band: pd.DataFrame) -> list[list[float]]:
    pick = np.unique(np.linspace(0, max(len(band) - 1, 0), min(CURVE_POINTS, len(band))).astype(int))
    columns = ["mean", "min", "max"] if (band["max"] > band["min"]).any() else ["mean"]
    return [[float(step), *(float(f"{value:.5g}") for value in row)]
            for step, row in zip(band.index[pick], band[columns].to_numpy()[pick], strict=True)]  # fmt: skip
