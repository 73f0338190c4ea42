"""mixllm generate and mixllm chat"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixllm.cli.console import quiet_libraries
from mixllm.cli.options import Checkpoint, Device, LayersDtype, Seed
from mixllm.errors import MixllmError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _number(value: float) -> float:
    if not isfinite(value):
        raise typer.BadParameter(f"{value} is no temperature; give a number such as 0.7")
    return value


MaxTokens = Annotated[int, typer.Option(min=1, help="The most tokens to write.")]
Temperature = Annotated[
    float, typer.Option(min=0, callback=_number, help="0 always takes the likeliest token.")
]


def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The prompt.")],
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: LayersDtype = "auto",
) -> None:
    """Generate text from a prompt."""
    from mixllm.texts import answer_tokens, prompt_tokens

    model, tokenizer = _open(checkpoint, device, dtype)
    inputs = prompt_tokens(tokenizer, prompt, model.config)
    print(prompt, end="", flush=True)
    most = answer_tokens(inputs, model.config, "--prompt", max_tokens)
    _stream(model, tokenizer, inputs, most, temperature, seed)


def chat(
    checkpoint: Checkpoint,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: LayersDtype = "auto",
) -> None:
    """Chat with a quantized model.

    Through its chat template; an empty line or Ctrl-D ends.
    """
    from mixllm.texts import answer_tokens

    model, tokenizer = _open(checkpoint, device, dtype)
    if not tokenizer.chat_template:
        raise MixllmError(f"{checkpoint}: the model has no chat template; use mixllm generate")
    messages: list[dict[str, str]] = []
    while said := _ask():
        messages.append({"role": "user", "content": said})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        most = answer_tokens(inputs, model.config, "the conversation", max_tokens)
        answer = _stream(model, tokenizer, inputs, most, temperature, seed)
        messages.append({"role": "assistant", "content": answer})


def _open(checkpoint: Checkpoint, device: str, dtype: str) -> tuple[PreTrainedModel, Any]:
    quiet_libraries()
    from mixllm.loading import load
    from mixllm.placement import DTYPES, pick_device
    from mixllm.texts import open_tokenizer

    model = load(checkpoint, pick_device(device), DTYPES.get(dtype))
    return model, open_tokenizer(checkpoint)


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()  # whatever comes next begins a line
        return ""


def _stream(model: Any, tokenizer: Any, inputs: Any, most: int, temperature: float, seed: int) -> str:
    """Write the answer as it is made; returns it."""
    import torch
    from transformers import TextStreamer

    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    inputs = inputs.to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=most, streamer=streamer, **sampling)
    text: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text
