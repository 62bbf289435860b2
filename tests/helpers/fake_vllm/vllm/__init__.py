"""Stands for vLLM: as much of its interface as `vllm_worker.py` uses, by transformers, one text after the other.

FAKE_VLLM: `stale` leaves norms as they were when weights are handed over, `dies` ends the process at the first text.
"""

import os
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

__version__ = "0.0"
FAULT = os.environ.get("FAKE_VLLM", "")


class SamplingParams(SimpleNamespace):
    pass


class LLM:
    def __init__(self, model: str, dtype: str, max_model_len: int, **options: Any) -> None:
        assert options["skip_tokenizer_init"] and options["generation_config"] == "vllm"
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.longest = max_model_len

    def collective_rpc(self, method: str, kwargs: dict[str, str]) -> None:
        assert method == "reload_weights"
        weights = load_file(os.path.join(kwargs["weights_path"], "model.safetensors"))
        if FAULT == "stale":
            weights = {name: value for name, value in weights.items() if "norm" not in name}
        assert not self.model.load_state_dict(weights, strict=False).unexpected_keys
        self.model.tie_weights()

    def apply_model(self, function: Any) -> list[Any]:
        return [function(self.model)]

    def reset_prefix_cache(self) -> bool:
        return True

    @torch.inference_mode()
    def generate(self, prompts: list[dict[str, list[int]]], params: list[SamplingParams], use_tqdm: bool) -> list[Any]:
        if FAULT == "dies":
            os._exit(7)
        return [self._continue(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, params, strict=True)]

    def _continue(self, prompt: list[int], params: SamplingParams) -> Any:
        assert len(prompt) + params.max_tokens <= self.longest
        draw, ids, said, reason = torch.Generator().manual_seed(params.seed), list(prompt), [], "length"
        while len(said) < params.max_tokens and reason == "length":
            log_q = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            allowed = log_q.new_full(log_q.shape, -torch.inf)
            known = slice(None) if params.allowed_token_ids is None else params.allowed_token_ids
            allowed[known] = log_q[known]
            token = int(allowed.argmax())
            if params.temperature:
                token = int(torch.multinomial((allowed / params.temperature).softmax(-1), 1, generator=draw))
            ids.append(token)
            said.append({token: SimpleNamespace(logprob=float(log_q[token]))})
            reason = "stop" if token in params.stop_token_ids else "length"
        text = SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=said, finish_reason=reason)
        return SimpleNamespace(outputs=[text])
