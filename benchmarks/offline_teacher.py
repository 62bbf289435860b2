"""What does a teacher cache cost, and what does it leave of the gradient? `python benchmarks/offline_teacher.py` (about 25
minutes on two cores; `--rows 2 --batches 2 --repeats 2 --steps 2 --no-compile` shows in a minute that it runs).

SmolLM2-135M teaches 18 and 6 of its own layers on rows of the training corpus. For every form of the teacher:

* bytes per token on disk
* gradients (`--gradients` alone: 15 minutes): for the student of 18 layers before any step, the angle between its
  gradient over all weights and that of the full KL, mean and standard deviation over batches; and over caches of other
  draws the mean gradient's distance from the full one, as a share of its length, beside what sampling noise leaves
* times (`--times` alone, on idle cores: 10 minutes): seconds of a whole training step (student forward, loss, backward,
  AdamW), taken in turn with those of plain cross-entropy and of the online teacher, medians; their ratios

Each part is a process of its own with students of its own. Writes results/offline_teacher/gradients.csv, times.csv, and
benchmark.md from both. Paper: Anshumann et al. 2025, 2503.16870.
"""

# ruff: noqa: E402
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.offline_teacher_page import render
from distill_lit import data
from distill_lit.config import ExperimentConfig, StudentConfig, TermConfig, load_experiment
from distill_lit.data.loader import make_batch
from distill_lit.losses import build_objective, can_compile, chunk_size_for_budget
from distill_lit.losses.lm_head import get_lm_head
from distill_lit.models import CalibrationData, initial_student, load_model, model_folder
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.teachers import OfflineTeacher, OnlineTeacher, Teacher, write_teacher_cache
from distill_lit.teachers.compression import (
    CACHE_SAMPLED,
    CACHE_TOP_K,
    TeacherCacheFormat,
    compress_logprobs,
    decompress_target,
)
from distill_lit.teachers.teacher_cache import measure_bytes_per_token
from distill_lit.training.distiller import Distiller
from distill_lit.training.loss import FusedLossSettings
from distill_lit.utils import hardware
from distill_lit.utils.files import write_text

STUDENT_LAYERS = {
    18: [0, 1, 2, 6, 7, 8, 9, 10, 11, 19, 20, 21, 22, 23, 24, 27, 28, 29],
    6: [0, 1, 11, 24, 27, 29],  # an online teacher costs it more than itself
}
CACHE_FORMS = {
    "hidden_states": (TeacherCacheFormat(), {"kind": "forward_kl"}),
    "top_12": (TeacherCacheFormat(CACHE_TOP_K, 12), {"kind": "top_k_kl", "options": {"k": 12}}),
    "top_50": (TeacherCacheFormat(CACHE_TOP_K, 50), {"kind": "top_k_kl", "options": {"k": 50}}),
    "truncated_12": (TeacherCacheFormat(CACHE_TOP_K, 12), {"kind": "truncated_kl", "options": {"k": 12}}),
    "truncated_50": (TeacherCacheFormat(CACHE_TOP_K, 50), {"kind": "truncated_kl", "options": {"k": 50}}),
    "top_50 + tail": (TeacherCacheFormat(CACHE_TOP_K, 50), {"kind": "top_k_tail_kl", "options": {"k": 50}}),
    "sampled_12": (TeacherCacheFormat(CACHE_SAMPLED, 12), {"kind": "sampled_kl"}),
    "sampled_50": (TeacherCacheFormat(CACHE_SAMPLED, 50), {"kind": "sampled_kl"}),
}
TEACHER_NAMES = ("ce", "online", *CACHE_FORMS)
PARTS = ("gradients", "times")
Teachers = dict[str, Teacher | None]
Batch = dict[str, Tensor]
Measurements = dict[str, dict[str, float]]


