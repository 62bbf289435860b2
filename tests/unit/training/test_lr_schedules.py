"""Learning-rate schedules: by hand, as transformers computes them, from a config, and refused where they make no sense."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ROOT
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler, get_wsd_schedule

from distill_lit.config import TrainingConfig, load_experiment
from distill_lit.config.roles import Role
from distill_lit.config.training import check_lr_schedule
from distill_lit.experiment.checks.validation import check_experiment
from distill_lit.experiment.plan import plan_runs
from distill_lit.experiment.planning.planned_run import Run
from distill_lit.training.trainer import optimizer_settings
from distill_lit.utils.exceptions import UserError

STEPS, WARMUP, DECAY = 40, 8, 10
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"


def rates(make: Callable[..., LambdaLR], steps: int, *arguments: Any) -> list[float]:
    """The rate at which each step is taken, and the one after the last."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = make(optimizer, *arguments), []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def rates_of(config: TrainingConfig, steps: int) -> list[float]:
    return rates(optimizer_settings(config)["lr_scheduler"], steps, steps)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 1, 1, 0.55 + 0.45 * 0.5**0.5, 0.55, 0.55 - 0.45 * 0.5**0.5, 0.1]),
        ({"lr_schedule": "linear"}, [0.5, 1, 1, 0.775, 0.55, 0.325, 0.1]),
        ({"lr_schedule": "linear", "min_lr_ratio": 0.0}, [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
        ({"lr_schedule": "constant"}, [0.5, 1, 1, 1, 1, 1, 1]),
        ({"lr_schedule": "wsd", "decay_fraction": 0.5}, [0.5, 1, 1, 1, 0.7, 0.4, 0.1]),
        ({"lr_schedule": "wsd"}, [0.5, 1, 1, 1, 1, 1, 0.1]),
        ({"lr_schedule": "wsd", "decay_fraction": 1.0}, [0.5, 1, 1, 0.775, 0.55, 0.325, 0.1]),
    ],
)
def test_rates_of_six_steps_of_which_two_warm_up(settings: dict[str, Any], expected: list[float]) -> None:
    assert rates_of(TrainingConfig(warmup_fraction=1 / 3, **settings), 6) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_rates_are_those_of_transformers(name: str) -> None:
    """Its warm-up is one step behind ours, and begins with a step at a rate of 0."""
    unused = {} if name == "constant" else {"min_lr_ratio": 0.0}
    ours = rates_of(TrainingConfig(lr_schedule=name, warmup_fraction=WARMUP / STEPS, **unused), STEPS)
    kind = "constant_with_warmup" if name == "constant" else name
    theirs = rates(lambda optimizer: get_scheduler(kind, optimizer, WARMUP, STEPS), STEPS)
    assert ours[:WARMUP] == pytest.approx(theirs[1 : WARMUP + 1])
    assert ours[WARMUP:] == pytest.approx(theirs[WARMUP:])


def test_wsd_is_that_of_transformers() -> None:
    config = TrainingConfig(lr_schedule="wsd", warmup_fraction=WARMUP / STEPS, decay_fraction=DECAY / STEPS)
    theirs = rates(
        lambda optimizer: get_wsd_schedule(optimizer, WARMUP, DECAY, STEPS, decay_type="linear", min_lr_ratio=0.1), STEPS
    )
    assert rates_of(config, STEPS)[WARMUP:] == pytest.approx(theirs[WARMUP:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay_fraction": 0.3}, r"training.decay_fraction: 0.3, and training.lr_schedule is cosine"),
        ({"lr_schedule": "constant", "decay_fraction": 0.3}, "training.decay_fraction: 0.3, and .* is constant"),
        ({"lr_schedule": "constant", "min_lr_ratio": 0.0}, "training.min_lr_ratio: 0.0, and .* is constant"),
        ({"lr_schedule": "wsd", "warmup_fraction": 0.9}, "training.decay_fraction: 0.2 and a warmup_fraction of 0.9"),
    ],
)
def test_what_a_schedule_has_no_use_for_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_lr_schedule(TrainingConfig(**settings))


def test_an_experiment_checks_the_schedule_at_every_point() -> None:
    changes = ["training.decay_fraction=0.3", "grid={student: [deep], training.lr_schedule: [wsd, linear]}"]
    with pytest.raises(UserError, match="is linear"):
        check_experiment(load_experiment(QUICKSTART, changes))


def planned(*changes: str) -> dict[str, Run]:
    runs = plan_runs(load_experiment(QUICKSTART, ["baselines=[]", *changes]))
    return {run.label: run for run in runs if run.role in (Role.DISTILLED, Role.DERIVED)}


def test_the_schedule_identifies_a_run_where_it_is_not_the_default() -> None:
    (plain,) = planned("grid={student: [deep]}").values()
    varied = planned("grid={student: [deep], training.lr_schedule: [cosine, linear, constant, wsd]}")
    assert list(varied) == [f"deep-lr_schedule={name}" for name in ("cosine", "linear", "constant", "wsd")]
    assert varied["deep-lr_schedule=cosine"].fingerprint == plain.fingerprint
    assert len({run.fingerprint for run in varied.values()}) == 4


def test_each_stage_has_its_own_schedule() -> None:
    stages = (
        "stages={first: {training.lr_schedule: wsd, training.decay_fraction: 0.5}, second: {training.lr_schedule: linear}}"
    )
    trainings = {label: run.config.training for label, run in planned("grid={student: [deep]}", stages).items()}
    found = {label: (training.lr_schedule, training.decay_fraction) for label, training in trainings.items()}
    assert found == {"deep_after_first": ("wsd", 0.5), "deep": ("linear", 0.2)}
