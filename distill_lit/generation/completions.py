"""Answers on disk: what a teacher wrote to each prompt, before any filter, one JSON object a line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill_lit.generation.prompts import Prompt
from distill_lit.utils.files import cache_root, fingerprint
from distill_lit.utils.shards import Shards

FINISH_STOP, FINISH_LENGTH, FINISH_PROMPT_TOO_LONG, FINISH_REFUSED = "stop", "length", "too_long", "refused"


@dataclass(frozen=True)
class Completion:
    """One answer. sample_index: its number among those to the prompt; finish_reason: stop (by itself), length (at
    max_new_tokens), too_long (the prompt leaves no room in the context), refused (the server would not); token_ids: ids,
    empty where a server does not say; logprobs: one per token, to the writer itself at temperature 1, nats;
    reported_tokens: tokens, as a server counts them; alternatives: of each token [its bytes as latin-1, [[bytes of a
    probable token, its log-probability], …]], where a server was asked for them."""

    prompt: str
    sample_index: int
    text: str
    finish_reason: str
    system_prompt: str = ""
    reference_answer: str = ""  # the known answer, where the prompts have one
    row_index: int = 0  # of the source, and template: where the prompt comes from
    template_index: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reported_tokens: int = 0
    alternatives: list[Any] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens; 0 where nobody has counted them."""
        return len(self.token_ids) or len(self.logprobs) or self.reported_tokens

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole chat."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.text}]


def build_completion(prompt: Prompt, sample_index: int, text: str, finish_reason: str, **facts: Any) -> Completion:
    """An answer with what is known of its prompt."""
    known: dict[str, Any] = {
        "system_prompt": prompt.system_prompt,
        "reference_answer": prompt.reference_answer,
        "row_index": prompt.row_index,
        "template_index": prompt.template_index,
    }
    return Completion(prompt.text, sample_index, text, finish_reason, **known, **facts)


def completions_folder(key: object) -> Path:
    """Where the answers that depend on `key` (JSON-like) live."""
    return cache_root() / "generated" / fingerprint(key)


def write_completions(path: Path, completions: Iterable[Completion]) -> None:
    """Writes answers as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for answer in completions:
            values = {name: value for name, value in asdict(answer).items() if value or name != "alternatives"}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")


def read_completions(folder: Path) -> Iterator[Completion]:
    """The answers of all shards, by prompt and sample as they were asked, a shard at a time."""
    for name in sorted(Shards(folder).hashes()):
        if name.startswith("completions-"):
            with (folder / name).open(encoding="utf-8") as file:
                yield from (Completion(**json.loads(line)) for line in file)
