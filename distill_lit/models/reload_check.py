"""Whether an exported folder says in plain transformers, in another process, what the student says in this one."""

from __future__ import annotations

import atexit
import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_lit.config.fields import QuantizationAware
from distill_lit.models.dummy_inputs import random_tokens
from distill_lit.models.export import export_student
from distill_lit.models.loading import is_remote_code_allowed
from distill_lit.models.lora import is_adapted, merge_adapters
from distill_lit.models.quantization import is_quantized
from distill_lit.models.quantization_aware import quantize_prepared
from distill_lit.utils.exceptions import UserError
from distill_lit.utils.files import cache_root, fingerprint, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RELOAD_CHECK_TOKENS = 48
EXPORT_PACKAGES = ("torch", "transformers", "safetensors", "peft", "torchao")  # another version is another export
RELOAD_LOGIT_TOLERANCE = 1e-4  # of the largest logit: sums of float32 in another order
RELOAD_LOGIT_TOLERANCE_LOW_PRECISION = 3e-2  # where weights or products have 8 or 16 bits, whose rounding jumps

# Runs with `python -I` and the path of this process; nothing of this suite can be imported there. Requests are lines of
# JSON; what libraries print goes to stderr. It ends with its standard input, or when nobody asks for five minutes.
RELOAD_SCRIPT = """
import json, os, signal, sys
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
signal.alarm(300)
sys.path[:] = json.loads(sys.argv[1])
sys.modules["distill_lit"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
for line in iter(sys.stdin.readline, ""):
    signal.alarm(0)
    asked, told = json.loads(line), {}
    torch.set_num_threads(asked["threads"])
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            asked["folder"], dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=asked["code"], output_loading_info=True,
        )
        told["missing"] = sorted(map(str, report["missing_keys"]))
        told["unexpected"] = sorted(map(str, report["unexpected_keys"]))
        for module in model.modules():
            packed = getattr(module, "weight", None)
            if type(packed).__name__ == "Int4Tensor":  # two weights a byte, the lower first; multiplied on GPUs only
                low, high = (packed.qdata << 4) >> 4, packed.qdata >> 4
                integers = torch.stack([low, high], -1).reshape(len(low), -1, packed.block_size[1])
                scale, offset = packed.scale.t().unsqueeze(-1), packed.zero_point.t().unsqueeze(-1)
                module.weight = torch.nn.Parameter((integers * scale + offset).reshape(packed.shape))
        if os.path.exists(os.path.join(asked["folder"], "tokenizer_config.json")):
            AutoTokenizer.from_pretrained(
                asked["folder"], local_files_only=True, trust_remote_code=asked["code"])("a")
        said = load_file(asked["logits"])
        with torch.inference_mode():
            found = model.eval()(input_ids=said["input_ids"], use_cache=False).logits.float()
        if found.shape == said["logits"].shape:
            told["difference"] = float((found - said["logits"]).abs().max())
        else:
            told["error"] = f"logits of shape {tuple(found.shape)}, not {tuple(said['logits'].shape)}"
    except Exception as error:
        told["error"] = f"{type(error).__name__}: " + " ".join(str(error).split())[:200]
    model = report = found = None
    print(json.dumps(told), file=answers)
    signal.alarm(300)
"""


class ReloadProcess:
    """The other process: started when first needed, and again if it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None
        self._owner = 0
        atexit.register(self.close)

    def start(self) -> None:
        """Begins its imports, which take seconds, beside whatever is done here meanwhile."""
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return
        path = [place for place in sys.path if place]
        self._errors, self._owner = tempfile.TemporaryFile("w+"), os.getpid()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", RELOAD_SCRIPT, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        )

    def request(self, **request: Any) -> dict[str, Any]:
        """What it says of a folder; {"error": …} where it could not say anything."""
        self.start()
        process, errors = self._process, self._errors
        assert process is not None and process.stdin is not None and process.stdout is not None and errors is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=process.stdin, flush=True)
        line = process.stdout.readline()
        if line.strip():
            told: dict[str, Any] = json.loads(line)
            return told
        status = process.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [""])[-1]
        return {"error": f"the process that reads it ended with {status}: {last[:200]}"}

    def close(self) -> None:
        """Ends it."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()


RELOAD_PROCESS = ReloadProcess()


def probe_input_ids(model: PreTrainedModel) -> Tensor:
    """Token ids (1, T) of every part of a model's vocabulary."""
    return random_tokens(model, RELOAD_CHECK_TOKENS)[None]


