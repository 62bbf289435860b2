"""Losses of one's own: a plain function becomes an entry of the registry, and keeps the laws that ours keep."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from distill_lit.losses.hidden_states import FEATURE_LOSSES
from distill_lit.losses.registry import LOGIT_LOSSES, BoolOption, ChoiceOption, LossSpec, NumberOption
from distill_lit.losses.sparse import gather_label_logprobs
from distill_lit.losses.targets import SampledTarget, SparseTarget, TopKTarget
from distill_lit.utils.exceptions import UserError, one_line_message, suggest

FunctionT = TypeVar("FunctionT", bound=Callable[..., Tensor])
# names of a function's arguments: what it is given under them
INPUT_NAMES = {
    "log_q": "log_q",
    "log_p": "teacher",
    "labels": "labels",
    "on_policy_mask": "on_policy_mask",
    "student_logits": "student_logits",
    "teacher_logits": "teacher_logits",
    "teacher": "teacher",
}
NUM_TOKENS, VOCAB_SIZE = 8, 11  # of the distributions that a loss is checked on
NUM_READ = 4  # tokens of a sparse target among these
MAX_VALUE_AT_EQUALITY = 1e-4  # nats, in float32
TARGET_FORMS = ("dense", "top_k", "sampled")  # that a function may read


def register(
    name: str,
    *,
    options: Mapping[str, NumberOption | ChoiceOption | BoolOption] | None = None,
    target_forms: Sequence[str] = ("dense",),
    temperature_power: int = 2,
    is_divergence: bool = False,
) -> Callable[[FunctionT], FunctionT]:
    """Puts a function into the registry of losses, for `objective.terms` of a config and for `losses.Loss` alike.

    The function takes (log_q, log_p): log-probabilities (N, V) of student and teacher, softened by the term's temperature;
    or those it names of labels (N,), on_policy_mask (N,), student_logits and teacher_logits (N, V). It returns (N,) values,
    one per token. Its arguments with a default are options of the loss. One that takes `teacher` instead of `log_p` gets
    what `target_forms` names: log-probabilities (N, V), a `TopKTarget` or a `SampledTarget`, which
    `losses.top_k_logprobs` and `losses.sample_tokens` read alike.

    Args:
        name: under which it is found; not that of a loss of this package, or of another plugin.
        options: checks of its options; without them any number, or truth value, of the kind of its default. What has
            `check(key, value)`, returning the value or raising UserError, is one.
        target_forms: of the teachers that `teacher` may be: dense, top_k, sampled. Of a sparse one T is 1.
        temperature_power: its gradient fades as T^−power at temperature T, which Hinton's scaling makes up for.
        is_divergence: it claims never to be negative, and to be 0 where both agree; checked.

    Raises UserError where the function breaks a law of `check_loss`, and for what cannot be registered.

    Example:
        >>> @losses.register("squared_hellinger", is_divergence=True)
        ... def squared_hellinger(log_q, log_p):
        ...     return 0.5 * ((0.5 * log_p).exp() - (0.5 * log_q).exp()).square().sum(-1)
    """
    LOGIT_LOSSES.check_name(name)
    key = f"losses.register({name!r})"
    if name in FEATURE_LOSSES:
        raise UserError(f"{key}: what has this name is part of distill_lit; choose another")
    for form in target_forms:
        if form not in TARGET_FORMS:
            raise UserError(f"{key}: target_forms: unknown value {form!r}{suggest(str(form), TARGET_FORMS)}")

    def put(function: FunctionT) -> FunctionT:
        parameters = _parameters(key, function)
        inputs = _inputs(key, parameters)
        if set(target_forms) != {"dense"} and ("teacher" not in parameters or "teacher_logits" in parameters):
            raise UserError(f"{key}: a teacher that is {' or '.join(target_forms)} is read by an argument called teacher")
        reads_dense = "teacher" in inputs and "dense" in target_forms
        spec = LossSpec(
            function,
            inputs,
            _option_checks(key, parameters, options or {}),
            target_forms=tuple(target_forms) if {"teacher", "teacher_logits"} & set(inputs) else (),
            softenable_forms=("dense",) if reads_dense else (),
            temperature_power=temperature_power if reads_dense else 0,
            is_divergence=is_divergence,
        )
        check_loss(spec, key)
        LOGIT_LOSSES.add(name, spec)
        return function

    return put


def _parameters(key: str, function: Callable[..., Tensor]) -> dict[str, Any]:
    """{argument: its default, or `inspect.Parameter.empty`} of a function."""
    try:
        return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    except (TypeError, ValueError) as error:  # a number, or a built-in that does not say what it takes
        raise UserError(f"{key}: {function!r} is no Python function") from error


def _inputs(key: str, parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """What a function reads, by the names of its arguments without a default."""
    names = [name for name, default in parameters.items() if default is inspect.Parameter.empty]
    for name in names:
        if name not in INPUT_NAMES:
            raise UserError(f"{key}: {name!r} is none of {', '.join(INPUT_NAMES)}, and has no default")
    return tuple(INPUT_NAMES[name] for name in names)


def _option_checks(key: str, parameters: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """{option: its check}, those given or by the kinds of the defaults."""
    defaults = {name: default for name, default in parameters.items() if default is not inspect.Parameter.empty}
    for name in given:
        if name not in defaults:
            raise UserError(f"{key}: options: no argument {name!r} with a default{suggest(name, defaults)}")
    return {name: given.get(name) or _check_by_default(key, name, default) for name, default in defaults.items()}


def _check_by_default(key: str, name: str, default: Any) -> NumberOption | ChoiceOption | BoolOption:
    if isinstance(default, bool):
        return BoolOption()
    if isinstance(default, str):
        return ChoiceOption((default,))
    if isinstance(default, (int, float)):
        return NumberOption(-float("inf"), is_integer=isinstance(default, int))
    raise UserError(
        f"{key}: {name} is {default!r} by default, which does not say what else it may be; say it, as in "
        f"options={{{name!r}: losses.NumberOption(1, is_integer=True)}}"
    )


def check_loss(loss: str | Callable[..., Tensor] | LossSpec, key: str = "", is_divergence: bool = False) -> None:
    """Raises UserError, naming the law, where a loss breaks one on a teacher of a form that it reads.

    The laws: one finite value per token, (N,), in float32 and float64, on usual and on nearly certain distributions; a
    finite gradient; no token changes the value of another; and, for a divergence, never negative, and 0 where student and
    teacher agree.

    loss: a name in the registry, its entry, or a function as `register` takes it, which claims `is_divergence`.
    """
    if isinstance(loss, str):
        if loss not in LOGIT_LOSSES:
            raise UserError(f"check_loss: unknown loss {loss!r}{suggest(loss, LOGIT_LOSSES)}")
        spec, key = LOGIT_LOSSES[loss], key or f"loss {loss}"
    elif isinstance(loss, LossSpec):
        spec = loss
    else:
        key = key or f"loss {getattr(loss, '__name__', 'given')}"
        spec = LossSpec(loss, _inputs(key, _parameters(key, loss)), is_divergence=is_divergence)
    for form in [form for form in spec.target_forms if form in TARGET_FORMS] or ["dense"]:
        of_form = "" if form == "dense" else f" of a {form} teacher"
        for dtype in (torch.float32, torch.float64):
            for scale in (2.0, 40.0):
                _check_values(spec, form, f"{key} in {str(dtype)[6:]}, logits of about ±{scale:g}{of_form}", dtype, scale)


def _check_values(spec: LossSpec, form: str, key: str, dtype: torch.dtype, scale: float) -> None:
    student = scale * _random_logits(1, dtype)
    teacher = scale * _random_logits(2, dtype)
    evaluate = functools.partial(_evaluate, spec, form, key)
    logits = student.clone().requires_grad_()
    values = evaluate(logits, teacher)
    if not torch.isfinite(values).all():
        raise UserError(f"{key}: {_first_non_finite(values)} for a token; clamp what is divided or taken the logarithm of")
    if values.requires_grad:
        values.sum().backward()
        if logits.grad is not None and not torch.isfinite(logits.grad).all():
            raise UserError(f"{key}: its gradient is {_first_non_finite(logits.grad)}")
    else:
        raise UserError(f"{key}: it does not depend on the student, so nothing would be learned from it")
    if torch.equal(values.detach(), evaluate(student, teacher)):  # a loss that draws is another each time
        half = evaluate(student, teacher, NUM_TOKENS // 2)
        if not torch.allclose(half, values[: NUM_TOKENS // 2].detach(), rtol=1e-3, atol=1e-5):
            raise UserError(f"{key}: the value of a token changes with the other tokens; reduce over the vocabulary alone")
    if spec.is_divergence:
        smallest = float(values.detach().min())
        if smallest < -MAX_VALUE_AT_EQUALITY:
            raise UserError(f"{key}: {smallest:.3g} is negative, which a divergence never is")
        same = evaluate(teacher, teacher).abs().max()
        if float(same) > MAX_VALUE_AT_EQUALITY:
            raise UserError(f"{key}: {float(same):.3g} where student and teacher agree, and a divergence is 0 there")


def _evaluate(spec: LossSpec, form: str, key: str, student: Tensor, teacher: Tensor, count: int = NUM_TOKENS) -> Tensor:
    """Its values for the first tokens."""
    student, teacher = student[:count], teacher[:count]
    labels = torch.arange(count) % VOCAB_SIZE
    given = {
        "log_q": student.log_softmax(-1),
        "teacher": _as_form(form, teacher.log_softmax(-1), labels),
        "labels": labels,
        "on_policy_mask": torch.arange(count) % 2 == 0,
        "student_logits": student,
        "teacher_logits": teacher,
    }
    try:
        values = spec.function(*(given[name] for name in spec.inputs))
    except Exception as error:
        raise UserError(f"{key}: it raises {type(error).__name__}: {one_line_message(error)}") from error
    if not isinstance(values, Tensor) or values.shape != (count,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"{key}: {count} tokens gave {shape}; return one value per token, as .sum(-1) does")
    return values


def _as_form(form: str, logprobs: Tensor, labels: Tensor) -> Tensor | SparseTarget:
    """What is left of a distribution (n, V) in a target of this form: of a top_k one, the first token has fewer than k."""
    label_logprobs = gather_label_logprobs(logprobs, labels)
    if form == "top_k":
        best, ids = logprobs.topk(NUM_READ)
        best[0, -1] = -torch.inf
        return TopKTarget(ids, best, label_logprobs)
    if form == "sampled":
        ids = torch.stack([torch.multinomial(row.exp(), NUM_READ, True, generator=_generator(3)) for row in logprobs])
        drawn = logprobs.gather(-1, ids)
        return SampledTarget(ids, drawn, torch.full_like(drawn, 1 / NUM_READ), label_logprobs)
    return logprobs


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random_logits(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(NUM_TOKENS, VOCAB_SIZE, generator=_generator(seed), dtype=torch.float64).to(dtype)


def _first_non_finite(values: Tensor) -> float:
    values = values.detach()
    return float(values[~torch.isfinite(values)].flatten()[0])
