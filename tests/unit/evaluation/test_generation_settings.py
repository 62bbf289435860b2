"""How answers are drawn: what the config says, else the task."""

import pytest

from distill_lit.config.evaluation import EvaluationConfig
from distill_lit.evaluation.generation_settings import GenerationSettings, generation_settings
from distill_lit.evaluation.task_index import built_in_index
from distill_lit.evaluation.tasks import check_tasks, resolve_tasks
from distill_lit.utils.exceptions import UserError


def found(task: str, **changes: object) -> GenerationSettings:
    written = generation_settings(built_in_index()[task], {}, EvaluationConfig(tasks=[task], **changes))
    assert written is not None
    return written


def test_a_task_alone_says_how_it_is_answered() -> None:
    assert found("gsm8k") == GenerationSettings(1, False, 0.0, None, 256, {})
    assert found("ifeval").max_gen_toks == 1280
    voting = found("gsm8k_cot_self_consistency")
    assert (voting.repeats, voting.do_sample, voting.temperature, voting.generation_kwargs) == (64, True, 0.2, {})


def test_a_temperature_draws_and_leaves_nothing_to_the_model() -> None:
    written = found("gsm8k", repeats=8, temperature=0.8, max_gen_toks=64)
    assert (written.repeats, written.do_sample, written.max_gen_toks) == (8, True, 64)
    assert written.generation_kwargs == {
        "do_sample": True, "temperature": 0.8, "top_p": 1.0, "top_k": 0, "max_gen_toks": 64
    }  # fmt: skip
    assert found("gsm8k", temperature=0.8, top_p=0.95).generation_kwargs["top_p"] == 0.95
    assert found("gsm8k_cot_self_consistency", temperature=0.0).generation_kwargs == {
        "do_sample": False,
        "temperature": 0.0,
    }


def test_tasks_that_write_nothing_have_no_such_settings() -> None:
    assert generation_settings(built_in_index()["piqa"], {}, EvaluationConfig(tasks=["piqa"])) is None
    assert resolve_tasks(EvaluationConfig(tasks=["arc_easy"]), "pypi")[0].generation is None


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        (["piqa"], {"temperature": 0.8}, "evaluation.temperature: models write their answers to none of the tasks"),
        (["piqa", "gsm8k"], {"repeats": 4}, "'gsm8k' takes the most probable token, so 4 answers would all be the same"),
        (["gsm8k"], {"do_sample": True}, "'gsm8k' needs evaluation.temperature above 0"),
        (["gsm8k"], {"do_sample": False, "temperature": 0.5}, "evaluation.do_sample false draws nothing"),
        (["gsm8k"], {"top_p": 0.9}, "evaluation.top_p: task 'gsm8k' draws nothing"),
        (["gsm8k_cot_self_consistency"], {"repeats": 4}, "votes among 8 answers"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(
    tasks: list[str], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_tasks(EvaluationConfig(tasks=tasks, **changes), "pypi")
