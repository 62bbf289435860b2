"""Ten chat templates × four tokenizers × any conversation: what is supervised is what the assistant wrote, and its end."""

import itertools
import os
import re
from typing import Any

import pytest
from helpers.chat_templates import SPECIAL, STYLES
from helpers.chat_tokenizers import TOKENIZERS, tokenizer_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distill_lit.data.chat import encode_chat

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "240")) // (2 * len(STYLES))  # shared out to the templates
LETTERS = "ab  \n\n\t.<|>[]/漢字é🙂'0s\u0301\u200d"
PHRASES = ["Hello there. ", "<|im_end|>", "</s>", "[/INST]", " assistant\n", "<think>", "</think>", "\n\n\n", "  x"]
TEXT = st.lists(st.one_of(st.text(LETTERS, max_size=6), st.sampled_from(PHRASES)), max_size=4).map("".join)


def spelled(tokenizer: Any, name: str, ids: list[int]) -> str:
    """What tokens say, without the hand of the decoder on the first blank."""
    if name == "bytes":
        return str(tokenizer.decode(ids))
    start = tokenizer.convert_tokens_to_ids("</s>")
    return str(tokenizer.decode([start, *ids], skip_special_tokens=False)).removeprefix("</s>")


def without_blanks(text: str) -> str:
    return re.sub(f"({'|'.join(map(re.escape, SPECIAL))}) +", r"\1", text)


def chats(draw: Any) -> list[dict[str, str]]:
    first = draw(st.sampled_from([[], ["system"]]))
    turns = draw(st.integers(1, 4))
    roles = [*first, *(("user", "assistant")[i % 2] for i in range(turns))]
    return [{"role": role, "content": draw(TEXT)} for role in roles]


EXPLORE = "FUZZ_EXAMPLES" in os.environ
CHATS = st.composite(chats)()
ODD = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\n\n漢"}, {"role": "user", "content": "  "},
       {"role": "assistant", "content": "  </s>漢 \n"}]  # fmt: skip


@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=not EXPLORE)
@given(name=st.sampled_from(list(TOKENIZERS)), messages=CHATS)
@example(name="bytes", messages=ODD)
@example(name="pieces", messages=ODD)
@example(name="legacy pieces", messages=ODD)
@example(name="words", messages=ODD)
def test_what_is_supervised_is_what_the_assistant_writes(style: str, marked: bool, name: str, messages: Any) -> None:
    tokenizer = tokenizer_of(name)
    make, responses = STYLES[style]
    tokenizer.chat_template = make(marked)
    ids, supervised = encode_chat(tokenizer, messages)
    pairs = itertools.groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1])
    found = [[token for token, _ in run] for kept, run in pairs if kept]
    right = [text for text in responses(messages, marked) if text]
    if name == "words":  # it has no tokens for blanks
        assert found == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in right]
    elif name == "legacy pieces":  # it puts a blank behind every special token, wherever that stands
        assert [without_blanks(spelled(tokenizer, name, run)) for run in found] == [without_blanks(text) for text in right]
    else:
        assert [spelled(tokenizer, name, run) for run in found] == right
