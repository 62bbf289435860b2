"""The page: self-contained, everything escaped, and alive in a real browser."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
import warnings
import zlib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.synthetic_results import build, copy_model, edited_records, remove_model

from distill_lit import report
from distill_lit.analysis.long_tail import LongTail
from distill_lit.analysis.model_groups import ModelGroup, role_words
from distill_lit.analysis.pareto import pareto_frontier
from distill_lit.config.evaluation import AnalysisConfig
from distill_lit.report.bundle import ReportBundle, build_report_bundle
from distill_lit.report.figures.calibration import calibration_figure
from distill_lit.report.figures.long_tail import long_tail_figure
from distill_lit.report.figures.pareto import _ticks, deduplicate_untrained, pareto_figure
from distill_lit.report.figures.ranking import is_crowded, ranking_figure
from distill_lit.report.figures.style import DASHED, GREY, ROLE_STYLE, SOLID, line_styles, role_style, variant_numbers
from distill_lit.report.figures.training_curves import curves_figure
from distill_lit.report.formats.html_table import escape_html, to_html
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.render import write_score_tables, write_summary_json
from distill_lit.report.web.html_page import embed_json, html_document
from distill_lit.report.web.index_page import write_index_page
from distill_lit.report.web.page_data import changed_documents, curve_lines, frontiers, packed_long_tail, page_data
from distill_lit.report.web.report_page import write_report_page

FAST = AnalysisConfig(n_resamples=300)
ATTACK = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)

# changes every control as a reader would and leaves what the page then shows in the body's data-test
DRIVE = """<script>
(async () => {
while (document.documentElement.dataset.ready !== "yes") await new Promise((resume) => setTimeout(resume, 20));
const pick = (id, value) => {
  const select = document.getElementById(id);
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const text = (id) => document.getElementById(id).textContent;
const title = (id) => document.querySelector(`#${id} svg`).getAttribute("aria-label");
const titles = (id) => [...document.querySelectorAll(`#${id} svg`)].map((svg) => svg.getAttribute("aria-label"));
const cards = () => document.querySelectorAll("#documents article").length;
const row = () => [...document.querySelectorAll("#strata [role=button]")].at(-1);
const out = { ready: document.documentElement.dataset.ready };
out.controls = [...document.querySelectorAll("select, button")].map((control) => control.id);
out.beside = titles("frontier");
out.tables = document.querySelectorAll("#frontier-table table").length;
pick("cost", "bytes");
out.one = titles("frontier");
document.querySelector("#frontier [tabindex]").dispatchEvent(new FocusEvent("focus"));
out.tip = text("tip");
out.legend = [...document.querySelectorAll("#legend > span")].map((span) => span.textContent.trim());
out.lost = text("count");
pick("task", "piqa");
out.tasks = [...document.querySelectorAll("#documents h4")].every((h) => h.textContent.includes("piqa"));
out.decides = document.querySelector("#documents thead").textContent;
pick("task", "sciq");
out.answers = [...document.querySelectorAll("#documents article")].slice(0, 5).map((a) => [1, 2].map((column) => {
  const cells = [...a.querySelectorAll("tbody tr")].map((tr) => tr.children[column]);
  const scores = cells.map((cell) => parseFloat(cell.textContent.replace("−", "-")));
  return [scores, cells.findIndex((cell) => cell.textContent.includes("answer"))];
}));
pick("task", "");
pick("flip", "gained");
out.gained = text("count");
pick("flip", "");
out.both = text("count");
const first = cards();
document.getElementById("more").click();
out.more = cards() > first;
row().dispatchEvent(new MouseEvent("click"));
out.stratum = document.getElementById("stratum").value;
out.inStratum = text("count");
row().dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
out.cleared = document.getElementById("stratum").value;
pick("axis", document.getElementById("axis").options[1].value);
out.axis = title("strata");
const students = [...document.getElementById("student").options].map((option) => option.value);
pick("student", students[1]);
out.second = text("count");
pick("student", students[0]);
out.curve0 = title("curves");
out.bands = document.querySelectorAll("#curves .band").length;
pick("curve", "train/loss");
out.curve1 = title("curves");
out.bands1 = document.querySelectorAll("#curves .band").length;
const lines = [...document.querySelectorAll("#curves polyline, #curve-legend line")];
out.looks = lines.map((line) => line.getAttribute("stroke") + line.getAttribute("stroke-dasharray"));
out.curveNames = [...document.querySelectorAll("#curve-legend > span")].map((span) => span.textContent.trim());
const folds = [...document.querySelectorAll("details")];
folds[0].open = true;
dispatchEvent(new Event("beforeprint"));
out.printed = folds.every((details) => details.open);
dispatchEvent(new Event("afterprint"));
out.open = folds.map((details) => details.open);
out.hash = location.hash;
out.title = document.title;
document.body.dataset.test = JSON.stringify(out);
})();
</script>"""
MEASURE = """<script>
setTimeout(() => {
  const scroll = document.querySelector("section .scroll");
  const left = () => scroll.querySelector("tbody th").getBoundingClientRect().left;
  scroll.scrollLeft = 200;
  const text = Math.min(...[...document.querySelectorAll("svg text")].map((t) => t.getBoundingClientRect().height));
  const out = { width: innerWidth, needed: document.documentElement.scrollWidth, scrolled: scroll.scrollLeft, text };
  out.sticky = Math.round(left() - scroll.getBoundingClientRect().left);
  parent.postMessage(JSON.stringify(out), "*");
}, 1000);
</script>"""
PHONE = """<iframe src="inner.html" width="380" height="800" style="border: 0"></iframe>
<script>addEventListener("message", (event) => { document.body.dataset.test = event.data; });</script>"""
DRIVE_INDEX = """<script>
const put = (id, value) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event("input"));
};
const visible = () => [...document.querySelectorAll("section.card")].filter((card) => !card.hidden);
const shown = () => visible().map((card) => card.querySelector("h2").textContent);
const out = { all: shown(), controls: [...document.querySelectorAll("select, input")].map((c) => c.id) };
for (const key of ["score", "retention", "delta", "models"]) { put("sort", key); out[key] = shown(); }
put("filter", "WHY two");
out.filtered = shown();
out.count = document.getElementById("count").textContent;
put("filter", "");
put("outcome", "harmed");
out.harmed = shown();
put("outcome", "");
out.again = shown();
out.hash = location.hash;
document.body.dataset.test = JSON.stringify(out);
</script>"""


class Outline(HTMLParser):
    """Collects what an accessible page needs."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment whose data try to break out of the page."""
    folder = build(tmp_path_factory.mktemp("results") / "nasty", documents=80, seeds=(0,), limit=80)
    runs = pd.read_csv(folder / "runs.csv")
    runs["bytes"] *= np.where(runs["role"] == "teacher", 2, 1)  # so that bytes say more than parameters
    runs.assign(student=runs["student"].replace("shallow", ATTACK)).to_csv(folder / "runs.csv", index=False)
    with edited_records(folder) as content:
        frame = content.documents
        frame["prompt"] = ATTACK + frame["prompt"]
        frame["choices"] = [[ATTACK + c for c in choices] for choices in frame["choices"]]
        frame["metadata"] = [json.dumps({"subject": ATTACK if i % 2 else "plain"}) for i in range(len(frame))]
    curves = {
        "model": ["deep-distilled-0", "deep-distilled-0", "shallow-distilled-0", "deep-ce_only-0"],
        "step": [0, 10, 5, 10],
        "train/loss": [2.0, 1.0, 1.5, 1.2],
        "validation/agreement": 0.5,
    }
    pd.DataFrame(curves).to_csv(folder / "curves.csv", index=False)
    (folder / "provenance.json").write_text(json.dumps({"teacher": {"commit": ATTACK, "versions": {"torch": "2"}}}))
    return folder


