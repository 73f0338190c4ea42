"""Operators that are plain calls where nothing traces them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mixllm.kernels.cuda.operator import fake, operator


@operator("mixllm_test::twice")
def twice(x: Tensor, times: int = 2) -> Tensor:
    return x * times


@fake("mixllm_test::twice")
def _twice_like(x: Tensor, times: int = 2) -> Tensor:
    return x.new_empty(x.shape)


def test_a_call_under_no_grad_is_the_function_s() -> None:
    x = torch.randn(3, 5)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(twice(x), x * 2) and torch.equal(twice(x, times=3), x * 3)


def test_a_call_with_gradients_is_the_operator_s() -> None:
    with pytest.raises(NotImplementedError, match="mixllm_test::twice"):  # it has no kernel for the CPU
        twice(torch.randn(3, 5))


def test_fake_tensors_and_graphs_see_the_operator() -> None:
    with torch.no_grad(), FakeTensorMode() as mode:
        x = mode.from_tensor(torch.randn(7, 3))
        assert twice(x).shape == (7, 3)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph)
        return lambda *inputs: (inputs[0],)

    with torch.no_grad():
        torch.compile(twice, backend=keep, fullgraph=True)(torch.randn(3, 5))
    calls = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert len(calls) == 1 and "mixllm_test" in str(calls[0])
