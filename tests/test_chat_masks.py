"""Ten chat templates × four tokenizers × any conversation: what is supervised is what the assistant wrote, and its end."""

import functools
import itertools
import json
import os
import re
from typing import Any

import pytest
import tiny
from chat_templates import SPECIAL, STYLES
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill_lit.data.chat import encode_chat

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "240")) // (2 * len(STYLES))  # shared out to the templates
LETTERS = "ab  \n\n\t.<|>[]/漢字é🙂'0s\u0301\u200d"
PHRASES = ["Hello there. ", "<|im_end|>", "</s>", "[/INST]", " assistant\n", "<think>", "</think>", "\n\n\n", "  x"]
TEXT = st.lists(st.one_of(st.text(LETTERS, max_size=6), st.sampled_from(PHRASES)), max_size=4).map("".join)


def corpus() -> list[str]:
    lines = [f"assistant\n\nuser\n {word}\n\n漢字 🙂" for word in tiny.WORDS]
    return [*tiny.sentences(200), *lines, " . . \n\n\n    漢 é 字"]


def wrap(tokenizer: Tokenizer) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", extra_special_tokens=list(SPECIAL)
    )


def byte_level(**options: Any) -> Any:
    """Merges across white space too, as GPT-4's: an end of line and the next, or a stop and an end of line."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"[.]?\s*[\r\n]+|\s*\S+|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False, **options)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    return wrap(tokenizer)


def sentence_piece(scheme: str) -> Any:
    """As Llama 2's: ▁ for a blank and one more in front, bytes for what has no piece."""
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Replace(" ", "▁")
    plain.train_from_iterator(tiny.sentences(200), trainers.BpeTrainer(vocab_size=300, show_progress=False))
    vocabulary = dict(plain.get_vocab())
    for piece in ("▁", "\n", "\n\n", *(f"<0x{byte:02X}>" for byte in range(256)), "<unk>"):
        vocabulary.setdefault(piece, len(vocabulary))
    learned = json.loads(plain.to_str())["model"]["merges"]
    merges = [tuple(merge) for merge in learned if "▁" not in merge[0][1:] and "▁" not in merge[1]]
    tokenizer = Tokenizer(models.BPE(vocabulary, [*merges, ("\n", "\n")], byte_fallback=True, unk_token="<unk>"))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    blank = [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *blank])
    return wrap(tokenizer)


def word_level() -> Any:
    """Letters and words without the blanks between them."""
    words = sorted({*"".join(corpus()), *itertools.chain(*map(re.compile(r"\w+|[^\w\s]+").findall, corpus()))})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[U]", *words])}, unk_token="[U]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrap(tokenizer)


TOKENIZERS = {
    "bytes": lambda: byte_level(add_prefix_space=False),
    "pieces": lambda: sentence_piece("first"),
    "legacy pieces": lambda: sentence_piece("legacy"),
    "words": word_level,
}


@functools.cache
def tokenizer_of(name: str) -> Any:
    return TOKENIZERS[name]()


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
