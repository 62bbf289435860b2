"""lm-eval without its progress bars, its logging, and its hand on the random state of the process."""

import functools
import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from distill_lit.data.mirror import quiet_datasets


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Inside: no bars, no messages below errors, and each Jinja template compiled once instead of once per document."""
    import lm_eval.api.task
    import lm_eval.utils
    from transformers.utils import logging as transformers_logging

    logger, environment, bar = logging.getLogger("lm_eval"), lm_eval.utils.env, lm_eval.api.task.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    environment.from_string = functools.cache(environment.from_string)
    lm_eval.api.task.tqdm = _no_bar
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet_datasets():
            yield
    finally:
        del environment.from_string  # the method of its class is there again
        lm_eval.api.task.tqdm = bar
        logger.setLevel(level)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _no_bar(iterable: Iterable[Any], **_: Any) -> Iterable[Any]:
    return iterable


TASK_RANDOM_SEED = 1234  # some tasks shuffle their choices with the random state of the process


@contextmanager
def isolated_random_state() -> Iterator[None]:
    """Inside: random, numpy and torch start from a fixed seed; afterwards they are as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    random.seed(TASK_RANDOM_SEED)
    np.random.seed(TASK_RANDOM_SEED)
    torch.manual_seed(TASK_RANDOM_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
