"""What generation_config.json says, and a token added to it, against transformers' own reading."""

import json
from pathlib import Path

import pytest
from helpers import tiny_models
from transformers import GenerationConfig

from distill_lit.models.generation_files import (
    add_eos_token_id,
    generation_eos_token_ids,
    load_generation_config,
    penalty_settings,
    sampling_settings,
)
from distill_lit.utils.exceptions import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_models.make_model(tmp_path / "model")


@pytest.mark.parametrize("has_file", [True, False])
def test_one_more_token_ends_a_text(folder: Path, has_file: bool) -> None:
    """Also where config.json alone names the end."""
    file = folder / "generation_config.json"
    if has_file:
        file.write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6, "do_sample": True}))
    else:
        file.unlink()
    assert generation_eos_token_ids(load_generation_config(folder)) == [2]
    for _ in range(2):
        add_eos_token_id(folder, 9)
        found = GenerationConfig.from_pretrained(folder)
        assert found.eos_token_id == [2, 9]
        assert found.temperature == (0.6 if has_file else None)


def test_a_known_end_leaves_the_file_as_it_is(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    add_eos_token_id(folder, 9)
    assert (folder / "generation_config.json").read_text() == '{"eos_token_id": [2, 9]}'


def test_settings_that_change_what_is_drawn() -> None:
    neutral = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    assert sampling_settings(GenerationConfig(**neutral)) == {}
    drawn = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, repetition_penalty=1.1, suppress_tokens=[7])
    assert sampling_settings(drawn) == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "suppress_tokens": [7]}
    assert penalty_settings(drawn) == {"repetition_penalty": 1.1, "suppress_tokens": [7]}
    greedy = GenerationConfig(do_sample=False, temperature=0.6, no_repeat_ngram_size=3)
    assert sampling_settings(greedy) == penalty_settings(greedy) == {"no_repeat_ngram_size": 3}


def test_a_file_that_is_no_json_is_one_line(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(UserError, match=r"generation_config.json: "):
        load_generation_config(folder)
