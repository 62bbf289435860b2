"""report.html: the whole experiment on one self-contained page, to be opened from disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.calibration import choice_softmax
from distill_lit.analysis.model_groups import AS_THEY_ARE, ROLE_WORDS
from distill_lit.analysis.pareto import COST_AXES, cost_axes, frontier
from distill_lit.analysis.scaling_law import is_grid
from distill_lit.analysis.scores import Scores
from distill_lit.report.bundle import Analysed
from distill_lit.report.figures.style import ROLE_STYLE, line_styles, numbered, role_style, variant_numbers
from distill_lit.report.figures.training_curves import mean_curve
from distill_lit.report.formats.table import Table
from distill_lit.report.loss_report import contrast_table, flip_table, reads_other_text
from distill_lit.report.tables.efficiency_claim import claim_table
from distill_lit.report.tables.inference_cost import cost_table
from distill_lit.report.tables.scaling import scaling_table
from distill_lit.report.tables.scores import detail_table, main_table, provenance, watermark
from distill_lit.report.web.html_page import asset, document, embed_json, escape, paragraphs, to_html
from distill_lit.utils.files import read_json, write_text

MAX_DOCUMENTS = 3000  # changed documents on the page; the rest stays in records/
PROMPT_CHARS = 1500
UNFOLDED = 3  # paragraphs of the verdict that are open at once
CURVE_POINTS = 300
CURVES = ("validation/teacher_kl", "validation/student_nll", "validation/agreement", "train/loss", "train/student_nll",
          "train/teacher_kl", "train/agreement", "train/gradient_norm", "train/tokens_per_second")  # fmt: skip


def draw_page(folder: Path, result: Analysed) -> Path:
    """Writes report.html into `folder`; returns its path."""
    placed = frontiers(result)
    curves = curve_lines(result.scores, folder / "curves.csv")
    parts = [_head(result), "<main id='main'>", _results(result), _frontier_section(result, placed), _tail_section(result)]
    parts += [_curves_section(curves), _scaling_section(result), _statements(result), "</main>", _footer(folder, result)]
    parts.append(f'<script type="application/json" id="data">{embed_json(payload(result, placed) | curves)}</script>')
    parts.append(f"<script>\n{asset('page.js')}</script>")
    write_text(folder / "report.html", document(result.title, "\n".join(p for p in parts if p)))
    return folder / "report.html"


def _head(result: Analysed) -> str:
    question = f'<p class="question">{escape(result.question)}</p>' if result.question else ""
    return (
        '<a class="skip" href="#main">To the results</a>\n<header>'
        f"<h1>{escape(result.name)}</h1>{question}\n{paragraphs(watermark(result.scores), 'watermark')}\n"
        f"{paragraphs([result.headline], 'verdict')}\n{_in_words(result.verdict)}\n</header>"
    )


def _in_words(verdict: list[str]) -> str:
    """The verdict on every student; of many students folded away."""
    said = paragraphs(verdict)
    return said if len(verdict) <= UNFOLDED else f"<details><summary>Every student in words</summary>{said}</details>"


def _results(result: Analysed) -> str:
    main = main_table(result.scores, result.frame, "Scores")
    detail = detail_table(result.scores, result.frame, "Every task, with differences")
    return (
        f'<section aria-labelledby="h-scores"><h2 id="h-scores">Scores</h2>{to_html(main)}'
        f"<details><summary>Every task, with intervals and differences</summary>{to_html(detail)}</details></section>"
    )


def frontiers(result: Analysed) -> dict[str, pd.DataFrame]:
    """{cost axis: its frontier}, of the axes on which there is a model to place."""
    found = {axis: frontier(result.scores, axis) for axis in cost_axes(result.scores)}
    return {axis: frame for axis, frame in found.items() if not frame.empty}


def _frontier_section(result: Analysed, placed: dict[str, pd.DataFrame]) -> str:
    if not cost_axes(result.scores):
        return ""
    plot = _frontier_plot(result) if placed else "<p>No model has both a score and a cost.</p>"
    return f"""<section aria-labelledby="h-frontier"><h2 id="h-frontier">Quality against cost</h2>
{plot}
{to_html(claim_table(result.scores))}{to_html(cost_table(result.scores))}</section>"""


def _frontier_plot(result: Analysed) -> str:
    return f"""<div class="controls"><label for="cost">cost axis<select id="cost"></select></label>
<div id="legend" class="controls"></div></div>
<figure><div id="frontier"></div>
<figcaption>Score above chance, mean over tasks, with {result.scores.analysis.confidence:.0%} intervals.
Point at a model, or reach it with the tab key, to read its numbers.{_mark(result)}</figcaption></figure>
<div class="tip" id="tip" aria-live="polite">No model chosen.</div>
<details><summary>The same as a table</summary>{_mark(result)}<div id="frontier-table" class="scroll"></div></details>"""


def _mark(result: Analysed) -> str:
    return paragraphs(watermark(result.scores), "watermark")


def _marked(result: Analysed, table: Table) -> str:
    return to_html(replace(table, above=watermark(result.scores)))


def _tail_section(result: Analysed) -> str:
    if result.longtail.strata.empty:
        return ""
    boxes = "".join(
        f'<label for="{name}">{words}<select id="{name}"></select></label>'
        for name, words in (("student", "student"), ("task", "task"), ("axis", "axis"), ("stratum", "stratum"),
                            ("flip", "what changed"))
    )  # fmt: skip
    return f"""<section aria-labelledby="h-tail"><h2 id="h-tail">The long tail</h2>
{_marked(result, contrast_table(result.scores, result.longtail))}
<details><summary>Changed answers per task</summary>{_marked(result, flip_table(result.longtail))}</details>
<h3>Read what was lost</h3><div class="controls">{boxes}</div>
<p class="note">Probabilities are the softmax over the choices' log-likelihoods, mean over seeds; the chosen answer
follows the task's metric, which may divide by length.</p>
<div class="split"><figure><div id="strata"></div>
<figcaption><span id="axis-about"></span>{_mark(result)}</figcaption></figure>
<div><p id="count" class="note" aria-live="polite"></p><div id="documents"></div>
<button id="more" type="button" hidden>Show more</button></div></div></section>"""


def _curves_section(curves: dict[str, Any]) -> str:
    if not curves["curves"]:
        return ""
    return """<section aria-labelledby="h-curves"><h2 id="h-curves">Training</h2>
