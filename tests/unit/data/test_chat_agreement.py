"""Templates against each other: real ones with the versions that TRL trains on, small ones with one thing changed."""

import copy
from pathlib import Path
from typing import Any

import pytest
from helpers import reference_libraries
from helpers.chat_templates import STYLES
from helpers.chat_tokenizers import tokenizer_of
from helpers.tiny_data import CHAT_TEMPLATE, byte_tokenizer

from distill_lit.data.chat import encode_chat
from distill_lit.data.chat_agreement import (
    PLAIN_CHAT,
    SAMPLE_CHATS,
    chat_tokens,
    find_turn_end,
    learned_turn_end,
    rendering_difference,
    token_id_difference,
)
from distill_lit.utils.exceptions import UserError

ENDS = {"chatml": "<|im_end|>", "llama2": "</s>", "llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>",
        "phi3": "<|end|>", "qwen3": "<|im_end|>", "zephyr": "</s>", "deepseek": "</s>", "vicuna": "</s>"}  # fmt: skip
FORMATS = {"chatml": "<|im_start|> <|im_end|>", "gemma": "<s> <start_of_turn> <end_of_turn>", "vicuna": "</s>",
           "phi3": "<|user|> <|assistant|> <|end|>"}  # fmt: skip


def with_template(template: str | None, kind: str = "bytes") -> Any:
    tokenizer = copy.copy(tokenizer_of(kind))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("style", STYLES)
def test_each_style_ends_a_turn_with_its_token(style: str, marked: bool) -> None:
    tokenizer = with_template(STYLES[style][0](marked))
    end = find_turn_end(tokenizer)
    assert end is not None
    assert (end.token, end.is_supervised) == (ENDS[style], True)
    ids, supervised = encode_chat(tokenizer, PLAIN_CHAT)
    assert end.token_id in [i for i, kept in zip(ids, supervised, strict=True) if kept]
    assert learned_turn_end(tokenizer) == end.token_id


@pytest.mark.parametrize("style", FORMATS)
def test_the_tokens_of_a_format(style: str) -> None:
    tokenizer = with_template(STYLES[style][0](False))
    expected = FORMATS[style].split()
    assert chat_tokens(tokenizer) == dict(zip(tokenizer.convert_tokens_to_ids(expected), expected, strict=True))


def test_a_padding_token_that_ends_turns_is_supervised_all_the_same() -> None:
    """Collators that mask the padding token never teach a model to stop where both are one."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    ids, supervised = encode_chat(tokenizer, PLAIN_CHAT)
    assert [kept for i, kept in zip(ids, supervised, strict=True) if i == tokenizer.pad_token_id][-1]


def test_a_generation_block_that_leaves_out_the_end() -> None:
    template = STYLES["chatml"][0](True).replace(
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>' }}"
    )
    end = find_turn_end(with_template(template))
    assert end is not None
    assert (end.token, end.is_supervised) == ("<|im_end|>", False)
    assert learned_turn_end(with_template(template)) is None


def test_the_first_of_several_tokens_ends_the_turn() -> None:
    """As Phi-3's that is trained on: a text of the model stops there."""
    template = "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content + '<|end|>\\n<|endoftext|>' }}"
    end = find_turn_end(with_template(template + "{% endgeneration %}{% endfor %}"))
    assert end is not None
    assert end.token == "<|end|>"


def test_a_turn_that_ends_with_text_has_no_token() -> None:
    """tinker-cookbook's role_colon: nothing but the name of the next speaker."""
    template = "{% for m in messages %}{{ m.role | title + ': ' + m.content + '\\n\\n' }}{% endfor %}"
    assert find_turn_end(with_template(template)) is None


