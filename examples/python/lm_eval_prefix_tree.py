"""lm-eval on packed prefix trees: the same numbers as `--model hf`, several times as fast on questions with choices.

The same from a shell:
    python -m distill_lit.evaluation --model prefix_tree --model_args pretrained=MODEL --tasks piqa,arc_easy
"""

import argparse

import lm_eval
from lm_eval.tasks import TaskManager

import distill_lit


def main(model: str, tasks: list[str], limit: int | None, include_path: str | None) -> dict[str, float]:
    """{task: accuracy}."""
    lm = distill_lit.PrefixTreeLM(model, device="cpu", dtype="float32")
    manager = TaskManager(include_path=include_path)
    results = lm_eval.simple_evaluate(lm, tasks=tasks, limit=limit, task_manager=manager)["results"]
    return {task: values["acc,none"] for task, values in results.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="name or folder of a transformers model")
    parser.add_argument("--tasks", nargs="+", default=["piqa", "arc_easy"])
    parser.add_argument("--limit", type=int, help="documents per task")
    parser.add_argument("--include-path", help="folder with task files of your own")
    options = parser.parse_args()
    for name, accuracy in main(options.model, options.tasks, options.limit, options.include_path).items():
        print(f"{name:24}{accuracy:.3f}")