@pytest.fixture(scope="module")
def result(folder: Path) -> ReportBundle:
    return build_report_bundle(folder, FAST, f"name {ATTACK}", f"question {ATTACK}")


@pytest.fixture(scope="module")
def page(folder: Path, result: ReportBundle) -> str:
    return write_report_page(folder, result).read_text()


def test_nothing_from_data_becomes_markup(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert not [tag for tag, _ in outline.tags if tag == "img"]
    scripts = [attributes for tag, attributes in outline.tags if tag == "script"]
    packed = [{"type": "text/plain", "id": name} for name in ("packed-curves", "packed-long-tail")]
    assert scripts == [{"type": "application/json", "id": "data"}, *packed, {}]
    assert not [a for _, attributes in outline.tags for a in attributes if a.startswith("on")]


def test_the_page_needs_no_network(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    loaded = [a.get("src") or a.get("href") for tag, a in outline.tags if tag in ("script", "link", "img", "iframe")]
    assert not [source for source in loaded if source]
    assert not re.findall(r"url\(|@import|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_headings_labels_and_captions(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    labelled = {a["for"] for tag, a in outline.tags if tag == "label"}
    assert {a["id"] for tag, a in outline.tags if tag == "select"} == labelled
    tables = sum(tag == "table" for tag, _ in outline.tags)
    assert tables == sum(tag == "caption" for tag, _ in outline.tags)
    assert ("html", {"lang": "en"}) in outline.tags


def contrast(colour: object) -> float:
    """With white, as WCAG computes it."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


def test_text_has_contrast() -> None:
    """WCAG AA, 4.5 to 1, of the page's text colours on white; no other colour is given to text."""
    css = (Path(report.__file__).parent / "web/page.css").read_text()
    for name in ("ink", "soft", "link"):
        colour = re.search(rf"--{name}: (#[0-9a-f]{{6}})", css)
        assert colour
        assert contrast(colour[1]) >= 4.5, name
    assert set(re.findall(r"(?<![-\w])(?:color|fill): ([^;]+);", css)) <= {"var(--ink)", "var(--soft)", "var(--link)"}


def test_text_of_the_figures_has_contrast(variants: ReportBundle) -> None:
    from matplotlib.text import Text

    curves = pd.read_csv(variants.scores.results.folder / "curves.csv")
    frames = {"parameters": pareto_frontier(variants.scores, "parameters")}
    for figure in (placed(variants), ranking_figure(frames, 0.9, 0.95, LIMITED),
                   calibration_figure(variants.scores), long_tail_figure(variants.long_tail, LIMITED),
                   curves_figure(variants.scores, curves)):  # fmt: skip
        words = [text for text in figure.findobj(Text) if text.get_text()]
        assert len(words) > 5
        assert min(contrast(text.get_color()) for text in words) >= 4.5
    assert contrast(GREY) >= 4.5 > contrast(ROLE_STYLE["ce_only"]["color"])  # so that this could fail


def test_embedded_json_is_safe_and_whole() -> None:
    value = {"x": [ATTACK, float("nan"), float("inf"), "<!--", "\u2028", True, None]}
    text = embed_json(value)
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {"x": [ATTACK, None, None, "<!--", "\u2028", True, None]}


def test_packed_long_tail_are_those_that_changed(page: str, result: ReportBundle) -> None:
    packed = re.search(r'<script type="text/plain" id="packed-long-tail">([A-Za-z0-9+/=]+)</script>', page)
    assert packed
    documents, omitted = changed_documents(result)
    content = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    assert content["documents"] == documents
    assert len(content["strata"]) == len(result.long_tail.stratum_scores)
    assert omitted == 0


def test_documents_are_left_out_until_the_page_is_small(result: ReportBundle) -> None:
    changed, _ = changed_documents(result)
    packed, omitted = packed_long_tail(result, 6000)
    shown = json.loads(zlib.decompress(base64.b64decode(packed)))["documents"]
    assert len(packed) <= 6000
    assert 0 < len(shown) == len(changed) - omitted
    assert all(document in changed for document in shown)


def test_tables_in_html_are_escaped() -> None:
    text = to_html(Table(ATTACK, [ATTACK], [[TableCell(ATTACK, bold=True)]], header_notes=[ATTACK], footnotes=[ATTACK]))
    assert "<script" not in text
    assert "<img" not in text
    assert text.count(escape_html(ATTACK)) == 5
    assert text.startswith(f'<p class="sample-limit">{escape_html(ATTACK)}</p>')


def test_the_page_says_once_that_documents_were_limited(page: str, folder: Path, result: ReportBundle) -> None:
    """One banner a page; figures, which travel alone, have their own."""
    mark = "Limited to 80 documents per task"
    assert page.count(mark) == 1
    assert page.index("verdict") < page.index(mark) < page.index("<main")
    write_score_tables(folder, result)
    assert (folder / "table.md").read_text().count(mark) == 1


def test_the_answer_comes_first_and_details_are_folded(page: str, result: ReportBundle) -> None:
    body = page[page.index("<body") :]
    assert body.index(escape_html(result.headline)) < body.index("<table")
    first = re.search(r"<thead>(.*?)</thead>", body)
    assert first
    assert re.findall(r"<th[^>]*>([^<\[]*)", first[1])[:4] == ["model", "above chance ", "retained ", "Δ without teacher "]
    tables = re.findall(r"<caption>([^<]*)</caption>", re.sub(r"<details>.*?</details>", "", body, flags=re.S))
    assert tables == ["Did the teacher help?", "What it costs", "Do rare answers and questions lose more?"]


def test_a_page_without_teacher_students_or_curves_stands(tmp_path: Path) -> None:
    folder = build(tmp_path / "bare", documents=20, students={})
    text = write_report_page(folder, build_report_bundle(folder, FAST, "bare")).read_text()
    assert 'id="student"' not in text
    assert [title for title in ("The long tail", "Training", "Loss statements") if f">{title}</h2>" in text] == []
    folder = build(tmp_path / "orphan", documents=20)
    remove_model(folder, "teacher")
    assert "The teacher has no result" in write_report_page(folder, build_report_bundle(folder, FAST, "orphan")).read_text()


def test_curves_are_read_thinned_and_the_mean_over_seeds(tmp_path: Path) -> None:
    scores = build_report_bundle(build(tmp_path, documents=20, students={"deep": 0.5}, seeds=(0, 1)), FAST, "curves").scores
    path = tmp_path / "curves.csv"
    assert curve_lines(scores, path)["curves"] == {}
    seeds = [{"model": f"deep-distilled-{seed}", "step": range(2000), "train/loss": 1.0 + seed} for seed in (0, 1)]
    start = {"model": ["deep-untrained"], "step": 0, "train/loss": 9.0}
    pd.concat(map(pd.DataFrame, [*seeds, start])).to_csv(path, index=False)
    found = curve_lines(scores, path)
    assert set(found["curves"]["train/loss"]) == {"deep distilled"}
    line = found["curves"]["train/loss"]["deep distilled"]
    assert len(line) == 200
    assert (line[0], line[-1]) == ([0.0, 1.5, 1.0, 2.0], [1999.0, 1.5, 1.0, 2.0])
    assert found["curve_styles"]["deep distilled"]["color"] == ROLE_STYLE["distilled"]["color"]


def test_an_impossible_likelihood_leaves_a_gap_and_no_warning(tmp_path: Path) -> None:
    folder = build(tmp_path / "sure", documents=40, students={"deep": 0.5}, seeds=(0, 1))
    result = build_report_bundle(folder, FAST, "sure")
    known, _ = changed_documents(result)
    assert known[0]["teacher"]["scores"]
    never = {0: [-np.inf] * 4, 1: [-np.inf, 0.0, -np.inf, -np.inf]}
    for seed, likelihoods in never.items():
        rows = result.scores.results.records[f"deep-distilled-{seed}"]
        rows["ll"] = [likelihoods[: len(ll)] for ll in rows["ll"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, _ = changed_documents(result)
    assert [d["teacher"] for d in found] == [d["teacher"] for d in known]
    # the other seed still says something
    assert {tuple(d["students"][0]["scores"]) for d in found} <= {(None, 0), (None, 0, None, None)}
    for seed in never:
        rows = result.scores.results.records[f"deep-distilled-{seed}"]
        rows["ll"] = [[-np.inf] * len(ll) for ll in rows["ll"]]
    assert all(d["students"][0]["scores"] == [] for d in changed_documents(result)[0])


def test_index_lists_experiments_and_escapes_them(folder: Path, result: ReportBundle) -> None:
    write_report_page(folder, result)
    write_summary_json(folder, result)
    (folder.parent / "broken").mkdir(exist_ok=True)
    (folder.parent / "broken" / "summary.json").write_text("{")
    text = write_index_page(folder.parent)[0].read_text()
    assert 'href="nasty/report.html"' in text
    assert escape_html(result.headline) in text
    assert "<script" not in text  # nothing to sort
    assert "<img" not in text
    (folder / "frontier.png").write_bytes(b"a picture")
    assert write_index_page(folder.parent)[0].read_text().count('<img src="nasty/frontier.png" alt="Score') == 1
    (folder / "frontier.png").unlink()


def test_students_before_training_that_are_equal_are_one_point() -> None:
    """They differ in the text they would read, which they have not read."""
    scores = [("untrained", 0.3, "a"), ("untrained", 0.3, "b"), ("untrained", 0.4, "c"), ("distilled", 0.3, "a")]
    frame = pd.DataFrame(scores, columns=["role", "score", "variant"]).assign(student="deep", cost=1.0)
    assert list(deduplicate_untrained(frame)["variant"]) == ["", "c", "a"]


def test_models_of_one_cost_share_a_tick_and_those_that_look_alike_are_ranked() -> None:
    """Bytes and seconds are written as such; two students of one size and role would be the same marker twice."""
    rows = [("teacher", "teacher", "", 538e6), ("corrected", "derived", "", 538e6), ("a", "distilled", "a", 221e6)]
    frame = pd.DataFrame(rows, columns=["model", "role", "student", "cost"]).assign(variant="", score=0.3)
    assert _ticks(frame, "bytes") == {221e6: "a\n221 MB", 538e6: "teacher\ncorrected\n538 MB"}
    assert list(_ticks(frame.assign(cost=[0.0211, 0.0251, 0.0251]), "decode_s_per_token").values()) == [
        "teacher\n21.1 ms", "corrected\na\n25.1 ms"
    ]  # fmt: skip
    assert not is_crowded(frame)
    second = frame.iloc[[2]].assign(student="b")
    assert is_crowded(pd.concat([frame, second.assign(variant="v")]).assign(cost=1.0))  # a single column
    assert is_crowded(pd.concat([frame, second]))
    assert not is_crowded(pd.concat([frame, second.assign(variant="v")]))  # another color
    assert is_crowded(pd.concat([frame, second.assign(role="ce_only"), second.assign(role="ce_only", variant="v")]))


LIMITED = "Limited to 100 / 300 documents per task, drawn at random (seed 1234): not the full evaluation."


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> ReportBundle:
    """Two students in three variants each; the first variant is the best, so that it is the last on the frontier."""
    folder = build(tmp_path_factory.mktemp("results") / "variants", documents=60, seeds=(0, 1, 2), limit=60)
    runs = pd.read_csv(folder / "runs.csv")
    mine = runs["role"] == "distilled"
    runs["grid.variant"] = runs["seed"].where(mine).map(lambda seed: None if pd.isna(seed) else f"v{seed:.0f}")
    runs.to_csv(folder / "runs.csv", index=False)
    copy_model(folder, "teacher", "deep-distilled-0", "shallow-distilled-0")
    steps = [
        {"model": model, "step": step, "validation/teacher_kl": 2 - step / 10}
        for model in runs["model"]
        for step in (0, 10)
    ]
    pd.DataFrame(steps).to_csv(folder / "curves.csv", index=False)
    return build_report_bundle(folder, FAST, "variants")


def placed(result: ReportBundle) -> Any:
    """The frontier as a figure."""
    frame = pareto_frontier(result.scores, "parameters")
    colors, words = variant_numbers(result.scores.groups), role_words(result.scores.results.display)
    return pareto_figure({"parameters": frame}, 0.9, 0.95, LIMITED, colors, "What was found", words)


def test_a_variant_has_one_colour_in_all_figures(variants: ReportBundle) -> None:
    scores = variants.scores
    frame = pareto_frontier(scores, "parameters")
    assert frame.loc[frame["role"] == "distilled", "variant"].iloc[0] != "variant=v0"
    expected = {f"variant=v{i}": role_style("distilled", i)["color"] for i in range(3)}

    handles = {handle.get_label(): handle for handle in placed(variants).legends[0].legend_handles}
    on_frontier = {v: handles[f"distilled ({v})"].get_color() for v in expected}
    curves = curves_figure(scores, pd.read_csv(scores.results.folder / "curves.csv")).axes[0].get_lines()
    in_curves = {(line.get_label(), line.get_color()) for line in curves if "distilled" in line.get_label()}
    points = page_data(variants, frontiers(variants))["frontier"]["parameters"]
    on_page = {(row["variant"], row["style"]["color"]) for row in points if row["role"] == "distilled"}
    confidence = {line.get_label(): line for line in calibration_figure(scores).axes[1].get_lines()}

    assert on_frontier == expected
    assert on_page == set(expected.items())
    students = ("deep", "shallow")
    assert in_curves == {(f"{s} distilled ({v})", colour) for s in students for v, colour in expected.items()}
    for variant, colour in expected.items():
        assert confidence[f"deep distilled ({variant})"].get_color() == colour
    looks = {(line.get_color(), line.get_marker()) for label, line in confidence.items() if "distilled" in label}
    assert len(looks) == 5  # a second student differs in shape


def group(role: str, variant: str, student: str = "deep") -> ModelGroup:
    return ModelGroup(role, student, (), ("m",), (0,), 1, f"{student} {role} {variant}", variant=variant)


def test_lines_and_points_do_not_repeat_their_looks() -> None:
    points = [role_style("distilled", i) for i in range(40)]
    assert len({(p["color"], p["marker"]) for p in points}) == 40
    assert not {"*", "D"} & {p["marker"] for p in points[:20]}  # the teacher's and the rivals'
    groups = [group("ce_only", ""), *(group("distilled", f"v{i}") for i in range(12))]
    groups += [group("ce_only", "", "shallow"), *(group("distilled", f"v{i}", "shallow") for i in range(12))]
    styles = line_styles([group("untrained", ""), *groups])
    assert list(styles) == [g.label for g in groups]
    assert len({(s["color"], s["dash"]) for s in styles.values()}) == len(groups)
    assert len({(s["color"], s["marker"]) for s in styles.values()}) == len(groups) - 1  # both without teacher are squares
    colours = {s["color"] for label, s in styles.items() if "distilled" in label}
    assert ROLE_STYLE["ce_only"]["color"] not in colours
    assert all(s["dash"] for label, s in styles.items() if "ce_only" in label)  # without teacher never solid
    five = line_styles([group(role, "", s) for s in "abcde" for role in ("ce_only", "distilled")])
    for student in "abcde":  # both have the student's color
        without, distilled = (five[f"{student} {role} "] for role in ("ce_only", "distilled"))
        assert (without["color"], without["dash"], distilled["dash"]) == (distilled["color"], DASHED, SOLID)
    # of one variant the students are told apart by colour
    students = line_styles([group("distilled", "", s) for s in "abc"])
    assert [s["color"] for s in students.values()] == [role_style("distilled", i)["color"] for i in range(3)]


def test_reliability_can_be_read_where_all_are_confident(variants: ReportBundle) -> None:
    panel = calibration_figure(variants.scores).axes[1]
    ece = variants.long_tail.calibration.set_index("model")["ece_all"]
    lines = panel.get_lines()
    assert len(lines) == 2 * 6
    for claimed, right in zip(lines[::2], lines[1::2], strict=True):
        assert np.diff(right.get_xdata()) == pytest.approx(10)
        gap = np.abs(claimed.get_ydata() - right.get_ydata()).mean() / 100
        assert gap == pytest.approx(ece[right.get_label()])


def test_panels_of_one_student_share_their_scale(variants: ReportBundle) -> None:
    rows = np.reshape(long_tail_figure(variants.long_tail).axes, (-1, 3))  # answers, questions, all axes
    assert [row[0].get_ylim() for row in rows] == [row[1].get_ylim() for row in rows]
    assert all(row[0].get_ylim() != row[2].get_ylim() for row in rows)


@pytest.mark.parametrize("many", [1, 3])
def test_watermarks_are_covered_by_nothing(variants: ReportBundle, many: int) -> None:
    report: LongTail = variants.long_tail
    for figure in (long_tail_figure(report, LIMITED * many), placed(variants), calibration_figure(variants.scores)):
        figure.canvas.draw()
        mark = figure.texts[0].get_window_extent()
        assert mark.y0 >= max(axes.get_window_extent().y1 for axes in figure.axes)
        assert mark.x1 <= figure.bbox.x1
        for legend in figure.legends:
            assert legend.get_window_extent().y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)


@pytest.mark.slow
def test_many_variants_of_one_size_are_ranked_and_curves_drawn(tmp_path: Path) -> None:
    folder = build(tmp_path / "one", documents=30, students={"deep": 0.5}, seeds=(0, 1, 2, 3))
    runs = pd.read_csv(folder / "runs.csv")
    mine = runs["role"] == "distilled"
    runs["grid.variant"] = runs["seed"].where(mine).map(lambda seed: None if pd.isna(seed) else f"v{seed:.0f}")
    runs.to_csv(folder / "runs.csv", index=False)
    points = [
        {"model": model, "step": step, "validation/teacher_kl": 2 - step / 10}
        for model in runs.loc[mine, "model"]
        for step in (0, 5, 10)
    ]
    pd.DataFrame(points).to_csv(folder / "curves.csv", index=False)
    result = report.build_report_bundle(folder, FAST, "one", "why?")
    first = pareto_frontier(result.scores, "parameters")
    assert is_crowded(first)
    halved = first.assign(
        cost=[500e6 if role == "teacher" else 0.25 * cost for role, cost in zip(first["role"], first["cost"], strict=True)]
    )
    figure = ranking_figure({"parameters": first, "bytes": halved}, 0.9, 0.95)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0].startswith("teacher")
    assert names[0].endswith(", 500 MB")
    best = first[first["role"] == "distilled"].sort_values("score")["model"].iloc[-1]
    assert next(name for name in names if "distilled" in name).startswith(best)
    curves = curves_figure(result.scores, pd.read_csv(folder / "curves.csv"))
    lines = {line.get_label(): line for line in curves.axes[0].get_lines()}
    assert len(lines) == 5  # the one without teacher has no points
    assert list(lines["deep distilled (variant=v0)"].get_xdata()) == [0, 100_000, 200_000]
    assert "curves.png" in {path.name for path in report.render_report(folder, result)}
    assert "![Training](curves.png)" in (folder / "table.md").read_text()
    (folder / "curves.csv").unlink()
    report.render_report(folder, result)
    assert not (folder / "curves.png").exists()


@pytest.mark.slow
def test_everything_is_drawn_twice_over(tmp_path: Path) -> None:
    folder = build(tmp_path / "results" / "one", documents=30, limit=30)
    result = report.build_report_bundle(folder, FAST, "one", "why?")
    written = {path.relative_to(tmp_path / "results").as_posix() for path in report.render_report(folder, result)}
    assert {"one/report.html", "one/table.md", "one/longtail.md", "one/summary.json", "index.html"} <= written
    assert {path.name for path in report.render_report(folder, result)} == {Path(name).name for name in written}
    cards = report.model_card_sections(result)
    assert {"deep-distilled-0", "shallow-distilled-0"} <= set(cards)
    assert "teacher" not in cards
    assert "of its teacher's score above chance" in cards["deep-distilled-0"]
    row = next(line for line in cards["deep-distilled-0"].splitlines() if line.startswith("| sciq"))
    mine = result.score_frame[
        (result.score_frame["task"] == "sciq") & (result.score_frame["model"] == "deep distilled")
    ].iloc[0]
    assert row.endswith(f"| {100 * mine['score']:.1f} |")


def shown_by(dom: str) -> Any:
    """What the driving script left in the body's data-test."""
    found = re.search(r'<body data-test="([^"]*)"', dom)
    assert found
    return json.loads(html.unescape(found[1]))


def browse(page: Path) -> tuple[str, str]:
    """(document after its scripts ran, what the browser logged)."""
    assert CHROMIUM
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
               "--virtual-time-budget=2000", f"--user-data-dir={page.parent / 'profile'}", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_answers_in_a_browser(tmp_path: Path, page: str, result: ReportBundle) -> None:
    driven = tmp_path / "driven.html"
    driven.write_text(page.replace("</body>", f"{DRIVE}</body>"))
    dom, log = browse(driven)
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    out = shown_by(dom)
    assert out["ready"] == "yes"
    assert out["controls"] == ["cost", "student", "task", "axis", "stratum", "flip", "more", "curve"]  # all are driven
    assert out["beside"] == [f"Score above chance against {words}" for words in ("parameters", "bytes on disk")]
    assert out["tables"] == 2
    assert out["one"] == ["Score above chance against bytes on disk"]
    assert "points above chance" in out["tip"]
    assert out["legend"] == ["teacher", "before training", "without teacher", "distilled"]
    assert "log-likelihood, nats per character" in out["decides"]
    assert len(out["answers"]) == 5
    assert all(values[choice] == max(values) for answer in out["answers"] for values, choice in answer)  # it decided
    flips = result.long_tail.flips["deep distilled"]["flip"].value_counts()
    counts = [int(out[name].split()[0]) for name in ("lost", "gained", "both")]
    assert counts == [flips["lost"], flips["gained"], flips["lost"] + flips["gained"]]
    assert out["tasks"]
    assert out["more"]
    axis = result.long_tail.stratum_codes[result.long_tail.axes[0].name]
    assert out["stratum"] == str(axis.min())
    rows = result.long_tail.flips["deep distilled"]
    head = rows[rows["flip"].isin(["lost", "gained"]) & (axis.loc[rows.index] == axis.min())]
    assert int(out["inStratum"].split()[0]) == len(head)
    assert out["cleared"] == ""
    assert out["axis"] == f"Difference to the teacher by {result.long_tail.axes[1].title}"
    changed = result.long_tail.flips[f"{ATTACK} distilled"]["flip"].isin(["lost", "gained"]).sum()
    assert int(out["second"].split()[0]) == changed
    assert (out["curve0"], out["curve1"]) == ("validation/agreement during training", "train/loss during training")
    assert (out["bands"], out["bands1"]) == (0, 0)  # one seed each
    lines, names = out["looks"], out["curveNames"]
    assert names == ["deep without teacher", "deep distilled", f"{ATTACK} distilled"]
    assert lines[: len(names)] == lines[len(names) :]  # the legend shows what is drawn
    assert len(set(lines)) == len(names)
    assert out["printed"]
    assert out["open"] == [True] + [False] * (len(out["open"]) - 1)
    chosen = {"cost=bytes", f"axis={result.long_tail.axes[1].name}", "curve=train%2Floss"}
    assert chosen <= set(out["hash"].removeprefix("#").split("&"))
    assert "pwned" in out["title"]  # as text, because it is in the name
    assert out["title"] == result.title


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_is_read_on_a_phone(tmp_path: Path, page: str) -> None:
    """At 380 px the page is no wider than the screen; tables scroll by themselves and keep their first column."""
    (tmp_path / "inner.html").write_text(page.replace("</body>", f"{MEASURE}</body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(f"<!doctype html><html><body>{PHONE}</body></html>")
    out = shown_by(browse(outer)[0])
    assert out["needed"] <= out["width"] == 380
    assert out["scrolled"] == 200
    assert out["sticky"] == 0
    assert out["text"] >= 12  # pixels: plots are drawn anew, not shrunk


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_bands_of_seeds_are_drawn_on_the_page(tmp_path: Path) -> None:
    folder = build(tmp_path / "bands", documents=40, students={"deep": 0.8}, seeds=(0, 1))
    points = [
        {"model": f"deep-distilled-{seed}", "step": step, "validation/agreement": seed / 2, "train/loss": 1.0}
        for seed in (0, 1)
        for step in (0, 10)
    ]
    pd.DataFrame(points).to_csv(folder / "curves.csv", index=False)
    text = write_report_page(folder, build_report_bundle(folder, FAST, "bands")).read_text()
    count = "document.body.dataset.test = JSON.stringify(document.querySelectorAll('#curves .band').length)"
    driven = tmp_path / "driven.html"
    driven.write_text(text.replace("</body>", f"<script>setTimeout(() => {{ {count}; }}, 500)</script></body>"))
    assert shown_by(browse(driven)[0]) == 1  # of agreement; the two seeds have one loss


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_index_sorts_and_filters(tmp_path: Path) -> None:
    experiments: list[tuple[Any, ...]] = [("alpha", "why one?", "helped", 0.2, 3), ("beta", "why two?", "harmed", 0.3, 9),
                                          ("gamma", "older", None, None, 5)]  # fmt: skip
    for name, question, outcome, value, models in experiments:
        summary: dict[str, Any] = {"name": name, "question": question, "headline": "…", "tasks": [], "models": models}
        if outcome:
            student = {
                "score": {"value": value},
                "retention": {"value": 1 - value},
                "delta_without_teacher": {"value": -value},
            }
            summary |= {"outcome": outcome, "students": [student]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    driven = write_index_page(tmp_path)[0]
    driven.write_text(driven.read_text().replace("</body>", f"{DRIVE_INDEX}</body>"))
    dom, log = browse(driven)
    assert "CONSOLE" not in log, [line for line in log.splitlines() if "CONSOLE" in line]
    out = shown_by(dom)
    assert out["controls"] == ["filter", "outcome", "sort"]
    assert out["all"] == ["alpha", "beta", "gamma"]
    assert out["score"] == ["beta", "alpha", "gamma"]  # what has no number comes last
    assert out["retention"] == out["delta"] == ["alpha", "beta", "gamma"]
    assert out["models"] == ["beta", "gamma", "alpha"]
    assert (out["filtered"], out["count"]) == (["beta"], "1 of 3 experiments")
    assert out["harmed"] == ["beta"]
    assert len(out["again"]) == 3
    assert out["hash"] == "#sort=models"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_policy_blocks_the_network(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(html_document("t", "<img src='http://127.0.0.1:9/x.png'>"))
    _, log = browse(path)
    assert "Content Security Policy" in log


def test_drawing_needs_neither_torch_nor_lightning_nor_lm_eval(tmp_path: Path) -> None:
    folder = shutil.copytree("results/cross_tokenizer", tmp_path / "cross_tokenizer")
    code = f"""import sys
from distill_lit.cli.main import main
try:
    main(["report", {str(folder)!r}])
except SystemExit as end:
    print(end.code, sorted({{"torch", "lightning", "transformers", "lm_eval"}} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
