"""What does a teacher cache cost, and what does it leave of the gradient? `python benchmarks/cached_teacher.py` (about 25
minutes on two cores; `--rows 2 --repeats 2 --steps 2 --no-compile` shows in a minute that it runs).

SmolLM2-135M teaches 18 and 6 of its own layers on rows of the training corpus. For every form of the teacher:

* bytes per token on disk
* seconds of a whole training step (student forward, loss, backward, AdamW), taken in turn with those of plain
  cross-entropy and of the live teacher, medians; their ratios
* for the student of 18 layers, the angle between its gradient over all weights and that of the full KL, on a batch; and
  over many caches of other draws the mean gradient's distance from the full one, as a share of its length, beside what
  chance alone would leave

Writes results/cached_teacher/benchmark.md and .csv. Paper: Anshumann et al. 2025, 2503.16870.
"""

# ruff: noqa: E402
import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # this folder would hide the standard library's `statistics`

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from distill_lit import data, hardware
from distill_lit.config import StudentConfig, TermConfig, TrainingConfig, load_experiment
from distill_lit.data.loader import make_batch
from distill_lit.distiller import Distiller, HeadSettings
from distill_lit.files import write_text, writing
from distill_lit.heads import head_of
from distill_lit.models import Calibration, initial_student, load_model, model_folder
from distill_lit.objectives import build_objective, can_compile, chunk_for
from distill_lit.signals import CachedTeacher, LiveTeacher, SparseTeacher, TeacherSignal
from distill_lit.signals.cached import bytes_per_token, write_cache
from distill_lit.signals.compress import HIDDEN, SAMPLED, TOP_K, Form, compress, expand
from distill_lit.teaching import real_tokens

LAYERS = {
    18: [0, 1, 2, 6, 7, 8, 9, 10, 11, 19, 20, 21, 22, 23, 24, 27, 28, 29],
    6: [0, 1, 11, 24, 27, 29],  # a live teacher costs it more than itself
}
FORMS = {
    "hidden": (Form(), {"kind": "forward_kl"}),
    "top_12": (Form(TOP_K, 12), {"kind": "top_k_kl", "options": {"k": 12}}),
    "top_50": (Form(TOP_K, 50), {"kind": "top_k_kl", "options": {"k": 50}}),
    "top_50 + tail": (Form(TOP_K, 50), {"kind": "top_k_tail_kl", "options": {"k": 50}}),
    "sampled_12": (Form(SAMPLED, 12), {"kind": "sampled_kl"}),
    "sampled_50": (Form(SAMPLED, 50), {"kind": "sampled_kl"}),
}


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens per step and gradient")
    parser.add_argument("--repeats", type=int, default=16, help="caches of other draws, for the bias")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each form; the median counts")
    parser.add_argument("--no-compile", action="store_true", help="the fused head uncompiled")
    parser.add_argument("--out", type=Path, default=ROOT / "results/cached_teacher")
    options = parser.parse_args()
    bench = Bench(options.rows, not options.no_compile)
    with tempfile.TemporaryDirectory() as place:
        signals, sizes = bench.write_caches(Path(place))
        seconds = {depth: bench.time_steps(signals, options.steps, depth) for depth in LAYERS}
        angles = bench.compare_gradients(signals, options.repeats)
    table = pd.DataFrame(
        [
            {"teacher": name, "bytes_per_token": sizes.get(name), **ratios(seconds, name), **angles.get(name, {})}
            for name in signals
        ]
    )
    with writing(options.out / "benchmark.csv") as path:
        table.to_csv(path, index=False, float_format="%.5g")
    write_text(options.out / "benchmark.md", render(table, bench, options))
    print(render(table, bench, options))


def ratios(seconds: dict[int, dict[str, float]], name: str) -> dict[str, float]:
    """Of each depth the seconds of a step, their ratio to plain cross-entropy's, and the live teacher's ratio to them."""
    found = {}
    for depth, known in seconds.items():
        step = known[name]
        found |= {f"seconds_{depth}": step, f"to_ce_{depth}": step / known["ce"]}
        found |= {f"faster_than_live_{depth}": known["live"] / step}
    return found


