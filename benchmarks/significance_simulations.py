"""Do intervals cover and tests err as often as they say? `python benchmarks/significance_simulations.py`
(5 minutes, 1 core).

Every row simulates experiments whose truth is known and prints how often the statement made about it was right.
Writes benchmarks/significance_simulations.md.
"""

# ruff: noqa: E402
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd

from benchmarks.simulated_experiments import (
    FloatArray,
    covers,
    normal_quantile,
    pooled_seed_tails,
    seed_coverage,
    seed_tails,
    shared_seed_tails,
    simulated_scores,
    stretched_bootstrap_coverage,
)
from distill_lit.analysis import significance as st
from distill_lit.analysis.axis_tests import axis_tests
from distill_lit.analysis.crossed_variance import CrossedEstimate, TaskValues, crossed_estimate, mean_inside
from distill_lit.analysis.document_axes import DOCUMENT_AXES
from distill_lit.analysis.equivalence import exclusion
from distill_lit.analysis.retention import retention
from distill_lit.analysis.slices import find_slices
from distill_lit.analysis.worst_group import worst_group


def paired_answers(
    rng: np.random.Generator, n: int, first: float, second: float, ability_correlation: float = 0.7
) -> FloatArray:
    """(n, 2) right or wrong answers of two models with these accuracies; `ability_correlation`: of their latent
    abilities."""
    shared, own = rng.normal(size=(n, 1)), rng.normal(size=(n, 2))
    latent = ability_correlation**0.5 * shared + (1 - ability_correlation) ** 0.5 * own
    return (latent < normal_quantile(np.array([first, second]))).astype(float)


def wilson_coverage(rng: np.random.Generator, repeats: int, n: int, p: float) -> float:
    """Share of Wilson intervals that hold p."""
    return float(np.mean([covers(st.wilson(int(rng.binomial(n, p)), n), p) for _ in range(repeats)]))


def newcombe_coverage(rng: np.random.Generator, repeats: int, n: int, first: float, second: float) -> float:
    """Share of paired score intervals that hold the difference."""
    found = []
    for _ in range(repeats):
        answers = paired_answers(rng, n, first, second)
        found.append(covers(st.newcombe_paired_interval(answers[:, 0], answers[:, 1]), first - second))
    return float(np.mean(found))


def cluster_coverage(rng: np.random.Generator, repeats: int, clusters: int, size: int, by_cluster: bool) -> float:
    """Share of Wilson intervals of an accuracy that hold it, documents sharing passages; `by_cluster`: with as many
    documents as would tell as much by themselves."""
    found = []
    for _ in range(repeats):
        passage = np.repeat(rng.normal(size=clusters), size)
        right = (0.5**0.5 * passage + 0.5**0.5 * rng.normal(size=clusters * size) < normal_quantile(0.6)).astype(float)
        codes = np.repeat(np.arange(clusters), size) if by_cluster else np.arange(clusters * size)
        n = st.effective_documents(right, codes)
        found.append(covers(st.wilson(right.mean() * n, n), 0.6))
    return float(np.mean(found))


def retention_coverage(rng: np.random.Generator, repeats: int) -> float:
    """Share of Fieller intervals of what three seeds retain of a teacher that hold it; 2 tasks of 200."""
    found, truth = [], (0.5 - 0.25) / (0.65 - 0.25)
    for _ in range(repeats):
        answers = []
        for _ in range(2):
            document = rng.normal(size=(200, 1))
            latent = 0.6**0.5 * document + 0.4**0.5 * rng.normal(size=(200, 4))
            answers.append((latent < normal_quantile(np.array([0.65, 0.5, 0.5, 0.5]))).astype(float))
        found.append(covers(retention(simulated_scores(answers, [("teacher", "", 1), ("distilled", "", 3)]), 1), truth))
    return float(np.mean(found))


