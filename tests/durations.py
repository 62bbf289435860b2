"""Writes what takes longest by reports of `pytest --junitxml`: `python tests/durations.py test.xml test-slow.xml`."""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/test_durations.md"
SLOWEST = 25
HEAD = f"""# How long the tests take

The {SLOWEST} slowest files and tests of a `.ci/run` on two cores, fixtures included. `make test-durations` writes this page
from the reports that `make test` and `make test-slow` leave.
"""


def section(report: Path) -> str:
    """A heading, the slowest files and the slowest tests of a report, which is called as what made it."""
    root = ElementTree.parse(report).getroot()
    minutes = sum(float(suite.get("time") or 0) for suite in root.iter("testsuite")) / 60
    files: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for case in root.iter("testcase"):
        file = (case.get("classname") or "").replace(".", "/")
        files[file] += float(case.get("time") or 0)
        tests[f"{file}::{case.get('name')}"] += float(case.get("time") or 0)
    tables = [
        f"| {what} | seconds |\n|---|---|\n" + "".join(f"| `{k}` | {v:.0f} |\n" for k, v in counts.most_common(SLOWEST))
        for what, counts in (("file", files), ("test", tests))
    ]
    return f"## `make {report.stem}`: {len(tests)} tests, {minutes:.1f} minutes\n\n" + "\n".join(tables)


def main() -> None:
    """Writes docs/test_durations.md."""
    reports = [Path(argument) for argument in sys.argv[1:]]
    if not reports:
        raise SystemExit(__doc__)
    if lost := [str(report) for report in reports if not report.is_file()]:
        raise SystemExit(f"{lost[0]}: not there; `make test` and `make test-slow` write reports")
    PAGE.write_text("\n".join([HEAD, *(section(report) for report in reports)]))


if __name__ == "__main__":
    main()
