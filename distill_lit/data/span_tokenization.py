"""Text → tokens that begin and end where a part of it does, so that a part is supervised whole and alone.

Tokens of the whole text may reach over such a border, and the offsets that tokenizers give do not always show it: those of
byte-level ones leave out blanks, those of SentencePiece know nothing of a blank put in front. A prompt is read without its
answer, too, when a model writes one. So every part is encoded by itself, as it is in the middle of a text.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from distill_lit.utils.exceptions import UserError

# what a part is put behind: a tokenizer that begins a text with a blank of its own puts it there
ANCHORS = ("\n", "a", ".", ")", "0", "~")
SPACE_MARKERS = "▁Ġ"  # of SentencePiece and of byte-level tokens


def encode_spans(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    """(token ids, whether each belongs to a span), both as long. spans: [start, end) in characters, in order.

    No token is of both. Raises UserError where the tokenizer cannot cut there.
    """
    ids: list[int] = []
    marks: list[bool] = []
    context = ""
    for part, is_marked in _parts(text, spans):
        found = encode_continuation(tokenizer, context, part)
        ids += found
        marks += [is_marked] * len(found)
        context = part
    return ids, marks


def encode_completion(tokenizer: Any, text: str, prompt_length: int, joined: Sequence[int]) -> tuple[list[int], list[bool]]:
    """(token ids, whether each is of the completion or behind it) of a prompt and its completion. joined: tokens of the
    whole text, with those that begin and end a document.

    They are those of the whole text wherever these begin with the prompt's own, as a model reads it before it writes. Where
    a token would reach over the border, both parts are encoded by themselves. Raises UserError like `encode_spans`.
    """
    prompt = _ids(tokenizer, text[:prompt_length])
    front = _tokens_in_front(tokenizer)
    start = front + len(prompt)
    if list(joined[front:start]) == prompt:
        return list(joined), [False] * start + [True] * (len(joined) - start)
    behind = joined[front + len(_ids(tokenizer, text)) :]
    ids, marks = encode_spans(tokenizer, text, [(prompt_length, len(text))])
    return [*joined[:front], *ids, *behind], [False] * front + marks + [True] * len(behind)


@functools.lru_cache(maxsize=8)
def _tokens_in_front(tokenizer: Any) -> int:
    """How many tokens the tokenizer puts before a text."""
    bare, whole = _ids(tokenizer, "a"), list(tokenizer("a", verbose=False)["input_ids"])
    return next(i for i in range(len(whole) + 1) if whole[i : i + len(bare)] == bare)


def encode_continuation(tokenizer: Any, context: str, continuation: str) -> list[int]:
    """Token ids of `continuation` where `context` has been read already."""
    if not context:
        return _ids(tokenizer, continuation)
    added = _ends_with_added(tokenizer, context)
    if added:  # tokenizers cut there themselves
        head, whole = _anchor_ids(tokenizer, added), _ids(tokenizer, added + continuation)
        if whole[: len(head)] == head and not _begins_with_blank(
            tokenizer, _anchor_ids(tokenizer, added + "a")[len(head) :]
        ):
            return whole[len(head) :]
    for anchor in ANCHORS:
        head, whole = _anchor_ids(tokenizer, anchor), _ids(tokenizer, anchor + continuation)
        rest = whole[len(head) :]
        if whole[: len(head)] == head and _is_all_of(tokenizer, rest, continuation):
            return rest
    raise UserError(f"the tokenizer has no tokens for {continuation[:40]!r} that do not depend on what stands before it")


def _is_all_of(tokenizer: Any, ids: list[int], part: str) -> bool:
    """Whether the tokens may be those of the whole part, without a blank that it does not begin with."""
    if not ids:
        return not _ids(tokenizer, part)
    return part[0].isspace() or part[0] in SPACE_MARKERS or not _begins_with_blank(tokenizer, ids)


def _begins_with_blank(tokenizer: Any, ids: list[int]) -> bool:
    return bool(ids) and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith(tuple(SPACE_MARKERS))


def _parts(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[str, bool]]:
    """Stretches of the text in order, and whether each is a span; none is empty."""
    at = 0
    for start, end in spans:
        if start < end:
            if at < start:
                yield text[at:start], False
            yield text[start:end], True
            at = end
    if at < len(text):
        yield text[at:], False


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@functools.lru_cache(maxsize=1024)
def _anchor_ids(tokenizer: Any, anchor: str) -> list[int]:
    return _ids(tokenizer, anchor)


def _ends_with_added(tokenizer: Any, text: str) -> str:
    found = _added(tokenizer).search(text)
    return found[0] if found else ""


@functools.lru_cache(maxsize=8)
def _added(tokenizer: Any) -> re.Pattern[str]:
    """Finds an added token at the end of a text."""
    return re.compile(f"(?:{_any_of(map(str, tokenizer.get_added_vocab()))})$(?!\n)")


@functools.lru_cache(maxsize=8)
def special_token_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds the first token with a meaning of its own, such as one that ends a turn."""
    marked = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return re.compile(_any_of(marked | set(tokenizer.all_special_tokens)))


def added_token_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds special and added tokens."""
    return re.compile(_any_of({*map(str, tokenizer.get_added_vocab()), *tokenizer.all_special_tokens}))


def _any_of(names: Iterable[str]) -> str:
    """The pattern of one of these names, the longest that there is; of none, one that finds nothing."""
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
