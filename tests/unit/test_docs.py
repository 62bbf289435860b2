"""Names in CONTRIBUTING.md exist, hooks run the pinned versions, the API reference names what is there."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import ROOT

PACKAGE = ROOT / "distill_lit"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
TOUR = re.findall(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", (ROOT / "CONTRIBUTING.md").read_text())


def defined_names(path: Path) -> set[str]:
    """Functions, classes and assigned names of a module, those imported into it left out."""
    nodes = ast.parse(path.read_text()).body
    names = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assigned = {
        target.id
        for node in nodes
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    return names | assigned


def test_the_tour_names_what_is_there() -> None:
    assert len(TOUR) > 40
    missing = [
        f"{file}: {name}"
        for file, names in TOUR
        for name in re.findall(r"\w+", names)
        if not (PACKAGE / file).is_file() or name not in defined_names(PACKAGE / file)
    ]
    assert missing == []


def test_packages_are_listed() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert sorted(rows) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


PAPER_TERMS = ROOT / "docs/reference/paper_terms.md"
API_PAGES = sorted(set(PAPER_TERMS.parent.glob("*.md")) - {PAPER_TERMS})


@pytest.mark.parametrize("page", API_PAGES, ids=lambda page: page.stem)
def test_the_reference_names_what_is_there(page: Path) -> None:
    """Each `::: dotted.name` is a module, or a name that is defined in one."""
    targets = re.findall(r"^::: ([\w.]+)$", page.read_text(), re.M)
    assert targets
    for target in targets:
        module = ROOT.joinpath(*target.split("."))
        owner = module.parent.with_suffix(".py")
        is_module = module.with_suffix(".py").is_file()
        assert is_module or (owner.is_file() and module.name in defined_names(owner)), target


def test_hooks_run_the_pinned_versions() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {hook["repo"].rsplit("/")[-1]: hook["rev"].removeprefix("v") for hook in hooks}
    assert revisions["ruff-pre-commit"] == PINS["ruff"]
    assert revisions["codespell"] == PINS["codespell"]


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_messages_name_packages_and_versions_that_this_project_asks_for() -> None:
    """`pip install` in a message: a version is that of pyproject.toml, and nothing is asked of this package's own name."""
    project = (ROOT / "pyproject.toml").read_text()
    named = [
        quoted or plain
        for path in PACKAGE.rglob("*.py")
        for quoted, plain in re.findall(r"pip install (?:'([^'{]+)'|(\w[\w-]+))", path.read_text())
    ]
    assert len(named) > 5
    assert [name for name in named if f'"{name}' not in project or name.startswith("distill-lit")] == []


def test_package_docstrings_name_files_that_exist() -> None:
    for package in PACKAGE.rglob("__init__.py"):
        named = re.findall(r"\b(\w+\.py)\b", ast.get_docstring(ast.parse(package.read_text())) or "")
        assert [name for name in named if not (package.parent / name).is_file()] == [], package


def test_no_test_imports_a_test() -> None:
    files = (ROOT / "tests").rglob("*.py")
    assert [file.name for file in files if re.search(r"^\s*(from|import) test_", file.read_text(), re.M)] == []


def test_words_that_no_researcher_would_search_for_are_gone() -> None:
    """Of an earlier vocabulary, each spelled backwards here, so that this file has none of them."""
    words = "|".join(word[::-1] for word in ("gnihctaw", "fo_ydob", "evisiced", "elttes", "ngierof", "dehcuotnu", "egduj"))
    patterns = ("distill_lit/**/*.py", "tests/**/*.py", "benchmarks/*.py", "examples/*.py", "experiments/*.yaml")
    paths = [path for pattern in (*patterns, "configs/**/*.yaml") for path in ROOT.glob(pattern)]
    assert len(paths) > 500
    found = [f"{path.relative_to(ROOT)}: {match.group()}"
             for path in paths for match in re.finditer(rf"\b({words})\b", path.read_text())]  # fmt: skip
    assert found == []


def test_results_name_no_place_of_the_machine_that_made_them() -> None:
    paths = [*ROOT.glob("results/*/provenance.json"), *ROOT.glob("results/*/plan.yaml")]
    assert len(paths) > 20
    assert [str(path.relative_to(ROOT)) for path in paths if "file:/" in path.read_text()] == []
