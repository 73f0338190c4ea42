"""A layer in torch.compile's graph: one operator, which finds the layer when it runs."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from mixllm.kernels.cuda.opaque import number, opaque_linear
from tests.kernels.cuda.conftest import Spy
from tests.kernels.cuda.test_planned import INPUTS, ROWS4, ROWS8, linear


class Doubled:
    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return 2 * x if bias is None else 2 * x + bias


def test_the_layer_is_found_by_its_number_while_it_lives() -> None:
    layer, x, bias = Doubled(), torch.randn(3, 7), torch.randn(7)
    its = number(layer)
    assert torch.equal(opaque_linear(x, its, None, 7), 2 * x)
    compiled = torch.compile(lambda x: opaque_linear(x, its, bias, 7), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), 2 * x + bias)
    assert number(Doubled()) != its
    del layer
    gc.collect()
    with pytest.raises(KeyError):
        opaque_linear(x, its, None, 7)


@pytest.mark.parametrize("profile", ["fast", "paper"])
def test_a_graph_holds_one_operator_for_any_number_of_tokens(profile: str, spy: Spy) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    layer = linear(profile)
    compiled = torch.compile(lambda x: layer(x), fullgraph=True, backend=keep, dynamic=True)
    with torch.no_grad():
        for tokens in (333, 150):
            assert compiled(torch.randn(tokens, INPUTS)).shape == (tokens, ROWS4 + ROWS8)
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert [name for name in called if "mixllm" in name] == ["mixllm.opaque_linear"]
    assert len(spy.given) == 4  # each call quantized and multiplied


def test_a_copy_is_another_layer(spy: Spy) -> None:
    layer = linear("fast")
    again = copy.deepcopy(layer)
    assert again.number != layer.number and copy.copy(again).number != again.number