def axis_errors(rng: np.random.Generator, repeats: int, values: int, lead: float, deviation: float) -> tuple[float, float]:
    """(share of experiments in which an axis is said to matter, … in which the best are named without the first value, or
    named at all where it has no lead). lead: by which the first value is better; 2 tasks of 200, 3 seeds."""
    called, wrong = [], []
    for _ in range(repeats):
        level = 0.5 + lead * (np.arange(values) == 0) + deviation * rng.normal(size=(3, values))
        answers = []
        for _ in range(2):
            document, kind = rng.normal(size=(200, 1, 1)), rng.normal(size=(200, 1, values))
            latent = 0.6**0.5 * document + 0.2**0.5 * kind + 0.2**0.5 * rng.normal(size=(200, 3, values))
            answers.append((latent < normal_quantile(level)).astype(float).transpose(0, 2, 1).reshape(200, -1))
        test = axis_tests(simulated_scores(answers, [("distilled", str(v), 3) for v in range(values)]))[0]
        called.append(test.p <= 0.05)
        wrong.append(bool(test.best) if lead == 0 else bool(test.best) and "0" not in test.best)
    return float(np.mean(called)), float(np.mean(wrong))


def worst_group_calls(rng: np.random.Generator, repeats: int, harm: float) -> float:
    """Share of experiments in which one of 20 groups stands out; the last of five strata of one axis loses `harm` more."""
    called = []
    for _ in range(repeats):
        answers, codes = [], rng.integers(0, 5, (4, 800))
        for t in range(2):
            document, inside = rng.normal(size=(400, 1)), codes[0, 400 * t : 400 * t + 400] == 4
            level = np.column_stack([np.full(400, 0.65), *[np.where(inside, 0.5 - harm, 0.5)] * 3])
            latent = 0.6**0.5 * document + 0.4**0.5 * rng.normal(size=(400, 4))
            answers.append((latent < normal_quantile(level)).astype(float))
        scores = simulated_scores(answers, [("teacher", "", 1), ("distilled", "", 3)])
        found = worst_group(scores, {(f"axis{a}", str(s)): codes[a] == s for a in range(4) for s in range(5)}, 1)
        called.append(found is not None and found.stands_out and (not harm or (found.axis, found.label) == ("axis0", "4")))
    return float(np.mean(called))


def macro_errors(rng: np.random.Generator, repeats: int, tasks: int, n: int) -> float:
    """Share of equal single models whose macro difference is called significant at 5%."""
    found = []
    for _ in range(repeats):
        answers = [paired_answers(rng, n, 0.5, 0.5) for _ in range(tasks)]
        found.append(st.sign_flip_p(np.concatenate([one[:, 0] - one[:, 1] for one in answers])) <= 0.05)
    return float(np.mean(found))


def contrast_errors(rng: np.random.Generator, repeats: int, n: int, harm: float = 0.0) -> float:
    """Share of experiments whose tail contrast interval excludes 0; all lose 15 points, the tail `harm` more."""
    found = []
    for _ in range(repeats):
        strata = np.arange(n) * 5 // n
        second = np.where(strata == 4, 0.55 - harm, 0.55)
        shared, own = rng.normal(size=n), rng.normal(size=(n, 2))
        latent = 0.7**0.5 * shared[:, None] + 0.3**0.5 * own
        gap = (latent[:, 1] < normal_quantile(second)).astype(float) - (latent[:, 0] < normal_quantile(0.7))
        block = mean_inside(gap[:, None], strata == 4) - mean_inside(gap[:, None], strata == 0)
        found.append(not covers(crossed_estimate([TaskValues((block,), np.arange(n))]).interval(), 0.0))
    return float(np.mean(found))


def single_pair(answers: FloatArray) -> CrossedEstimate:
    """The difference of two models on one task."""
    return crossed_estimate([TaskValues((answers[:, :1] - answers[:, 1:],), np.arange(len(answers)), unit=1.0)])


def equivalence_errors(rng: np.random.Generator, repeats: int, n: int, margin: float, truth: float) -> float:
    """Share of pairs called equivalent within `margin` whose accuracies differ by `truth`."""
    pairs = [exclusion(single_pair(paired_answers(rng, n, 0.6, 0.6 - truth)), margin) for _ in range(repeats)]
    return float(np.mean([pair.is_equivalent for pair in pairs]))


def sign_flip_errors(rng: np.random.Generator, repeats: int, n: int, effect: float = 0.0) -> float:
    """Share of pairs called different at 5% whose accuracies differ by `effect`."""
    found = []
    for _ in range(repeats):
        one, two = paired_answers(rng, n, 0.6, 0.6 - effect).T
        found.append(st.sign_flip_p(one - two) <= 0.05)
    return float(np.mean(found))


