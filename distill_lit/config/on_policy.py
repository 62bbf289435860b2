"""Fields of training on text that the student writes."""

from pydantic import Field

from distill_lit.config.fields import Count, Float, OnPolicyFraction, config_section
from distill_lit.utils.exceptions import UserError

ADAPTIVE = "adaptive"


@config_section
class OnPolicyConfig:
    """Batches in which the student continues prompts of the corpora, scored by the teacher."""

    fraction: OnPolicyFraction = Field(
        default=0.0,
        description="share of the batches (GKD's λ); adaptive: from 0, more at each validation above the lowest (DistiLLM)",
    )
    prompt_fraction: Float = Field(
        default=0.3, ge=0, le=1, description="share of a document that is its prompt; of a chat: all before the response"
    )
    temperature: Float = Field(default=1.0, gt=0, le=10, description="temperature of sampling; the loss has its own")
    top_p: Float = Field(default=1.0, gt=0, le=1, description="smallest set of tokens with this probability is drawn from")
    max_new_tokens: Count = Field(default=64, ge=1, description="tokens of the longest text")
    teacher_mix_fraction: Float = Field(
        default=0.0, ge=0, le=1, description="share of the teacher in the distribution drawn from (MiniLLM)"
    )
    replay_buffer_size: Count = Field(
        default=0,
        ge=0,
        description="batches of student text kept and read again, once they are so many: ever more often in place of new "
        "ones (DistiLLM); 0: each is read once",
    )


def check_on_policy(config: OnPolicyConfig, teacher: str, scores_student_text: bool, compiled: bool) -> None:
    """Raises UserError for a teacher (what users call it) that cannot score new text, and a student that cannot write."""
    if not is_on_policy_enabled(config):
        return
    if not scores_student_text:
        raise UserError(
            f"on_policy.fraction: {teacher} cannot score text that the student has just written; choose an online teacher"
        )
    if compiled:
        raise UserError("on_policy.fraction: the student cannot write while training.compile is always")


def is_on_policy_enabled(config: OnPolicyConfig) -> bool:
    """Whether the student ever writes."""
    return bool(config.fraction != 0)