<div class="controls"><label for="curve">quantity<select id="curve"></select></label></div>
<figure><div id="curves"></div><figcaption>Mean over seeds.</figcaption></figure>
<div class="controls note" id="curve-legend"></div></section>"""


def _scaling_section(result: Analysed) -> str:
    if not is_grid(result.runs):
        return ""
    table = to_html(scaling_table(result.runs, None))
    return f'<section aria-labelledby="h-scaling"><h2 id="h-scaling">Size and tokens</h2>{table}</section>'


def _statements(result: Analysed) -> str:
    parts = [f"<h3>{escape(label)}</h3>{paragraphs(said)}" for label, said in result.statements.items()]
    title = '<section aria-labelledby="h-loss"><h2 id="h-loss">What was lost, in words</h2>'
    return f"{title}{''.join(parts)}</section>" if parts else ""


def _footer(folder: Path, result: Analysed) -> str:
    lines = provenance(result.scores)
    try:
        found = read_json(folder / "provenance.json")
    except (OSError, ValueError):
        found = {}
    known = [entry for entry in found.values() if isinstance(entry, dict)] if isinstance(found, dict) else []
    for name in ("commit", "changes", "versions", "hardware"):
        values = list(dict.fromkeys(_flat(entry[name]) for entry in known if entry.get(name)))
        if values:
            lines.append(f"{name.capitalize()}: {' / '.join(values)}.")
    files = "".join(f'<a href="{name}">{name}</a> ' for name in ("table.md", "table.csv", "longtail.md", "plan.yaml"))
    return f'<footer><h2 id="h-source">Where this comes from</h2>{paragraphs(lines)}<p>{files}</p></footer>'


def _flat(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items() if v) if isinstance(value, dict) else str(value)


def payload(result: Analysed, placed: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """What the page's script draws: frontier per cost axis, strata, and the changed documents."""
    scores, tail = result.scores, result.longtail
    documents, left_out = changed_documents(result)
    words = {role: word for role, word in ROLE_WORDS.items() if role not in AS_THEY_ARE}
    return {
        "costs": {axis: COST_AXES[axis] for axis in placed},
        "frontier": {axis: _points(frame, variant_numbers(scores.groups)) for axis, frame in placed.items()},
        "looks": {role: _look(style) for role, style in ROLE_STYLE.items()},
        "quality": scores.analysis.claim_quality,
        "roles": words,
        "without": "the same student without teacher" + (", on other text" if reads_other_text(scores) else ""),
        "tasks": scores.tasks,
        "students": list(tail.flips),
        "axes": [{"name": a.name, "title": a.title, "about": a.about} for a in tail.axes],
        "strata": tail.strata.astype(object).where(tail.strata.notna(), None).to_dict("records"),
        "documents": documents,
        "left_out_documents": left_out,
    }


def _points(frame: pd.DataFrame, variants: dict[str, int]) -> list[dict[str, Any]]:
    """A frontier's rows, each with its number among the variants that are on it and with its look."""
    shown = numbered(variant for variant in variants if variant in set(frame["variant"]))
    pairs = zip(frame["role"], frame["variant"], strict=True)
    looks = [_look(role_style(role, variants.get(variant, 0))) for role, variant in pairs]
    points: list[dict[str, Any]] = frame.assign(place=frame["variant"].map(shown).fillna(0), look=looks).to_dict("records")
    return points


def _look(style: dict[str, Any]) -> dict[str, Any]:
    """What the script needs of a style; the names of matplotlib's markers are those of its shapes."""
    return {"colour": style["color"], "shape": style["marker"], "fill": style["fill"], "dash": style["dash"]}


def changed_documents(result: Analysed) -> tuple[list[dict[str, Any]], int]:
    """Documents that at least one student lost or gained, drawn at random when too many; and how many are left out."""
    tail, scores = result.longtail, result.scores
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
            "choices": _choices(row), "gold": int(row["gold"]), "strata": tail.codes.loc[key].tolist(),
            "teacher": {"chosen": _chosen(first, key, "chosen_t"), "p": probabilities["teacher"][number]},
            "students": students,
        })  # fmt: skip
    return found, int(places.sum()) - len(found)


def _choices(row: pd.Series) -> list[str]:
    choices = row["choices"]
    return [str(c) for c in choices] if isinstance(choices, (list, np.ndarray)) else []


def _shorten(text: str) -> str:
    return text if len(text) <= PROMPT_CHARS else f"… {text[-PROMPT_CHARS:]}"


def _chosen(flips: pd.DataFrame, key: Any, column: str) -> int:
    return int(flips.at[key, column])


def _answer(flips: pd.DataFrame, key: Any, p: list[float]) -> dict[str, Any]:
    return {"chosen": _chosen(flips, key, "chosen_s"), "flip": str(flips.at[key, "flip"]), "p": p}


def _probabilities(result: Analysed, models: tuple[str, ...], index: pd.MultiIndex) -> list[list[float]]:
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
    looks = {label: _look(style) for label, style in styles.items()}
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
