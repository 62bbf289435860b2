"""What a signal sets going, in words and in deeds, without any process."""

import signal

import pytest

from distill_lit.experiment.execution import stopping
from distill_lit.experiment.execution.stopping import CheckpointWatch, StopSignals, Terminated, describe_stop


def test_the_first_ctrl_c_stops_and_the_second_does_not_wait() -> None:
    now = [0.0]
    signals = StopSignals(lambda: now[0])
    with pytest.raises(Terminated) as stop:
        signals.handle_signal(signal.SIGINT)
    assert (stop.value.code, signals.first, signals.is_urgent) == (130, "Ctrl-C", False)
    now[0] = 0.2
    signals.handle_signal(signal.SIGINT)  # the same press, passed on by a program between
    assert not signals.is_urgent
    now[0] = 2.0
    signals.handle_signal(signal.SIGINT)
    assert signals.is_urgent


def test_a_scheduler_that_sends_several_signals_is_not_impatient() -> None:
    now = [0.0]
    signals = StopSignals(lambda: now[0])
    with pytest.raises(Terminated) as stop:
        signals.handle_signal(signal.SIGUSR1)
    assert (stop.value.code, signals.first) == (143, "SIGUSR1")
    now[0] = 30.0
    signals.handle_signal(signal.SIGTERM)
    assert not signals.is_urgent


def test_what_is_said_at_once() -> None:
    said = describe_stop("Ctrl-C", {"d12": "train", "d6": "validate", "d3": "evaluate sciq"}, 60)
    assert said == (
        "Ctrl-C: stopping. A checkpoint is written after the present step of d12, d6. What is not finished of d3 will be "
        "done again. This may take up to 60 s, longer only while a checkpoint is being written. Ctrl-C again does not "
        "wait, and loses what was done since the last checkpoint; a checkpoint that is being written is finished all the "
        "same."
    )
    assert describe_stop("SIGTERM", {}, 90).startswith("SIGTERM: stopping. This may take up to 90 s")
    assert "since the last checkpoint" not in describe_stop("SIGTERM", {"teacher": "evaluate sciq"}, 60)
    assert "a, b, c and 2 more." in describe_stop("Ctrl-C", dict.fromkeys("abcde", "train"), 60)


def test_a_checkpoint_is_written_while_its_file_changes() -> None:
    watch = CheckpointWatch()
    assert not watch.is_writing(0, None, 0.0)
    assert watch.is_writing(0, (10, 1), 0.0)
    late = stopping.STALLED_SECONDS - 1
    assert watch.is_writing(0, (10, 1), late)  # its checksum is being computed, or the disk is slow
    assert watch.is_writing(0, (20, 2), late + 1)  # it has grown
    assert watch.is_writing(0, (20, 2), 2 * late)
    assert not watch.is_writing(0, (20, 2), late + 1 + stopping.STALLED_SECONDS)
    assert watch.is_writing(1, (20, 2), 2 * late)  # another worker's
