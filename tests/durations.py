"""Runs the default suite and the slow tests and writes what takes longest: `python tests/durations.py`."""

import os
import platform
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/test_durations.md"
SUITES = {"make test": ("-m", "not slow"), "make test-slow": ("-m", "slow")}
SLOWEST = 25


def run_suite(marks: tuple[str, ...], report: Path) -> float:
    """Runs the tests side by side; the minutes that it took. Exits where one fails."""
    command = [sys.executable, "-m", "pytest", "--numprocesses", "auto", "--dist", "loadfile", f"--junitxml={report}"]
    begin = time.monotonic()
    if subprocess.run([*command, *marks], cwd=ROOT).returncode:
        raise SystemExit("a test failed: nothing was written")
    return (time.monotonic() - begin) / 60


def section(name: str, minutes: float, report: Path) -> str:
    """A heading, the slowest files and the slowest tests."""
    files: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        file = (case.get("classname") or "").replace(".", "/")
        files[file] += float(case.get("time") or 0)
        tests[f"{file}::{case.get('name')}"] += float(case.get("time") or 0)
    tables = [
        f"| {what} | seconds |\n|---|---|\n" + "".join(f"| `{k}` | {v:.0f} |\n" for k, v in counts.most_common(SLOWEST))
        for what, counts in (("file", files), ("test", tests))
    ]
    return f"## `{name}`: {len(tests)} tests, {minutes:.1f} minutes\n\n" + "\n".join(tables)


def main() -> None:
    """Writes docs/test_durations.md."""
    report = ROOT / ".pytest_cache/durations.xml"
    parts = []
    for name, marks in SUITES.items():
        minutes = run_suite(marks, report)
        parts.append(section(name, minutes, report))
    head = f"""# How long the tests take

`make test-durations` writes this page: the {SLOWEST} slowest files and tests, fixtures included, on {os.cpu_count()} cores
({platform.machine()}, Python {platform.python_version()}).

"""
    PAGE.write_text(head + "\n".join(parts))


if __name__ == "__main__":
    main()
