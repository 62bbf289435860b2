"""How many answers a generative task asks for, and how they are drawn: what the config says, else the task's own file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.task_index import TaskEntry, max_gen_toks, sampling_kwargs
from distill_lit.utils.exceptions import UserError

GENERATIVE = "generate_until"  # output_type of tasks whose answers a model writes
GENERATION_KEYS = ("repeats", "do_sample", "temperature", "top_p", "max_gen_toks")  # of the evaluation section
MAX_BATCH_ROWS = 16  # answers written at a time
MAX_BATCH_TOKENS = 8192  # of prompts, padding and answers together: what the key-value cache of a batch must hold


@dataclass(frozen=True)
class GenerationSettings:
    """Of one generative task. `repeats`: answers to each document; `temperature`: 0 where `do_sample` is false; `top_p`:
    None where neither config nor task names one; `max_gen_toks`: tokens of the longest answer; `generation_kwargs`: what is
    changed of the task's own, by lm-eval's names."""

    repeats: int
    do_sample: bool
    temperature: float
    top_p: float | None
    max_gen_toks: int
    generation_kwargs: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All that can change an answer, for keys and provenance."""
        return asdict(self)


def is_generative(entry: TaskEntry) -> bool:
    """Whether models write their answers to a task."""
    return bool(entry.config["output_type"] == GENERATIVE)


def generation_settings(
    entry: TaskEntry, overrides: Mapping[str, Any], settings: EvaluationConfig
) -> GenerationSettings | None:
    """The settings of a task with what its groups (`overrides`) and the config change; None where nothing is written.

    A config that asks for sampling says all of it: neither top-k, which transformers sets to 50, nor what a model's own
    generation_config.json recommends is left to decide.
    """
    if not is_generative(entry):
        return None
    own, longest = entry.config["generation_kwargs"], entry.config["max_gen_toks"]
    if isinstance(overrides.get("generation_kwargs"), dict):
        own, longest = sampling_kwargs(overrides["generation_kwargs"]), max_gen_toks(overrides["generation_kwargs"])
    temperature = float(own.get("temperature", 0.0) if settings.temperature is None else settings.temperature)
    do_sample = settings.do_sample
    if do_sample is None:
        do_sample = temperature > 0 if settings.temperature is not None else own.get("do_sample", temperature > 0)
    top_p = own.get("top_p") if settings.top_p is None else settings.top_p
    changed: dict[str, Any] = {}
    if settings.do_sample is not None or settings.temperature is not None:
        changed = {"do_sample": do_sample, "temperature": temperature if do_sample else 0.0}
        changed |= {"top_p": top_p or 1.0, "top_k": 0} if do_sample else {}
    elif settings.top_p is not None:
        changed = {"top_p": settings.top_p}
    changed |= {} if settings.max_gen_toks is None else {"max_gen_toks": settings.max_gen_toks}
    return GenerationSettings(
        settings.repeats or int(overrides.get("repeats") or entry.config["repeats"]),
        bool(do_sample),
        temperature if do_sample else 0.0,
        top_p if do_sample else None,
        settings.max_gen_toks or longest,
        changed,
    )


def check_generation_settings(settings: EvaluationConfig, tasks: list[tuple[TaskEntry, dict[str, Any]]]) -> None:
    """Raises UserError for settings of answers that contradict each other, or that none of the tasks has a use for."""
    asked = [key for key in GENERATION_KEYS if getattr(settings, key) is not None]
    if not asked:
        return
    known = {entry.name: generation_settings(entry, overrides, settings) for entry, overrides in tasks}
    written = {name: found for name, found in known.items() if found is not None}
    if not written:
        raise UserError(f"evaluation.{asked[0]}: models write their answers to none of the tasks; leave it out, or add one")
    if settings.do_sample is False and settings.temperature:
        raise UserError(
            f"evaluation.temperature: it is {settings.temperature:g}, and evaluation.do_sample false draws nothing; "
            "leave one of them out"
        )
    smallest = {entry.name: entry.config["min_repeats"] for entry, _ in tasks}
    for name, found in written.items():
        if found.do_sample and not found.temperature:
            raise UserError(f"evaluation.do_sample: task {name!r} needs evaluation.temperature above 0 to draw answers")
        if settings.top_p is not None and not found.do_sample:
            raise UserError(f"evaluation.top_p: task {name!r} draws nothing; set evaluation.temperature too")
        if settings.repeats is not None and found.repeats > 1 and not found.do_sample:
            raise UserError(
                f"evaluation.repeats: task {name!r} takes the most probable token, so {found.repeats} answers would all be "
                "the same; set evaluation.temperature too"
            )
        if found.repeats < smallest[name]:
            raise UserError(f"evaluation.repeats: task {name!r} votes among {smallest[name]} answers; set it to as many")
