"""longtail.md and longtail.csv: what was lost where, and how surely the tail lost more than the head."""

import numpy as np
import pandas as pd

from distill_lit.analysis.document_axes import Axis, zipf_of
from distill_lit.analysis.long_tail import AT_CHANCE, INSUFFICIENT, LongTail, averaged_flips
from distill_lit.analysis.score_table import opponents
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Cell, Table, escape_markdown, paragraphs, to_markdown
from distill_lit.report.number_format import ABSENT, number, p_value, points, with_bounds
from distill_lit.report.tables.scores import left_out, provenance, watermark

EXAMPLES = 5  # lost documents shown per student
PROMPT_CHARS = 300
DETAILED = ("rarity_question", "difficulty")  # axes whose strata stand in the page; all are in the CSV


def longtail_markdown(
    scores: Scores, report: LongTail, title: str, statements: dict[str, list[str]], has_confidence: bool
) -> str:
    """The page. `statements`: {label: paragraphs of its loss statement}; `has_confidence`: confidence.png was drawn."""
    lines = [f"# Long tail: {escape_markdown(title)}", "", *(f"> {escape_markdown(w)}\n" for w in watermark(scores))]
    if not report.flips:
        missing = "the teacher has no result" if scores.teacher is None else "no distilled student has a result"
        return "\n".join([*lines, f"Nothing can be said about what was lost: {missing}.", ""])
    for label, said in statements.items():
        lines += [f"**{escape_markdown(label)}**", "", *paragraphs(said)]
    lines += ["![Long tail](longtail.png)", "", "## Did the tail lose more than the head?", ""]
    lines += [to_markdown(contrast_table(scores, report)), "## Flips per task", "", to_markdown(flip_table(report))]
    lines += ["## Confidence", "", to_markdown(confidence_table(report))]
    lines += ["![Confidence](confidence.png)", ""] if has_confidence else []
    for model in report.flips:
        lines += [f"## {escape_markdown(model)}", "", to_markdown(axes_table(scores, report, model))]
        lines += [to_markdown(stratum_table(scores, report, model, axis)) for axis in report.axes if axis.name in DETAILED]
        lines += [to_markdown(slice_table(report, model)), *slice_examples(scores, report, model)]
        lines += lost_examples(scores, report, model)
    return "\n".join(
        [*lines, "## How this was computed", "", *paragraphs(_method(scores, report)), *paragraphs(provenance(scores))]
    )


def contrast_table(scores: Scores, report: LongTail) -> Table:
    """Δ_tail − Δ_head per student and axis, the same without teacher, and the excess."""
    percent = f"{scores.analysis.confidence:.0%}"
    rows, rules, last = [], set(), None
    for _, row in report.contrasts.iterrows():
        if last not in (None, row["model"]):
            rules.add(len(rows))
        cells = [_contrast(row, name) for name in ("tail_loss", "ce_only_tail_loss", "excess")]
        rows.append([Cell(row["model"] if row["model"] != last else ""), Cell(report.title(row["axis"])), *cells])
        last = row["model"]
    return Table(
        "Tail less head of the difference to the teacher, points above chance",
        ["model", "axis", f"distilled [{percent}]", f"without teacher [{percent}]", f"excess [{percent}]"],
        rows,
        left=2,
        rules=rules,
        below=[
            f"Negative: the tail lost more than the head. {_to_blame(scores)} Bold: its interval does not hold 0 (not "
            "corrected for the number of axes)."
        ],
    )


def reads_other_text(scores: Scores) -> bool:
    """Whether a student without teacher that others are compared with was trained on other text than they."""
    others = {other for g in range(len(scores.groups)) for who, other in opponents(scores, g).items() if who == "ce_only"}
    return any(scores.groups[other].other_text for other in others)


def _to_blame(scores: Scores) -> str:
    """What the excess over the student without teacher may be laid to."""
    if reads_other_text(scores):
        return (
            "The student without teacher read other text, so the excess over it is of teacher and text together and cannot "
            "be laid to either."
        )
    return "Only the excess over the student trained without a teacher can be laid to distillation."


