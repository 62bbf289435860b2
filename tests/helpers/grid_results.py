"""A results folder of a grid over two keys whose students give a known number of right answers."""

from pathlib import Path

import numpy as np
import pandas as pd

from helpers.synthetic_results import build, edited_records

DOCUMENTS = 40
AXES = ("grid.objective.terms.kl.temperature", "grid.objective.terms.kl.weight")


def build_grid(folder: Path, right: dict[tuple[str, str, str], list[int]]) -> Path:
    """right: {(student, temperature, weight): right answers of each seed, of DOCUMENTS questions with four choices}, on one
    task, sciq. Teacher, untrained and plain students are made up."""
    students = dict.fromkeys((student for student, _, _ in right), 0.8)
    build(folder, tasks={"sciq": (4, "acc")}, documents=DOCUMENTS, students=students)
    runs = pd.read_csv(folder / "runs.csv")
    distilled = runs[runs["role"] == "distilled"].set_index("student", drop=False)
    rows = [row for _, row in runs[runs["role"] != "distilled"].iterrows()]
    with edited_records(folder) as content:
        for (student, *point), counts in right.items():
            known = distilled.loc[student]
            for seed, count in enumerate(counts):
                name = f"{student}-temperature={point[0]}-weight={point[1]}-seed={seed}"
                content.records[name] = with_right_answers(content.records[known["model"]], count)
                content.settings[name] = content.settings[known["model"]]
                rows.append(pd.Series({**known, "model": name, "seed": seed, **dict(zip(AXES, point, strict=True))}))
        for model in distilled["model"]:
            del content.records[model], content.settings[model]
    pd.DataFrame(rows).to_csv(folder / "runs.csv", index=False)
    return folder


def with_right_answers(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """The records of a model that is right on the first `count` documents of each task, and on no other."""
    is_right = (frame.groupby(level="task").cumcount() < count).to_numpy()
    right, choice = is_right.astype(float), np.where(is_right, 0, 1)
    return frame.assign(correct=right, correct_norm=right, pred=choice, pred_norm=choice)


def above_chance(right: float) -> float:
    """In points, of that many right answers."""
    return (right / DOCUMENTS - 0.25) / 0.75 * 100
