"""Which training of the first node another one takes part in, and that none is left before it is written."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill_lit.config import load_experiment, to_yaml
from distill_lit.experiment import join
from distill_lit.experiment.execution import run
from distill_lit.experiment.plan import plan_runs
from distill_lit.utils.distributed.node import Node
from distill_lit.utils.distributed.peers import Meeting, Peers, find_meeting
from distill_lit.utils.exceptions import UserError


@pytest.fixture
def nodes() -> tuple[Node, Node]:
    """Two, whose first is not there yet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return Node(0, 2, "127.0.0.1", port), Node(1, 2, "127.0.0.1", port)


def test_a_training_that_was_left_is_not_joined_again(nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first node's store outlives its training, as while others still leave."""
    first, other = nodes
    monkeypatch.setattr(join, "POLL_SECONDS", 0.01)
    looks: list[bool] = []

    def is_over() -> bool:
        looks.append(True)
        return len(looks) > 3

    store = Peers(2, first, "one")
    left = join._next_meeting(other, None, lambda: False)
    assert left is not None and left.label == "one"
    assert join._next_meeting(other, left, is_over) is None and len(looks) == 4
    del store
    again = Peers(2, first, "one")  # as by a driver that was started again
    found = join._next_meeting(other, left, lambda: False)
    assert found is not None and found.label == "one" and found != left
    del again


def test_a_first_node_that_does_not_answer_is_one_line(nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "MEETING_SECONDS", 0.1)
    monkeypatch.setattr(join, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(join, "find_meeting", lambda *_: None)
    with pytest.raises(UserError, match="the first node does not answer at 127.0.0.1"):
        join._next_meeting(nodes[1], Meeting("one", "x"), lambda: False)
    assert join._next_meeting(nodes[1], None, lambda: True) is None
    assert find_meeting(nodes[1], 0.5) is None


def test_no_rank_ends_before_the_first_has_written_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for name in ("load_plugins", "allow_run_remote_code"):
        monkeypatch.setattr(run, name, lambda *_: None)
    monkeypatch.setattr(run, "build_run", lambda *_: done.append("built"))
    monkeypatch.setattr(run, "barrier", lambda: done.append("all here"))
    any_run: Any = type("AnyRun", (), {"config": type("Config", (), {"plugins": []})})
    run.build_run_on_rank(any_run, tmp_path, lambda *_: None)
    assert done == ["built", "all here"]


STAGED = """
name: x
teacher: {model: 'file:x'}
students: {half: {num_layers: 2}}
stages: {warm_up: {objective: {terms: {ce: {}}}}, distill: {}}
objective: {terms: {kl: {kind: forward_kl}}}
data: {corpora: {a: {path: 'file:a.txt'}}}
evaluation: {tasks: [sciq]}
training: {nodes: 2, precision: float32}
hypotheses: {helps: {claim: It helps, models: {student: half}}}
"""


def test_a_stage_of_a_student_that_a_hypothesis_names_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.yaml").write_text(STAGED)
    planned = plan_runs(load_experiment(tmp_path / "x.yaml", ["teacher.dtype=float32"]))
    stage = next(one for one in planned if one.student == "half_after_warm_up")
    (tmp_path / "config.yaml").write_text(to_yaml(stage.config))
    meetings, joined = [None, Meeting(stage.name, "x")], list[str]()
    monkeypatch.setattr(join, "node_from_environment", lambda _: Node(1, 2, "127.0.0.1", 1))
    monkeypatch.setattr(join, "_next_meeting", lambda *_: meetings.pop())
    monkeypatch.setattr(join, "join_run", lambda one, *_: joined.append(one.config.student))
    experiment: Any = SimpleNamespace(name="x", runs=planned, folder_of=lambda _: tmp_path)
    join.join(experiment)
    assert joined == ["half_after_warm_up"]
