"""Losses of one's own: a plain function becomes an entry of the registry, and keeps the laws that ours keep."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from distill_lit.losses.hidden_states import FEATURE_LOSSES
from distill_lit.losses.registry import LOGIT_LOSSES, BoolOption, ChoiceOption, LossSpec, NumberOption
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
}
NUM_TOKENS, VOCAB_SIZE = 8, 11  # of the distributions that a loss is checked on
MAX_VALUE_AT_EQUALITY = 1e-4  # nats, in float32
_registered: set[str] = set()


def register(
    name: str,
    *,
    options: Mapping[str, NumberOption | ChoiceOption | BoolOption] | None = None,
    temperature_power: int = 2,
    is_divergence: bool = False,
) -> Callable[[FunctionT], FunctionT]:
    """Puts a function into the registry of losses, for `objective.terms` of a config and for `losses.Loss` alike.

    The function takes (log_q, log_p): log-probabilities (N, V) of student and teacher, softened by the term's temperature;
    or those it names of labels (N,), on_policy_mask (N,), student_logits and teacher_logits (N, V). It returns (N,) values,
    one per token. Its arguments with a default are options of the loss.

    Args:
        name: under which it is found; not that of a loss of this package.
        options: checks of its options; without them any number, or truth value, of the kind of its default.
        temperature_power: its gradient fades as T^−power at temperature T, which Hinton's scaling makes up for.
        is_divergence: it claims never to be negative, and to be 0 where both agree; checked.

    Raises UserError where the function breaks a law of `check_loss`.

    Example:
        >>> @losses.register("squared_hellinger", is_divergence=True)
        ... def squared_hellinger(log_q, log_p):
        ...     return 0.5 * ((0.5 * log_p).exp() - (0.5 * log_q).exp()).square().sum(-1)
    """
    if not isinstance(name, str) or not name:
        raise UserError('losses.register: it needs a name, as in @losses.register("my_loss")')
    if (name in LOGIT_LOSSES and name not in _registered) or name in FEATURE_LOSSES:
        raise UserError(f"losses.register({name!r}): a loss of this name is part of the package; choose another")

    def put(function: FunctionT) -> FunctionT:
        inputs, defaults = _arguments(name, function)
        spec = LossSpec(
            function,
            inputs,
            {**defaults, **(options or {})},
            target_forms=("dense",) if {"teacher", "teacher_logits"} & set(inputs) else (),
            softenable_forms=("dense",) if "teacher" in inputs else (),
            temperature_power=temperature_power if "teacher" in inputs else 0,
            is_divergence=is_divergence,
        )
        check_loss(spec, f"losses.register({name!r})")
        LOGIT_LOSSES[name] = spec
        _registered.add(name)
        return function

    return put


def _arguments(name: str, function: Callable[..., Tensor]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """(what a function reads, checks of its options) by the names and defaults of its arguments."""
    inputs, options = [], {}
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:  # a number, or a built-in that does not say what it takes
        raise UserError(f"losses.register({name!r}): {function!r} is no Python function") from error
    for argument, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty:
            if argument not in INPUT_NAMES:
                raise UserError(
                    f"losses.register({name!r}): {argument!r} is none of {', '.join(INPUT_NAMES)}, and has no default"
                )
            inputs.append(INPUT_NAMES[argument])
        else:
            options[argument] = _option_of(parameter.default)
    return tuple(inputs), options


def _option_of(default: Any) -> NumberOption | ChoiceOption | BoolOption:
    if isinstance(default, bool):
        return BoolOption()
    if isinstance(default, str):
        return ChoiceOption((default,))
    return NumberOption(-float("inf"), is_integer=isinstance(default, int))


def check_loss(loss: str | Callable[..., Tensor] | LossSpec, key: str = "", is_divergence: bool = False) -> None:
    """Raises UserError, naming the law, where a loss on a dense teacher breaks one.

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
        spec = LossSpec(loss, _arguments(key, loss)[0], is_divergence=is_divergence)
    for dtype in (torch.float32, torch.float64):
        for scale in (2.0, 40.0):
            _check_values(spec, f"{key} in {str(dtype)[6:]}, logits of about ±{scale:g}", dtype, scale)


def _check_values(spec: LossSpec, key: str, dtype: torch.dtype, scale: float) -> None:
    student = scale * _random_logits(1, dtype)
    teacher = scale * _random_logits(2, dtype)
    evaluate = functools.partial(_evaluate, spec, key)
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


def _evaluate(spec: LossSpec, key: str, student: Tensor, teacher: Tensor, count: int = NUM_TOKENS) -> Tensor:
    """Its values for the first tokens."""
    student, teacher = student[:count], teacher[:count]
    given = {
        "log_q": student.log_softmax(-1),
        "teacher": teacher.log_softmax(-1),
        "labels": torch.arange(count) % VOCAB_SIZE,
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


def _random_logits(seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_TOKENS, VOCAB_SIZE, generator=generator, dtype=torch.float64).to(dtype)


def _first_non_finite(values: Tensor) -> float:
    return float(values[~torch.isfinite(values)].flatten()[0])
