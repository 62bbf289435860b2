"""The law of import directions: packages import downwards only. `python tests/unit/test_import_directions.py` prints it."""

import ast
import functools
import re
import sys
import tomllib
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "distill_lit"
ALLOWED: dict[str, set[str]] = {
    "utils": set(),
    "config": {"utils"},
    "assets": {"utils"},
    "losses": {"utils"},
    "models": {"assets", "config", "losses", "utils"},
    "data": {"assets", "config", "losses", "models", "utils"},
    "generation": {"config", "data", "losses", "models", "utils"},
    "teachers": {"config", "data", "generation", "losses", "models", "utils"},  # each is built from the config by its own
    # file; one behind a server asks with the client that asks for text
    "evaluation": {"assets", "config", "data", "models", "utils"},
    "profiling": {"config", "models", "utils"},
    "training": {"config", "data", "evaluation", "generation", "losses", "models", "teachers", "utils"},
    "analysis": {"config", "utils"},
    "report": {"analysis", "config", "utils"},
    "experiment": {"analysis", "assets", "config", "data", "evaluation", "generation", "losses", "models", "profiling",
                   "report", "teachers", "training", "utils"},
    "cli": {"assets", "config", "evaluation", "experiment", "generation", "losses", "models", "profiling", "report",
            "teachers", "training", "utils"},
    "distill_lit": {"analysis", "cli", "data", "evaluation", "experiment", "generation", "losses", "models", "teachers",
                    "training", "utils"},  # the public API, imported lazily
}  # fmt: skip


@functools.cache
def imported_packages(folder: Path = PACKAGE) -> dict[str, set[str]]:
    """{package: packages of `folder` that it imports}, imports inside functions included; the folder's own modules count as
    one, called as it is."""
    graph: dict[str, set[str]] = defaultdict(set)
    root = ".".join(folder.relative_to(PACKAGE.parent).parts)
    own = {path.stem for path in folder.glob("*.py")}
    for path in folder.rglob("*.py"):
        place = path.relative_to(folder).parts
        package = place[0] if len(place) > 1 else folder.name
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            found = {name.removeprefix(f"{root}.").split(".")[0] for name in names if name.startswith(f"{root}.")}
            graph[package] |= {folder.name if name in own and folder != PACKAGE else name for name in found}
    return {package: found - {package} for package, found in graph.items()}


def levels(graph: dict[str, set[str]]) -> list[list[str]]:
    """Packages by level: those of a level import only lower ones. Raises CycleError for a circle."""
    sorter, found = TopologicalSorter(graph), []
    sorter.prepare()
    while sorter.is_active():
        found.append(sorted(sorter.get_ready()))
        sorter.done(*found[-1])
    return found


def test_packages_import_only_what_they_may() -> None:
    graph = imported_packages()
    assert set(graph) == set(ALLOWED)
    assert {package: found - ALLOWED[package] for package, found in graph.items() if found - ALLOWED[package]} == {}


def test_there_is_no_circle_and_there_are_few_floors() -> None:
    graph = imported_packages()
    assert len(graph) <= 20
    assert len(levels(graph)) <= 10


def test_the_packages_of_an_experiment_import_downwards() -> None:
    floors = levels(imported_packages(PACKAGE / "experiment"))
    assert floors == [["planning"], ["state"], ["estimates"], ["execution"], ["launcher"], ["checks"], ["experiment"]]


def test_no_module_is_called_like_one_of_python_or_of_a_dependency() -> None:
    taken = {*sys.stdlib_module_names, *(name.split("[")[0] for name in requirement_names())}
    named = {path.stem for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    assert named & taken == set()


def requirement_names() -> list[str]:
    """Import names of the dependencies, as far as their distributions are called alike."""
    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [re.split(r"[^\w.-]", line)[0].replace("-", "_") for line in lines]


def test_the_root_holds_no_modules() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "__main__.py", "py.typed"}


if __name__ == "__main__":
    imports = imported_packages()
    for number, packages in enumerate(levels(imports)):
        for name in packages:
            print(f"{number}  {name:12}{' '.join(sorted(imports[name]))}")
