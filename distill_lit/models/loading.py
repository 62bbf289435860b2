"""Teachers and students from references: always safetensors (or GGUF, converted once), never a pickle; a model's own code
runs only where its reference asks for it."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_lit import assets
from distill_lit.assets.hub import SECOND_COPY
from distill_lit.models.int4_weights import widen_int4_weights
from distill_lit.models.int8_products import use_fast_int8_products
from distill_lit.utils.exceptions import UserError, one_line_message
from distill_lit.utils.files import atomic_write_folder, cache_root, cached_file_sha256, file_lock

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
DEQUANTIZED_METHODS = ("fp8", "mxfp8", "mxfp4")  # kinds of weights
REQUIRED_CONFIG_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


def torch_dtype(name: str) -> torch.dtype:
    """The number format of this name, such as bfloat16; `auto` is none."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


_remote_code_folders: set[Path] = set()


def allow_remote_code(folder: Path) -> None:
    """Lets the model in `folder` run its own code in this process. Only for what a reference with `+code` stands for."""
    _remote_code_folders.add(folder)


def is_remote_code_allowed(folder: Path) -> bool:
    """Whether `allow_remote_code` was called for a folder."""
    return folder in _remote_code_folders


def model_folder(reference: str) -> Path:
    """The local transformers folder of a reference, with safetensors. A GGUF is dequantized into the cache once."""
    path = assets.fetch(reference)
    if path.suffix == ".gguf":
        return _convert_gguf(path)
    if not path.is_dir():
        raise UserError(f"reference {reference!r}: {path.name} is neither a model folder nor a .gguf file")
    check_model_folder(path)
    if assets.parse_reference(reference).trust_remote_code:
        allow_remote_code(path)
    return path


def check_model_folder(folder: Path) -> None:
    """Raises UserError unless `folder` holds a config and safetensors."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder}: an adapter of PEFT, not a whole model; merge it: model = peft.AutoPeftModelForCausalLM."
                f'from_pretrained("{folder}"); model.merge_and_unload().save_pretrained("merged"); and put its '
                "tokenizer there"
            )
        raise UserError(f"{folder}: no config.json, so no transformers model")
    if not weight_files(folder):
        raise UserError(f"{folder}: no .safetensors weights; pickles (.bin, .pt) are never loaded")


def load_model(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> "PreTrainedModel":
    """The causal language model in a local folder, in evaluation mode. `options` go to `from_pretrained`."""
    from transformers import AutoModelForCausalLM

    check_model_folder(folder)
    with _loading_errors(folder, "not a causal language model"):
        options.setdefault("config", config_for_loading(folder))
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=is_remote_code_allowed(folder),
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported like what is missing, by name, instead of on ten lines
            **options,
        )
    # transformers only warns, and fills the gaps with random numbers
    missing_or_mismatched = sorted({*report["missing_keys"], *(name[0] for name in report["mismatched_keys"])})
    if missing_or_mismatched:
        more = f" and {len(missing_or_mismatched) - 1} more" if len(missing_or_mismatched) > 1 else ""
        raise UserError(
            f"{folder}: the weights of {missing_or_mismatched[0]}{more} are missing or of another shape than "
            "config.json says"
        )
    widen_int4_weights(model)
    if getattr(model, "hf_quantizer", None) is not None:
        use_fast_int8_products()
    _check_finite(folder, model)
    return model.eval()


def _check_finite(folder: Path, model: Any) -> None:
    """Raises UserError for a weight that is no number."""
    for name, weight in model.named_parameters():
        is_plain = type(weight.data) is torch.Tensor and weight.device.type != "meta"  # which is on disk still
        if weight.is_floating_point() and is_plain and not weight.isfinite().all():
            what = next(str(float(x)) for x in (weight - weight.nan_to_num(0.0, 1.0, -1.0)).flatten() if not x.isfinite())
            raise UserError(f"{folder}: the weights of {name} hold {what}, so every answer would; the file is damaged")


def config_for_loading(folder: Path) -> Any:
    """The transformers config in a folder. Raises UserError for quantized weights that are not read.

    What it says of attention, which may be code of a hub, is not followed: which one is fastest here is transformers'
    choice, or the caller's.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=is_remote_code_allowed(folder), local_files_only=True)
    for one in _parts(config):
        for choice in ("_attn_implementation_internal", "_experts_implementation_internal"):
            if hasattr(one, choice):
                setattr(one, choice, None)
        _set_dequantization(folder, one)
    return config


