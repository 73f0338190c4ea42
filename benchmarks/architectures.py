"""Which architectures of transformers are quantized, load, generate and agree with their float model?

    python benchmarks/architectures.py [TYPE ...] [--out architectures.json]

Every type (see `architectures_sizes.py`; all of them by default) is made tiny, with random weights, written
as its published files would be, quantized at 8 bits by rounding to nearest and at 4.4 bits by the defaults,
loaded, and measured on random tokens. One line a type:

    layers    quantized layers, and what share of the weights in the blocks they hold
    error     |logits at 8 bits - float logits| / |float logits|
    noise     the same for the float model with noise in the matrices of its blocks, as large as the rounding
              of weights and of activations is together: an error far above it would be one of wiring
    kl        KL(float || 8 bits) in nats a token
    export    the largest |exported - float| / |float| of any tensor, after `mixllm export` and loading again
    refused   what mixllm said instead of quantizing the model

Weights are not those of a trained model, so no figure says how good a quantized model is. Random gated layers
and routers, which turn to another expert, make much of little noise.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from architectures_sizes import VOCABULARY, config_of, types
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import mixllm
from mixllm.config import QuantConfig
from mixllm.errors import MixllmError, one_line
from mixllm.evaluate import measure
from mixllm.export import export_dense
from mixllm.loading import load
from mixllm.nn import MixLinear
from mixllm.placement import versions

CPU, LENGTH = torch.device("cpu"), 32
# A normal value's rounding to 8 bits in groups of 128, of the weights and of the activations, over its size.
ROUNDING = 0.009
NEAREST = {"bits": 8, "rounding": "rtn", "clip": False, "order": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*", default=types())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = {}
    for kind in args.types:
        with tempfile.TemporaryDirectory() as work:
            found[kind] = tried(kind, Path(work))
        print(kind, json.dumps(found[kind]), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"versions": versions(), "types": found}, indent=1) + "\n")


def tried(kind: str, work: Path) -> dict[str, Any]:
    """One type's figures; "refused" alone where mixllm turned it away."""
    model, ids = random_model(kind), tokens(4)
    model.save_pretrained(work / "float")
    tokenizer().save_pretrained(work / "float")
    (work / "text").write_text(" ".join(map(str, tokens(20).flatten().tolist())))
    how = {"calibration": str(work / "text"), "samples": 2, "window": LENGTH}
    try:
        for out, options in (("nearest", NEAREST), ("default", {})):
            config = QuantConfig.model_validate({**how, **options})
            mixllm.quantize(work / "float", work / out, config, device="cpu", dtype="float32")
    except MixllmError as error:
        return {"refused": one_line(error).replace(f"{work}/", "")}
    quantized = load(work / "nearest", CPU, torch.float32)
    with torch.no_grad():
        expected, got = model(input_ids=ids).logits, quantized(input_ids=ids).logits
    kl = measure({"": quantized}, model, ids, lambda done, total: None)[""].to_json()["kl"]
    load(work / "default").generate(ids[:1], max_new_tokens=3, do_sample=False, pad_token_id=0)  # type: ignore[operator]  # transformers'
    export_dense(work / "nearest", work / "dense")
    dense = AutoModelForCausalLM.from_pretrained(work / "dense", dtype=torch.float32)
    exported = max(apart(dense.get_parameter(name), p) for name, p in model.named_parameters())
    inside = sum(matrix.numel() for matrix in matrices(model))
    layers = [module for module in quantized.modules() if isinstance(module, MixLinear)]
    return {
        "layers": len(layers),
        "share": round(sum(k.in_features * k.out_features for k in layers) / inside, 3),
        "error": apart(got, expected),
        "noise": noise(model, ids, expected),
        "kl": round(kl, 5),
        "export": exported,
    }


def random_model(kind: str) -> Any:
    """Matrices normal / sqrt(K), so that no layer drowns another; vectors moved off 0 and 1."""
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config_of(kind), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape)
            if parameter.dim() <= 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
    return model


@torch.no_grad()
def noise(model: nn.Module, ids: Tensor, expected: Tensor) -> float:
    """The error by noise; the model keeps it."""
    torch.manual_seed(1)
    for matrix in matrices(model):
        matrix.add_(ROUNDING * matrix.std() * torch.randn_like(matrix))
    return apart(model(input_ids=ids).logits, expected)


@torch.no_grad()
def apart(found: Tensor, expected: Tensor) -> float:
    return round(float((found - expected).norm() / expected.norm()), 4)


def matrices(model: Any) -> list[nn.Parameter]:
    """All parameters of two and more dimensions but for embeddings and head."""
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    return [p for p in model.parameters() if p.dim() > 1 and id(p) not in ends]


def tokens(count: int) -> Tensor:
    return torch.randint(4, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(count))


def tokenizer() -> Any:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (*(f"<{n}>" for n in range(VOCABULARY - len(alphabet))), *alphabet)
    made = Tokenizer(BPE({word: number for number, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=made)


if __name__ == "__main__":
    main()