def passage_errors(rng: np.random.Generator, repeats: int, passages: int, size: int, by_cluster: bool) -> float:
    """Share of equal models called different at 5%, where a passage favors one of the two; `by_cluster`: tested by
    passage."""
    found, clusters = [], np.repeat(np.arange(passages), size)
    for _ in range(repeats):
        favor = 0.5 + np.repeat(rng.uniform(-0.5, 0.5, passages), size)
        better = np.where(rng.random(len(clusters)) < favor, 1, -1) * (rng.random(len(clusters)) < 0.4)
        found.append(st.sign_flip_p(better, clusters if by_cluster else None) <= 0.05)
    return float(np.mean(found))


def corrected_errors(
    rng: np.random.Generator, repeats: int, adjust: Callable, nulls: int, effects: int
) -> tuple[float, float]:
    """(share of families with any false call, mean share of false calls among all calls) at 5%."""
    family, false_share = [], []
    for _ in range(repeats):
        p = []
        for hypothesis in range(nulls + effects):
            one, two = paired_answers(rng, 300, 0.6, 0.6 if hypothesis < nulls else 0.5).T
            p.append(st.sign_flip_p(one - two))
        called = adjust(p) <= 0.05
        family.append(called[:nulls].any())
        false_share.append(called[:nulls].sum() / max(called.sum(), 1))
    return float(np.mean(family)), float(np.mean(false_share))


def gated_errors(rng: np.random.Generator, repeats: int) -> float:
    """Share of families with any false call, of 4 chains of 3 steps: two whose first step is true, two all null."""
    wrong = []
    for _ in range(repeats):
        p = rng.random((4, 3))
        p[:2, 0] = rng.random(2) ** 6  # there is something to be found
        called = st.gated_holm(p) <= 0.05
        called[:2, 0] = False
        wrong.append(called.any())
    return float(np.mean(wrong))


def simulate_slice_data(rng: np.random.Generator, n: int, planted: bool) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series]:
    """Strata, flips and clusters of n documents; `planted`: rare questions with digits are lost at 45%, not 15%."""
    index = pd.MultiIndex.from_arrays([["task"] * n, [str(i) for i in range(n)]], names=["task", "key"])
    codes = pd.DataFrame({a.name: rng.integers(1, 3 if a.kind == "binary" else 6, n) for a in DOCUMENT_AXES}, index=index)
    right = rng.random(n) < 0.6
    hit = ((codes["rarity_question"] == 5) & (codes["digits"] == 2)).to_numpy() & planted
    student = np.where(right, rng.random(n) > np.where(hit, 0.45, 0.15), rng.random(n) < 0.12)
    flip = np.select([right & ~student, ~right & student, right], ["lost", "gained", "both right"], "both wrong")
    flips = pd.DataFrame({"teacher_correct": right, "student_correct": student, "flip": flip}, index=index)
    return codes, flips, pd.Series([str(i) for i in range(n)], index=index)


def planted_slice_recall(rng: np.random.Generator, repeats: int, n: int) -> float:
    """Share of planted experiments in which exactly the planted slice is confirmed first."""
    planted = {"rarity_question": 5, "digits": 2}
    found = []
    for _ in range(repeats):
        codes, flips, clusters = simulate_slice_data(rng, n, planted=True)
        frame = find_slices(list(DOCUMENT_AXES), codes, flips, clusters, 5)
        found.append(bool(len(frame)) and bool(frame["confirmed"].iloc[0]) and frame["rule"].iloc[0] == planted)
    return float(np.mean(found))


def false_slice_rate(rng: np.random.Generator, repeats: int, n: int) -> float:
    """Share of experiments with a planted slice whose labels are permuted, in which any slice is confirmed."""
    found = []
    for _ in range(repeats):
        codes, flips, clusters = simulate_slice_data(rng, n, planted=True)
        shuffled = flips.iloc[rng.permutation(n)].set_index(flips.index)
        found.append(bool(find_slices(list(DOCUMENT_AXES), codes, shuffled, clusters, 5)["confirmed"].any()))
    return float(np.mean(found))


def detectable_power(rng: np.random.Generator, repeats: int, n: int) -> float:
    """Power of the test of two single models at the printed smallest detectable difference."""
    effect = single_pair(paired_answers(rng, 200_000, 0.6, 0.5)).detectable() * (200_000 / n) ** 0.5
    return sign_flip_errors(rng, repeats, n, effect)


