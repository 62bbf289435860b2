"""Model folders: which files are their weights, and what is refused because it is no whole model."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from distill_lit import assets
from distill_lit.models.loading import check_model_folder, model_fingerprint, weight_bytes
from distill_lit.utils.exceptions import UserError


def folder_of(place: Path, **sizes: int) -> Path:
    place.mkdir()
    for name, size in sizes.items():
        (place / f"{name}.safetensors").write_bytes(b"x" * size)
    return place


def test_a_second_copy_of_the_weights_is_neither_fetched_nor_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral's repositories hold the same weights as `consolidated*.safetensors`."""
    folder = folder_of(tmp_path / "model", consolidated=70, **{"model-00001-of-00002": 5, "model-00002-of-00002": 6})
    (folder / "config.json").write_text("{}")
    check_model_folder(folder)
    assert weight_bytes(folder) == 11
    assert sorted(model_fingerprint(folder)) == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip
    for path in folder.glob("model-*"):
        path.unlink()
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        check_model_folder(folder)

    files = ["consolidated.safetensors", "consolidated-00001-of-00002.safetensors", "model.safetensors", "README.md"]
    fetched: list[str] = []

    def download(_: str, allow_patterns: list[str], ignore_patterns: str, **__: object) -> str:
        fetched.extend(filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assets.fetch("hf:org/mistral")
    assert fetched == ["model.safetensors"]


def test_an_adapter_is_refused_with_how_to_merge_it(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "adapter", adapter_model=3)
    with pytest.raises(UserError, match="no config.json"):
        check_model_folder(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    with pytest.raises(UserError, match=r"an adapter of PEFT, not a whole model; merge it: .*merge_and_unload\(\)"):
        check_model_folder(folder)
