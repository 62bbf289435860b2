"""A results folder of made-up models whose abilities are known: `python tests/synthetic.py folder` writes one."""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distill_lit.analysis.records_file import INDEX, RECORDS_FILE, ExperimentRecords, read_records, write_records

TASKS = {"arc_easy": (4, "acc_norm"), "hellaswag": (4, "acc_norm"), "piqa": (2, "acc_norm"), "sciq": (4, "acc")}
WORDS = """water heat plant animal light energy rock moon river child house street music paper garden engine
metal cloud winter ocean teacher machine forest doctor planet orbit erosion mitosis isotope basalt chlorophyll enzyme
sediment tectonic photosynthesis capillary entropy meiosis igneous nebula""".split()
_built: dict[str, dict[str, bytes]] = {}  # what has been made in this process, by all that it depends on
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
    """Writes plan, runs and records of a teacher and, for each student {name: ability lost}, its three variants.

    tail_logit_loss: extra logits a distilled student loses per unit of standardized rarity of the question.
    clusters_per_task: passages per task that documents share; 0: none shared.
    """
    students = {"deep": 0.8, "shallow": 1.4} if students is None else students
    world = (tasks, documents, seeds, students, limit, tail_logit_loss, seed, clusters_per_task)
    if repr(world) not in _built:
        _built[repr(world)] = _make_files(*world)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _built[repr(world)].items():
        (folder / name).write_bytes(content)
    return folder


def _make_files(
    tasks: dict[str, tuple[int, str]],
    documents: int,
    seeds: tuple[int, ...],
    students: dict[str, float],
    limit: int,
    tail_logit_loss: float,
    seed: int,
    clusters_per_task: int,
) -> dict[str, bytes]:
    """The files of such a folder: name to content."""
    rng = np.random.default_rng(seed)
    world = _world(rng, tasks, documents, clusters_per_task)
    documents_frame = pd.concat([w.drop(columns=["rarity", "base"]) for w in world.values()]).set_index(INDEX)
    content = ExperimentRecords(documents_frame, {}, {}, None, dict(zip(WORDS, COUNTS, strict=True)), 3 * sum(COUNTS))
    rows = [_run("teacher", "teacher", "", None, 134_515_008, 0.0)]
    _add_model(content, "teacher", world, 2.0, 0.0, rng, limit)
    for name, lost in students.items():
        size = int(134_515_008 * np.exp(-lost))
        plan: list[tuple[str, int | None, float, float]] = [("untrained", None, 0.2, 0.0)]
        for s in seeds:
            plan += [("ce_only", s, 1.7 - lost, 0.0), ("distilled", s, 2.0 - lost, tail_logit_loss)]
        for role, s, ability, tail in plan:
            model = f"{name}-{role}" + ("" if s is None else f"-{s}")
            rows.append(_run(model, role, name, s, size, lost))
            _add_model(content, model, world, ability, tail, rng, limit)
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder, RECORDS_FILE), content)
        records = Path(folder, RECORDS_FILE).read_bytes()
    return {
        "runs.csv": pd.DataFrame(rows).to_csv(index=False).encode(),
        RECORDS_FILE: records,
        "plan.yaml": b"name: synthetic\nquestion: Does the synthetic student lose the tail?\n",
    }


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


def _run(model: str, role: str, student: str, seed: int | None, size: int, lost: float) -> dict[str, Any]:
    trained = role in ("ce_only", "distilled")
    return {
        "model": model,
        "role": role,
        "student": student,
        "seed": seed,
        "grid.student": student or None,
        "parameters": size,
        "non_embedding_parameters": int(size * 0.8),
        "num_layers": int(30 * np.exp(-lost)),
        "bytes": size * 2,
        "flops_per_token": size * 2,
        "training_tokens": 200_000 if trained else 0,
        "student_training_flops": 6 * size * 2e5 if trained else 0,
        "teacher_training_flops": 2 * 1.345e8 * 2e5 if role == "distilled" else 0,
        "val_kl": 0.0 if role == "teacher" else lost + (0 if role == "distilled" else 0.7),
        "val_ce": 3.7 + lost,
        "val_agreement": np.exp(-lost),
        "status": "done",
        "reason": "",
    }


