"""What a model's `generation_config.json` says: where its texts end, and how it would have them drawn."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_lit.models.loading import build_on_meta, load_model_config
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.files import read_json, write_text

if TYPE_CHECKING:  # bad input is told before it is loaded
    from transformers import GenerationConfig

GENERATION_CONFIG_FILE = "generation_config.json"
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
# what changes the logits also where the most probable token is taken
PENALTY_FIELDS = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "sequence_bias",
    "guidance_scale",
)
NEUTRAL_VALUES = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 1, "epsilon_cutoff": 0,
                  "eta_cutoff": 0, "repetition_penalty": 1, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0,
                  "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "guidance_scale": 1}  # fmt: skip
# what no text depends on, or whoever calls `generate` says
FIELDS_OF_CALLERS = ("_from_model_config", "transformers_version", "bos_token_id", "pad_token_id", "use_cache",
                     "max_length", "max_new_tokens", "output_attentions", "output_hidden_states", "output_scores",
                     "output_logits", "return_dict_in_generate")  # fmt: skip


def load_generation_config(folder: Path) -> "GenerationConfig":
    """The generation config in a model folder, made of `config.json` where it has no file, as transformers does. Raises
    UserError where it cannot be read."""
    from transformers import GenerationConfig

    if not (folder / GENERATION_CONFIG_FILE).is_file():
        return GenerationConfig.from_model_config(load_model_config(folder))
    try:
        return GenerationConfig.from_dict(read_json(folder / GENERATION_CONFIG_FILE))
    except Exception as error:  # whatever transformers makes of the file
        raise UserError(f"{folder / GENERATION_CONFIG_FILE}: {one_line_message(error)}") from error


def generation_config_changes(folder: Path) -> dict[str, Any]:
    """{field: value} in which the generation config in a model folder differs from the one that its `config.json` makes:
    where its texts end, and how they are drawn; nothing that every caller of `generate` says."""
    from transformers import GenerationConfig

    own, plain = (
        {**config.to_dict(), "eos_token_id": sorted(generation_eos_token_ids(config))}
        for config in (load_generation_config(folder), GenerationConfig.from_model_config(load_model_config(folder)))
    )
    return {name: value for name, value in own.items() if name not in FIELDS_OF_CALLERS and value != plain.get(name)}


def model_without_weights(folder: Path) -> Any:
    """The model in a folder on the meta device, which takes no memory, with its generation config."""
    model = build_on_meta(load_model_config(folder))
    model.generation_config = load_generation_config(folder)
    return model


def generation_eos_token_ids(config: Any) -> list[int]:
    """The tokens at which `generate` stops under a generation config."""
    ids = config.eos_token_id
    return list(ids) if isinstance(ids, (list, tuple)) else [] if ids is None else [ids]


def sampling_settings(config: Any) -> dict[str, Any]:
    """{field: value} of a generation config by which other tokens are drawn than the logits say; empty for none."""
    return {**(_set_fields(config, SAMPLING_FIELDS) if config.do_sample else {}), **penalty_settings(config)}


def penalty_settings(config: Any) -> dict[str, Any]:
    """Those of `sampling_settings` that count where the most probable token is taken, too."""
    return _set_fields(config, PENALTY_FIELDS)


def _set_fields(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """Those of these fields that have a value which changes something."""
    values = {name: getattr(config, name, None) for name in names}
    return {name: value for name, value in values.items() if value not in (None, [], NEUTRAL_VALUES.get(name))}


def add_eos_token_id(folder: Path, token_id: int) -> None:
    """Has `generate` stop at one more token, in the `generation_config.json` of a model folder."""
    path = folder / GENERATION_CONFIG_FILE
    known = load_generation_config(folder)
    ids = generation_eos_token_ids(known)
    if token_id not in ids:
        settings = read_json(path) if path.is_file() else known.to_diff_dict()
        write_text(path, json.dumps({**settings, "eos_token_id": [*ids, token_id]}, indent=2) + "\n")
