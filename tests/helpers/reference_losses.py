"""Losses and gradients of TRL and torchtune on given logits, where both can be imported: `… IN.npz OUT.npz`."""

import sys
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from helpers.reference_libraries import torchtune_losses

IGNORED = -100


def reference_losses() -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """(name, loss of student logits, teacher logits, shifted labels (B, T))."""
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    jsd = GKDTrainer.generalized_jsd_loss
    for beta in (0.0, 0.1, 0.5, 1.0):
        for temperature in (1.0, 2.0):
            name = f"trl beta={beta} T={temperature}"
            yield name, lambda s, t, y, b=beta, u=temperature: jsd(s, t, labels=y, beta=b, temperature=u)
    tune = torchtune_losses()
    # it takes every softmax in float32; the same code with that name bound to float64 shows the last digits
    tune.torch = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    flat = lambda loss: lambda s, t, y: loss(s.flatten(0, 1), t.flatten(0, 1), y.flatten())  # noqa: E731
    yield "torchtune forward", flat(tune.ForwardKLLoss())
    yield "torchtune reverse", flat(tune.ReverseKLLoss())
    yield "torchtune symmetric 0.3", flat(tune.SymmetricKLLoss(sym_kd_ratio=0.3))


def main(source: str, destination: str) -> None:
    """Writes `<name>/loss` and `<name>/grad` of every loss."""
    arrays = np.load(source)
    teacher, labels = torch.from_numpy(arrays["teacher"]), torch.from_numpy(arrays["labels"])
    results = {}
    for name, loss in reference_losses():
        student = torch.from_numpy(arrays["student"]).requires_grad_()
        value = loss(student, teacher, labels)
        value.backward()
        results[f"{name}/loss"], results[f"{name}/grad"] = value.detach().numpy(), student.grad.numpy()
    np.savez(destination, **results)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
