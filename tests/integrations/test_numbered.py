"""The operators behind which engines run layers: by number, under torch.compile, as the kernels do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixllm.integrations.served.numbered import Numbered
from mixllm.integrations.served.op import KERNELS
from mixllm.integrations.vllm.experts_op import EXPERTS, OneByOne

WIDTH = 7


class Scaled:
    """A kernel [.., 7] -> [.., 3] that tells its factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = x[..., :3] * self.factor
        return y if bias is None else y + bias


def linear(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mixllm.served_linear(x, kernel, bias, 3)
    return y


def test_each_layer_finds_its_own() -> None:
    kept = Numbered[str]()
    first, second = kept.keep("a"), kept.keep("b")
    assert first.dtype == torch.int64 and first.shape == () and first.device.type == "cpu"
    assert (kept[first], kept[second]) == ("a", "b")


@pytest.mark.parametrize("shape", [(5, WIDTH), (2, 3, WIDTH), (0, WIDTH)])
@pytest.mark.parametrize("biased", [False, True])
def test_one_graph_serves_all_layers(shape: tuple[int, ...], biased: bool) -> None:
    x, bias = torch.randn(shape), torch.randn(3) if biased else None
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return graph

    compiled = torch.compile(linear, backend=count, fullgraph=True)
    for factor in (2.0, -3.0):
        kernel = Scaled(factor)
        number = KERNELS.keep(kernel)
        assert torch.equal(linear(x, number, bias), kernel(x, bias))
        assert torch.equal(compiled(x, number, bias), kernel(x, bias))
    assert graphs == 1


def test_experts_one_by_one() -> None:
    experts = [(Doubled(1.0 + i), Doubled(2.0 - i)) for i in range(3)]
    layer = OneByOne(experts, torch.relu)
    x, ids = torch.randn(4, WIDTH), torch.tensor([[0, 2], [2, 1], [0, 1], [2, 0]])
    weights = torch.rand(4, 2)
    y = torch.ops.mixllm.served_experts(x, weights, ids, EXPERTS.keep(layer))
    expected = torch.stack(
        [
            sum(w * experts[i][1](torch.relu(experts[i][0](token))) for w, i in zip(ws, chosen, strict=True))
            for token, ws, chosen in zip(x, weights, ids.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(y, expected)


class Doubled(Scaled):
    """A kernel [.., 7] -> [.., 7]."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return x * self.factor
