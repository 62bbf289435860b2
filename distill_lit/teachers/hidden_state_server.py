"""A server that gives hidden states after the final norm (vLLM's pooling, `token_embed`): the head, which is here, makes
the whole distribution of them.

A token costs the width of the model, in the cache and on the wire, whatever the vocabulary. `teacher.model` must be the
served model, of which the head alone is read: a wrong head shows in the probe, which it finds less probable than chance.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill_lit.config import TeacherServerConfig
from distill_lit.generation.api_client import API
from distill_lit.generation.request_log import request_key
from distill_lit.losses.lm_head import LMHead, get_lm_head
from distill_lit.losses.targets import DenseTarget
from distill_lit.models import load_model
from distill_lit.models.generation_files import model_without_weights
from distill_lit.teachers.cache_shards import LAST_HIDDEN_STATE
from distill_lit.teachers.compression import TeacherCacheFormat
from distill_lit.teachers.server import ScoreRequest, SupervisedDocument, TeacherServer
from distill_lit.teachers.server_api import HiddenStates, VLLMHiddenStates, hidden_state_request
from distill_lit.utils.exceptions import UserError

FLAGS = """--runner pooling --convert embed --pooler-config '{"task": "token_embed"}'"""  # of `vllm serve`
NOT_OFFERED = (400, 404, 405, 501)  # HTTP statuses
MAX_NORM_SPREAD = 1e-3  # of states that have been divided by their length
# nats per token below chance: random weights were 0.6 below it, heads of SmolLM2-135M with rows or columns in a wrong order
# 2.9 and 19
CHANCE_MARGIN = 1.0


class HiddenStateServer(TeacherServer):
    """The server of `teacher.server` with `outputs: hidden_states`."""

    lm_head: LMHead

    def __init__(self, config: TeacherServerConfig, lm_head: LMHead, tokenizer: Any) -> None:
        """lm_head: of the served model, in the number format in which states are to be kept."""
        super().__init__(config, 0, tokenizer, lm_head.vocab_size)
        self.lm_head = lm_head

    @property
    def cache_format(self) -> TeacherCacheFormat:
        """Hidden states of all rows."""
        return TeacherCacheFormat()

    def to(self, device: torch.device) -> None:
        """Moves the head."""
        self.lm_head = self.lm_head.to(device)

    def requests(self, documents: Iterable[SupervisedDocument]) -> list[ScoreRequest]:
        """What it is asked about each document: the states before its supervised tokens, so without the last token."""
        bodies = [(hidden_state_request(self.config.model, one.ids[:-1], one.first - 1), one) for one in documents]
        return [ScoreRequest(request_key(body), body, document.is_supervised) for body, document in bodies]

    def target(self, requests: Sequence[ScoreRequest], device: torch.device) -> DenseTarget:
        """The whole distribution at the supervised tokens of documents, one after the other."""
        parts = [self.store.read(one.key, HiddenStates).states[one.is_supervised] for one in requests]
        states = np.concatenate(parts) if parts else np.zeros((0, self.lm_head.weight.shape[1]), np.float32)
        return DenseTarget(torch.from_numpy(states).to(device, self.lm_head.weight.dtype), self.lm_head)

    def write_shard(
        self, path: Path, *, documents: Sequence[SupervisedDocument], requests: Sequence[ScoreRequest], shape: Sequence[int]
    ) -> None:
        """Hidden states (rows, T, D) of the rows of a shard; 0 where no supervised token follows."""
        states = torch.zeros(*shape, self.lm_head.weight.shape[1], dtype=self.lm_head.weight.dtype)
        for document, request in zip(documents, requests, strict=True):
            said = torch.from_numpy(self.store.read(request.key, HiddenStates).states)
            start = document.start + document.first - 1
            states[document.row, start : start + len(said)] = said.to(states.dtype)
        save_file({LAST_HIDDEN_STATE: states}, path)

    def _api(self, base_url: str) -> API:
        return VLLMHiddenStates(base_url, self.lm_head.weight.shape[1])

    def _probe_logprobs(self) -> list[float]:
        """Raises UserError for states that have been divided by their length, and for those of another model."""
        states = torch.from_numpy(self._probe_states())
        lengths = states.norm(dim=-1)
        if bool(((lengths - 1).abs() < MAX_NORM_SPREAD).all()):
            raise UserError("teacher.server.outputs: the server divides hidden states by their length; it must not")
        head = self.lm_head.to(states.device).cast(torch.float32)
        log_p = head.scale_and_cap(head.project(states)).log_softmax(-1)
        said: Tensor = log_p.gather(-1, torch.tensor(self._probe[1:])[:, None])[:, 0]
        if float(said.mean()) < -np.log(self.vocab_size) - CHANCE_MARGIN:
            raise UserError(
                f"teacher.server.outputs: by the head of teacher.model, {self.config.model} finds a plain text less "
                "probable than chance; teacher.model must be the model that is served"
            )
        found: list[float] = said.tolist()
        return found

    def _probe_states(self) -> np.ndarray:
        """Raises UserError where the server gives none, with how to start one that does."""
        try:
            said: HiddenStates = self._reply(hidden_state_request(self.config.model, self._probe[:-1], 0))["scores"]
            return said.states
        except UserError as error:
            if any(f"HTTP {status}" in str(error) for status in NOT_OFFERED):
                line = f"teacher.server.outputs: the server gives no hidden states; start it with {FLAGS}"
                raise UserError(line) from error
            raise

    def _check_top_k(self) -> None:
        """There is no limit."""


def load_lm_head(folder: Path, dtype: torch.dtype, vocab_size: int) -> LMHead:
    """The head of the model in `folder`, without the rest of its weights where their files name them as the model does."""
    model = model_without_weights(folder)
    model.tie_weights()
    head = get_lm_head(model, vocab_size)
    weight = _read_parameter(folder, model, head.weight)
    bias = None if head.bias is None else _read_parameter(folder, model, head.bias)
    if weight is None or (bias is None) != (head.bias is None):
        return get_lm_head(load_model(folder, dtype).requires_grad_(False), vocab_size)
    return head._replace(weight=weight.to(dtype), bias=None if bias is None else bias.to(dtype))


def _read_parameter(folder: Path, model: Any, parameter: Tensor) -> Tensor | None:
    """A parameter of a model from the files in its folder, also under the name of one that is tied to it; None where none
    has such a name."""
    named = model.named_parameters(remove_duplicate=False)
    names = {name for name, other in named if other is parameter}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in sorted(names & set(file.keys())):
                found: Tensor = file.get_tensor(name)
                return found if found.shape == parameter.shape else None
    return None
