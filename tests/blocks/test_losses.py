"""Gradients of losses, made in pieces, against autograd's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mixllm.blocks import losses
from mixllm.blocks.losses import divergence_gradient
from tests.blocks.walking import close, opened, tokens
from tests.models import VOCAB, write_tiny


@pytest.mark.parametrize("cap", [None, 1.5])
def test_the_gradient_of_a_divergence_is_autograds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cap: float | None
) -> None:
    """Made in pieces, the last one short; with and without a soft cap on logits."""
    monkeypatch.setitem(losses.LOGITS_AT_ONCE, "cpu", 7 * 3 * VOCAB)
    model = write_tiny(tmp_path, "gemma3_text", final_logit_softcapping=cap)
    decoder, ids = opened(tmp_path), tokens(3)
    hidden, target = torch.randn(2, *ids.shape, model.config.hidden_size).unbind()
    states = hidden.clone().requires_grad_()
    q, p = (decoder.logits(x, ids)[:, :-1].log_softmax(dim=-1) for x in (states, target))
    nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(dim=-1).mean().backward()
    assert states.grad is not None
    assert close(divergence_gradient(decoder, hidden, target, ids), states.grad)
