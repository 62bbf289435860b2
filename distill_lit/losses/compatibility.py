"""Whether an objective and what it is to learn from fit together."""

import math

from distill_lit.losses.objective import Objective
from distill_lit.losses.registry import LOGIT_LOSSES, argument_key, option_key
from distill_lit.utils.exceptions import UserError

REMEDY = (
    "give Distiller an on_policy_generator= (a config: on_policy.fraction), or mark that text in the batches, as "
    "on_policy_mask (B, T) bool"
)


def check_teacher_supports_objective(
    objective: Objective, target_form: str, source: str, has_on_policy_mask: bool = False, max_tokens: int = 0
) -> None:
    """Raises UserError for the first term that a teacher cannot feed.

    target_form: of its target, `dense`, `top_k`, `sampled` or `cross_tokenizer`; source: what users call it;
    has_on_policy_mask: whether text that the student wrote is marked; max_tokens: of a target that is top_k, 0: unknown.
    """
    for term in objective.logit_terms:
        key, loss = term.key, term.loss_spec
        if term.needs_teacher and target_form not in loss.target_forms:
            able = [name for name, kind in LOGIT_LOSSES.items() if target_form in kind.target_forms]
            raise UserError(
                f"{key}: {term.kind} needs a teacher that is {' or '.join(loss.target_forms)}, and {source} is "
                f"{target_form}; choose from {', '.join(able)}"
            )
        if term.needs_teacher and term.uses_temperature and target_form not in loss.softenable_forms:
            temperature_key = argument_key(key, "temperature")
            raise UserError(
                f"{temperature_key}: {term.kind} cannot soften a teacher that is {target_form} ({source}); leave it at 1"
            )
        if target_form == "top_k" and term.options.get("k", 0) > (max_tokens or math.inf):
            k = f"{option_key(key, 'k')}: {term.options['k']}"
            raise UserError(f"{k}, and {source} has at most {max_tokens} tokens of each position (teacher.top_k)")
        if "on_policy_mask" in loss.inputs and not has_on_policy_mask:
            raise UserError(
                f"{key}: {term.kind} treats the student's own text and that of others differently, and {source} does "
                f"not tell them apart; {REMEDY}"
            )
