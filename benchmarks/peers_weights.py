"""A model's weights as another quantizer leaves them, made in a process of its own.

    python benchmarks/peers_weights.py PEER MODEL CALIBRATION OUT [--device cuda]

PEER: a name of PEERS; MODEL: a directory; CALIBRATION: a safetensors file with "ids" int64 [samples, length];
OUT: a safetensors file of all blocks' parameters as float32, products of codes and scales where they
are quantized, and of what was made as metadata. Each peer runs as its own documentation starts it, on a
float32 model, and is the only one imported.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

BITS = 4
SCALE_BITS = 16


@dataclass(frozen=True)
class Task:
    """What a peer is given: a model's directory, calibration tokens int64 [samples, length], a device for
    peers that do not choose one, the weights that share a scale, and whether they have a zero too."""

    model: str
    ids: Tensor
    device: str
    group: int
    zeros: bool

    def load(self) -> Any:
        """The float model in main memory; peers take to the device what they want there."""
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)


@dataclass(frozen=True)
class Peer:
    """package: on PyPI; zero_bits: what a group's zero takes beside its 16-bit scale; across: whether groups
    go on from a row's end to the next row's start; make: returns the model with its weights rounded."""

    package: str
    group: int
    zero_bits: int
    make: Callable[[Task], nn.Module]
    across: bool = False


def auto_round(task: Task) -> nn.Module:
    """200 steps of 8 windows a block."""
    from auto_round import AutoRound

    samples, length = task.ids.shape
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    rounder = AutoRound(
        task.load(),
        tokenizer,
        scheme="W4A16",
        group_size=task.group,
        sym=not task.zeros,
        dataset=list(task.ids.split(1)),
        nsamples=samples,
        seqlen=length,
    )
    model: nn.Module = rounder.quantize()[0]
    return model


def gptq(task: Task) -> nn.Module:
    """Columns in the order of their activations, damping .01."""
    from llmcompressor.modifiers.gptq import GPTQModifier

    return oneshot(task, lambda groups: [GPTQModifier(ignore=["lm_head"], config_groups=groups)])


def awq(task: Task) -> nn.Module:
    """Scales searched with the weights' sizes and without."""
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    return oneshot(
        task,
        lambda groups: [
            AWQModifier(duo_scaling="both"),
            QuantizationModifier(ignore=["lm_head"], config_groups=groups),
        ],
    )


@torch.no_grad()
def oneshot(task: Task, recipe: Callable[[dict[str, Any]], list[Any]]) -> nn.Module:
    """llm-compressor's recipe with its preset's groups made task.group wide; weights as their codes say."""
    from compressed_tensors.offload import remove_dispatch
    from compressed_tensors.quantization import forward_quantize, preset_name_to_scheme
    from datasets import Dataset
    from llmcompressor import oneshot

    group = preset_name_to_scheme("W4A16_ASYM" if task.zeros else "W4A16", ["Linear"])
    group.weights = group.weights.model_copy(update={"group_size": task.group})
    model = task.load()
    samples, length = task.ids.shape
    oneshot(
        model=model,
        dataset=Dataset.from_dict(
            {"input_ids": task.ids.tolist(), "attention_mask": torch.ones_like(task.ids).tolist()}
        ),
        recipe=recipe({"group_0": group}),
        max_seq_length=length,
        num_calibration_samples=samples,
    )
    for module in remove_dispatch(model).modules():
        given = getattr(module, "quantization_scheme", None)
        if given is not None:
            module.weight.data = forward_quantize(module, module.weight, "weight", given.weights)
    return model


def hqq(task: Task) -> nn.Module:
    """Without calibration; scales and zeros of 16 bits."""
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    model = task.load()
    for name, linear in linears(model).items():
        config = BaseQuantizeConfig(nbits=BITS, group_size=task.group)
        made = HQQLinear(linear, config, compute_dtype=torch.float16, device=task.device, del_orig=False)
        model.get_submodule(name).weight.data = made.dequantize().float().cpu()
    return model


# None of llm-compressor's formats takes a row whose length is no multiple of the group.
PEERS = {
    "AutoRound g64": Peer("auto-round", 64, 0, auto_round),
    "AutoRound g64 with zeros": Peer("auto-round", 64, 4, auto_round),
    "AutoRound g128": Peer("auto-round", 128, 0, auto_round),
    "llm-compressor GPTQ g64": Peer("llmcompressor", 64, 0, gptq),
    "llm-compressor GPTQ g64 with zeros": Peer("llmcompressor", 64, 4, gptq),
    "llm-compressor AWQ g64": Peer("llmcompressor", 64, 4, awq),
    "hqq g64": Peer("hqq", 64, 16, hqq, across=True),
    "hqq g128": Peer("hqq", 128, 16, hqq, across=True),
}


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that all here quantize: those in blocks."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and ".layers." in f".{name}"
    }


def true_bits(peer: Peer, model: nn.Module) -> float:
    """Bits of storage a quantized weight: codes, scales and zeros."""
    weights = groups = 0
    for layer in linears(model).values():
        n, k = layer.weight.shape
        weights += n * k
        groups += n * k // peer.group if peer.across else n * -(-k // peer.group)
    return BITS + (SCALE_BITS + peer.zero_bits) * groups / weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("out")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    peer = PEERS[args.peer]
    task = Task(args.model, load_file(args.calibration)["ids"], args.device, peer.group, peer.zero_bits > 0)
    began = time.monotonic()
    model = peer.make(task)
    facts = {
        "payload_bits": BITS,
        "bits": true_bits(peer, model),
        "seconds_to_make": round(time.monotonic() - began, 1),
        "version": f"{peer.package} {version(peer.package)}",
    }
    kept = {
        name: value.detach().float().cpu().contiguous()
        for name, value in model.named_parameters()
        if ".layers." in name and name.endswith((".weight", ".bias"))
    }
    save_file(kept, args.out, {"facts": json.dumps(facts)})
    print(Path(args.out).name, facts, flush=True)


if __name__ == "__main__":
    main()