def _contrast(row: pd.Series, name: str) -> Cell:
    value, low, high = (row.get(key, np.nan) for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(value):
        return Cell(str(row.get("note") or ABSENT))
    return Cell(with_bounds(value, low, high, signed=True), bold=bool(low > 0 or high < 0))


def flip_table(report: LongTail) -> Table:
    """Lost, gained, agreement per task and student."""
    rows, last = [], None
    for _, row in report.tasks.iterrows():
        rows.append([Cell(row["model"] if row["model"] != last else ""), Cell(row["task"]), *_flip_cells(row)])
        last = row["model"]
    return Table(
        "Answers that changed from teacher to student",
        ["model", "task", "n", "lost", "gained", "agree", "same wrong", "p", "BH"],
        rows,
        left=2,
        below=[
            "Lost: teacher right, student wrong; gained: the reverse. Agree: same choice. Same wrong: of those both "
            "miss, the share with the same wrong choice. p: McNemar, exact, or by passage where documents share one "
            "(Obuchowski 1998); BH: after Benjamini–Hochberg over all "
            f'strata and tasks of the student, "{INSUFFICIENT}" below 100 documents or 10 changed ones.'
        ],
    )


def _flip_cells(row: pd.Series) -> list[Cell]:
    judged = row["verdict"] if row["verdict"] in (INSUFFICIENT, AT_CHANCE) else p_value(row["adjusted"])
    return [
        Cell(f"{int(row['n'])}"),
        Cell(f"{int(row['lost'])}"),
        Cell(f"{int(row['gained'])}"),
        Cell(_percent(row["agreement"])),
        Cell(_percent(row["shared_wrong"])),
        Cell(p_value(row["p"])),
        Cell(judged),
    ]


def _percent(value: float) -> str:
    return ABSENT if pd.isna(value) else f"{points(value, 0)}%"


def axes_table(scores: Scores, report: LongTail, model: str) -> Table:
    """Axis × stratum for one student: its score above chance less the teacher's."""
    mine = report.strata[report.strata["model"] == model]
    strata = range(1, scores.analysis.strata + 1)
    rows = []
    for axis in (a for a in report.axes if a.kind != "category"):
        found = mine[mine["axis"] == axis.name].set_index("stratum")
        last = 2 if axis.kind == "binary" else scores.analysis.strata
        cells = [_stratum_delta(found.loc[s]) if s in found.index else Cell(ABSENT if s <= last else "") for s in strata]
        rows.append([Cell(f"{axis.title}: {axis.head} → {axis.tail}"), *cells])
    notes = ["Points above chance, student less teacher, from head to tail. Bold: its interval does not hold 0."]
    return Table("By every axis", ["axis", *(str(s) for s in strata)], rows, below=notes)


def _stratum_delta(row: pd.Series) -> Cell:
    return Cell(points(row["delta"], signed=True), bold=bool(row["low"] > 0 or row["high"] < 0))


def stratum_table(scores: Scores, report: LongTail, model: str, axis: Axis) -> Table:
    """Every stratum of one axis for one student."""
    mine = report.strata[(report.strata["model"] == model) & (report.strata["axis"] == axis.name)]
    percent = f"{scores.analysis.confidence:.0%}"
    rows = []
    for _, row in mine.iterrows():
        kept = AT_CHANCE if row["note"] == AT_CHANCE else _percent(row["retention"])
        cells = _flip_cells(row) if row["n"] else [Cell("0"), *[Cell(ABSENT)] * 6]
        rows.append(
            [
                Cell(row["label"]),
                Cell(points(row["teacher"])),
                Cell(points(row["student"])),
                Cell(points(row.get("ce_only", np.nan))),
                Cell(with_bounds(row["delta"], row["low"], row["high"], signed=True)),
                Cell(kept),
                *cells,
            ]
        )
    return Table(
        f"By {axis.about}",
        [
            "stratum",
            "teacher",
            "student",
            "without teacher",
            f"Δ teacher [{percent}]",
            "kept",
            "n",
            "lost",
            "gained",
            "agree",
            "same wrong",
            "p",
            "BH",
        ],
        rows,
    )


def slice_table(report: LongTail, model: str) -> Table:
    """Slices that SliceLine proposed for one student, with what the held-out half says."""
    rows = [
        [
            Cell(row["slice"], bold=bool(row["confirmed"])),
            Cell(f"{row['n']}"),
            Cell(f"{row['lost']}"),
            Cell(f"{row['gained']}"),
            Cell(_percent(row["lost_rate"])),
            Cell(_percent(row["rest_rate"])),
            Cell(p_value(row["adjusted"])),
            Cell("confirmed" if row["confirmed"] else "not confirmed"),
        ]
        for _, row in report.slices[model].iterrows()
    ]
    columns = ["slice", "n", "lost", "gained", "loss rate", "elsewhere", "BH", "verdict"]
    notes = [
        "Found by SliceLine on one half of the documents, counted on the other. Loss rate: of what the teacher answers "
        "rightly, the share the student loses."
    ]
    empty = ["No group of documents with higher loss was found, or there are too few documents to look for one."]
    return Table("Groups of documents with higher loss", columns, rows, below=notes if rows else empty)


def slice_examples(scores: Scores, report: LongTail, model: str) -> list[str]:
    """EXAMPLES lost documents of every confirmed slice, from the tasks that slices were looked for in."""
    lines = []
    flips = averaged_flips(scores, report.flips[model])
    for _, row in report.slices[model].iterrows():
        if row["confirmed"]:
            mine = report.codes.loc[flips.index]
            inside = np.logical_and.reduce([(mine[axis] == stratum).to_numpy() for axis, stratum in row["rule"].items()])
            lines += _examples(scores, flips[inside], f'lost documents in "{row["slice"]}"')
    return lines


def lost_examples(scores: Scores, report: LongTail, model: str) -> list[str]:
    """EXAMPLES documents the student lost, from the tasks on which the teacher is above chance."""
    return _examples(scores, averaged_flips(scores, report.flips[model]), "lost documents")


def _examples(scores: Scores, flips: pd.DataFrame, what: str) -> list[str]:
    """Lost documents among `flips`, drawn at random with a fixed seed, with both answers."""
    lost = flips[flips["flip"] == "lost"]
    if lost.empty:
        return ["No document was lost.", ""]
    drawn = lost.sample(min(EXAMPLES, len(lost)), random_state=0)
    documents = scores.results.documents.loc[drawn.index]
    lines = [escape_markdown(f"{len(drawn)} of {len(lost)} {what}, drawn at random:"), ""]
    for (index, row), (_, document) in zip(drawn.iterrows(), documents.iterrows(), strict=True):
        choices = [str(c) for c in document["choices"]] if document["choices"] is not None else []
        prompt = " ".join(str(document["prompt"]).split())
        shown = prompt if len(prompt) <= PROMPT_CHARS else f"… {prompt[-PROMPT_CHARS:]}"
        answer = f"teacher: {_choice(choices, row['chosen_t'])} (right); student: {_choice(choices, row['chosen_s'])}"
        lines += [f"- {escape_markdown(index[0])}: {escape_markdown(shown)} — {escape_markdown(answer)}"]
    return [*lines, ""]


def confidence_table(report: LongTail) -> Table:
    """Worst tenth, calibration head against tail, and the share that can be answered at the teacher's risk."""
    rows = []
    for _, row in report.confidence.iterrows():
        scores = [Cell(points(row.get(f"ece_{part}", np.nan))) for part in ("all", "head", "tail")]
        brier = [Cell(number(row.get(f"brier_{part}", np.nan), 2)) for part in ("all", "head", "tail")]
        gain, low, high = (row.get(f"coverage_gain{bound}", np.nan) for bound in ("", "_low", "_high"))
        share = "" if pd.isna(row.get("coverage")) else f"{points(row['coverage'], 0)}%"
        cover = [Cell(share), Cell(with_bounds(gain, low, high, signed=True) if share else "")]
        nll = [Cell(number(row.get(name, np.nan), 2, signed=True)) for name in ("excess_nll", "cvar")]
        known = Cell("" if pd.isna(row.get("n")) else f"{row['n']:.0f}")
        rows.append([Cell(row["model"]), known, *nll, *scores, *brier, *cover])
    columns = [
        "model",
        "n",
        "excess NLL",
        "worst tenth",
        "ECE",
        "head",
        "tail",
        "Brier",
        "head",
        "tail",
        "answerable",
        "gain",
    ]
    return Table(
        "How much its probabilities can be trusted", columns, rows,
        below=[
            "Excess NLL: nats by which the right answer is less likely than under the teacher, on average and "
            "over the worst tenth of documents. ECE: points between confidence and accuracy, 10 bins of equal "
            "mass. Head, tail: questions with the most common and the rarest words. Answerable: with a threshold on "
            "its confidence chosen on one half of the documents so that student and, below it, teacher are as often "
            "right as the teacher alone, the share of the other half it answers; gain: points by which the two are "
            "then right more often than the teacher. All from unnormalised likelihoods, tasks weighted equally; n: "
            "documents of all tasks with a finite likelihood for every choice."
        ],
    )  # fmt: skip


def _choice(choices: list[str], number: int) -> str:
    if len(choices) < 2:
        return "right" if number == 0 else "another text"
    return choices[number].strip() if 0 <= number < len(choices) else "?"


def _method(scores: Scores, report: LongTail) -> list[str]:
    results = scores.results
    why = "the experiment kept no counts of its corpus"
    if results.frequencies is not None:
        why = f"the {results.corpus_words:,} words of the distillation corpus are too few"
    source = "the distillation corpus" if results.counts_words else f"wordfreq's general English, because {why}"
    example = number(zipf_of(results)("the"), 1)
    axes = "; ".join(f"{axis.name}: {axis.about}" for axis in report.axes if axis.family != "metadata")
    seeds = sorted({len(g.models) for g in scores.groups if g.role == "distilled" and g.models})
    modal = (
        "the modal answer over seeds" if seeds and seeds[0] >= 3 else "the answer of the first seed (fewer than 3 seeds)"
    )
    lines = [
        f"Axes: {axes}.",
        f'Word frequencies are those of {source} ("the": {example}).',
        f"Strata are {scores.analysis.strata} quantile groups within each task, pooled with equal task weight. Scores "
        f"are above chance. A flip is of {modal}.",
    ]
    return [*lines, *left_out(scores)]


def longtail_frame(report: LongTail) -> pd.DataFrame:
    """Everything as one long frame; `table` is contrast, stratum, task or worst."""
    parts = {"contrast": report.contrasts, "stratum": report.strata, "task": report.tasks, "worst": report.worst}
    known = [frame.assign(table=name) for name, frame in parts.items() if not frame.empty]
    if not known:
        return pd.DataFrame(columns=["table", "model"])
    joined = pd.concat(known, ignore_index=True)
    return joined[["table", "model", *(c for c in joined if c not in ("table", "model"))]]
