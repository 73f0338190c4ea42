"""docs/format.md says what the code does: its worked example is computed here, its names are looked up."""

import json
import re
from pathlib import Path

import torch

from mixllm.config import PROFILES, Format
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import shapes, unpack
from mixllm.kernels import prepare
from mixllm.kernels.activations import quantize_activations
from mixllm.rotation import rotate

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
FAST = PROFILES["fast"]


def test_the_worked_example_is_right() -> None:
    match = re.search(r"```json\n(.*?)```", TEXT, re.DOTALL)
    assert match
    example = json.loads(match[1])
    dtypes = {name: dtypes[0] for name, (_, dtypes) in shapes(FAST, {4: 1, 8: 1}, 4).items()}
    weight = MixedWeight(4, **{name: torch.tensor(example[name], dtype=d) for name, d in dtypes.items()})
    assert {name: tuple(t.shape) for name, t in weight.tensors().items()} == {
        name: shape for name, (shape, _) in shapes(FAST, {4: 1, 8: 1}, 4).items()
    }
    rounded = unpack(weight, FAST)
    assert rounded.dequantize().tolist() == example["weight"]

    x = torch.tensor([example["x"]])
    assert rotate(x)[0].tolist() == example["rotated"]
    codes, scales = quantize_activations(x, FAST)
    assert codes[0].tolist() == example["activation_codes"]
    assert scales.item() == example["activation_scale"]
    assert rounded.row_scales is not None
    integers = (rounded.dequantize() / rounded.row_scales[:, None]) @ codes[0]
    assert integers.tolist() == example["integers"]
    torch.testing.assert_close(prepare(weight, FAST)(x)[0], torch.tensor(example["y"]), rtol=1e-6, atol=0)


def test_every_tensor_and_field_is_described() -> None:
    for name in shapes(FAST, {4: 1, 8: 1}, 4):
        assert f"`M.{name}`" in TEXT
    for name, field in Format.model_fields.items():
        assert f"`{name}`" in TEXT
        for value in getattr(field.annotation, "__args__", ()):
            assert f"`{json.dumps(value)}`" in TEXT, (name, value)
