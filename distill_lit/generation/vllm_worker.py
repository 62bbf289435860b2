"""What runs in the environment of vLLM, which need not have this suite: `python vllm_worker.py` imports nothing of it.

Requests and replies are lines of JSON, a reply for each request; what libraries print goes to stderr. It ends with its
standard input, so with the process that asks.
"""

import json
import os
import sys
from typing import Any


class Writer:
    """The model that writes."""

    def __init__(self) -> None:
        self.llm: Any = None

    def load(self, folder: str, **options: Any) -> dict[str, Any]:
        """Reads a model in transformers' format. options: of `vllm.LLM`."""
        import vllm

        self.llm = vllm.LLM(model=folder, skip_tokenizer_init=True, generation_config="vllm", **options)
        return {"version": vllm.__version__}

    def update(self, folder: str) -> dict[str, Any]:
        """Takes the weights of a folder of the same model instead; what is known of earlier ones is forgotten."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self.llm.apply_model(repack_heads)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the keys and values of earlier weights cannot be forgotten")
        return {}

    def write(
        self, prompts: list[list[int]], seeds: list[int], ends: list[int], tokens: list[int] | None, **sampling: Any
    ) -> dict[str, Any]:
        """Continues prompts (token ids), each by a seed of its own. tokens: that may be written; None: all.

        Replies {texts: [[ids, their log-probabilities at temperature 1, whether it ended by itself], …]}.
        """
        from vllm import SamplingParams

        wanted = [
            SamplingParams(
                seed=seed, stop_token_ids=ends, ignore_eos=True, logprobs=0, detokenize=False,
                allowed_token_ids=tokens, **sampling,
            )
            for seed in seeds
        ]  # fmt: skip
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = [result.outputs[0] for result in self.llm.generate(asked, wanted, use_tqdm=False)]
        return {
            "texts": [
                (
                    list(output.token_ids),
                    [place[token].logprob for token, place in zip(output.token_ids, output.logprobs, strict=True)],
                    output.finish_reason == "stop",
                )
                for output in outputs
            ]
        }


def repack_heads(model: Any) -> None:
    """On CPUs a layer multiplies by a packed copy of its weight, which vLLM 0.32 leaves as it was of a head that is tied to
    the embeddings."""
    for module in model.modules():
        if hasattr(module, "cpu_linear") and module.weight.numel():  # of others the copy alone is kept, and is a new one
            module.quant_method.process_weights_after_loading(module)


def main() -> None:
    """Answers until nobody asks any more."""
    own_folder = os.path.dirname(os.path.abspath(__file__))  # whose modules are none of vLLM's
    sys.path[:] = [place for place in sys.path if place != own_folder]
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    writer = Writer()
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        try:
            reply = getattr(writer, request.pop("do"))(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: " + " ".join(str(error).split())[:300]}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()
