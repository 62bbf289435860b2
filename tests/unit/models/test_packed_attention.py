"""Attention without a (T, T) mask: states and gradients are those of the mask, and memory grows with T."""

from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from distill_lit.models import packed_attention, packing_check
from distill_lit.models.packed_attention import FLEX, SEGMENTS, VARLEN
from distill_lit.models.packed_forward import ONE_MASK, plan_forward_passes, run_backbone
from distill_lit.models.packing_check import choose_layout, last_hidden_state, use_packed_attention
from distill_lit.utils.exceptions import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}


def build(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    elif kind == "mistral":  # every layer looks back on 24 tokens
        model = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=24))
    else:  # one layer with a window, one without, so its masks are of two kinds
        kinds = ["sliding_attention", "full_attention"]
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=24, layer_types=kinds))
    return model.double()


def rows() -> dict[str, Tensor]:
    """Two rows of 150: documents shorter and longer than the windows and than a block of FlexAttention, and padding."""
    documents = torch.tensor([[1] * 30 + [2] + [3] * 90 + [4] * 29, [1] * 70 + [2] * 70 + [0] * 10])
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    at = torch.arange(150).expand(2, -1)
    positions = (at - torch.where(first, at, 0).cummax(1).values) * (documents > 0)
    ids = torch.randint(3, 64, (2, 150), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "document_ids": documents, "position_ids": positions}


def read(model: Any, layout: str) -> Tensor:
    (part,) = plan_forward_passes(model, rows(), layout)
    return run_backbone(model, part)[part.valid]


def read_alone(model: Any) -> Tensor:
    """Every document through the plain model."""
    ids, documents = rows()["input_ids"], rows()["document_ids"]
    texts = [ids[row][documents[row] == n] for row in (0, 1) for n in range(1, int(documents[row].max()) + 1)]
    return torch.cat([model.get_decoder()(input_ids=text[None], use_cache=False).last_hidden_state[0] for text in texts])


def gradients(model: Any, hidden: Tensor) -> list[Tensor]:
    model.zero_grad()
    hidden.square().sum().backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_kernels_read_documents_as_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", reference_varlen)
    model = build(kind)
    expected = read_alone(model)
    for kernel in (SEGMENTS, VARLEN):
        actual = read(model, kernel)
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)
        for ours, theirs in zip(gradients(model, actual), gradients(model, read_alone(model)), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-6)  # Gemma's norms are in float32
    with torch.no_grad():  # on CPUs it has no backward
        torch.testing.assert_close(read(model, FLEX), expected, atol=1e-10, rtol=1e-10)


def test_recomputed_activations_and_a_sliced_mask_change_nothing() -> None:
    model = build("llama").train()
    expected = gradients(model, read_alone(model))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for ours, theirs in zip(gradients(model, read(model, SEGMENTS)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    model.gradient_checkpointing_disable()
    (part,) = plan_forward_passes(model, rows(), SEGMENTS)
    part.inputs["attention_mask"] = part.inputs["attention_mask"][:, :, :, :150]  # another tensor, unknown to the kernel
    torch.testing.assert_close(run_backbone(model, part)[part.valid], read_alone(model), atol=1e-10, rtol=1e-10)


def test_the_largest_tensor_grows_with_the_row_not_with_its_square() -> None:
    model = build("llama")
    sizes = {layout: [largest_tensor(model, length, layout) for length in (512, 1024)] for layout in (SEGMENTS, ONE_MASK)}
    assert sizes[SEGMENTS][1] == 2 * sizes[SEGMENTS][0]
    assert sizes[ONE_MASK][1] == 4 * sizes[ONE_MASK][0] == 1024 * 1024


def largest_tensor(model: Any, length: int, layout: str) -> int:
    """Numbers in the largest tensor of a forward and backward pass over one row of 16 documents."""

    class Watch(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, call: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = call(*args, **(kwargs or {}))
            self.most = max(self.most, *(x.numel() for x in tree_leaves(made) if isinstance(x, Tensor)), 0)
            return made

    documents = 1 + torch.arange(length)[None] // (length // 16)
    positions = torch.arange(length)[None] % (length // 16)
    batch = {"input_ids": 3 + documents, "document_ids": documents, "position_ids": positions}
    with Watch() as watch:
        (part,) = plan_forward_passes(model, batch, layout)
        run_backbone(model, part).square().sum().backward()
    return watch.most


def test_the_check_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_check, "MIN_KERNEL_TOKENS", 128)
    model = build("llama")
    assert choose_layout(model, 64).layout == ONE_MASK  # a mask is as fast here
    assert choose_layout(model, 128).layout == SEGMENTS
    use_packed_attention("mask", model)
    assert choose_layout(model, 128).layout == ONE_MASK
    use_packed_attention("segments", model)
    assert choose_layout(model, 64).layout == SEGMENTS
    use_packed_attention("varlen", model)
    with pytest.raises(UserError, match=r"^training.packed_attention: varlen: Llama.*it cannot be read so.*auto"):
        last_hidden_state(model, rows())
    model = build("llama")
    model.set_attn_implementation("eager")  # attention maps are wanted
    assert choose_layout(model, 128).layout == ONE_MASK


def test_a_kernel_that_reads_otherwise_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_check, "MIN_KERNEL_TOKENS", 128)
    blurred = packed_attention.document_spans
    monkeypatch.setattr(packed_attention, "document_spans", lambda ids: blurred((ids > 0).long()))  # one document a row
    assert choose_layout(build("llama"), 128).layout == ONE_MASK


def reference_varlen(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, _: Tensor, most: int, __: int, **options: Any
) -> Tensor:
    """torch's varlen_attn in plain arithmetic, document by document: it runs on GPUs alone."""
    (back, ahead), pieces = options["window_size"], []
    assert ends.dtype == torch.int32 and most == int(ends.diff().max()) and ahead == 0
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & ((distance <= back) if back >= 0 else True)
        scores = (q @ k.transpose(1, 2) * options["scale"]).masked_fill(~seen, -torch.inf)
        pieces.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces)
