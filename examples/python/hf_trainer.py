"""The fused loss in a Hugging Face Trainer: distillation without the logits of either model in memory.

python examples/python/hf_trainer.py
torchrun --nproc-per-node gpu examples/python/hf_trainer.py
"""

import argparse
import functools
from typing import Any

import torch
from tiny_models import tiny_lines, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from distill_lit import FusedLinearDistillationLoss, get_lm_head, losses


class DistillationTrainer(Trainer):
    """A Trainer of a student whose forward pass gives the loss between it and a teacher.

    So the loss is made inside `model(...)`, where DDP notes which gradients to reduce and accelerate's autocast is at work,
    and `Trainer.compute_loss` multiplies it by the number of processes. What is saved is a student like any other.
    """

    def __init__(self, *args: Any, model: Any, teacher: Any, loss: Any = None, **options: Any) -> None:
        teacher.eval().requires_grad_(False)
        model.forward = functools.partial(distillation_forward, model, teacher, FusedLinearDistillationLoss(loss))
        model.accepts_loss_kwargs = True  # the Trainer then counts the tokens of the whole step
        super().__init__(*args, model=model, **options)
        if self.args.n_gpu > 1:
            raise SystemExit("start a process for each GPU: torchrun --nproc-per-node gpu hf_trainer.py")
        teacher.to(self.args.device)


def distillation_forward(
    student: Any,
    teacher: Any,
    criterion: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    num_items_in_batch: Any = None,
) -> dict[str, Tensor]:
    """The loss from last hidden states, which `get_decoder()` gives before the lm_head."""
    hidden = student.get_decoder()(input_ids, attention_mask, use_cache=False).last_hidden_state
    with torch.no_grad():
        teacher_hidden = teacher.get_decoder()(input_ids, attention_mask, use_cache=False).last_hidden_state
    lm_head, teacher_lm_head = get_lm_head(student), get_lm_head(teacher)
    loss = criterion(hidden, lm_head, teacher_hidden, teacher_lm_head, labels, num_items_in_batch=num_items_in_batch)
    return {"loss": loss}


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
            bf16=True,
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
