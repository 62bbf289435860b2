"""Writes the golden files anew: `python tests/golden/regenerate.py [plans losses representations trainings]`."""

import json
import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]


def regenerate(*names: str) -> None:
    """Writes these files, or all."""
    from golden.golden_values import losses, plans, representations, trainings

    with tempfile.TemporaryDirectory() as folder:
        made = {
            "plans": plans,
            "losses": losses,
            "representations": representations,
            "trainings": lambda: trainings(Path(folder)),
        }
        for name in names or made:
            (HERE / f"{name}.json").write_text(_written(made[name]()))


def _written(value: object, indent: int = 0) -> str:
    """JSON with one line for what fits into one."""
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or len(flat) + indent <= 120:
        return flat + ("" if indent else "\n")
    keyed = isinstance(value, dict)
    heads = [f"{json.dumps(key, ensure_ascii=False)}: " for key in value] if keyed else [""] * len(value)
    items = value.values() if keyed else value
    lines = [f"{' ' * (indent + 1)}{head}{_written(item, indent + 1)}" for head, item in zip(heads, items, strict=True)]
    begin, end = "{}" if keyed else "[]"
    return f"{begin}\n" + ",\n".join(lines) + f"\n{' ' * indent}{end}" + ("" if indent else "\n")


if __name__ == "__main__":
    regenerate(*sys.argv[1:])
