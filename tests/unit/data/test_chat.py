"""Which tokens of a chat are supervised, token by token."""

import pytest
from helpers.tiny_data import CHAT_TEMPLATE, byte_tokenizer

from distill_lit.data.chat import encode_chat

USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Yo!"}
CHAT = [
    {"role": "system", "content": "S"},
    USER,
    REPLY,
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Ok\n"},
]
GENERATION_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}\
{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"""


def supervised_text(tokenizer, messages):
    """The chat as text, and a string as long in characters where supervised ones are kept and others are dots."""
    ids, supervised = encode_chat(tokenizer, messages)
    parts = [tokenizer.decode([i]) for i in ids]
    return "".join(parts), "".join(p if s else "." * len(p) for p, s in zip(parts, supervised, strict=True))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GENERATION_TEMPLATE])
def test_by_hand(template):
    text, kept = supervised_text(byte_tokenizer(template), CHAT)
    # prompt and end-of-turn of others, the header of the turn and the newline after it are not supervised
    parts = [
        ("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yo!<|im_end|>", True),
        ("\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n", False),
        ("Ok\n<|im_end|>", True),
        ("\n", False),
    ]
    assert text == "".join(part for part, _ in parts)
    assert kept == "".join(part if is_kept else "." * len(part) for part, is_kept in parts)


def test_a_default_system_message_is_no_obstacle():
    text, kept = supervised_text(byte_tokenizer(), [USER, REPLY])
    assert text.startswith("<|im_start|>system\nYou are a helpful")
    assert kept.strip(".") == "Yo!<|im_end|>"


def test_of_a_template_that_rewrites_earlier_turns_the_last_response_is_supervised():
    rewriting = CHAT_TEMPLATE.replace(
        "message['content'] + '<|im_end|>'", "(message['content'] if loop.last else '…') + '<|im_end|>'"
    )
    text, kept = supervised_text(byte_tokenizer(rewriting), CHAT)
    assert kept.strip(".") == "Ok\n<|im_end|>"
    assert "Yo!" not in text


BARE_TEMPLATE = "{% generation %}{{ messages[0].content }}{% endgeneration %}"


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, GENERATION_TEMPLATE, BARE_TEMPLATE])
def test_a_chat_that_begins_with_the_assistant(template):
    _, kept = supervised_text(byte_tokenizer(template), [REPLY, USER])
    assert kept.strip(".") == ("Yo!" if "im_end" not in template else "Yo!<|im_end|>")
