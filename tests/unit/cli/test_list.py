"""`distill-lit list`: every line says what it names, as the code checks it."""

import re
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

from distill_lit.cli.main import main
from distill_lit.config import load_experiment
from distill_lit.losses import FEATURE_LOSSES, LOGIT_LOSSES, PRESETS
from distill_lit.teachers import teacher_sources
from distill_lit.teachers.registry import TEACHER_SOURCES

SHIPPED_LOSSES = {name: one for name, one in LOGIT_LOSSES.items() if one.function.__module__.startswith("distill_lit.")}
ABOUTS = {name: kind.about for kinds in (SHIPPED_LOSSES, FEATURE_LOSSES, PRESETS) for name, kind in kinds.items()}
SOURCE = re.compile(r"\d{4}\.\d{4,5}|DistillKit")


@pytest.fixture(autouse=True)
def shipped_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those alone, whatever other tests have registered."""
    for name in [
        name for name, source in TEACHER_SOURCES.items() if not type(source).__module__.startswith("distill_lit.")
    ]:
        monkeypatch.delitem(TEACHER_SOURCES, name)


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    """{name: what is said of it} of all lines."""
    with pytest.raises(SystemExit) as end:
        main(["list", *words])
    assert end.value.code == 0
    return dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("name", ABOUTS)
def test_a_loss_is_said_in_one_sentence_and_its_source(name: str) -> None:
    about = ABOUTS[name]
    _, *sources = re.split(r"(?<!et al)(?<!eq)\. ", about)
    assert about.endswith(".") and about.count("(") == about.count(")")
    assert len(sources) <= 1 and all(SOURCE.search(source) for source in sources)


def test_teachers_of_a_loss_on_inner_states_are_those_that_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, "objectives")
    assert lines["hidden_states"].endswith("Needs teacher.source online or offline with teacher.hidden_layers.")
    assert lines["attention"].endswith("Needs teacher.source online.")


def test_every_teacher_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, "teachers")
    assert list(lines) == teacher_sources()
    assert all(about.strip().endswith(".") for about in lines.values())


def test_defaults_are_names_that_an_experiment_takes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "configs/mine").mkdir(parents=True)
    (tmp_path / "configs/mine/seed.yaml").write_text("# Another seed,\n# by Fisher et al. 1935. More.\nseed: 7\n")
    monkeypatch.chdir(tmp_path)
    lines = listed(capsys, "defaults")
    shipped = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert set(lines) == (shipped - {"templates/experiment"}) | {"mine/seed"}
    assert lines["mine/seed"].strip() == "Another seed, by Fisher et al. 1935."
    teacher = {"model": "hf:org/name"}
    experiment = {"name": "all", "defaults": list(lines), "teacher": teacher, "students": {"one": {"num_layers": 1}}}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(experiment))
    assert load_experiment(tmp_path / "all.yaml").seed == 7


@pytest.mark.parametrize(
    "words", [["TAID"], ["minillm"], ["2402.03898"], ["policy_gradient_reverse_kl"], ["replay", "buffer"]]
)
def test_a_word_of_a_paper_leads_to_keys_and_files(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    page = (ROOT / "docs/reference/paper_terms.md").read_text().splitlines()
    rows = [
        line.strip("| ").split(" | ") for line in page if line.startswith("| ") and " ".join(words).lower() in line.lower()
    ]
    lines = listed(capsys, "terms", *words)
    assert {name.strip() for name in lines} == {term for term, _, _ in rows}
    assert [about.strip() for about in lines.values()] == [f"{key} [{files}]".replace("`", "") for _, key, files in rows]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TAID"], "a paper's word: distill-lit list terms TAID"),
        (["objective"], "did you mean 'objectives'"),
        (["terms", "no", "such", "word"], "list terms: no line holds 'no such word'"),
    ],
)
def test_what_is_not_there_says_where_to_look(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["list", *words])
    assert end.value.code == 2 and said in " ".join(capsys.readouterr().err.split())
