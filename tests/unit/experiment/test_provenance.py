"""What provenance says of the code that made a result."""

import subprocess
from pathlib import Path

import pytest

from distill_lit.experiment.execution import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a committed package and results, in which the module is."""
    for name in ("package/experiment/execution/provenance.py", "package/losses/kl.py", "results/table.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(provenance, "FOLDER", tmp_path / "package/experiment")
    return tmp_path


def test_changes_are_those_of_the_whole_checkout_but_its_results(checkout: Path) -> None:
    assert provenance._uncommitted_changes_hash() == ""
    (checkout / "results/table.md").write_text("2\n")
    (checkout / "results/new.py").write_text("2\n")
    assert provenance._uncommitted_changes_hash() == ""
    (checkout / "package/losses/kl.py").write_text("2\n")
    assert provenance._uncommitted_changes_hash()


@pytest.mark.parametrize("name", ["package/losses/new.py", "package/losses/größer.py", "package/experiment/new.py"])
def test_new_files_of_python_are_hashed_with_their_content(checkout: Path, name: str) -> None:
    (checkout / name).write_text("1\n")
    first = provenance._uncommitted_changes_hash()
    (checkout / name).write_text("2\n")
    assert first and provenance._uncommitted_changes_hash() not in ("", first)


def test_text_that_is_no_utf8_does_not_end_a_run(checkout: Path) -> None:
    (checkout / "package/losses/kl.py").write_bytes(b"# gr\xfc\xdfe\n")
    assert provenance._uncommitted_changes_hash()
