"""Answers on disk: what a teacher wrote to each prompt, before any filter, one JSON object a line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill_lit.generation.prompts import Prompt
from distill_lit.utils.files import cache_root, fingerprint
from distill_lit.utils.shards import Shards

FINISHED, CUT, TOO_LONG, REFUSED = "stop", "length", "too_long", "refused"


@dataclass(frozen=True)
class Answer:
    """One answer. sample: its number among those to the prompt; finish: stop (by itself), length (at max_new_tokens),
    too_long (the prompt leaves no room in the context), refused (the server would not); tokens: ids, empty where a server
    does not say; log_probabilities: one per token, to the writer itself at temperature 1, nats; counted: tokens, as a
    server counts them."""

    prompt: str
    sample: int
    text: str
    finish: str
    system: str = ""
    right: str = ""  # the known answer, where the prompts have one
    row: int = 0  # of the source, and template: where the prompt comes from
    template: int = 0
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    counted: int = 0

    @property
    def length(self) -> int:
        """Tokens; 0 where nobody has counted them."""
        return len(self.tokens) or len(self.log_probabilities) or self.counted

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole chat."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.text}]


def answer_to(prompt: Prompt, sample: int, text: str, finish: str, **facts: Any) -> Answer:
    """An answer with what is known of its prompt."""
    known: dict[str, Any] = {
        "system": prompt.system,
        "right": prompt.answer,
        "row": prompt.row,
        "template": prompt.template,
    }
    return Answer(prompt.text, sample, text, finish, **known, **facts)


def answers_folder(key: object) -> Path:
    """Where the answers that depend on `key` (JSON-like) live."""
    return cache_root() / "generated" / fingerprint(key)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Writes answers as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)


def read_answers(folder: Path) -> Iterator[Answer]:
    """The answers of all shards, by prompt and sample as they were asked, a shard at a time."""
    for name in sorted(Shards(folder).hashes()):
        if name.startswith("answers-"):
            with (folder / name).open(encoding="utf-8") as file:
                yield from (Answer(**json.loads(line)) for line in file)
