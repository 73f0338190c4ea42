"""The sums over tokens that a score is made of, for all widths of a layer in one pass."""

from __future__ import annotations

from torch import Tensor


def over_tokens(delta: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
    """delta [B, L, N], e [B, L, W * N] -> sums over tokens of delta e and (delta e)^2: float32 [B, W, N].

    delta: dLoss / dy; e: the layer's output errors at W widths, one width after the other. On a GPU one
    kernel reads both once.
    """
    if delta.is_cuda:
        from mixllm.salience.sums_triton import launch

        return launch(delta, e)
    product = e.float().unflatten(2, (-1, delta.shape[2])) * delta.float().unsqueeze(2)
    return product.sum(dim=1), product.square_().sum(dim=1)


def over_scattered(delta: Tensor, e: Tensor, window: Tensor, windows: int) -> tuple[Tensor, Tensor]:
    """over_tokens for delta [T, N] and e [T, W * N] of tokens of several windows: float32 [windows, W, N].

    window: int64 [T], which each token is of.
    """
    product = e.float().unflatten(1, (-1, delta.shape[1])) * delta.float().unsqueeze(1)
    sums = product.new_zeros(windows, *product.shape[1:])
    return sums.index_add(0, window, product), sums.index_add(0, window, product.square_())
