"""The fused loss in a Hugging Face Trainer: distillation without the logits of either model in memory.

python examples/python/hf_trainer.py
"""

import argparse
from typing import Any

import torch
from tiny_models import tiny_lines, tiny_model, tiny_tokenizer
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from distill_lit import FusedLinearDistillationLoss, losses


class DistillationTrainer(Trainer):
    """A Trainer whose loss compares the student with a teacher."""

    def __init__(self, *args: Any, teacher: Any, loss: Any = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device)
        self.criterion = FusedLinearDistillationLoss(loss)
        self.model_accepts_loss_kwargs = True  # the Trainer then counts the tokens of the whole step

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The loss from last hidden states, which `get_decoder()` gives before the lm_head."""
        labels = inputs.pop("labels")
        student = self.accelerator.unwrap_model(model)
        hidden = student.get_decoder()(**inputs, use_cache=False).last_hidden_state
        with torch.no_grad():
            teacher_hidden = self.teacher.get_decoder()(**inputs, use_cache=False).last_hidden_state
        return self.criterion(
            hidden,
            student.get_output_embeddings().weight,
            teacher_hidden,
            self.teacher.get_output_embeddings().weight,
            labels,
            num_items_in_batch=num_items_in_batch,
        )


def main() -> None:
    """Trains a tiny student for a few steps and saves it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    parser.add_argument("--out", default="student", help="folder of the finished student")
    arguments = parser.parse_args()
    tokenizer = tiny_tokenizer()
    trainer = DistillationTrainer(
        model=tiny_model(num_layers=1, seed=1),
        teacher=tiny_model(num_layers=2),
        loss=0.5 * losses.CrossEntropy() + 0.5 * losses.ForwardKL(temperature=2.0),
        args=TrainingArguments(
            output_dir=arguments.out,
            max_steps=arguments.steps,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=[tokenizer(line) for line in tiny_lines(200)],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train()
    trainer.save_model(arguments.out)


if __name__ == "__main__":
    main()
