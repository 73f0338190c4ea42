"""Sums over tokens, and their GPU kernel in Triton's interpreter, against the definition."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixllm.salience.sums import over_tokens
from mixllm.salience.sums_triton import launch

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 37), st.integers(1, 150), st.integers(1, 3))


@settings(max_examples=15)
@given(SIZES, st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99))
def test_equals_the_definition(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    windows, tokens, n, widths = size
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(windows, tokens, n, generator=generator).to(dtype)
    e = torch.randn(windows, tokens, widths * n, generator=generator).to(dtype)
    for found in (over_tokens(delta, e), launch(delta, e)):
        for b in range(windows):
            for w in range(widths):
                a = delta[b].double() * e[b, :, w * n : (w + 1) * n].double()
                torch.testing.assert_close(found[0][b, w].double(), a.sum(0), rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(found[1][b, w].double(), a.square().sum(0), rtol=1e-4, atol=1e-5)
