"""Distill one causal language model into another in ten lines of Python. Without arguments: two tiny random models.

python examples/python/distill.py --teacher Qwen/Qwen3-1.7B --student Qwen/Qwen3-0.6B --text corpus.txt
"""

import argparse
from pathlib import Path

import lightning as L
from tiny_models import tiny_lines, tiny_model, tiny_tokenizer
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling

from distill_lit import Distiller, losses


def main() -> None:
    """Trains the student and saves it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--teacher", help="name or folder of the teacher; default: a tiny random model")
    parser.add_argument("--student", help="name or folder of the student, with the same tokenizer; default: a tiny one")
    parser.add_argument("--text", help="file with a document a line; default: a few sentences")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--out", default="student", help="folder of the finished student")
    arguments = parser.parse_args()
    if bool(arguments.teacher) != bool(arguments.student):
        parser.error("give --teacher and --student, or neither")

    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher) if arguments.teacher else tiny_tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lines = Path(arguments.text).read_text().splitlines() if arguments.text else tiny_lines(200)
    documents = [tokenizer(line, truncation=True, max_length=512) for line in lines]
    collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    train_loader = DataLoader(documents[8:], batch_size=8, shuffle=True, collate_fn=collate)
    val_loader = DataLoader(documents[:8], batch_size=8, collate_fn=collate)

    teacher = AutoModelForCausalLM.from_pretrained(arguments.teacher) if arguments.teacher else tiny_model(num_layers=2)
    student = tiny_model(num_layers=1)
    if arguments.student:
        student = AutoModelForCausalLM.from_pretrained(arguments.student, dtype="float32")
    module = Distiller(
        student, teacher, loss=0.5 * losses.CrossEntropy() + 0.5 * losses.ForwardKL(temperature=2.0), lr=5e-4
    )
    trainer = L.Trainer(max_steps=arguments.steps, precision="bf16-mixed", accumulate_grad_batches=4, gradient_clip_val=1.0)
    trainer.fit(module, train_loader, val_loader)
    student.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
