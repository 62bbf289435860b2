"""Task files and documents of our own, so that evaluation can be tested in seconds."""

import json
import random
from pathlib import Path

from helpers import tiny_models

CHOICE_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 3.0}}
"""


def make_documents(path: Path, count: int = 24, seed: int = 0) -> Path:
    """Writes questions with three or four choices of different length, two on each passage."""
    draw = random.Random(seed)
    questions = tiny_models.sentences(count, seed)
    rows = []
    for number, question in enumerate(questions):
        choices = [" ".join(draw.choices(tiny_models.WORDS, k=draw.randint(1, 5))) for _ in range(3 + number % 2)]
        rows.append(
            {
                "question": question,
                "passage": questions[number // 2],
                "choices": choices,
                "label": draw.randrange(len(choices)),
                "subject": tiny_models.WORDS[number % 3],
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_tasks(folder: Path, *names: str) -> Path:
    """Writes one multiple-choice task for each name, each with its own documents. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        data = make_documents(folder / f"{name}.jsonl", seed=seed)
        (folder / f"{name}.yaml").write_text(CHOICE_TASK.format(name=name, data=data))
    return folder
