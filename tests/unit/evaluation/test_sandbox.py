"""What the process sees in which generated code runs."""

from pathlib import Path

import pytest

from distill_lit.evaluation.sandbox import sandbox_environment


def test_data_of_the_hub_are_where_they_were_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its home is an empty folder, and offline `datasets` reads what is in its cache, by default below the home."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "made")
    environment = sandbox_environment(tmp_path / "home")
    assert environment["HF_DATASETS_CACHE"] == str(tmp_path / "made")
    assert environment["HOME"] == str(tmp_path / "home")
