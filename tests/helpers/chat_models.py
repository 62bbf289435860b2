"""Tiny models with a chat template, an end and a generation config of their own, and experiments on chats with them."""

import copy
import json
from pathlib import Path
from typing import Any

from helpers import tiny_models
from helpers.chat_templates import STYLES
from helpers.chat_tokenizers import tokenizer_of
from helpers.tiny_data import write_lines

VOCAB_SIZE = 512  # of the tiny models; the tokenizer of bytes has 491 tokens

EXPERIMENT = """
name: chats
teacher: {{model: "file:{teacher}", dtype: float32}}
students: {{one: {student}}}
student: one
data: {{sequence_length: 128, validation_sequences: 2, corpora: {{chats: {{path: "file:{corpus}", messages: m}}}}}}
objective: {{compile: never, terms: {{kl: {{kind: forward_kl}}}}}}
training: {{max_tokens: 512, micro_batch_size: 2, precision: float32, accelerator: cpu}}
baselines: []
"""


def make_chat_model(
    folder: Path, style: str = "", eos: str = "</s>", vocab_size: int = VOCAB_SIZE, kind: str = "bytes", **generation: Any
) -> Path:
    """A random model whose tokenizer has the chat template of a style, or none, and ends texts with `eos`. generation:
    fields of its generation config beside this end."""
    tokenizer = copy.deepcopy(tokenizer_of(kind))
    tokenizer.eos_token = eos
    tokenizer.chat_template = STYLES[style][0](False) if style else None
    tiny_models.make_model(folder, vocab_size=vocab_size)
    tokenizer.save_pretrained(folder)
    settings = {"eos_token_id": tokenizer.eos_token_id, **generation}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def write_chat_experiment(folder: Path, teacher: Path, student: str = "{layers: [0]}", more: str = "") -> Path:
    """An experiment on sixty short chats. student: its YAML; more: lines at the end."""
    rows = [
        {"m": [{"role": "user", "content": f"{i} {text}"}, {"role": "assistant", "content": text}]}
        for i, text in enumerate(tiny_models.sentences(60))
    ]
    corpus = write_lines(folder / "chats.jsonl", rows)
    path = folder / "chats.yaml"
    path.write_text(EXPERIMENT.format(teacher=teacher, student=student, corpus=corpus) + more)
    return path
