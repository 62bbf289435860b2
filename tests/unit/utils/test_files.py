"""Files that are complete, and what is left of those that are not."""

from pathlib import Path

from distill_lit.utils.files import TEMPORARY_PREFIX, hashes_of


def test_what_a_killed_writer_has_left_is_no_file_of_a_folder(tmp_path: Path) -> None:
    """A finished student is not taken for another one because the report was killed while it wrote into the model card."""
    (tmp_path / "model.safetensors").write_text("weights")
    whole = hashes_of(tmp_path)
    (tmp_path / f"{TEMPORARY_PREFIX}a.md").write_text("half a c")
    (tmp_path / f"{TEMPORARY_PREFIX}b").mkdir()
    (tmp_path / f"{TEMPORARY_PREFIX}b" / "part").write_text("half")
    assert hashes_of(tmp_path) == whole
    assert list(whole) == ["model.safetensors"]
