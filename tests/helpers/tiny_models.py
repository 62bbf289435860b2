"""A two-layer random teacher with a small real tokenizer, and text for it: everything runs in seconds."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = (
    "river stone bridge water light house garden winter summer music paper window table morning evening forest "
    "mountain letter story city people number answer question reason animal plant metal glass energy"
).split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of five to fourteen words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 14))).capitalize() + "." for _ in range(count)]


def make_tokenizer(folder: Path, size: int = 300) -> None:
    """Trains and saves a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(sentences(200), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=256
    ).save_pretrained(folder)


def make_model(
    folder: Path, num_layers: int = 2, vocab_size: int = 300, seed: int = 0, tokens: int = 300, **changes: object
) -> Path:
    """Saves a random Llama with its tokenizer of so many `tokens`."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.2,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    make_tokenizer(folder, tokens)
    return folder


def make_corpus(path: Path, count: int = 400, seed: int = 1) -> Path:
    """Writes sentences as JSON lines with a `text` column."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(count, seed)))
    return path


def pad_head(model: torch.nn.Module, rows: int) -> None:
    """Gives the model a head of so many rows, whose padding it prefers to every token."""
    old = model.lm_head.weight.data
    head = torch.nn.Linear(old.shape[1], rows)
    head.weight.data = torch.cat([old, torch.zeros(rows - len(old), old.shape[1])])
    head.bias.data = torch.where(torch.arange(rows) < len(old), 0.0, 50.0)
    model.set_output_embeddings(head)
