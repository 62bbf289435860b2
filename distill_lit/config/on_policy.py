"""Knobs of training on text that the student writes."""

from dataclasses import dataclass
from typing import Any

from distill_lit.config.fields import config_field
from distill_lit.utils.exceptions import UserError

ADAPTIVE = "adaptive"


@dataclass
class OnPolicyConfig:
    """Batches in which the student continues prompts of the corpora, and the teacher judges what it wrote."""

    fraction: Any = config_field(
        0.0, "of the batches, 0 to 1 (GKD's λ); adaptive: grows whenever validation gets worse (DistiLLM)"
    )
    prompt_fraction: float = config_field(
        0.3, "share of a document that is its prompt; of a chat: all before the response", ge=0, le=1
    )
    temperature: float = config_field(1.0, "of sampling; the loss has its own", gt=0, le=10)
    top_p: float = config_field(1.0, "smallest set of tokens with this probability is drawn from", gt=0, le=1)
    max_new_tokens: int = config_field(64, "longest text, tokens", ge=1)
    teacher_mix_fraction: float = config_field(
        0.0, "share of the teacher in the distribution drawn from (MiniLLM)", ge=0, le=1
    )
    replay_buffer_size: int = config_field(
        0, "batches of student text kept and read again, ever less often; 0: each is read once", ge=0
    )


def check_on_policy(config: OnPolicyConfig, teacher: str, scores_student_text: bool, compiled: bool) -> None:
    """Raises UserError for a share that is none, and for a teacher (what users call it) that cannot score new text."""
    fraction = config.fraction
    is_number = isinstance(fraction, (int, float)) and not isinstance(fraction, bool)
    if fraction != ADAPTIVE and not (is_number and 0 <= fraction <= 1):
        raise UserError(f"on_policy.fraction: {fraction!r} is neither a number from 0 to 1 nor {ADAPTIVE!r}")
    if not is_on_policy_enabled(config):
        return
    if not scores_student_text:
        raise UserError(
            f"on_policy.fraction: {teacher} cannot score text that the student has just written; choose an online teacher"
        )
    if compiled:
        raise UserError("on_policy.fraction: the student cannot write while training.compile is set")


def is_on_policy_enabled(config: OnPolicyConfig) -> bool:
    """Whether the student ever writes."""
    return bool(config.fraction != 0)
