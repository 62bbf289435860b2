"""A results folder of made-up models whose abilities are known: `python tests/synthetic.py folder` writes one."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TASKS = {"arc_easy": (4, "acc_norm"), "hellaswag": (4, "acc_norm"), "piqa": (2, "acc_norm"), "sciq": (4, "acc")}
WORDS = """water heat plant animal light energy rock moon river child house street music paper garden engine
metal cloud winter ocean teacher machine forest doctor planet orbit erosion mitosis isotope basalt chlorophyll enzyme
sediment tectonic photosynthesis capillary entropy meiosis igneous nebula""".split()
COUNTS = [int(200000 / (rank + 1) ** 1.3) for rank in range(len(WORDS))]


def build(
    folder: Path,
    *,
    tasks: dict[str, tuple[int, str]] = TASKS,
    documents: int = 150,
    seeds: tuple[int, ...] = (0,),
    students: dict[str, float] | None = None,
    limit: int = 0,
    tail_logit_loss: float = 1.0,
    seed: int = 0,
    clusters_per_task: int = 0,
) -> Path:
    """Writes plan, cells and records of a teacher and, for each student {name: ability lost}, its three variants.

    tail_loss: extra logits a distilled student loses per unit of standardised rarity of the question.
    clusters: passages per task that documents share; 0: none shared.
    """
    rng = np.random.default_rng(seed)
    students = {"deep": 0.8, "shallow": 1.4} if students is None else students
    world = _world(rng, tasks, documents, clusters_per_task)
    (folder / "records").mkdir(parents=True, exist_ok=True)
    cells = [_cell("teacher", "teacher", "", None, 134_515_008, 0.0)]
    _write_model(folder, "teacher", world, 2.0, 0.0, rng, limit)
    for name, lost in students.items():
        size = int(134_515_008 * np.exp(-lost))
        plan: list[tuple[str, int | None, float, float]] = [("untrained", None, 0.2, 0.0)]
        for s in seeds:
            plan += [("ce_only", s, 1.7 - lost, 0.0), ("distilled", s, 2.0 - lost, tail_logit_loss)]
        for role, s, ability, tail in plan:
            model = f"{name}-{role}" + ("" if s is None else f"-{s}")
            cells.append(_cell(model, role, name, s, size, lost))
            _write_model(folder, model, world, ability, tail, rng, limit)
    pd.DataFrame(cells).to_csv(folder / "cells.csv", index=False)
    drop = ["rarity", "base"]
    pd.concat([w.drop(columns=drop) for w in world.values()]).to_parquet(folder / "records" / "documents.parquet")
    counts = pd.DataFrame({"word": [*WORDS, "__total__"], "count": [*COUNTS, 3 * sum(COUNTS)]})
    counts.to_csv(folder / "records" / "frequencies.csv", index=False)
    (folder / "plan.yaml").write_text("name: synthetic\nquestion: Does the synthetic student lose the tail?\n")
    return folder


def _world(rng: np.random.Generator, tasks: dict, documents: int, clusters: int) -> dict[str, pd.DataFrame]:
    frames = {}
    chance = np.array(COUNTS) / sum(COUNTS)
    for task, (choices, _) in tasks.items():
        rows = []
        for i in range(documents):
            tilt = rng.random()
            weight = chance ** (1.2 - tilt)
            words = rng.choice(WORDS, size=12, p=weight / weight.sum())
            prompt = f"Question: what does the {' '.join(words[:7])} do {i}?\nAnswer:"
            options = [f"{words[8]} {w}" for w in rng.choice(WORDS, size=choices, replace=False)]
            gold = int(rng.integers(choices))
            rows.append(
                {
                    "task": task,
                    "key": f"{task}-{i:05d}.0",
                    "doc_id": i,
                    "prompt": prompt,
                    "choices": options,
                    "cluster": f"{task}-{i % clusters if clusters else i}",
                    "gold": gold,
                    "n_choices": choices,
                    "prompt_chars": len(prompt),
                    "prompt_hash": f"p{i}",
                    "target_hash": f"t{i}",
                    "metadata": json.dumps({"subject": "physics" if i % 3 else "biology"}),
                    "rarity": -float(np.mean([np.log(COUNTS[WORDS.index(w)]) for w in words[:7]])),
                }
            )
        frame = pd.DataFrame(rows)
        frame["rarity"] = (frame["rarity"] - frame["rarity"].mean()) / frame["rarity"].std()
        frame["base"] = list(rng.normal(size=(documents, choices)))
        frames[task] = frame
    return frames


def _cell(model: str, role: str, student: str, seed: int | None, size: int, lost: float) -> dict[str, Any]:
    trained = role in ("ce_only", "distilled")
    return {
        "model": model,
        "role": role,
        "student": student,
        "seed": seed,
        "axis.student": student or None,
        "parameters": size,
        "non_embedding_parameters": int(size * 0.8),
        "layers": int(30 * np.exp(-lost)),
        "bytes": size * 2,
        "flops_per_token": size * 2,
        "training_tokens": 200_000 if trained else 0,
        "student_flops": 6 * size * 2e5 if trained else 0,
        "teacher_flops": 2 * 1.345e8 * 2e5 if role == "distilled" else 0,
        "val_kl": 0.0 if role == "teacher" else lost + (0 if role == "distilled" else 0.7),
        "val_ce": 3.7 + lost,
        "val_agreement": np.exp(-lost),
        "state": "done",
        "reason": "",
    }


def _write_model(
    folder: Path, model: str, world: dict, ability: float, tail: float, rng: np.random.Generator, limit: int
) -> None:
    frames, meta = [], {}
    for task, world_frame in world.items():
        metric = TASKS.get(task, (4, "acc"))[1]
        frames.append(pd.DataFrame([_answer(row, ability, tail, rng) for row in world_frame.to_dict("records")]))
        n = len(world_frame)
        meta[task] = {
            "version": 1.0,
            "lm_eval_version": "0.4.13",
            "task_hash": f"h-{task}",
            "metric": metric,
            "fewshot": 0,
            "limit": limit,
            "n_total": 10 * n if limit else n,
            "n": n,
            "seed": 1234,
            "chat_template": False,
            "dtype": "float32",
            "eval_split": "test",
            "official_split": "test",
            "chance": None,
            "harness": "prefix_tree",
            "data": f"pypi:{task}",
            "elapsed_s": 1.5,
        }
    pd.concat(frames).to_parquet(folder / "records" / f"{model}.parquet")
    (folder / "records" / f"{model}.json").write_text(json.dumps(meta))


def _answer(row: dict, ability: float, tail: float, rng: np.random.Generator) -> dict[str, Any]:
    n, gold = row["n_choices"], row["gold"]
    lead = np.zeros(n)
    lead[gold] = ability - tail * max(row["rarity"], 0.0)
    lengths = np.array([len(c) for c in row["choices"]])
    ll = -25 + lead + row["base"] + 0.6 * rng.normal(size=n)
    normed = ll / lengths
    # length must not decide here, so the normalised answer follows the plain one
    order = np.argsort(-ll)
    normed[order] = np.sort(normed)[::-1]
    p = np.exp(ll - ll.max())
    p /= p.sum()
    pred, pred_norm = int(ll.argmax()), int(normed.argmax())
    other = np.delete(ll, gold).max() if n > 1 else np.nan
    other_norm = np.delete(normed, gold).max() if n > 1 else np.nan
    return {
        "task": row["task"],
        "key": row["key"],
        "ll": ll.tolist(),
        "tokens": [2] * n,
        "greedy": [False] * n,
        "len_chars": lengths.tolist(),
        "len_bytes": lengths.tolist(),
        "pred": pred,
        "pred_norm": pred_norm,
        "correct": int(pred == gold),
        "correct_norm": int(pred_norm == gold),
        "margin": ll[gold] - other,
        "margin_norm": normed[gold] - other_norm,
        "p_gold": p[gold],
        "tie": False,
    }


if __name__ == "__main__":
    build(Path(sys.argv[1]), seeds=tuple(range(int(sys.argv[2]) if len(sys.argv) > 2 else 1)), limit=150)