@pytest.mark.parametrize("style", STYLES)
def test_marks_alone_change_nothing(style: str) -> None:
    make = STYLES[style][0]
    assert rendering_difference(with_template(make(True)), with_template(make(False))) == ""


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"), "for a question "),
        (("m['role'] + '\\n'", "m['role'] | upper + '\\n'"), "for a question 'im_start|>user"),
        (("{{ m['content'] + '<|im_end|>' }}{% else %}", "{{ m['content'] + '<|im_end|> ' }}{% else %}"),
         "for a question and its answer "),
        (("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"), "for a system message "),
        (("{% if m['role'] == 'assistant' %}", "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'][2:] }}"
          "{{ '<|im_end|>' }}{% elif m['role'] == 'assistant' %}"), "for several turns "),
    ],
)  # fmt: skip
def test_the_plainest_chat_that_differs_is_named(change: tuple[str, str], found: str) -> None:
    own = STYLES["chatml"][0](False)
    assert own.count(change[0]) == 1
    difference = rendering_difference(with_template(own), with_template(own.replace(*change)))
    assert difference.startswith(found), difference


def test_a_template_that_refuses_a_system_message_differs_from_one_that_does_not() -> None:
    """As Gemma 2's."""
    own = STYLES["gemma"][0](False)
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    difference = rendering_difference(with_template(own), with_template(refusing + own))
    assert difference.startswith("for a system message ")
    assert "refuses it" in difference
    assert rendering_difference(with_template(refusing + own), with_template(refusing + own)) == ""


def test_tools_count_where_both_know_them() -> None:
    plain, knowing = STYLES["chatml"][0](False), "{% if tools %}{{ tools }}{% endif %}" + STYLES["chatml"][0](False)
    other = knowing.replace("{{ tools }}", "TOOLS {{ tools }}")
    assert rendering_difference(with_template(plain), with_template(knowing)) == ""
    assert rendering_difference(with_template(knowing), with_template(other)).startswith("for tools ")


def test_tokenizers_that_cut_text_otherwise() -> None:
    """Equal tokens prove nothing of merges, of a beginning, or of a blank in front."""
    assert token_id_difference(with_template(CHAT_TEMPLATE), with_template(None)) == ""
    first, legacy = (with_template(CHAT_TEMPLATE, kind) for kind in ("pieces", "legacy pieces"))
    assert first.get_vocab() == legacy.get_vocab()
    assert "against" in token_id_difference(first, legacy)


def test_a_template_that_refuses_every_chat_says_so() -> None:
    refusing = with_template("{{ raise_exception('no chats today') }}")
    assert learned_turn_end(refusing) is None
    with pytest.raises(UserError, match="no chats today"):
        chat_tokens(refusing)
    assert set(SAMPLE_CHATS) >= {"a question", "a system message", "several turns", "tools"}


# ---------------------------------------------------------------- real templates

# {model: where its own and that to train on first differ}
REAL = {"gemma": "", "gemma3": "", "lfm2": "", "llama3": "", "phi3": "", "qwen2_5": "", "qwen3_instruct_2507": "",
        "qwen3": "for several turns ", "qwen3_5_think": "for several turns "}  # fmt: skip


@pytest.fixture(scope="module")
def real_templates() -> Path:
    """Templates of models as TRL 1.16 ships them, each with `_training`, the one that it trains on."""
    return reference_libraries.install() / "trl" / "chat_templates"


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_templates_to_train_on_keep_the_format_of_a_model(name: str, real_templates: Path) -> None:
    """Those of reasoning models keep the thoughts of earlier turns, which their own leave out; nothing else differs."""
    own, training = (with_template((real_templates / f"{name}{suffix}.jinja").read_text()) for suffix in ("", "_training"))
    assert chat_tokens(own) == chat_tokens(training)
    ends = [find_turn_end(tokenizer) for tokenizer in (own, training)]
    assert ends[0] == ends[1]
    assert ends[0] is not None
    difference = rendering_difference(own, training)
    assert difference.startswith(REAL[name])
    assert bool(difference) == bool(REAL[name])


@pytest.mark.slow
def test_real_formats_differ(real_templates: Path) -> None:
    formats = {
        name: tuple(chat_tokens(with_template((real_templates / f"{name}.jinja").read_text())))
        for name in ("gemma3", "llama3", "phi3", "qwen2_5", "qwen3", "lfm2")
    }
    assert formats["qwen2_5"] == formats["qwen3"]
    assert len({formats[name] for name in ("gemma3", "llama3", "phi3", "qwen3")}) == 4
