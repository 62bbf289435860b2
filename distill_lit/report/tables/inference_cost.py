"""What every model costs: size, arithmetic, measured speed, memory and energy, and the training that must break even."""

from collections.abc import Callable
from typing import Any

import numpy as np

from distill_lit.analysis.inference_cost import MEASURED
from distill_lit.analysis.model_groups import REFERENCE_ROLES, ModelGroup, group_cost
from distill_lit.analysis.scores import Scores
from distill_lit.report.formats.table import Table, TableCell
from distill_lit.report.number_format import MISSING_VALUE, format_bytes, format_count, format_number
from distill_lit.report.tables.footnotes import sample_limit_notes

NumberFormatter = Callable[[float], str]
RATES = {"prefill_s_per_token", "decode_s_per_token"}  # shown as tokens per second, which people compare
COST_TABLE_COLUMNS: dict[str, tuple[str, NumberFormatter]] = {
    "parameters": ("parameters", format_count),
    "non_embedding_parameters": ("non-embedding parameters", format_count),
    "bytes": ("on disk", format_bytes),
    "kv_cache_bytes_per_token": ("KV cache per token", format_bytes),
    "flops_per_token": ("FLOPs per token", format_count),
    "prefill_s_per_token": ("prefill tokens/s", format_count),
    "decode_s_per_token": ("decode tokens/s", format_count),
    "ttft_s": ("TTFT, ms", lambda s: format_number(1000 * s)),
    "itl_p50_s": ("inter-token latency p50, ms", lambda s: format_number(1000 * s)),
    "itl_p95_s": ("inter-token latency p95, ms", lambda s: format_number(1000 * s)),
    "peak_memory_bytes": ("peak memory", format_bytes),
    "joules_per_token": ("J per token", lambda joules: format_number(joules, 3)),
    "price_per_million_tokens": ("price of 1M tokens", lambda money: format_number(money, 3)),
    "student_training_flops": ("training FLOPs, student", format_count),
    "teacher_training_flops": ("… its teacher's", format_count),
}
TRAINING_COSTS = ("student_training_flops", "teacher_training_flops")
RUNNING_COSTS = tuple(axis for axis in COST_TABLE_COLUMNS if axis not in TRAINING_COSTS)
BREAK_EVEN = "breaks even after, tokens"


def cost_table(scores: Scores) -> Table:
    """One row per shape of model: a student costs the same however it was trained, but for its training, whose range over
    the students that were trained stands in its columns. Columns for every cost that is known of at least one model."""
    shapes = _shapes(scores)
    groups = [group for shape in shapes.values() for group in shape]
    known = [axis for axis in COST_TABLE_COLUMNS if any(group_cost(g, scores.results, axis) > 0 for g in groups)]
    show_break_even = any(np.isfinite(break_even(scores, group)) for group in groups)
    columns = ["model", *(COST_TABLE_COLUMNS[axis][0] for axis in known), *([BREAK_EVEN] if show_break_even else [])]
    rows = []
    for name, shape in shapes.items():
        texts = [name, *(_entry(scores, shape, axis) for axis in known)]
        texts += [_range([break_even(scores, group) for group in shape], format_count)] if show_break_even else []
        rows.append([TableCell(text) for text in texts])
    return Table(
        "What it costs",
        columns,
        rows,
        header_notes=sample_limit_notes(scores),
        footnotes=_notes(scores, known, show_break_even),
    )


def _shapes(scores: Scores) -> dict[str, list[ModelGroup]]:
    """{name: groups whose models cost the same to run}. Students of one name that do not are named in full."""
    shapes: dict[tuple, list[ModelGroup]] = {}
    for group in scores.groups:
        if group.models:
            costs = tuple(f"{group_cost(group, scores.results, axis):.6g}" for axis in RUNNING_COSTS)
            own = group.label if group.role in REFERENCE_ROLES else group.student
            shapes.setdefault((own, costs), []).append(group)
    students, label = [own for own, _ in shapes], scores.results.display.label
    return {
        label(own) if students.count(own) == 1 else ", ".join(group.label for group in groups): groups
        for (own, _), groups in shapes.items()
    }


