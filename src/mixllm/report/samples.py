"""What the float model and the quantized one write from the same beginnings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from mixllm.texts import answer_tokens, prompt_tokens

PROMPTS = (
    "The sky is blue because",
    "Here is a Python function that adds two numbers:\n",
    "The capital of France is",
)
TOKENS = 48


class Sample(BaseModel):
    """A beginning, and by a model's name the most likely continuation, token by token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    texts: dict[str, str]


class Writer:
    """Lets each model that it is shown write; see mixllm.report.models.measure_all."""

    def __init__(self, prompts: Sequence[str] = PROMPTS) -> None:
        self.written: dict[str, dict[str, str]] = {prompt: {} for prompt in prompts}

    def __call__(self, name: str, model: nn.Module, tokenizer: Any) -> None:
        """MixllmError for a prompt without tokens or with too many, at the first model."""
        writing: Any = model
        for prompt, texts in self.written.items():
            inputs = prompt_tokens(tokenizer, prompt, writing.config).to(writing.device)
            most = answer_tokens(inputs, writing.config, "--prompt", TOKENS)
            with torch.no_grad():
                tokens = writing.generate(**inputs, max_new_tokens=most, do_sample=False)
            texts[name] = tokenizer.decode(
                tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )

    @property
    def samples(self) -> list[Sample]:
        return [Sample(prompt=prompt, texts=texts) for prompt, texts in self.written.items()]
