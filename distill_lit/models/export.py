"""A trained student as a folder that transformers opens with nothing of this suite installed."""

import json
import shutil
from pathlib import Path
from typing import Any

from distill_lit.models.generation_files import GENERATION_CONFIG_FILE, add_eos_token_id
from distill_lit.models.loading import TOKENIZER_FILES
from distill_lit.utils.files import atomic_write_folder, write_text

MODEL_CARD_FILENAME = "README.md"
RESULTS_HEADING = "\n## Results\n"


def export_student(
    model: Any,
    tokenizer_folder: Path,
    folder: Path,
    card: str,
    chat_template: str = "",
    turn_end_token_id: int | None = None,
) -> None:
    """Writes weights (safetensors), config, generation config, tokenizer and model card to `folder`, atomically.

    chat_template: text of the one that takes the place of the tokenizer's; empty: its own stays. turn_end_token_id: the
    token with which the student has learnt to end a turn; `generate` stops there too.
    """
    with atomic_write_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        for path in temporary.glob("*.safetensors"):
            _sort_metadata(path)
        for name in (*TOKENIZER_FILES, GENERATION_CONFIG_FILE):
            if (tokenizer_folder / name).is_file():
                shutil.copy(tokenizer_folder / name, temporary / name)
        if chat_template:
            _set_template(temporary, chat_template)
        if turn_end_token_id is not None:
            add_eos_token_id(temporary, turn_end_token_id)
        (temporary / MODEL_CARD_FILENAME).write_text(card, encoding="utf-8")


def _sort_metadata(path: Path) -> None:
    """Puts the metadata of a safetensors file, of which quantized weights have many, in order: safetensors writes them in
    another one each time, so that the same weights would never have the same hash."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def _set_template(folder: Path, template: str) -> None:
    """Makes `template` the only one in a folder: an older one may be in the tokenizer's config."""
    config = folder / "tokenizer_config.json"
    if config.is_file():
        settings = json.loads(config.read_text(encoding="utf-8"))
        settings.pop("chat_template", None)
        config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")


def model_card(title: str, base: str, recipe: str, details: dict[str, str]) -> str:
    """The first model card of a student: what it is and how it was made. `add_results` follows its evaluation.

    recipe: YAML of the resolved objective, data and training.
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in details.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [distillation, distill-lit]
---
# {title}

Distilled from `{base}` with distill-lit.

| | |
|---|---|
{rows}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/of/this/folder")
```

## Recipe

```yaml
{recipe.strip()}
```
"""


def add_results(folder: Path, results: str) -> None:
    """Puts `results` (Markdown) at the end of the model card in `folder`, in place of earlier ones."""
    card = folder / MODEL_CARD_FILENAME
    made = card.read_text(encoding="utf-8").split(RESULTS_HEADING)[0].rstrip()
    write_text(card, f"{made}\n{RESULTS_HEADING}\n{results.strip()}\n")