def break_even(scores: Scores, group: ModelGroup) -> float:
    """Tokens that a student must serve until the arithmetic it saves against the teacher exceeds that of its training and,
    of one that is made from other models, of theirs; NaN where it saves nothing or was not trained."""
    if scores.teacher is None:
        return float("nan")
    saved = group_cost(scores.groups[scores.teacher], scores.results, "flops_per_token")
    saved -= group_cost(group, scores.results, "flops_per_token")
    own = float(np.nansum([group_cost(group, scores.results, name) for name in TRAINING_COSTS]))
    pipeline = group_cost(group, scores.results, "pipeline_training_flops")
    spent = pipeline if np.isfinite(pipeline) else own
    return spent / saved if saved > 0 and own > 0 else float("nan")


def _entry(scores: Scores, shape: list[ModelGroup], axis: str) -> str:
    """The number, and where it was measured how many times the teacher's cost is this one's, with its interval."""
    values = [group_cost(group, scores.results, axis) for group in shape]
    if axis not in RUNNING_COSTS:
        return _range([value for value in values if value > 0], COST_TABLE_COLUMNS[axis][1])
    value, group = values[0], shape[0]
    if not np.isfinite(value):
        return MISSING_VALUE
    text = COST_TABLE_COLUMNS[axis][1](1 / value if axis in RATES else value)
    ratio, low, high = (group_cost(group, scores.results, f"{axis}_ratio{bound}") for bound in ("", "_low", "_high"))
    if group.role == "teacher" or not np.isfinite(ratio):
        return text
    interval = f" [{format_number(low, 2)}, {format_number(high, 2)}]" if low != high else ""
    return f"{text} ({format_number(ratio, 2)}×{interval})"


def _range(values: list[float], show: NumberFormatter) -> str:
    """`22T`, or `22T to 55T` over those that are known."""
    known = [value for value in values if np.isfinite(value)]
    shown = dict.fromkeys(show(value) for value in (min(known), max(known))) if known else [MISSING_VALUE]
    return " to ".join(shown)


def _notes(scores: Scores, known: list[str], show_break_even: bool) -> list[str]:
    notes = ["FLOPs per token: forward, 2 per weight, attention over the context left out. KV cache in 16 bits."]
    if show_break_even:
        notes.append(
            "Breaks even after: tokens served until the FLOPs saved per token exceed those of training, the teacher's "
            "forward passes and the training of all models that a student is made from included; choosing and pruning "
            "students is not. Of several trained students: the range."
        )
    if set(known) & set(MEASURED):
        notes += _measurement(scores)
    else:
        notes.append("Speed, memory and energy have not been measured: `distill-lit cost` does it, on idle cores.")
    return notes


def _measurement(scores: Scores) -> list[str]:
    costs = scores.results.costs
    machine: dict[str, Any] = costs.get("machine", {})
    settings: dict[str, Any] = costs.get("settings", {})
    grid = " × ".join(
        f"{words} {'/'.join(map(str, settings.get(name, [])))}"
        for name, words in (("batch_sizes", "batch"), ("prompt_lengths", "prompt"), ("output_lengths", "output"))
    )
    where = machine.get("gpu") if machine.get("device") == "cuda" else machine.get("processor")
    return [
        f"Measured in {settings.get('blocks')} turns of all models on {where} ({machine.get('device')}, "
        f"{machine.get('threads')} threads, torch {machine.get('torch')}, {settings.get('dtype')}), greedy, {grid}; load "
        f"{format_number(float(machine.get('load') or 0), 1)} at the start. In brackets: the teacher's cost over this "
        "one's, with "
        f"the {float(costs.get('confidence_level') or 0.95):.0%} interval over turns. Speeds: geometric mean "
        "over the "
        f"grid; TTFT and latencies: {settings.get('requests')} single requests; memory: of a process that only "
        "serves the largest point of the grid."
    ]
