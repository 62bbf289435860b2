"""Text by vLLM (Kwon et al. 2023, 2309.06180), in a process of its own by a Python of its own: vLLM pins versions of torch
and transformers that this suite need not run with.

A student's weights are handed over as files in transformers' format, in memory where the machine has a file system there,
so whatever can be exported can be handed over.

Self-check
    Weights that are handed over and do not arrive everywhere would not be noticed: after one small step text looks the
    same. So vLLM begins with other weights, every tensor rolled by a row, is handed the student's, and must then give the
    log-probabilities that the plain model gives. Afterwards the trainer computes those of all tokens itself, and logs by
    how much vLLM's differ (`on_policy/engine_gap`).
"""

import atexit
import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from distill_lit.config import GenerationBackendConfig
from distill_lit.generation.backend import python_with_vllm
from distill_lit.generation.sampling import GeneratedSequence, SamplingParams
from distill_lit.models import load_model_config, logits_on, merge_adapters, probe_input_ids
from distill_lit.models.lora import is_adapted
from distill_lit.utils.exceptions import UserError, describe_exit_code
from distill_lit.utils.seeding import derive_seed

WORKER = Path(__file__).with_name("vllm_worker.py")
MEMORY_FOLDER = Path("/dev/shm")
GIB = 1 << 30
CHECKED_TOKENS = 8
MAX_CHECK_DIFFERENCE = 0.25  # nats per token on average, which bfloat16 stays far below, and one wrong layer far above
# by which a training of several processes finds itself: vLLM would take them for its own
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")