class Bench:
    """A teacher, its students and a batch."""

    def __init__(self, rows: int, compiled: bool) -> None:
        self.config = load_experiment(ROOT / "experiments/cached_teacher.yaml")
        self.folder = model_folder(self.config.teacher.model)
        device = hardware.device_for("cpu")
        self.dtype = getattr(torch, hardware.fastest_dtype(device))
        self.data = data.prepare(self.config.data, self.folder, self.config.benchmarks)
        self.rows, self.vocabulary = rows, real_tokens(self.folder)
        self.compiled = compiled and can_compile(device)
        self.batch = make_batch(self.data.train, np.arange(rows), 1)
        self.tokens = int((self.batch["labels"][:, 1:] >= 0).sum())
        self.teacher = load_model(self.folder, self.dtype).requires_grad_(False)
        self.students = {
            depth: initial_student(StudentConfig(layers=layers), self.folder, Calibration([], ""), 0)
            for depth, layers in LAYERS.items()
        }

    def write_caches(self, place: Path) -> tuple[dict[str, TeacherSignal | None], dict[str, float]]:
        """({name: signal}, {name: bytes per token}); None is no teacher, for plain cross-entropy."""
        signals: dict[str, TeacherSignal | None] = {"ce": None, "live": LiveTeacher(self.teacher, self.vocabulary)}
        sizes = {}
        train, held = self.data.train.take(np.arange(64)), self.data.validation.take(np.arange(1))
        head = head_of(self.teacher, self.vocabulary)
        for name, (form, _) in FORMS.items():
            folder = place / f"{form.kind}-{form.width}"
            write_cache(folder, self.teacher, train, held, self.rows, form, self.vocabulary)
            sizes[name] = bytes_per_token(folder, train, form)
            whole = form.kind == HIDDEN
            signals[name] = CachedTeacher(folder, 65, head) if whole else SparseTeacher(folder, train, 1, form, head)
        return signals, sizes

    def distiller(self, name: str, signal: TeacherSignal | None, depth: int = 18) -> Distiller:
        """A student under the objective that reads this signal; all share one, or they would not fit into memory."""
        term = TermConfig(kind="ce") if name == "ce" else TermConfig(**FORMS.get(name, FORMS["hidden"])[1])
        chunk = chunk_for(512, self.vocabulary, self.compiled)
        settings = HeadSettings(chunk, self.compiled, self.dtype)
        training = TrainingConfig(tokens=1, batch=self.rows)
        objective = build_objective({"term": term})
        return Distiller(self.students[depth], self.vocabulary, objective, signal, training, 1, 256, settings)

    def gradient(self, distiller: Distiller) -> Tensor:
        """The gradient over all weights, as one vector (P,) in float32."""
        distiller.zero_grad()
        self._backward(distiller)
        return torch.cat([p.grad.flatten() for p in distiller.student.parameters()])

    def _backward(self, distiller: Distiller) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            losses, _ = distiller.losses(self.batch, torch.tensor(self.tokens), False, distiller.signal is not None)
        losses.total.backward()

    def time_steps(self, signals: dict[str, TeacherSignal | None], steps: int, depth: int) -> dict[str, float]:
        """{name: median seconds of a step}, one step of each in turn, so that a slow minute slows all."""
        distillers = {name: self.distiller(name, signal, depth) for name, signal in signals.items()}
        optimizer = torch.optim.AdamW(self.students[depth].parameters(), 1e-5, fused=True)
        times: dict[str, list[float]] = {name: [] for name in distillers}
        for step in range(steps + 1):  # the first compiles
            for name, distiller in distillers.items():
                start = time.perf_counter()
                optimizer.zero_grad()
                self._backward(distiller)
                optimizer.step()
                times[name] += [time.perf_counter() - start] if step else []
            print(f"{depth} layers: timed {step} of {steps}", file=sys.stderr)
        return {name: float(np.median(values)) for name, values in times.items()}

    def compare_gradients(self, signals: dict[str, TeacherSignal | None], repeats: int) -> dict[str, dict[str, float]]:
        """{name: angle in degrees, bias: distance of the mean gradient as a share, chance: what of it is noise}."""
        full = self.gradient(self.distiller("live", signals["live"]))
        target = signals["live"].target(self.batch, self.batch["labels"][:, 1:] >= 0)  # type: ignore[union-attr]
        found = {}
        for name, (form, _) in FORMS.items():
            distiller = self.distiller(name, signals[name])
            first = self.gradient(distiller)
            found[name] = {"angle": degrees(first, full)}
            if form.kind == SAMPLED:
                found[name] |= self._bias(distiller, target, form, full, repeats)
            else:
                found[name] |= {"bias": float((first - full).norm() / full.norm()), "chance": 0.0}
            print(f"gradient of {name}: {found[name]}", file=sys.stderr)
        return found

    def _bias(self, distiller: Distiller, target: Any, form: Form, full: Tensor, repeats: int) -> dict[str, float]:
        labels = self.batch["labels"][:, 1:]
        labels, mean, squares = labels[labels >= 0], torch.zeros_like(full), 0.0
        for seed in range(repeats):
            distiller.signal = _Fixed(target, labels, form, seed)
            gradient = self.gradient(distiller)
            squares += float((gradient - full).square().sum()) / repeats
            mean += gradient / repeats
        return {
            "bias": float((mean - full).norm() / full.norm()),
            "chance": (squares / repeats) ** 0.5 / float(full.norm()),
        }


