"""How good is the gradient of the reverse KL that a few tokens of each position give? `python
benchmarks/reverse_kl_gradients.py` (about ten minutes on two cores).

A student continues prompts of the training corpus, SmolLM2-135M judges what it wrote. At every position the gradient of
KL(q ‖ p) over the whole vocabulary is compared with what is used where a teacher gives the probabilities of a few tokens
only, m a position:

* score function: (log q − log p) ∇log q of m tokens drawn from q, which is `policy_gradient_reverse_kl` for the token that
  was written; k2 as a loss, ½ (log q − log p)², has the same gradient
* centered: the same, less the mean of the other draws (leave-one-out: Kool et al. 2019)
* k3 as a loss, p/q − 1 − log(p/q) of the same draws (Schulman 2020), as in GRPO; k1 as a loss, log q − log p
* best m of the student, or of the teacher, and all other tokens as one

Angles between gradients over all weights, every 17th of them; means over batches, and once more of all batches together.
The student is measured before any step. Writes results/reverse_kl_gradients/: gradients.csv, gradients.png, table.md.
"""

# ruff: noqa: E402
import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.offline_teacher import angle_degrees
from distill_lit import data
from distill_lit.config import ExperimentConfig, load_experiment
from distill_lit.generation.sampling import SamplingParams, generate_batch, get_eos_token_ids
from distill_lit.losses.divergences import reverse_kl
from distill_lit.losses.sparse import top_k_tail_kl
from distill_lit.losses.targets import TopKTarget
from distill_lit.models import CalibrationData, initial_student, load_model, load_tokenizer, model_folder
from distill_lit.models.vocabulary import load_unpadded_vocab_size
from distill_lit.utils import hardware
from distill_lit.utils.files import write_text

EXACT = "whole vocabulary"
SCORE, CENTERED, K3, K1 = "score function", "score function, centered", "k3 as a loss", "k1 as a loss"
STUDENT_BEST, TEACHER_BEST = "best of the student", "best of the teacher"
TOKENS_PER_POSITION = (1, 4, 16, 64)
PROMPT_TOKENS, NEW_TOKENS = 24, 24
STRIDE = 17  # of the weights that are compared; prime, so that no row or column is always left out


def estimates(log_q: Tensor, log_p: Tensor, count: int) -> dict[str, Tensor]:
    """{name: loss (N,) whose gradient is the estimate}. log_q, log_p: (N, V); count: tokens a position."""
    drawn = torch.multinomial(log_q.detach().exp(), count, replacement=True)
    q, p = log_q.gather(-1, drawn), log_p.gather(-1, drawn)
    ratio = (q - p).detach()
    best = log_p.topk(count, dim=-1).indices
    found = {
        SCORE: (ratio * q).mean(-1),
        K3: ((p - q).exp() - 1 - (p - q)).mean(-1),
        K1: (q - p).mean(-1),
        STUDENT_BEST: top_k_tail_kl(log_p, log_q, count),
        TEACHER_BEST: top_k_tail_kl(log_p, TopKTarget(best, log_q.gather(-1, best), log_q[:, 0]), count),
    }
    if count > 1:
        others = (ratio.sum(-1, keepdim=True) - ratio) / (count - 1)
        found[CENTERED] = ((ratio - others) * q).mean(-1)
    return found