def main() -> None:
    """Measures a part, or both in processes of their own, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gradients", action="store_true", help="these alone; the times stay as they were")
    parser.add_argument("--times", action="store_true", help="these alone; the gradients stay as they were")
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens per step and gradient")
    parser.add_argument("--batches", type=int, default=6, help="batches whose gradients are compared")
    parser.add_argument("--repeats", type=int, default=4, help="caches of other draws of each batch, for the bias")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each form; the median counts")
    parser.add_argument("--no-compile", action="store_true", help="the fused head uncompiled")
    parser.add_argument("--out", type=Path, default=ROOT / "results/offline_teacher")
    options = parser.parse_args()
    if options.gradients == options.times:
        for part in PARTS:
            subprocess.run([sys.executable, *sys.argv, f"--{part}"], check=True)
        return
    config = load_experiment(ROOT / "experiments/offline_teacher.yaml")
    bench = BenchmarkSetup(config, options.rows, options.batches if options.gradients else 1, not options.no_compile)
    with tempfile.TemporaryDirectory() as cache_folder:
        teachers, sizes = bench.write_caches(Path(cache_folder))
        if options.gradients:
            measurements = compare_gradients(bench, teachers, options.repeats)
        else:
            measurements = time_all(bench, teachers, options.steps)
    part = "gradients" if options.gradients else "times"
    table = pd.DataFrame(
        [{"teacher": name, "bytes_per_token": sizes.get(name), **measurements.get(name, {})} for name in TEACHER_NAMES]
    )
    numbers = table.to_csv(index=False, float_format="%.5g")
    write_text(options.out / f"{part}.csv", f"# {bench.describe(part, options)}\n{numbers}")
    write_text(options.out / "benchmark.md", render(options.out))
    print(render(options.out))


class BenchmarkSetup:
    """A teacher, its students and batches."""

    def __init__(self, config: ExperimentConfig, rows: int, batches: int, compiled: bool) -> None:
        self.folder = model_folder(config.teacher.model)
        device = hardware.device_for("cpu")
        self.dtype = getattr(torch, hardware.fastest_dtype(device))
        self.data = data.prepare_datasets(config.data, self.folder, config.dataset_source)
        self.rows, self.vocab_size = rows, load_unpadded_vocab_size(self.folder)
        self.compiled = compiled and can_compile(device)
        self.train = self.data.train.take(np.arange(rows * batches))
        self.batches = [make_batch(self.train, np.arange(rows * i, rows * (i + 1)), 1) for i in range(batches)]
        self.teacher = load_model(self.folder, self.dtype).requires_grad_(False)

    def describe(self, part: str, options: argparse.Namespace) -> str:
        """How a part was measured."""
        own = (
            f"--batches {options.batches} --repeats {options.repeats}"
            if part == "gradients"
            else f"--steps {options.steps}"
        )
        tokens = " + ".join(str(len(supervised_labels(batch))) for batch in self.batches)
        return (
            f"`python benchmarks/offline_teacher.py --{part} --rows {options.rows} {own}`: {tokens} supervised tokens, "
            f"{str(self.dtype).split('.')[1]}, {torch.get_num_threads()} threads, LM head "
            f"{'compiled' if self.compiled else 'eager'}"
        )

    def write_caches(self, root: Path) -> tuple[Teachers, dict[str, float]]:
        """({name: teacher}, {name: bytes per token}); None is no teacher, for plain cross-entropy."""
        teachers: Teachers = {"ce": None, "online": OnlineTeacher(self.teacher, self.vocab_size)}
        sizes, validation = {}, self.data.validation.take(np.arange(1))
        head = get_lm_head(self.teacher, self.vocab_size)
        for name, (form, _) in CACHE_FORMS.items():
            folder = root / f"{form.kind}-{form.tokens_per_position}"
            write_teacher_cache(folder, self.teacher, self.train, validation, self.rows, form, self.vocab_size)
            sizes[name] = measure_bytes_per_token(folder, self.train, form)
            teachers[name] = OfflineTeacher(folder, self.train, head, num_validation_rows=1)
        return teachers, sizes

    def student(self, depth: int) -> Any:
        """A student before its first step."""
        return initial_student(StudentConfig(layers=STUDENT_LAYERS[depth]), self.folder, CalibrationData([], ""), 0)

    def distiller(self, name: str, teacher: Teacher | None, student: Any) -> Distiller:
        """The student under the objective that reads this teacher."""
        term = (
            TermConfig(kind="ce") if name == "ce" else TermConfig(**CACHE_FORMS.get(name, CACHE_FORMS["hidden_states"])[1])
        )
        settings = FusedLossSettings(chunk_size_for_budget(512, self.vocab_size, self.compiled), self.compiled, self.dtype)
        objective = build_objective({"term": term})
        return Distiller(student, teacher, objective, vocab_size=self.vocab_size, fused_loss_settings=settings)

    def backward(self, distiller: Distiller, batch: Batch) -> None:
        """Adds the gradient of a batch's mean loss to the student's."""
        num_tokens = torch.tensor(len(supervised_labels(batch)))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            losses = distiller.loss(distiller.student, batch, denominator=num_tokens)
        losses.total.backward()


# ---------------------------------------------------------------- times


def time_all(bench: BenchmarkSetup, teachers: Teachers, steps: int) -> Measurements:
    """{name: of each depth the seconds of a step, their ratio to plain cross-entropy's, the online teacher's to them}."""
    measurements: Measurements = {name: {} for name in teachers}
    for depth in STUDENT_LAYERS:
        seconds = time_steps(bench, teachers, steps, depth)
        for name, step in seconds.items():
            measurements[name] |= {f"seconds_{depth}": step, f"ratio_to_ce_{depth}": step / seconds["ce"]}
            measurements[name] |= {f"speedup_over_online_{depth}": seconds["online"] / step}
    return measurements


def time_steps(bench: BenchmarkSetup, teachers: Teachers, steps: int, depth: int) -> dict[str, float]:
    """{name: median seconds of a step}, one step of each in turn, in another order every time, so that a slow minute
    slows all. All train one student, or they would not fit into memory: of it only the time is read."""
    student = bench.student(depth)
    distillers = {name: bench.distiller(name, teacher, student) for name, teacher in teachers.items()}
    optimizer, rng = torch.optim.AdamW(student.parameters(), 1e-5, fused=True), np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in distillers}
    for step in range(steps + 1):  # the first compiles
        for name in rng.permutation(list(distillers)):
            start = time.perf_counter()
            optimizer.zero_grad()
            bench.backward(distillers[name], bench.batches[0])
            optimizer.step()
            times[name] += [time.perf_counter() - start] if step else []
        print(f"{depth} layers: timed {step} of {steps}", file=sys.stderr)
    return {name: float(np.median(values)) for name, values in times.items()}


# ---------------------------------------------------------------- gradients


def compare_gradients(bench: BenchmarkSetup, teachers: Teachers, repeats: int) -> Measurements:
    """{name: means and standard deviations (sd) over batches of angle (degrees), bias (distance of the mean gradient as a
    share), sampling_noise (what of it is noise)}. No step is taken: one student gives every gradient."""
    student = bench.student(max(STUDENT_LAYERS))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    distillers = {name: bench.distiller(name, teacher, student) for name, teacher in teachers.items()}
    rows: list[dict[str, Any]] = []
    for number, batch in enumerate(bench.batches):
        full = flat_gradient(bench, distillers["online"], batch)
        for name in ("ce", *CACHE_FORMS):
            first = flat_gradient(bench, distillers[name], batch)
            noise = name in CACHE_FORMS and CACHE_FORMS[name][0].kind == CACHE_SAMPLED
            measured = (
                sampled_gradient_bias(bench, distillers[name], batch, full, repeats)
                if noise
                else gradient_bias(first, full)
            )
            rows.append({"teacher": name, "angle": angle_degrees(first, full), **measured})
            print(f"batch {number}: {rows[-1]}", file=sys.stderr)
    for now, then in zip(student.parameters(), before, strict=True):
        assert torch.equal(now, then), "the student has been trained"
    grouped = pd.DataFrame(rows).groupby("teacher")
    table = grouped.mean().join(grouped.std(ddof=1).add_suffix("_sd"))
    return {str(name): row for name, row in table.to_dict("index").items()}


def flat_gradient(bench: BenchmarkSetup, distiller: Distiller, batch: Batch) -> Tensor:
    """The gradient over all weights, as one vector (P,) in float32."""
    distiller.zero_grad()
    bench.backward(distiller, batch)
    return torch.cat([p.grad.flatten() for p in distiller.student.parameters()])


def gradient_bias(one: Tensor, full: Tensor) -> dict[str, float]:
    """The bias of a gradient in which nothing is drawn."""
    return {"bias": float((one - full).norm() / full.norm()), "sampling_noise": 0.0}


def sampled_gradient_bias(
    bench: BenchmarkSetup, distiller: Distiller, batch: Batch, full: Tensor, repeats: int
) -> dict[str, float]:
    """The bias of the mean gradient over caches of other draws, and what of it sampling noise explains."""
    teacher = distiller.loss.teacher
    cache_format = teacher.cache_format
    target = OnlineTeacher(bench.teacher, bench.vocab_size).target(batch, batch["labels"][:, 1:] >= 0)
    mean, squares = torch.zeros_like(full), 0.0
    for seed in range(repeats):
        distiller.loss.teacher = ResampledTeacher(target, supervised_labels(batch), cache_format, seed)
        gradient = flat_gradient(bench, distiller, batch)
        squares += float((gradient - full).square().sum()) / repeats
        mean += gradient / repeats
    distiller.loss.teacher = teacher
    sampling_noise = (squares / repeats) ** 0.5 / float(full.norm())
    return {"bias": float((mean - full).norm() / full.norm()), "sampling_noise": sampling_noise}


class ResampledTeacher:
    """A sampled teacher of one batch, drawn by a seed."""

    def __init__(self, target: Any, labels: Tensor, cache_format: TeacherCacheFormat, seed: int) -> None:
        generator, parts = torch.Generator().manual_seed(1000 + seed), []
        for start in range(0, len(labels), 256):
            chunk = slice(start, start + 256)
            logits = target.lm_head.scale_and_cap(target.lm_head.project(target.hidden_states[chunk]))
            parts.append(compress_logprobs(logits.log_softmax(-1), labels[chunk], cache_format, generator))
        self.sampled = decompress_target(
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, cache_format
        )

    def target(self, batch: Batch, loss_mask: Tensor) -> Any:
        """The same for every call."""
        return self.sampled

    def to(self, device: torch.device) -> None:
        """It stays."""


def supervised_labels(batch: Batch) -> Tensor:
    """The supervised tokens (N,) of a batch."""
    labels = batch["labels"][:, 1:]
    return labels[labels >= 0]


def angle_degrees(one: Tensor, other: Tensor) -> float:
    """The angle between two vectors."""
    cosine = torch.nn.functional.cosine_similarity(one.double(), other.double(), 0)
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


if __name__ == "__main__":
    main()