class VLLMEngine:
    """Writes the text of one model by vLLM, whose process is started when text is first wanted.

    Example:
        with VLLMEngine(GenerationBackendConfig(backend="vllm"), torch.bfloat16, Path("vllm.log")) as engine:
            engine.use_weights(student, step, 2048)
            texts = engine.generate(prompts, eos_token_ids, SamplingParams(1.0, 1.0, 64), seed)
    """

    def __init__(self, config: GenerationBackendConfig, dtype: torch.dtype, log_path: Path) -> None:
        """dtype: of weights and products; log_path: file for what vLLM prints."""
        self.config, self.dtype, self.log_path = config, dtype, log_path
        self._process: subprocess.Popen[str] | None = None
        self._version: int | None = None  # of the weights that it has
        self._head_rows = 0

    def __enter__(self) -> "VLLMEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use_weights(self, model: Any, version: int, max_length: int) -> None:
        """Hands a model's weights over, unless those of this version, such as the optimizer step, are there already.
        max_length: tokens of the longest prompt with its text."""
        if version == self._version:
            return
        merged = merge_adapters(copy.deepcopy(model)) if is_adapted(model) else model
        size = sum(parameter.numel() * parameter.element_size() for parameter in merged.parameters())
        is_first, device = self._process is None, next(model.parameters()).device
        with tempfile.TemporaryDirectory(dir=_fast_folder(size)) as scratch:
            folder = Path(scratch) / "student"
            _save_quietly(merged, folder)
            if is_first:
                self.load(_with_rolled_weights(folder, Path(scratch) / "rolled"), device, max_length)
            self.load(folder, device, max_length)
        self._version = version
        if is_first:
            self._check(merged, max_length)

    def load(self, folder: Path, device: torch.device, max_length: int) -> "VLLMEngine":
        """Has it write with the model in a folder, beside whatever is on `device`; a second folder has other weights of the
        same model."""
        if self._process is not None:
            self._request(do="update", folder=str(folder))
            return self
        self._start(device)
        self._head_rows = int(load_model_config(folder).get_text_config().vocab_size)
        self._request(
            do="load",
            folder=str(folder),
            dtype=str(self.dtype).removeprefix("torch."),
            max_model_len=max_length,
            enforce_eager=self.config.eager,
            kv_cache_memory_bytes=int(self.config.kv_cache_gib * GIB),
        )
        return self

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        eos_token_ids: list[int],
        sampling: SamplingParams,
        seed: int,
        vocab_size: int = 0,
    ) -> list[GeneratedSequence]:
        """A continuation of each prompt (token ids), as by `generate_batch`; vLLM draws by numbers of its own."""
        reply = self._request(
            do="write",
            prompts=[list(prompt) for prompt in prompts],
            seeds=[derive_seed(seed, number) for number in range(len(prompts))],
            ends=eos_token_ids,
            tokens=list(range(vocab_size)) if 0 < vocab_size < self._head_rows else None,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_new_tokens,
        )
        return [GeneratedSequence(ids, logprobs, is_finished) for ids, logprobs, is_finished in reply["texts"]]

    def close(self) -> None:
        """Ends its process."""
        process, self._process, self._version = self._process, None, None
        atexit.unregister(self.close)
        if process is not None:
            process.kill()
            process.wait()

    def _check(self, model: Any, max_length: int) -> None:
        """Raises UserError where vLLM does not say of its tokens what the model says."""
        prompt = probe_input_ids(model)[0, : max(1, max_length - CHECKED_TOKENS)].tolist()
        (text,) = self.generate([prompt], [], SamplingParams(0.0, 1.0, min(CHECKED_TOKENS, max_length - len(prompt))), 0)
        ids = torch.tensor([*prompt, *text.token_ids])
        log_q = logits_on(model, ids[None])[0, len(prompt) - 1 : -1].log_softmax(-1)
        said = log_q.gather(-1, ids[len(prompt) :, None])[:, 0]
        difference = float((said - torch.tensor(text.logprobs, dtype=torch.float32)).abs().mean())
        if not difference <= MAX_CHECK_DIFFERENCE:
            self.close()
            raise UserError(
                f"generation.backend: vllm does not write by the weights that it is given: its log-probabilities differ by "
                f"{difference:.2g} nats per token from the student's; set it to local"
            )

    def _start(self, device: torch.device) -> None:
        python = python_with_vllm(self.config)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("a") as log:
            self._process = subprocess.Popen(
                [python or sys.executable, str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(device, is_foreign=bool(python)),
            )
        atexit.register(self.close)

    def _request(self, **request: Any) -> dict[str, Any]:
        """What it replies. Raises UserError where it fails."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None, "no model is loaded"
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=process.stdin, flush=True)
        line = process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line.strip() else {"error": describe_exit_code(process.wait())}
        if "error" in reply:
            self.close()
            raise UserError(f"generation.backend: vllm {reply['error']}; see {self.log_path}")
        return reply


def _save_quietly(model: Any, folder: Path) -> None:
    """Writes a model in transformers' format, without the bar that each of many steps would draw."""
    is_drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if is_drawn:
            transformers_logging.enable_progress_bar()


def _with_rolled_weights(folder: Path, rolled: Path) -> Path:
    """A copy of a model's folder in which every tensor is rolled by one row: other weights of the same kind."""
    rolled.mkdir()
    shutil.copy(folder / "config.json", rolled)
    for path in folder.glob("*.safetensors*"):
        if path.suffix != ".safetensors":
            shutil.copy(path, rolled)
            continue
        tensors = {name: tensor.roll(1, 0) for name, tensor in load_file(path).items()}
        save_file(tensors, rolled / path.name, metadata={"format": "pt"})
    return rolled


def _fast_folder(size: int) -> Path | None:
    """A file system in memory with room for thrice so many bytes; None: wherever temporary files go."""
    has_room = MEMORY_FOLDER.is_dir() and shutil.disk_usage(MEMORY_FOLDER).free > 3 * size
    return MEMORY_FOLDER if has_room else None


def _environment(device: torch.device, is_foreign: bool) -> dict[str, str]:
    """Variables of its process: the GPU of the model; one process, which ends with this one; nothing is fetched or reported
    to others."""
    others = (*RANK_VARIABLES, *(("PYTHONPATH", "PYTHONHOME") if is_foreign else ()))
    kept = {name: value for name, value in os.environ.items() if name not in others}
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        kept["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device.index or 0]
    kept.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # it writes on the cores on which this program waits
    return {**kept, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
