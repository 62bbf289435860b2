"""Teachers and students from references: always safetensors (or GGUF, converted once), never a pickle; a model's own code
runs only where its reference asks for it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_lit import assets
from distill_lit.utils.exceptions import UserError, in_one_line
from distill_lit.utils.files import cache_root, locked, sha256_of, sha256_once, writing_folder

if TYPE_CHECKING:  # transformers takes seconds to import, and bad input is refused without it
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
)
WIDENED = ("fp8", "mxfp8", "mxfp4")  # kinds of weights
SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


_may_run_code: set[Path] = set()


def allow_code(folder: Path) -> None:
    """Lets the model in `folder` run its own code in this process. Only for what a reference with `+code` stands for."""
    _may_run_code.add(folder)


def may_run_code(folder: Path) -> bool:
    """Whether `allow_code` was called for a folder."""
    return folder in _may_run_code


def model_folder(reference: str) -> Path:
    """The local transformers folder of a reference, with safetensors. A GGUF is dequantised into the cache once."""
    path = assets.fetch(reference)
    if path.suffix == ".gguf":
        return _convert_gguf(path)
    if not path.is_dir():
        raise UserError(f"reference {reference!r}: {path.name} is neither a model folder nor a .gguf file")
    check_folder(path)
    if assets.parse(reference).code:
        allow_code(path)
    return path


def check_folder(folder: Path) -> None:
    """Raises UserError unless `folder` holds a config and safetensors."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so no transformers model")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no .safetensors weights; pickles (.bin, .pt) are never loaded")


def load_model(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> "PreTrainedModel":
    """The causal language model in a local folder, in evaluation mode. `options` go to `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    check_folder(folder)
    with _telling(folder, "not a causal language model"):
        options.setdefault("config", own_config(folder))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=may_run_code(folder),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported like what is missing, by name, instead of on ten lines
            **options,
        )
    # transformers only warns, and fills the gaps with random numbers
    absent = sorted({*report["missing_keys"], *(name[0] for name in report["mismatched_keys"])})
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(f"{folder}: the weights of {absent[0]}{more} are missing or of another shape than config.json says")
    _check_finite(folder, model)
    return model.eval()


def _check_finite(folder: Path, model: Any) -> None:
    """Raises UserError for a weight that is no number."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and type(weight.data) is torch.Tensor and not weight.isfinite().all():
            what = next(str(float(x)) for x in (weight - weight.nan_to_num(0.0, 1.0, -1.0)).flatten() if not x.isfinite())
            raise UserError(f"{folder}: the weights of {name} hold {what}, so every answer would; the file is damaged")


def own_config(folder: Path) -> Any:
    """The transformers config in a folder. Raises UserError for quantised weights that are not read.

    What it says of attention, which may be code of a hub, is not followed: which one is fastest here is transformers'
    choice, or the caller's.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=may_run_code(folder), local_files_only=True)
    for one in _parts(config):
        for choice in ("_attn_implementation_internal", "_experts_implementation_internal"):
            if hasattr(one, choice):
                setattr(one, choice, None)
        _settle_quantisation(folder, one)
    return config


def _parts(config: Any) -> list[Any]:
    """A config and those within it, as of a text model within one of images."""
    inner = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return [config, *(one for one in inner if one is not None)]


def _settle_quantisation(folder: Path, config: Any) -> None:
    """Has weights in 8 or 4 bits that transformers can widen by itself widened, as its fast ways with them are code of a
    hub. Raises UserError for other kinds of quantised weights, each of which is a package that would be imported."""
    asked = getattr(config, "quantization_config", None)
    if asked is None:
        return
    asked_here = asked if isinstance(asked, dict) else {"quant_method": getattr(asked, "quant_method", None)}
    is_bitsandbytes = asked_here.get("load_in_8bit") or asked_here.get("load_in_4bit")  # whatever else it says
    kind = "bitsandbytes" if is_bitsandbytes else asked_here.get("quant_method")
    if kind in WIDENED and isinstance(asked, dict):
        asked["dequantize"] = True
    elif kind != "torchao":
        raise UserError(
            f"{folder}: config.json asks for quantised weights of kind {kind!r}, which are not read; "
            f"take the model itself, a GGUF, or one of {', '.join(('torchao', *WIDENED))}"
        )


@contextmanager
def _telling(folder: Path, what: str) -> Iterator[None]:
    """Inside, whatever transformers makes of a folder's files becomes a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: {what}: {in_one_line(error)}") from error


def weight_bytes(folder: Path) -> int:
    """Bytes on disk of the weights in a model folder."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def load_config(folder: Path) -> Any:
    """The transformers config in a local folder."""
    with _telling(folder, "its config.json is not one of a causal language model"):
        config = own_config(folder)
        for one in _parts(config):
            if isinstance(asked := getattr(one, "quantization_config", None), dict) and asked["quant_method"] in WIDENED:
                del one.quantization_config  # of the weights on disk, not of the model
        text = config.get_text_config()
        if config.is_encoder_decoder or not all(getattr(text, name, 0) for name in SIZES):
            raise ValueError(f"{config.model_type} has no decoder with {', '.join(SIZES)}")
    return config


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a local folder."""
    from transformers import AutoTokenizer

    with _telling(folder, "no tokenizer"):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=may_run_code(folder), local_files_only=True)


def model_fingerprint(folder: Path) -> dict[str, str]:
    """{file: sha256} of everything that decides what a model says: weights, config, tokenizer."""
    decisive = [*folder.glob("*.safetensors"), folder / "config.json", *(folder / name for name in TOKENIZER_FILES)]
    return {path.name: sha256_once(path) for path in sorted(decisive) if path.is_file()}


def _convert_gguf(path: Path) -> Path:
    folder = cache_root() / "models" / f"{path.stem}-{sha256_of(path)[:16]}"
    if folder.is_dir():
        return folder
    with locked(folder):
        if not folder.is_dir():
            with writing_folder(folder) as temporary:
                _dequantise(path, temporary)
    return folder


def _dequantise(path: Path, folder: Path) -> None:
    # transformers keeps a GGUF packed by default, and a packed model can be neither cast nor trained
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
