"""Whether a model answers in bfloat16 or float16 as in float32: a few documents of each task are asked again."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.packing_support import LOW_PRECISION_LOGPROB_TOLERANCE
from distill_lit.evaluation.records import chosen
from distill_lit.utils.hardware import free_memory

if TYPE_CHECKING:  # importing it takes seconds
    from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM

COMPARED_DOCUMENTS = 8  # of each task, evenly apart
LOW_PRECISION = ("bfloat16", "float16")
ROOM = 1.25  # of the second model's weights: it needs activations too
COMPARABLE = ("multiple_choice", "loglikelihood")  # output types of lm-eval: what is written differs with the first tie


class Float32Check:
    """Asks a model in float32 again what it was asked in `settings.dtype`. The second model is loaded for the first
    comparison, where the device has room for it."""

    def __init__(self, folder: Path, settings: EvaluationConfig, device: str) -> None:
        self.settings = replace(settings, dtype="float32")
        self._folder, self._device = folder, device

    @cached_property
    def reference(self) -> "PrefixTreeLM":
        """The model in float32."""
        from distill_lit.evaluation.prefix_tree_lm import load_prefix_tree_lm

        return load_prefix_tree_lm(self._folder, self.settings, self._device)

    def compare(
        self, model: torch.nn.Module, samples: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """Documents that were compared, how many answers are others in float32, and by how many nats per token
        log-likelihoods differ on average; nothing where float32 does not fit beside `model`. rows: of `make_rows`, of
        these samples."""
        free = free_memory(torch.device(self._device))
        needed = ROOM * 4 * sum(parameter.numel() for parameter in model.parameters())
        if 0 < free < needed and "reference" not in self.__dict__:
            return {}
        count = min(COMPARED_DOCUMENTS, len(rows))
        numbers = [n * len(rows) // count for n in range(count)]
        found = [self._compare(samples[number], rows[number]) for number in numbers]
        differences = [difference for _, several in found for difference in several]
        return {
            "float32_documents": len(found),
            "float32_other_answers": sum(other for other, _ in found),
            "float32_difference": math.fsum(differences) / len(differences),
        }

    def _compare(self, sample: dict[str, Any], row: dict[str, Any]) -> tuple[bool, list[float]]:
        """(whether the answer is another, the difference per token of each choice) of one document."""
        from lm_eval.api.instance import Instance

        asked = [tuple(argument[:2]) for argument in sample["arguments"]][: len(row["ll"])]
        answers = self.reference.loglikelihood([Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(asked)])
        ll = [logprob for logprob, _ in answers]
        differences = [abs(a - b) / max(count, 1) for a, b, count in zip(ll, row["ll"], row["tokens"], strict=True)]
        if len(ll) == 1:  # a single continuation is right if greedy decoding writes it
            return answers[0][1] != row["greedy"][0], differences
        return chosen(ll, row["len_chars"]) != (row["pred"], row["pred_norm"]), differences


def differs_too_much(meta: dict[str, Any]) -> bool:
    """Whether the task has to be evaluated in float32 instead: log-likelihoods are not what rounding makes of them. With
    SmolLM2-135M in bfloat16 they differ by 0.04 to 0.06 nats per token on average, single ones by up to 0.35."""
    return not meta.get("float32_difference", 0.0) <= LOW_PRECISION_LOGPROB_TOLERANCE  # NaN is no agreement
