"""Where tensors will lie in a file is where safetensors puts them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mixllm.format.layout import ORDER, layout
from mixllm.format.split import Stored

OF_TORCH = {
    "I64": torch.int64, "F64": torch.float64, "F32": torch.float32, "I32": torch.int32,
    "BF16": torch.bfloat16, "F16": torch.float16, "I16": torch.int16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=9)
SHAPES = st.lists(st.integers(0, 5), max_size=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layout")


@given(told=st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(ORDER)), max_size=8))
def test_the_first_bytes_and_the_places_are_those_of_safetensors(
    place: Path, told: dict[str, tuple[list[int], str]]
) -> None:
    tensors = {name: torch.ones(shape).to(OF_TORCH[dtype]) for name, (shape, dtype) in told.items()}
    save_file(tensors, place / "whole", {"format": "pt"})
    whole = (place / "whole").read_bytes()
    header, starts = layout(
        {name: Stored(None, told[name][1], tuple(t.shape), t.nbytes) for name, t in tensors.items()}
    )
    assert whole.startswith(header) and starts.keys() == tensors.keys()
    for name, tensor in tensors.items():
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert whole[starts[name] :].startswith(data)
    assert len(whole) == len(header) + sum(tensor.nbytes for tensor in tensors.values())
