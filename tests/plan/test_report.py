import pytest
import torch
from safetensors.torch import save_file
from tests.saliences import random_salience

from mixllm.config import Format
from mixllm.format.config import QuantizedModule
from mixllm.format.pack import shapes
from mixllm.format.validate import GUARD
from mixllm.plan import choose, report

# One module [10, 200]: two groups of inputs (128 and 72), 7 rows of 4 bits and 3 of 8.
ODD = {"model.layers.3.mlp.down_proj": QuantizedModule(200, 10, {4: 7, 8: 3})}
PAYLOAD = 7 * 4 * 200 + 3 * 8 * 200
ROW_NUMBERS = 32 * 10


@pytest.mark.parametrize(
    ("weight_scale", "scales_and_zeros"),
    [
        ("group", 7 * 2 * (16 + 4) + 3 * 2 * 16),
        ("group_int", 7 * (2 * (4 + 4) + 32) + 3 * 32),
        ("row", 7 * (32 + 8) + 3 * 32),
    ],
)
def test_bits_are_those_of_codes_scales_zeros_and_row_numbers(weight_scale, scales_and_zeros):
    found = report(ODD, Format(weight_scale=weight_scale))
    assert found.weights == 2000
    assert found.payload_bits == PAYLOAD / 2000
    assert found.bits == (PAYLOAD + scales_and_zeros + ROW_NUMBERS) / 2000
    assert found.quantized_bytes == (PAYLOAD + scales_and_zeros + ROW_NUMBERS) / 8


def test_a_checkpoint_is_its_tensors_their_header_and_the_rest():
    found = report(ODD, Format(), other_bytes=10**6)
    assert found.other_bytes == 10**6
    header = found.checkpoint_bytes - found.quantized_bytes - 10**6
    names = [f"{name}.{tensor}" for name in ODD for tensor in (*shapes(Format(), {4: 7, 8: 3}, 200), GUARD)]
    assert sum(map(len, names)) + 50 * len(names) < header < sum(map(len, names)) + 70 * len(names)


def test_the_prediction_is_the_size_of_a_real_file(tmp_path):
    modules = {f"model.layers.{i}.m": QuantizedModule(200, 30, {4: 20, 8: 10}) for i in range(40)}
    tensors = {
        f"{name}.{tensor}": torch.zeros(shape, dtype=dtypes[0])
        for name in modules
        for tensor, (shape, dtypes) in shapes(Format(), {4: 20, 8: 10}, 200).items()
    }
    tensors |= {f"{name}.{GUARD}": torch.zeros(0) for name in modules}
    save_file({**tensors, "other": torch.zeros(1000, dtype=torch.uint8)}, tmp_path / "file")
    size = (tmp_path / "file").stat().st_size
    assert report(modules, Format(), other_bytes=1000).checkpoint_bytes == pytest.approx(size, rel=0.005)


def test_shares_by_kind_and_depth():
    plan = choose(random_salience(), bits=6)
    found = report(plan.counts(), plan.format)
    wide = {name: int((module.widths == 8).sum()) for name, module in plan.modules.items()}
    assert found.total.wide == sum(wide.values()) and found.total.rows == 26
    assert list(found.by_kind) == ["q_proj", "down_proj"] and list(found.by_depth) == [0, 1]
    assert found.by_kind["q_proj"].rows == 16 and found.by_depth[0].rows == 12
    for kind, share in found.by_kind.items():
        assert share.wide == sum(count for name, count in wide.items() if name.endswith(kind))
        assert share.percent == 100 * share.wide / share.rows
    for depth, share in found.by_depth.items():
        assert share.wide == sum(count for name, count in wide.items() if f".{depth}." in name)


def test_depth_is_the_blocks_number_even_where_experts_are_numbered():
    modules = {
        name: QuantizedModule(8, 2, {4: 1, 8: 1})
        for name in ("gpt_neox.layers.11.mlp.dense", "model.layers.2.mlp.experts.7.up_proj", "head")
    }
    assert set(report(modules, Format()).by_depth) == {11, 2, 0}


def test_a_digit_that_is_no_decimal_is_no_blocks_number():
    found = report({"model.².layers.5.q_proj": QuantizedModule(8, 2, {4: 1, 8: 1})}, Format())
    assert list(found.by_depth) == [5]
