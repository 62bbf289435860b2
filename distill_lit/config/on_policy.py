"""Knobs of training on text that the student writes."""

from dataclasses import dataclass
from typing import Any

from distill_lit.config.knobs import knob


@dataclass
class OnPolicyConfig:
    """Batches in which the student continues prompts of the corpora, and the teacher judges what it wrote."""

    share: Any = knob(0.0, "of the batches, 0 to 1 (GKD's λ); adaptive: grows whenever validation gets worse (DistiLLM)")
    prompt: float = knob(0.3, "share of a document that is its prompt; of a chat: all before the response", low=0, high=1)
    temperature: float = knob(1.0, "of sampling; the loss has its own", above=0, high=10)
    top_p: float = knob(1.0, "smallest set of tokens with this probability is drawn from", above=0, high=1)
    max_new_tokens: int = knob(64, "longest text, tokens", low=1)
    teacher_mix: float = knob(0.0, "share of the teacher in the distribution drawn from (MiniLLM)", low=0, high=1)
    replay: int = knob(0, "batches of student text kept and read again, ever less often; 0: each is read once", low=0)