def simulation_rows(repeats: int) -> list[tuple[str, str, float]]:
    """(what, what it should be, what it is) of every simulation."""
    rng = np.random.default_rng(0)
    table = [
        ("Wilson 95%, n = 150, accuracy .30: covers", ".95", wilson_coverage(rng, repeats, 150, 0.3)),
        ("Wilson 95%, n = 100, accuracy .95: covers", ".95", wilson_coverage(rng, repeats, 100, 0.95)),
        ("Newcombe paired 95%, n = 150, .70 − .55: covers", ".95", newcombe_coverage(rng, repeats, 150, 0.7, 0.55)),
        ("Newcombe paired 95%, n = 100, .97 − .97: covers", "≥ .95", newcombe_coverage(rng, repeats, 100, 0.97, 0.97)),
        ("Newcombe paired 95%, n = 1000, .60 − .58: covers", ".95", newcombe_coverage(rng, repeats, 1000, 0.6, 0.58)),
        ("Wilson by passage, 60 passages of 4: covers", ".95", cluster_coverage(rng, repeats, 60, 4, True)),
        ("… the same, passages ignored: covers", "too little", cluster_coverage(rng, repeats, 60, 4, False)),
        ("One seed, deviation .02: covers all seeds' mean", "too little", seed_coverage(rng, repeats, 1, 0.02)),
        ("One seed, deviation .05: covers all seeds' mean", "too little", seed_coverage(rng, repeats, 1, 0.05)),
        ("Documents dominate, 3 seeds, deviation 0: covers", "≥ .95", seed_coverage(rng, repeats, 3, 0.0)),
        ("Documents dominate, 3 seeds, deviation .01, 5 tasks: covers", "≥ .95", seed_coverage(rng, repeats, 3, 0.01, 5)),
        ("Documents and seeds, 3 seeds, deviation .03: covers", "≥ .95", seed_coverage(rng, repeats, 3, 0.03)),
        ("Documents and seeds, 5 seeds, deviation .03: covers", "≥ .95", seed_coverage(rng, repeats, 5, 0.03)),
        ("Seeds dominate, 2 seeds, deviation .10: covers", "≥ .95", seed_coverage(rng, repeats, 2, 0.10)),
        ("Seeds dominate, 3 seeds, deviation .05: covers", "≥ .95", seed_coverage(rng, repeats, 3, 0.05)),
        ("Seeds dominate, 3 seeds, deviation .10: covers", "≥ .95", seed_coverage(rng, repeats, 3, 0.10)),
        ("Seeds dominate, 5 seeds, deviation .10: covers", "≥ .95", seed_coverage(rng, repeats, 5, 0.10)),
        ("Seeds dominate, 8 seeds, deviation .10: covers", "≥ .95", seed_coverage(rng, repeats, 8, 0.10)),
        ("Documents dominate, 2 seeds, deviation 0: p ≤ .05", "≤ .05", seed_tails(rng, repeats, 2, 0.0, 0.05)),
        ("Documents and seeds, 2 seeds, deviation .03: p ≤ .01", "≤ .01", seed_tails(rng, repeats, 2, 0.03, 0.01)),
        ("Seeds dominate, 2 seeds, deviation .10: p ≤ .01", "≤ .01", seed_tails(rng, repeats, 2, 0.10, 0.01)),
        ("… p ≤ .001", "≤ .001", seed_tails(rng, repeats, 2, 0.10, 0.001)),
        ("Seeds dominate, 3 seeds, deviation .10: p ≤ .01", "≤ .01", seed_tails(rng, repeats, 3, 0.10, 0.01)),
        ("… p ≤ .001", "≤ .001", seed_tails(rng, repeats, 3, 0.10, 0.001)),
        ("Two of 4 equal students of 2 seeds, deviation .01: p ≤ .05", "≤ .05",
         pooled_seed_tails(rng, repeats, 0.01, 0.05, 0.05)),
        ("… deviation .10: p ≤ .05", "≤ .05", pooled_seed_tails(rng, repeats, 0.10, 0.05, 0.05)),
        ("… p ≤ .001", "≤ .001", pooled_seed_tails(rng, repeats, 0.10, 0.05, 0.001)),
        ("… the seeds of one differ three times as much, deviation .03: p ≤ .05", "too much",
         pooled_seed_tails(np.random.default_rng(1), repeats, 0.03, 0.05, 0.05, 3.0)),
        ("… deviation .10: p ≤ .05", "too much",
         pooled_seed_tails(np.random.default_rng(2), repeats, 0.10, 0.05, 0.05, 3.0)),
        ("One of 6 students of 2 seeds and a teacher, all seeds alike: p ≤ .05", "≤ .05",
         shared_seed_tails(rng, repeats, 0.05)),
        ("… p ≤ .001", "≤ .001", shared_seed_tails(rng, repeats, 0.001)),
        ("Macro average, 4 tasks of 150, equal models: called different", ".05", macro_errors(rng, repeats, 4, 150)),
        ("Tail less head, 600 documents, equal loss: interval excludes 0", ".05", contrast_errors(rng, repeats, 600)),
        ("… the tail loses 30 points more: interval excludes 0", "power", contrast_errors(rng, repeats, 600, 0.3)),
        ("Sign flips (McNemar), n = 200, equal models: called different", "≤ .05", sign_flip_errors(rng, repeats, 200)),
        ("Sign flips by passage, 60 of 4, equal models: called different", ".05",
         passage_errors(rng, repeats, 60, 4, True)),
        ("… the same, passages ignored: called different", "too much", passage_errors(rng, repeats, 60, 4, False)),
        ("Smallest detectable difference, n = 400: found", ".80", detectable_power(rng, repeats, 400)),
        ("Equivalence within 5 points, n = 1000, true difference 5: said", "≤ .025",
         equivalence_errors(rng, repeats, 1000, 0.05, 0.05)),
        ("… true difference 0: said", "power", equivalence_errors(rng, repeats, 1000, 0.05, 0.0)),
        ("Gated Holm, 4 chains of 3, one step in two true: any false call", "≤ .05", gated_errors(rng, repeats)),
    ]  # fmt: skip
    few = max(repeats // 5, 20)
    equal, leading = axis_errors(rng, few, 8, 0.0, 0.01), axis_errors(rng, few, 8, 0.10, 0.01)
    table += [
        ("Drawn again and stretched, documents dominate, 2 seeds, deviation 0: covers", "too much",
         stretched_bootstrap_coverage(rng, few, 2, 0.0, 1.0)),
        ("… the same, seeds dominate, 3 seeds, deviation .10: covers", "too little",
         stretched_bootstrap_coverage(rng, few, 3, 0.10)),
        ("Retained (Fieller), 3 seeds, 2 tasks of 200: covers", "≥ .95", retention_coverage(rng, few)),
        ("Axis of 8 equal values, 3 seeds: said to matter", "≤ .05", equal[0]),
        ("… any value named the best", "≤ .05", equal[1]),
        ("Axis of 8 values, one 10 points better: said to matter", "power", leading[0]),
        ("… best named without it", "≤ .05", leading[1]),
        ("Worst of 20 groups, none worse than its tasks: one stands out", "≤ .05", worst_group_calls(rng, few, 0.0)),
        ("… one loses 25 points more: it stands out", "power", worst_group_calls(rng, few, 0.25)),
        ("Holm, 8 equal pairs and 4 different: any false call", "≤ .05", corrected_errors(rng, few, st.holm, 8, 4)[0]),
        ("Benjamini–Hochberg, the same: share of false calls", "≤ .05",
         corrected_errors(rng, few, st.benjamini_hochberg, 8, 4)[1]),
        ("SliceLine, 6000 documents, planted slice: confirmed first", "high", planted_slice_recall(rng, few, 6000)),
        ("… labels permuted: any slice confirmed", "≤ .05", false_slice_rate(rng, few, 6000)),
    ]  # fmt: skip
    return table


def main(repeats: int = 2000) -> None:
    """Prints the table and writes it beside this file."""
    error = 1.96 * (0.95 * 0.05 / repeats) ** 0.5
    lines = [
        "# Coverage and error rates of the statistics, simulated",
        "",
        f"`python benchmarks/significance_simulations.py {repeats}`: share of simulated experiments,",
        f'{repeats} per row (a fifth of it from "Drawn again" on). Monte Carlo error at .95:',
        f"±{error:.3f}.",
        "",
        "| statement | should be | is |",
        "|---|---:|---:|",
        *(f"| {what} | {should} | {value:.3f} |" for what, should, value in simulation_rows(repeats)),
        "",
        "Two or three seeds tell little about their spread. Student's t with Satterthwaite's degrees of freedom would",
        "cover 87 to 92 times in a hundred where they dominate, and call one of forty equal pairs of two seeds different",
        "at p ≤ .001; the distribution of Behrens and Fisher keeps every level, and is cautious where documents dominate.",
        "One seed tells nothing of its spread: its interval covers documents alone.",
        "",
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]))
