"""device_map: a model that is not on one device. On GPUs: tests/gpu/test_devices.py."""

from pathlib import Path

import pytest
import torch
from tests.format.layers import write_quantized
from tests.integrations.test_transformers import mix_linears
from transformers import AutoModelForCausalLM

from mixllm.integrations import register

register()

IDS = torch.arange(3, 23).reshape(2, 10)
REST = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
@pytest.mark.parametrize("buffers", [False, True])
def test_a_block_on_disk_gives_the_same(tmp_path: Path, architecture: str, buffers: bool) -> None:
    path = write_quantized(tmp_path, architecture, num_hidden_layers=3)
    places = dict.fromkeys((*REST, "model.layers.0", "model.layers.2"), "cpu") | {"model.layers.1": "disk"}
    whole = AutoModelForCausalLM.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(
        path, device_map=places, offload_folder=tmp_path / "disk", offload_buffers=buffers
    )
    for _ in range(2):
        assert torch.equal(model(IDS).logits, whole(IDS).logits)
    answers = [m.generate(IDS, max_new_tokens=4, do_sample=False, pad_token_id=0) for m in (model, whole)]
    assert torch.equal(*answers)
    # The tensors of a mixed layer are buffers: without offload_buffers they stay where they are used.
    for name, layer in mix_linears(model).items():
        gone = buffers and name.startswith("model.layers.1.")
        assert {buffer.device.type for buffer in layer.buffers()} == {"meta" if gone else "cpu"}, name
        assert (layer._kernel is None) == gone, name