class _Fixed:
    """A sampled teacher of one batch, drawn by a seed."""

    def __init__(self, target: Any, labels: Tensor, form: Form, seed: int) -> None:
        generator, parts = torch.Generator().manual_seed(1000 + seed), []
        for start in range(0, len(labels), 256):
            here = slice(start, start + 256)
            log_p = target.head.finish(target.head.project(target.hidden[here])).log_softmax(-1)
            parts.append(compress(log_p, labels[here], form, generator))
        self.drawn = expand({name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, form)

    def target(self, batch: dict[str, Tensor], chosen: Tensor) -> Any:
        """The same for every call."""
        return self.drawn

    def to(self, device: torch.device) -> None:
        """It stays."""


def degrees(one: Tensor, other: Tensor) -> float:
    """The angle between two vectors."""
    cosine = torch.nn.functional.cosine_similarity(one.double(), other.double(), 0)
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))


def render(table: pd.DataFrame, bench: Bench, options: argparse.Namespace) -> str:
    """The table as Markdown, with what the paper says beside it."""
    lines = [
        "# Teacher caches: what they cost and what they leave of the gradient",
        "",
        f"`python benchmarks/cached_teacher.py --rows {options.rows} --repeats {options.repeats} --steps {options.steps}`: "
        f"SmolLM2-135M teaches 18 and 6 of its 30 layers, {bench.tokens} supervised tokens, "
        f"{str(bench.dtype).split('.')[1]}, "
        f"{torch.get_num_threads()} threads, head {'compiled' if bench.compiled else 'eager'}.",
        "",
        "| teacher | bytes per token | "
        + " | ".join(f"step of {depth} layers, s | × CE | faster than live" for depth in LAYERS)
        + " | angle | bias | of it chance |",
        "|---|" + "---:|" * (4 + 3 * len(LAYERS)),
    ]
    for row in table.to_dict("records"):
        numbers = (
            _cell(row["bytes_per_token"], ".0f"),
            *(
                _cell(row[f"{what}_{depth}"], ".2f")
                for depth in LAYERS
                for what in ("seconds", "to_ce", "faster_than_live")
            ),
            _cell(row.get("angle"), ".1f°"),
            _cell(row.get("bias"), ".3f"),
            _cell(row.get("chance"), ".3f"),
        )
        lines.append(f"| {row['teacher']} | " + " | ".join(numbers) + " |")
    about = (
        "Angle: between the gradient over all weights and that of the full KL, on this batch, for 18 layers; that of a "
        "sample falls with the root of the tokens in a batch. The paper has 48° for top-50 and 4° for 12 sampled labels. "
        "Bias: distance of the mean gradient over caches of other draws from the full one, as a share of its length; an "
        "unbiased estimate leaves what chance leaves, which falls with their number."
    )
    return "\n".join([*lines, "", about, ""])


def _cell(value: Any, form: str) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:{form.rstrip('°')}}" + ("°" if form.endswith("°") else "")


if __name__ == "__main__":
    main()