@torch.no_grad()
def logits_on(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """What a model says of token ids (1, T), as it is used: (1, T, V) in float32, on the CPU. It is left as it was."""
    was_training = model.training
    device = next(model.parameters()).device
    logits: Tensor = model.eval()(input_ids=ids.to(device), use_cache=False).logits.float().cpu()
    model.train(was_training)
    return logits


def check_reloads(model: Any, folder: Path, ids: Tensor, expected_logits: Tensor, trust_remote_code: bool = False) -> None:
    """Raises UserError unless plain transformers, in another process, opens `folder` and gives the same
    logits.

    ids: token ids (1, T). expected_logits: (1, T, V). model: whose number formats decide how near.
    trust_remote_code: whether the folder may run code of its own.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as scratch:
        save_file(
            {"input_ids": ids.contiguous(), "logits": expected_logits.contiguous()}, Path(scratch) / "said.safetensors"
        )
        response = RELOAD_PROCESS.request(
            folder=str(folder),
            logits=str(Path(scratch) / "said.safetensors"),
            code=trust_remote_code,
            threads=torch.get_num_threads(),
        )
    largest = float(expected_logits.abs().max())
    tolerance = RELOAD_LOGIT_TOLERANCE if _is_single(model) else RELOAD_LOGIT_TOLERANCE_LOW_PRECISION
    if response.get("error"):
        raise UserError(f"export: transformers does not open what was written: {response['error']}")
    if lost := [*response["missing"], *response["unexpected"]]:
        where = "are missing from" if response["missing"] else "have no place in"
        raise UserError(f"export: weights such as {lost[0]} {where} the exported model")
    if not response["difference"] <= tolerance * max(largest, 1.0):  # NaN is no agreement
        raise UserError(
            f"export: opened by transformers, the model says something else: logits differ by {response['difference']:.2g} "
            f"(the largest is {largest:.2g}); its architecture cannot be saved with these changes"
        )


def check_exports(
    student: PreTrainedModel,
    tokenizer_folder: Path,
    scratch_folder: Path,
    student_config: Any,
    quantization: QuantizationAware = "none",
) -> None:
    """Raises UserError unless a student, before its first step, can be exported: adapters that are no longer 0 are merged,
    fake quantization becomes quantized weights, the folder is opened elsewhere, and logits on one batch are compared.

    scratch_folder: to export into and to remove. student_config: as in the experiment. quantization: what the student was
    prepared for.

    Once on a machine for each kind of student: its architecture, shapes, config, tokenizer files and the versions of the
    libraries count, its weights do not.
    """
    memory = cache_root() / "exports" / f"{_export_check_key(student, tokenizer_folder, student_config)}.json"
    if memory.is_file():
        return
    RELOAD_PROCESS.start()
    ids, trained = probe_input_ids(student), student
    if is_adapted(student):
        trained = _as_if_trained(student)
    logits = logits_on(trained, ids)
    if is_adapted(student):
        trained = merge_adapters(trained)
    elif quantization != "none":
        trained = quantize_prepared(copy.deepcopy(student), quantization)
    try:
        export_student(trained, tokenizer_folder, scratch_folder, "")
        check_reloads(trained, scratch_folder, ids, logits, is_remote_code_allowed(tokenizer_folder))
    finally:
        shutil.rmtree(scratch_folder, ignore_errors=True)
    write_json(memory, {"student": type(student).__name__, "says": "the same in plain transformers"})


def _export_check_key(student: PreTrainedModel, tokenizer_folder: Path, student_config: Any) -> str:
    shapes = {name: [list(value.shape), str(value.dtype)] for name, value in student.named_parameters()}
    tokenizer = {path.name: path.stat().st_size for path in sorted(tokenizer_folder.glob("*token*"))}
    versions = {name: _version(name) for name in EXPORT_PACKAGES}
    return fingerprint(
        [RELOAD_SCRIPT, type(student).__name__, student.config.to_dict(), shapes, student_config, tokenizer, versions]
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _as_if_trained(student: PreTrainedModel) -> PreTrainedModel:
    """A copy whose adapters are no longer 0."""
    trained, draw = copy.deepcopy(student), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw).to(parameter))
    return trained


def _is_single(model: Any) -> bool:
    return not is_quantized(model) and all(value.dtype == torch.float32 for value in model.parameters())
