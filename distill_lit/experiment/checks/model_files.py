"""What a model reads and ends its texts with, by its files; of a model that is made here, by how it will be made."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from distill_lit.data.chat_agreement import learned_turn_end
from distill_lit.data.templates import read_template, set_chat_template
from distill_lit.experiment.planning.architectures import Architecture
from distill_lit.models import load_tokenizer
from distill_lit.models.generation_files import generation_eos_token_ids, load_generation_config


@dataclass(frozen=True, eq=False)
class ModelFiles:
    """The files of a model, each read when it is asked for. name: what users call it."""

    name: str
    architecture: Architecture

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer with its chat template; not to be changed."""
        tokenizer = load_tokenizer(self.architecture.tokenizer_folder)
        return set_chat_template(tokenizer, read_template(self.architecture.chat_template))

    @cached_property
    def known_chats(self) -> Any:
        """Its tokenizer with the template of the chats that it was trained on last; of a model from elsewhere, its own."""
        made = self.architecture
        if made.origin is None or made.reads_chats:
            return self.tokenizer
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = ModelFiles(self.name, made.origin).known_chats.chat_template
        return tokenizer

    @cached_property
    def generation_config(self) -> Any:
        """Its generation config."""
        return load_generation_config(self.architecture.tokenizer_folder)

    @property
    def vocab_size(self) -> int:
        """Rows of its embeddings."""
        return int(self.architecture.config.get_text_config().vocab_size)

    @cached_property
    def eos_token_ids(self) -> set[int]:
        """Tokens that end its texts: its tokenizer's, and those of its generation config. A model that is made here ends
        them as what it begins as, and as the text that it is trained on."""
        made = self.architecture
        if made.origin is None:
            ids = {self.tokenizer.eos_token_id, *generation_eos_token_ids(self.generation_config)}
        else:
            ids = set(ModelFiles(self.name, made.origin).eos_token_ids)
            ids |= {learned_turn_end(self.tokenizer)} if made.reads_chats else set()
            ids |= {self.tokenizer.eos_token_id} if made.reads_plain_text else set()
        return {int(token_id) for token_id in ids if token_id is not None}

    @property
    def eos_tokens(self) -> str:
        """These tokens by their names."""
        return ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(sorted(self.eos_token_ids)))) or "no token"

    def is_like(self, other: "ModelFiles") -> bool:
        """Whether another model has the same files beside its weights, and knows the same chats and ends."""
        if self.architecture.tokenizer_folder != other.architecture.tokenizer_folder or self.vocab_size != other.vocab_size:
            return False
        templates = (self.tokenizer.chat_template, self.known_chats.chat_template)
        others = (other.tokenizer.chat_template, other.known_chats.chat_template)
        return templates == others and self.eos_token_ids == other.eos_token_ids
