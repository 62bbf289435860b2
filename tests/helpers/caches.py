"""Caches of their own for tests, which have what takes long to build and is the same for all."""

import shutil
from pathlib import Path

from distill_lit.evaluation.task_index import built_in_index, built_in_index_path


def new_cache(folder: Path) -> Path:
    """A cache with nothing but lm-eval's list of tasks, which takes ten seconds to build."""
    built_in_index()
    (folder / "lm_eval").mkdir(parents=True)
    shutil.copy(built_in_index_path(), folder / "lm_eval")
    return folder
