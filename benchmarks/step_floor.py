"""The floor of a whole step: the matrix products that no implementation can do without, and nothing else.

Of the student's layers every linear map forward, with respect to its input and to its weight, and attention; of the
teacher's layers the forward products; of both heads `kd_losses.matmul_floor`. Attention counts half of its keys, as a
causal mask leaves them, and none twice: what a kernel computes again in its backward pass is no part of the floor.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.kd_losses import matmul_floor, random_loss_inputs
from distill_lit.models.backbone import get_backbone


class MatmulShape(NamedTuple):
    """A product (batch, rows, inner) @ (batch, inner, columns); batch 1 for linear maps."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.batch * self.rows * self.inner * self.columns


def body_shapes(model: Any, rows: int, length: int, is_trained: bool) -> Iterator[MatmulShape]:
    """Products of all layers of a transformer over `rows` rows of `length` tokens, without its head."""
    tokens = rows * length
    for module in get_backbone(model).modules():
        if isinstance(module, nn.Linear):
            yield MatmulShape(1, tokens, module.in_features, module.out_features)
            if is_trained:
                yield MatmulShape(1, tokens, module.out_features, module.in_features)
                yield MatmulShape(1, module.out_features, tokens, module.in_features)
    config = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    batch, keys = rows * config.num_attention_heads, length // 2
    for _ in range(config.num_hidden_layers):
        yield MatmulShape(batch, length, width, keys)  # scores
        yield MatmulShape(batch, length, keys, width)  # and the values they choose
        if is_trained:  # with respect to scores, values, queries and keys
            yield MatmulShape(batch, length, width, keys)
            yield MatmulShape(batch, keys, length, width)
            yield MatmulShape(batch, length, keys, width)
            yield MatmulShape(batch, keys, length, width)


def run_products(shapes: list[MatmulShape], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """All of these as plain `torch.matmul`; operands and what is written to are made before, shared by products of one
    shape."""
    operands: dict[tuple[int, ...], Tensor] = {}
    outputs: dict[tuple[int, ...], Tensor] = {}

    def operand(*shape: int) -> Tensor:
        if shape not in operands:
            operands[shape] = torch.randn(shape, device=device).to(dtype)
        return operands[shape]

    products = []
    for batch, rows, inner, columns in shapes:
        many = (batch,) if batch > 1 else ()
        left, right = operand(*many, rows, inner), operand(*many, inner, columns)
        shape = (*many, rows, columns)
        products.append((left, right, outputs.setdefault(shape, torch.empty(shape, dtype=dtype, device=device))))

    def run() -> None:
        for left, right, output in products:
            torch.matmul(left, right, out=output)

    return run


def step_floor(
    student: Any, teacher: Any, vocab_size: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Callable[[], None]:
    """The products of one step on (rows, tokens); teacher: its model, None where its hidden states are cached."""
    shapes = list(body_shapes(student, *shape, is_trained=True))
    if teacher is not None:
        shapes += body_shapes(teacher, *shape, is_trained=False)
    body = run_products(shapes, dtype, device)
    width = student.config.get_text_config().hidden_size
    heads = matmul_floor(random_loss_inputs(shape[0] * (shape[1] - 1), vocab_size, dtype, device, width))

    def run() -> None:
        body()
        heads()

    return run
