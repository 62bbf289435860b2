"""A compiled backbone: few graphs for many shapes, none where no gradient is recorded, and what fails runs as it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from distill_lit.models.backbone import compile_backbone, compile_for_training

IDS = torch.arange(6).view(2, 3)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(9, 4)

    def forward(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.embeddings(ids)
        return embedded.sin()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_model = Body()

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embeddings


@contextmanager
def compiling(make: Callable[[torch.fx.GraphModule], Callable[..., Any]]) -> Iterator[list[torch.fx.GraphModule]]:
    """The graphs that are handed to a backend, which makes of each what is run."""
    graphs: list[torch.fx.GraphModule] = []
    compiled = nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return make(graph)

    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch, torch._dynamo.config.patch(suppress_errors=False):
        patch.setattr(nn.Module, "compile", lambda self: compiled(self, backend=backend))
        yield graphs


def as_it_is(graph: torch.fx.GraphModule) -> Callable[..., Any]:
    return graph.forward


def test_only_what_records_gradients_is_compiled_of_a_student() -> None:
    student, teacher = Model(), Model()
    names = set(student.state_dict())
    with compiling(as_it_is) as graphs:
        compile_for_training(student)
        compile_backbone(teacher)
        with torch.no_grad():
            student.base_model(IDS)
        assert not graphs
        student.base_model(IDS)
        assert len(graphs) == 1
        with torch.inference_mode():
            teacher.base_model(IDS)
        assert len(graphs) == 2
    assert set(student.state_dict()) == names


def test_what_cannot_be_compiled_runs_as_it_is() -> None:
    def fail(_: torch.fx.GraphModule) -> Callable[..., Any]:
        raise RuntimeError("g++ has no headers")

    model = Model()
    with compiling(fail) as tried:
        compile_for_training(model)
        assert torch.equal(model.base_model(IDS), model.base_model.embeddings(IDS).sin())
        assert tried


@pytest.mark.slow
def test_many_shapes_are_few_graphs() -> None:
    """Of a model of transformers: the first shape, and then any; rows and tokens may be found to vary one by one."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with compiling(as_it_is) as graphs:
        compile_for_training(model)
        for rows, length in [(2, 8), (2, 8), (3, 8), (4, 16), (5, 24), (6, 40)]:
            ids = torch.arange(rows * length).view(rows, length) % 50
            read = model.model(input_ids=ids, use_cache=False).last_hidden_state
            with torch.no_grad():
                torch.testing.assert_close(read, model.model(input_ids=ids, use_cache=False).last_hidden_state)
        assert 1 < len(graphs) <= 3
