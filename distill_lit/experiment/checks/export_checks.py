"""Whether `training.export: best` and `on_policy.fraction: adaptive` can be: validations whose losses compare."""

from distill_lit.config import ExperimentConfig
from distill_lit.config.on_policy import ADAPTIVE
from distill_lit.data.loader import optimizer_steps
from distill_lit.losses import Objective
from distill_lit.teachers import teacher_capabilities
from distill_lit.utils.exceptions import UserError

ZERO_ON_HELD_OUT_TEXT = "policy_gradient_reverse_kl"  # it is a loss of the student's own text alone


def check_export(config: ExperimentConfig, objective: Objective) -> None:
    """Raises UserError where the lowest validation loss says nothing of which weights are best."""
    training = config.training
    if training.export != "best":
        return
    steps = optimizer_steps(training, config.data.sequence_length)
    if training.steps_between_validations(steps) >= steps:
        raise UserError(
            f"training.export: best, and of {steps} steps the last alone is validated; lower training.val_check_interval "
            f"({training.val_check_interval:g}), or leave it at last"
        )
    _check_losses_compare("training.export: best", "leave it at last", config, objective)
    for term in objective.logit_terms:
        if term.kind == ZERO_ON_HELD_OUT_TEXT:
            raise UserError(
                f"training.export: best, and objective.terms.{term.name} ({term.kind}) is 0 on held-out text, whatever the "
                "student; leave it at last"
            )


def check_adaptive_fraction(config: ExperimentConfig, objective: Objective) -> None:
    """Raises UserError for a share of the student's text that grows whenever validation gets worse, where the validation
    losses do not say whether it does."""
    if config.on_policy.fraction == ADAPTIVE:
        _check_losses_compare("on_policy.fraction: adaptive", "give a number", config, objective)


def _check_losses_compare(subject: str, remedy: str, config: ExperimentConfig, objective: Objective) -> None:
    if objective.is_scheduled:
        raise UserError(
            f"{subject} compares the validation losses of a training, and a schedule in objective.terms makes each another "
            f"loss; write weights and temperatures as numbers, or {remedy}"
        )
    for member in config.teacher.members.values() if objective.needs_teacher else ():
        if teacher_capabilities(member).follows_student:
            raise UserError(
                f"{subject} compares the validation losses of a training, and the teacher of teacher.source "
                f"{member.source} changes from one to the next; {remedy}"
            )