class OwnText:
    """Texts that a student wrote, and what it and the teacher say of each of their tokens."""

    def __init__(
        self, student: Any, teacher: Any, prompts: list[list[int]], ends: list[int], vocab: int, seed: int
    ) -> None:
        """prompts: all of one length; ends: token ids that end a text; vocab: real tokens."""
        sampling = SamplingParams(1.0, 1.0, NEW_TOKENS)
        written = [each.token_ids for each in generate_batch(student, prompts, ends, sampling, seed, vocab_size=vocab)]
        rows = [torch.tensor([*prompt, *text]) for prompt, text in zip(prompts, written, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # on the right, which no token before it sees
        start = len(prompts[0])
        is_text = torch.arange(ids.shape[1] - start) < torch.tensor([len(text) for text in written]).unsqueeze(1)
        self.logits = student(input_ids=ids).logits[:, start - 1 : -1, :vocab][is_text]  # (N, V), with its graph
        with torch.inference_mode():
            log_p = teacher(input_ids=ids).logits[:, start - 1 : -1, :vocab][is_text].log_softmax(-1)
        self.log_p = log_p.clone()

    def gradient(self, student: Any, loss: Tensor, leaf: Tensor) -> Tensor:
        """Of a loss (N,), its mean over the tokens, over every STRIDE-th weight (P,). leaf: the logits it was made of."""
        (of_logits,) = torch.autograd.grad(loss.mean(), leaf, retain_graph=True)
        parameters = list(student.parameters())
        gradients = torch.autograd.grad(self.logits, parameters, of_logits, retain_graph=True)
        return torch.cat([each.flatten()[::STRIDE] for each in gradients])

    def gradients(self, student: Any) -> dict[tuple[str, int], Tensor]:
        """{(estimate, tokens a position): gradient}, the exact one under (EXACT, 0)."""
        leaf = self.logits.detach().requires_grad_()
        log_q = leaf.log_softmax(-1)
        found = {(EXACT, 0): self.gradient(student, reverse_kl(log_q, self.log_p), leaf)}
        for count in TOKENS_PER_POSITION:
            losses = estimates(log_q, self.log_p, count)
            found |= {(name, count): self.gradient(student, loss, leaf) for name, loss in losses.items()}
        return found


def measure(config: ExperimentConfig, shape: str, options: argparse.Namespace) -> pd.DataFrame:
    """A row for each estimate of a student of this shape: angle (degrees, with its deviation over batches), error
    (distance from the exact gradient as a share of its length), pooled_angle (of the mean over all batches)."""
    folder = model_folder(config.teacher.model)
    prepared = data.prepare_datasets(config.data, folder, config.dataset_source)
    student = initial_student(config.students[shape], folder, CalibrationData([], ""), 0)
    teacher, vocab = load_model(folder).eval(), load_unpadded_vocab_size(folder)
    ends = get_eos_token_ids(teacher, load_tokenizer(folder), chat=False)
    first_rows = prepared.train.take(np.arange(options.texts * options.batches))
    prompts = [row.tolist() for row in first_rows.input_ids[:, :PROMPT_TOKENS]]
    sums: dict[tuple[str, int], Any] = defaultdict(float)
    rows, tokens = [], 0
    for number in range(options.batches):
        part = prompts[number * options.texts : (number + 1) * options.texts]
        text = OwnText(student.eval(), teacher, part, ends, vocab, number)
        found, divergence = text.gradients(student), reverse_kl(text.logits.detach().log_softmax(-1), text.log_p).mean()
        exact, tokens = found[EXACT, 0], tokens + len(text.log_p)
        for (name, count), gradient in found.items():
            sums[name, count] = sums[name, count] + gradient * len(text.log_p)
            error = float((gradient - exact).norm() / exact.norm())
            rows.append({"estimate": name, "m": count, "angle": angle_degrees(gradient, exact), "error": error})
        print(f"{shape}, batch {number + 1} of {options.batches}: KL {divergence:.2f} nats", file=sys.stderr)
    grouped = pd.DataFrame(rows).groupby(["estimate", "m"], sort=False)
    table = grouped.mean().join(grouped["angle"].std(ddof=1).rename("angle_sd")).reset_index()
    pooled = [
        angle_degrees(sums[name, count], sums[EXACT, 0]) for name, count in zip(table["estimate"], table["m"], strict=True)
    ]
    table["pooled_angle"], table["tokens"], table["student"] = pooled, tokens, shape
    return table[table["estimate"] != EXACT]


def draw(table: pd.DataFrame, path: Path) -> None:
    """A panel for each student: the angle over the tokens a position."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from distill_lit.report.figures.style import BLACK, BLUE, GREEN, GREY, MATPLOTLIB_RC, ORANGE, RED, save_figure

    styles = {SCORE: (BLUE, "o"), CENTERED: (BLUE, "s"), STUDENT_BEST: (GREEN, "^"), TEACHER_BEST: (ORANGE, "v"),
              K3: (RED, "D"), K1: (GREY, "X")}  # fmt: skip
    students = table["student"].unique()
    with plt.rc_context(MATPLOTLIB_RC):
        figure, panels = plt.subplots(
            1, len(students), figsize=(4.2 * len(students), 3.4), sharey=True, squeeze=False, layout="constrained"
        )
        for panel, student in zip(panels[0], students, strict=True):
            for name, (color, marker) in styles.items():
                part = table[(table["student"] == student) & (table["estimate"] == name)]
                style = {"linestyle": "--"} if name == CENTERED else {}
                panel.errorbar(part["m"], part["angle"], part["angle_sd"], color=color, marker=marker, label=name, **style)
            panel.axhline(90, color=BLACK, linewidth=0.8, linestyle=":")
            panel.set(xscale="log", xticks=TOKENS_PER_POSITION, xlabel="tokens a position", ylim=(0, 130),
                      title=student)  # fmt: skip
            panel.set_xticklabels(map(str, TOKENS_PER_POSITION))
            panel.minorticks_off()
        panels[0, 0].set_ylabel("angle to the exact gradient (degrees)")
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        save_figure(figure, path)


def as_markdown(table: pd.DataFrame, command: str) -> str:
    """The table, and how it was made."""
    machine = hardware.describe_hardware()
    num_tokens = table["tokens"].max()
    lines = [
        "# The gradient of the reverse KL from a few tokens of each position",
        "",
        f"`{command}`: SmolLM2-135M-Instruct and 24 and 18 of its layers, before any step, which continue prompts of the "
        f"training corpus at temperature 1; {machine['processor']}, float32. Angle (degrees; mean ± deviation over "
        "batches) and error (distance from the exact gradient, as a share of its length) of one batch; then the angle of "
        f"all batches together, {num_tokens:,} tokens.",
        "",
        "![Angle to the exact gradient over tokens a position](gradients.png)",
        "",
        "| student | estimate | tokens a position | angle | error | angle, all batches |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in table.to_dict("records"):
        lines.append(
            f"| {row['student']} | {row['estimate']} | {row['m']} | {row['angle']:.1f} ± {row['angle_sd']:.1f} "
            f"| {row['error']:.2f} | {row['pooled_angle']:.1f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, draws and writes; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=["d24", "d18"], help="of experiments/depth_frontier.yaml")
    parser.add_argument("--texts", type=int, default=8, help="in a batch")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--out", type=Path, default=ROOT / "results/reverse_kl_gradients")
    options = parser.parse_args()
    config = load_experiment(ROOT / "experiments/depth_frontier.yaml")
    torch.manual_seed(0)
    table = pd.concat([measure(config, name, options) for name in options.students], ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "gradients.csv", index=False, float_format="%.5g")
    draw(table, options.out / "gradients.png")
    text = as_markdown(table, " ".join(["python benchmarks/reverse_kl_gradients.py", *sys.argv[1:]]))
    write_text(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    main()
