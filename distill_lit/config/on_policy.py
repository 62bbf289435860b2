"""Knobs of training on text that the student writes."""

from dataclasses import dataclass
from typing import Any

from distill_lit.config.fields import knob
from distill_lit.utils.exceptions import UserError

ADAPTIVE = "adaptive"


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


def check_on_policy(config: OnPolicyConfig, source: str, compiled: bool) -> None:
    """Raises UserError for a share that is none, and for what text of the student cannot be judged by."""
    share = config.share
    is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if share != ADAPTIVE and not (is_number and 0 <= share <= 1):
        raise UserError(f"on_policy.share: {share!r} is neither a number from 0 to 1 nor {ADAPTIVE!r}")
    if not is_on(config):
        return
    if source != "live":
        raise UserError(f"on_policy.share: text that the student writes needs a live teacher; teacher.source is {source}")
    if compiled:
        raise UserError("on_policy.share: the student cannot write while training.compile is set")


def is_on(config: OnPolicyConfig) -> bool:
    """Whether the student ever writes."""
    return bool(config.share != 0)
