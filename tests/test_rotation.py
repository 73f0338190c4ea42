"""The block Hadamard is orthonormal, symmetric and blockwise, for any K."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixllm import rotation_native
from mixllm.kernels import cpu
from mixllm.rotation import rotate, rotate_in_steps
from mixllm.rotation_triton import launch
from tests import shapes


@given(shapes.in_features, shapes.seeds)
def test_rotating_twice_gives_the_input_back(k: int, seed: int) -> None:
    x = shapes.inputs(3, k, seed)
    torch.testing.assert_close(rotate(rotate(x)), x, rtol=1e-5, atol=1e-5)


@given(shapes.in_features, shapes.seeds)
def test_products_do_not_change(k: int, seed: int) -> None:
    x, w = shapes.inputs(4, k, seed), shapes.weight(5, k, seed)
    exact = x.double() @ w.double().T
    torch.testing.assert_close(rotate(x).double() @ rotate(w).double().T, exact, rtol=1e-4, atol=1e-3)


def test_blocks_are_128_then_the_largest_power_of_two_that_divides_the_rest() -> None:
    matrix = rotate(torch.eye(128 + 96))
    blocks = [matrix[:128, :128], *(matrix[s : s + 32, s : s + 32] for s in (128, 160, 192))]
    expected = torch.block_diag(*blocks)
    assert torch.equal(matrix, expected)
    assert torch.equal(blocks[1].abs(), torch.full((32, 32), 32**-0.5))
    assert torch.equal(blocks[0].abs(), torch.full((128, 128), 128**-0.5))


def test_is_the_sylvester_hadamard() -> None:
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    expected = torch.kron(two, torch.kron(two, two)) * torch.tensor(8**-0.5)
    assert torch.equal(rotate(torch.eye(8)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 21])
def test_the_gpu_kernel_is_bit_for_bit_the_same(rows: int, dtype: torch.dtype) -> None:
    """In Triton's interpreter, for rows of memory and for columns of it."""
    x = shapes.inputs(rows, 256, 4).to(dtype)
    assert torch.equal(launch(x), rotate_in_steps(x))
    assert torch.equal(launch(x.T.contiguous().T), rotate_in_steps(x))


@pytest.mark.parametrize("isa", range(len(cpu.instruction_sets())), ids=cpu.instruction_sets())
@given(shapes.in_features, st.integers(1, 70), st.booleans(), shapes.seeds)
def test_the_cpu_library_is_bit_for_bit_the_same(isa: int, k: int, rows: int, half: bool, seed: int) -> None:
    x = shapes.inputs(rows, k, seed).to(torch.bfloat16 if half else torch.float32)
    before = x.clone()
    for rotated in (rotation_native.launch(x, isa), rotation_native.launch(x.T.contiguous().T, isa)):
        assert torch.equal(rotated, rotate_in_steps(x))
    assert torch.equal(x, before)


def test_gradients_go_through() -> None:
    x = shapes.inputs(3, 130, 1).requires_grad_()
    (slope,) = torch.autograd.grad(rotate(x).square().sum() / 2, x)
    torch.testing.assert_close(slope, x.detach(), rtol=1e-5, atol=1e-5)
