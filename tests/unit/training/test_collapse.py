"""When a student's own text counts as collapsed, by hand; and that it is said once, in a resumed run too."""

from types import SimpleNamespace
from typing import Any

import pytest

from distill_lit.training.callbacks import collapse
from distill_lit.training.callbacks.collapse import OnPolicyCollapseWarning, find_collapse
from distill_lit.utils.text_statistics import TextSums, add_sums, sum_texts

HEALTHY = {"length": 30.0, "finished": 0.8, "distinct_2": 0.9, "repetition": 0.02}


def sums(texts: int = 128, **means: float) -> TextSums:
    """Sums of so many texts with these means."""
    means = {**HEALTHY, **means}
    ngrams = texts * max(0.0, means["length"] - 3)
    return TextSums(
        texts,
        texts * means["length"],
        texts * means["finished"],
        texts * 0.5,
        texts * means["distinct_2"],
        ngrams,
        ngrams * means["repetition"],
    )


def test_statistics_by_hand() -> None:
    """Two texts: five tokens, of which two are different; pairs 12 21 12 21 and none; 4-grams 1212 2121, and none."""
    found = sum_texts([[1, 2, 1, 2, 1], [3]], 1).means()
    assert found == pytest.approx(
        {"length": 3.0, "finished": 0.5, "distinct_1": 3 / 6, "distinct_2": 2 / 4, "repetition": 0.0}
    )
    assert sum_texts([[7] * 8], 0).means()["repetition"] == pytest.approx(4 / 5)  # one of five 4-grams is new
    both = add_sums([sum_texts([[7] * 8], 0), sum_texts([[1, 2, 3, 4, 5]], 1)])
    assert both.means() == pytest.approx(
        {"length": 6.5, "finished": 0.5, "distinct_1": (1 / 8 + 1) / 2, "distinct_2": (1 / 7 + 1) / 2, "repetition": 4 / 7}
    )
    assert add_sums([]).means()["length"] == 0


@pytest.mark.parametrize(
    ("start", "recent", "kinds"),
    [
        ({}, {}, []),
        ({}, {"repetition": 0.49}, []),
        ({}, {"repetition": 0.5}, ["repetition"]),
        ({"repetition": 0.9}, {"repetition": 0.9}, ["repetition"]),  # from the start
        ({}, {"finished": 0.41, "length": 60.0}, []),
        ({}, {"finished": 0.39, "length": 60.0}, ["length"]),
        ({"finished": 0.39}, {"finished": 0.0, "length": 64.0}, []),  # plain text is cut off anyway
        ({}, {"length": 1.6}, []),
        ({}, {"length": 1.5, "finished": 1.0}, ["empty"]),
        ({}, {"distinct_2": 0.46}, []),
        ({}, {"distinct_2": 0.44}, ["distinct_2"]),
        ({}, {"distinct_2": 0.1, "length": 14.0}, []),  # short answers are alike
        (
            {},
            {"repetition": 0.8, "finished": 0.0, "length": 64.0, "distinct_2": 0.2},
            ["repetition", "length", "distinct_2"],
        ),
    ],
)
def test_what_counts_as_collapse(start: dict[str, float], recent: dict[str, float], kinds: list[str]) -> None:
    assert list(find_collapse(sums(**start), sums(**recent))) == kinds


class Run:
    """A training of which there is nothing but the text that the student writes at each step."""

    def __init__(self, texts: list[TextSums]) -> None:
        self.texts = texts
        self.said: list[tuple[Any, ...]] = []

    def go(self, callback: OnPolicyCollapseWarning, steps: range) -> None:
        callback.progress_callback = lambda *values: self.said.append(values)  # type: ignore[assignment]
        trainer = SimpleNamespace(world_size=1, is_global_zero=True, loggers=[], global_step=0)
        generator = SimpleNamespace(pop_text_sums=lambda: self.texts[trainer.global_step])
        for step in steps:
            trainer.global_step = step
            callback.on_before_optimizer_step(trainer, SimpleNamespace(on_policy_generator=generator), None)  # type: ignore[arg-type]


def test_each_kind_is_said_once_and_the_same_in_a_resumed_run(caplog: pytest.LogCaptureFixture) -> None:
    """Windows of 128 texts: 4 steps of 32. Some steps have no text of the student."""
    good, bad = sums(32), sums(32, finished=0.0, length=64.0)
    texts = [good, TextSums(), *[good] * 7, *[bad] * 8, *[good] * 8, *[bad] * 8]
    whole, run = OnPolicyCollapseWarning(), Run(texts)
    run.go(whole, range(len(texts)))
    expected = (
        "on_policy: the student no longer ends its texts: 40% end by themselves, 80% at the start; their mean length is 47 "
        "tokens, 30 at the start (step 10); the run goes on"
    )
    assert whole.lines == [expected]
    assert run.said == [("note", 0, 0, expected)]
    assert [record.message for record in caplog.records] == [expected]
    for cut in (1, 6, 10, 11, 20):
        first, second, parts = OnPolicyCollapseWarning(), OnPolicyCollapseWarning(), Run(texts)
        parts.go(first, range(cut))
        second.load_state_dict(first.state_dict())
        parts.go(second, range(cut, len(texts)))
        assert parts.said == run.said
        assert second.state_dict() == whole.state_dict()


def test_nothing_is_said_of_fewer_texts_than_a_window() -> None:
    run, callback = Run([sums(32, repetition=1.0)] * 4), OnPolicyCollapseWarning()
    run.go(callback, range(3))
    assert callback.lines == []
    run.go(callback, range(3, 4))
    assert len(callback.lines) == 1
    assert collapse.WINDOW_TEXTS == 128
