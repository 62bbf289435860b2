"""Student, teacher, batches and text of a training: what is none of these is refused in one line that says what is."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_lit.config import OnPolicyConfig
from distill_lit.losses import Objective
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.losses.registry import argument_key
from distill_lit.utils.exceptions import UserError

log = logging.getLogger(__name__)
COMPILE = "and compile the body of a model, as student.get_decoder().compile()"


def lm_head_rows(model: Any) -> int:
    """Rows of a causal language model's lm_head. Raises UserError for a model without one."""
    return get_lm_head(model).vocab_size


def shared_vocab_size(student: Any, teacher: Any) -> int:
    """Rows of the smaller lm_head: some models pad theirs. teacher: a model, a `Teacher`, or None."""
    rows = [lm_head_rows(model) for model in (student, teacher) if isinstance(model, nn.Module)]
    if not isinstance(teacher, nn.Module) and getattr(teacher, "vocab_size", None) is not None:
        rows.append(teacher.vocab_size)
    if len(set(rows)) > 1:
        log.warning(
            "the lm_heads have %s rows; the first %d tokens are compared, one tokenizer is assumed", rows, min(rows)
        )
    return min(rows)


def check_models(student: Any, teacher: Any) -> None:
    """Raises UserError for a student that is no causal language model, a teacher that is neither one nor a `Teacher`, two
    that are the same, and two that share what is to be trained."""
    _check_is_no_name("student", student)
    if not isinstance(student, nn.Module):
        raise UserError(
            f"student: {type(student).__name__} is no model; give a causal language model, as of "
            "AutoModelForCausalLM.from_pretrained"
        )
    lm_head_rows(student)
    check_teacher(teacher)
    for role, model in (("student", student), ("teacher", teacher)):
        if isinstance(model, nn.Module) and (model._compiled_call_impl is not None or hasattr(model, "_orig_mod")):
            log.warning("%s: it is compiled as a whole, and only its body is called, so nothing is; %s", role, COMPILE[4:])
    if teacher is student:
        raise UserError("teacher: it is the student itself; load the model twice")
    frozen = {id(parameter) for parameter in teacher.parameters()} if isinstance(teacher, nn.Module) else set()
    shared = [name for name, parameter in student.named_parameters() if parameter.requires_grad and id(parameter) in frozen]
    if shared:
        raise UserError(
            f"teacher: {len(shared)} parameters of the student are its own, as {shared[0]}, and would be frozen with it; "
            "build the student from copies, as of copy.deepcopy(teacher)"
        )


def check_teacher(teacher: Any) -> None:
    """Raises UserError for what is neither a causal language model, nor a `Teacher`, nor None."""
    _check_is_no_name("teacher", teacher)
    if isinstance(teacher, nn.Module) and not hasattr(teacher, "get_output_embeddings"):
        raise UserError(
            f"teacher: {type(teacher).__name__} is a module and no causal language model; a teacher of your own is a plain "
            "class that holds its modules"
        )
    if isinstance(teacher, type):
        raise UserError(f"teacher: {teacher.__name__} is a class; give an object of it")
    missing = [name for name in ("target", "to") if not callable(getattr(teacher, name, None))]
    if teacher is not None and not isinstance(teacher, nn.Module) and missing:
        raise UserError(
            f"teacher: {type(teacher).__name__} has no {' and no '.join(missing)}; give a causal language model, or an "
            "object with target(batch, loss_mask) and to(device)"
        )


def _check_is_no_name(role: str, model: Any) -> None:
    if isinstance(model, str | Path):
        raise UserError(f"{role}: {str(model)!r} is a name; give a model, as of AutoModelForCausalLM.from_pretrained")


def check_batch(batch: Any) -> None:
    """Raises UserError for what is no batch of a language model: the message says what to do."""
    if not isinstance(batch, Mapping):
        raise UserError(
            f"batch: the loader gives {type(batch).__name__}, and a dict with input_ids and labels is needed, as "
            "transformers' DataCollatorForLanguageModeling(tokenizer, mlm=False) makes it"
        )
    for name in ("input_ids", "labels"):
        if name not in batch:
            raise UserError(
                f"batch: it has {', '.join(batch) or 'nothing'} and no {name}; transformers' "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False) adds labels"
            )
    for name in ("input_ids", "labels"):
        if not isinstance(batch[name], Tensor) or batch[name].dtype not in (torch.int32, torch.int64):
            kind = batch[name].dtype if isinstance(batch[name], Tensor) else type(batch[name]).__name__
            raise UserError(f"batch: {name} are {kind}, and a tensor of token numbers (int64) is needed")
    ids, labels = batch["input_ids"], batch["labels"]
    if ids.ndim != 2 or labels.shape != ids.shape:
        raise UserError(
            f"batch: input_ids {tuple(ids.shape)} and labels {tuple(labels.shape)} are to be (rows, tokens) both; labels "
            "are not shifted"
        )
    if not ids.numel():
        raise UserError(f"batch: input_ids {tuple(ids.shape)} hold no token")
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape != ids.shape:
        raise UserError(f"batch: attention_mask {tuple(mask.shape)} is to be as input_ids, {tuple(ids.shape)}")


def check_policy_gradient(objective: Objective, on_policy: OnPolicyConfig) -> None:
    """Raises UserError for a policy gradient on text of others, or on text that was not drawn from what the term compares,
    the student as it is at temperature 1: it would follow another mean than the reverse KL's."""
    is_drawn = (
        on_policy.temperature == on_policy.top_p == 1
        and not on_policy.teacher_mix_fraction
        and not on_policy.replay_buffer_size
    )
    for term in objective.logit_terms:
        if term.kind != "policy_gradient_reverse_kl":
            continue
        if not (on_policy.fraction == 1 and is_drawn):
            raise UserError(
                f"{term.key}: policy_gradient_reverse_kl is for the student's own text alone: "
                "set on_policy.fraction to 1, without teacher_mix_fraction and replay_buffer_size, and leave temperature "
                "and top_p at 1"
            )
        if term.uses_temperature:
            raise UserError(
                f"{argument_key(term.key, 'temperature')}: policy_gradient_reverse_kl compares what text is drawn from, "
                "which is at temperature 1; leave it at 1"
            )