def _add_model(
    content: ExperimentRecords, model: str, world: dict, ability: float, tail: float, rng: np.random.Generator, limit: int
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
            "num_fewshot": 0,
            "limit": limit,
            "n_total": 10 * n if limit else n,
            "n": n,
            "seed": 1234,
            "apply_chat_template": False,
            "dtype": "float32",
            "eval_split": "test",
            "official_split": "test",
            "chance": None,
            "harness": "prefix_tree",
            "data": f"pypi:{task}",
            "elapsed_s": 1.5,
        }
    content.records[model] = pd.concat(frames).set_index(INDEX)
    content.settings[model] = meta


@contextmanager
def edited_records(folder: Path) -> Iterator[ExperimentRecords]:
    """The records in a results folder, written back when the block ends."""
    content = read_records(folder / RECORDS_FILE)
    yield content
    write_records(folder / RECORDS_FILE, content)


def add_probe(folder: Path, name: str = "stories", passages: int = 40, **settings: Any) -> None:
    """Scores all models on held-out text: passages of 120 bytes in two bands of words, with another number of nats for each
    model and passage; `settings`: changes of its settings."""
    with edited_records(folder) as content:
        keys = [f"{name}-{i}" for i in range(passages)]
        texts = [f"the mitosis of water number {i} {'moon ' * (i % 7)}" for i in range(passages)]
        facts = {"doc_id": range(passages), "cluster": keys, "gold": -1, "n_choices": 0, "metadata": "{}"}
        hashes = {"prompt_hash": keys, "target_hash": keys, "prompt_chars": [len(text) for text in texts]}
        rows = {"task": name, "key": keys, "prompt": texts, "choices": [[] for _ in keys]}
        content.documents = pd.concat([content.documents, pd.DataFrame(rows | facts | hashes).set_index(INDEX)])
        for number, model in enumerate(content.records):
            nats = 150 + 20 * np.random.default_rng(number).random(passages) + 10 * (model != "teacher")
            record = {"task": name, "key": keys, "ll": [[-value] for value in nats]}
            record |= {
                key: [[size] for _ in keys] for key, size in (("len_chars", 110), ("len_bytes", 120), ("tokens", 30))
            }
            record |= {"greedy": [[False] for _ in keys], "band_bytes": [[40, 0, 80] for _ in keys]}
            record["band_nats"] = [[value / 2, 0.0, value / 2] for value in nats]
            record |= {} if model == "teacher" else {"kl": nats / 300, "draft_acceptance": 1 - nats / 300}
            known = content.records[model].drop(columns=["bits_per_byte", "tie_norm"], errors="ignore")  # derived again
            content.records[model] = pd.concat([known, pd.DataFrame(record).set_index(INDEX)])
            first = next(iter(content.settings[model].values()))
            own = {"output_type": "probe", "metric": "bits_per_byte", "task_hash": name, "data": name, "n": passages}
            content.settings[model][name] = {**first, **own, "n_total": passages, "zipf_edges": [3.0, 5.0], **settings}


def edit_model(folder: Path, model: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Changes the records of one model, given with task and key as columns."""
    with edited_records(folder) as content:
        content.records[model] = change(content.records[model].reset_index()).set_index(INDEX)


def edit_documents(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Changes the documents, given with task and key as columns."""
    with edited_records(folder) as content:
        content.documents = change(content.documents.reset_index()).set_index(INDEX)


def edit_settings(folder: Path, model: str, task: str, **changes: Any) -> None:
    """Changes settings of one model's evaluation on a task."""
    with edited_records(folder) as content:
        content.settings[model][task].update(changes)


def remove_model(folder: Path, model: str) -> None:
    """Takes the records of one model away."""
    with edited_records(folder) as content:
        del content.records[model], content.settings[model]


def copy_model(folder: Path, source: str, *targets: str) -> None:
    """Gives models the records of another."""
    with edited_records(folder) as content:
        for target in targets:
            content.records[target] = content.records[source].copy()
            content.settings[target] = json.loads(json.dumps(content.settings[source]))


def _answer(row: dict, ability: float, tail: float, rng: np.random.Generator) -> dict[str, Any]:
    n, gold = row["n_choices"], row["gold"]
    lead = np.zeros(n)
    lead[gold] = ability - tail * max(row["rarity"], 0.0)
    lengths = np.array([len(c) for c in row["choices"]])
    ll = -25 + lead + row["base"] + 0.6 * rng.normal(size=n)
    normed = ll / lengths
    # length must not decide here, so the normalized answer follows the plain one
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