def _parts(config: Any) -> list[Any]:
    """A config and those within it, as of a text model within one of images."""
    inner = (getattr(config, name, None) for name in getattr(config, "sub_configs", {}))
    return [config, *(one for one in inner if one is not None)]


def _set_dequantization(folder: Path, config: Any) -> None:
    """Has weights in 8 or 4 bits that transformers can widen by itself widened, as its fast ways with them are code of a
    hub. Raises UserError for other kinds of quantized weights, each of which is a package that would be imported."""
    quantization_config = getattr(config, "quantization_config", None)
    if quantization_config is None:
        return
    quantization_options = (
        quantization_config
        if isinstance(quantization_config, dict)
        else {"quant_method": getattr(quantization_config, "quant_method", None)}
    )
    is_bitsandbytes = quantization_options.get("load_in_8bit") or quantization_options.get(
        "load_in_4bit"
    )  # whatever else it says
    kind = "bitsandbytes" if is_bitsandbytes else quantization_options.get("quant_method")
    if kind in DEQUANTIZED_METHODS and isinstance(quantization_config, dict):
        quantization_config["dequantize"] = True
    elif kind != "torchao":
        raise UserError(
            f"{folder}: config.json asks for quantized weights of kind {kind!r}, which are not read; "
            f"take the model itself, a GGUF, or one of {', '.join(('torchao', *DEQUANTIZED_METHODS))}"
        )


@contextmanager
def _loading_errors(folder: Path, what: str) -> Iterator[None]:
    """Inside, whatever transformers makes of a folder's files becomes a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: {what}: {one_line_message(error)}") from error


def weight_files(folder: Path) -> list[Path]:
    """The weights in a model folder, without a second copy in another format."""
    return [path for path in folder.glob("*.safetensors") if not path.match(SECOND_COPY)]


def weight_bytes(folder: Path) -> int:
    """Bytes on disk of the weights in a model folder."""
    return sum(path.stat().st_size for path in weight_files(folder))


def load_model_config(folder: Path) -> Any:
    """The transformers config in a local folder."""
    with _loading_errors(folder, "its config.json is not one of a causal language model"):
        config = config_for_loading(folder)
        for one in _parts(config):
            if (
                isinstance(quantization := getattr(one, "quantization_config", None), dict)
                and quantization["quant_method"] in DEQUANTIZED_METHODS
            ):
                del one.quantization_config  # of the weights on disk, not of the model
        text = config.get_text_config()
        if config.is_encoder_decoder or not all(getattr(text, name, 0) for name in REQUIRED_CONFIG_SIZES):
            raise ValueError(f"{config.model_type} has no decoder with {', '.join(REQUIRED_CONFIG_SIZES)}")
    return config


def build_on_meta(config: Any, **options: Any) -> Any:
    """The causal language model of a transformers config on the meta device: its shapes, without weights or memory.
    options: of `from_config`, such as dtype."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **options)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a local folder."""
    from transformers import AutoTokenizer

    with _loading_errors(folder, "no tokenizer"):
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=is_remote_code_allowed(folder), local_files_only=True
        )


def model_fingerprint(folder: Path) -> dict[str, str]:
    """{file: sha256} of everything that decides what a model says: weights, config, tokenizer."""
    hashed_files = [*weight_files(folder), folder / "config.json", *(folder / name for name in TOKENIZER_FILES)]
    return {path.name: cached_file_sha256(path) for path in sorted(hashed_files) if path.is_file()}


def _convert_gguf(path: Path) -> Path:
    folder = cache_root() / "models" / f"{path.stem}-{cached_file_sha256(path)[:16]}"
    if folder.is_dir():
        return folder
    with file_lock(folder):
        if not folder.is_dir():
            with atomic_write_folder(folder) as temporary:
                _dequantize_gguf(path, temporary)
    return folder


@contextmanager
def _remembered_tensor_names() -> Iterator[None]:
    """Inside, gguf makes its map of names once for a model: transformers asks for it once for each module, for minutes."""
    import gguf

    make = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = functools.cache(make)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = make


def load_gguf(path: Path) -> "PreTrainedModel":
    """The model in a GGUF file as transformers reads it, its weights widened to float32."""
    # transformers keeps a GGUF packed by default, and a packed model can be neither cast nor trained
    from transformers import AutoModelForCausalLM, GgufConfig

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    with _remembered_tensor_names():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval()


def _dequantize_gguf(path: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    load_gguf(path).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
