"""A loss of one's own: a plain function, registered, checked, and used like those of the package.

python examples/python/custom_loss.py
"""

import argparse

import lightning as L
from tiny_models import tiny_lines, tiny_model, tiny_tokenizer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling

from distill_lit import Distiller, losses


@losses.register("hellinger", is_divergence=True, options={"power": losses.NumberOption(0, exclusive=True)})
def hellinger(log_q: Tensor, log_p: Tensor, power: float = 1.0) -> Tensor:
    """½ Σ (√p − √q)², the squared Hellinger distance, to a power. log_q, log_p: (N, V). Returns (N,)."""
    distance = 0.5 * ((0.5 * log_p).exp() - (0.5 * log_q).exp()).square().sum(-1)
    return distance.clamp(min=1e-12) ** power


def main() -> None:
    """Trains a tiny student with it for a few steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps")
    arguments = parser.parse_args()
    tokenizer = tiny_tokenizer()
    documents = [tokenizer(line) for line in tiny_lines(200)]
    loader = DataLoader(documents, batch_size=8, collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False))
    loss = losses.linear(1.0, 0.2) * losses.CrossEntropy() + losses.Loss("hellinger", temperature=2.0)
    module = Distiller(tiny_model(num_layers=1), tiny_model(num_layers=2, seed=1), loss=loss)
    L.Trainer(max_steps=arguments.steps, log_every_n_steps=5).fit(module, loader)


if __name__ == "__main__":
    main()
