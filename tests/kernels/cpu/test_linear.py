"""Every instruction set that this machine has, against the reference: integers bit for bit."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack
from mixllm.kernels import cpu
from mixllm.kernels.reference import ReferenceLinear
from tests import shapes
from tests.kernels.cpu.guard import guarded
from tests.kernels.test_reference import rounded

# Every width of a tile, tiles in a row, and more than one chunk's.
tokens = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 9, 13, 17, 24, 25, 50, 389])
shares8 = st.sampled_from([0.0, 0.3, 1.0])
isas = pytest.mark.parametrize("isa", cpu.instruction_sets())


def layer(format: Format, n: int, k: int, share8: float, seed: int) -> MixedWeight:
    return pack(rounded(format, n, k, share8, seed), format)


def exact(format: Format) -> bool:
    """Whether one integer, scaled twice, is the whole sum."""
    return format.weight_scale != "group" and format.activation_group == "token"


@isas
@pytest.mark.parametrize("format", shapes.FORMATS, ids=shapes.FORMAT_IDS)
@given(shapes.out_features, shapes.in_features, tokens, shares8, shapes.seeds)
def test_agrees_with_the_reference(
    isa: str, format: Format, n: int, k: int, t: int, share8: float, seed: int
) -> None:
    weight = layer(format, n, k, share8, seed)
    x, bias = shapes.inputs(t, k, seed), torch.randn(n, generator=torch.Generator().manual_seed(seed))
    y, expected = cpu.prepare(weight, format, isa)(x, bias), ReferenceLinear(weight, format)(x, bias)
    if exact(format):
        assert torch.equal(y, expected)
    else:
        largest = float(expected.abs().amax()) if t else 0.0
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * largest)


@isas
@pytest.mark.parametrize("format", shapes.FORMATS, ids=shapes.FORMAT_IDS)
def test_all_instruction_sets_give_the_same_bits(isa: str, format: Format) -> None:
    weight, x = layer(format, 37, 1100, 0.3, 5), shapes.inputs(29, 1100, 6)
    assert torch.equal(cpu.prepare(weight, format, isa)(x), cpu.prepare(weight, format, "portable")(x))


@isas
@pytest.mark.parametrize("format", shapes.FORMATS[::3], ids=shapes.FORMAT_IDS[::3])
@pytest.mark.parametrize("t", [33, 130])
def test_several_blocks_at_once_give_the_same_bits(isa: str, format: Format, t: int) -> None:
    """Enough rows for a piece of work to be several blocks, the last one fewer; 4 and 8 bits meet in one."""
    weight, x = layer(format, 700, 1100, 0.3, 7), shapes.inputs(t, 1100, 8)
    assert torch.equal(cpu.prepare(weight, format, isa)(x), cpu.prepare(weight, format, "portable")(x))


@isas
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("format", [Format(), Format(rotation="none")], ids=["hadamard", "none"])
def test_other_dtypes_have_the_bits_of_the_reference(isa: str, dtype: torch.dtype, format: Format) -> None:
    weight = layer(format, 37, 328, 0.3, 1)
    # From outputs that are subnormal in float16 to some that overflow it.
    x = (shapes.inputs(21, 328, 2) * torch.logspace(-8, 4, 21)[:, None]).to(dtype)
    bias = torch.linspace(-1e-6, 1e-6, 37).to(dtype)
    y, expected = cpu.prepare(weight, format, isa)(x, bias), ReferenceLinear(weight, format)(x, bias)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@isas
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("format", shapes.FORMATS[::5], ids=shapes.FORMAT_IDS[::5])
def test_a_bad_token_spoils_itself_alone(isa: str, bad: float, format: Format) -> None:
    run = cpu.prepare(layer(format, 19, 300, 0.3, 1), format, isa)
    x = shapes.inputs(5, 300, 2)
    clean = run(x)
    x[1, 299] = bad
    y = run(x)
    assert bool(y[1].isnan().all())
    assert torch.equal(y[[0, 2, 3, 4]], clean[[0, 2, 3, 4]])


@isas
def test_sums_at_their_largest(isa: str) -> None:
    k, format = 132_000, Format(weight_scale="row", rotation="none")
    weight = MixedWeight(
        k,
        rows=torch.arange(2, dtype=torch.int32),
        codes4=torch.full((1, k // 2), 0, dtype=torch.uint8),
        zeros4=torch.full((1, 1), 15, dtype=torch.uint8),
        scales4=torch.ones(1),
        codes8=torch.full((1, k), 127, dtype=torch.int8),
        scales8=torch.ones(1),
    )
    x = torch.full((3, k), -1.0)
    x[1] = 1
    most = [127.0 * 15 * k, -127.0 * 127 * k]
    y = cpu.prepare(weight, format, isa)(x * 127)
    assert torch.equal(y, torch.tensor([most, [-most[0], -most[1]], most]))


@isas
def test_nothing_is_written_beside_the_output(isa: str) -> None:
    format = Format()
    weight, x = layer(format, 21, 200, 0.3, 1), shapes.inputs(7, 200, 2)
    run = cpu.prepare(weight, format, isa)
    before = torch.full((9, 21), 12345.0)
    y = before[1:8]
    call = cpu.ops.Call(x.data_ptr(), y.data_ptr(), None, 7, 200, 0, run.isa)
    assert cpu.ops.load().mixllm_linear(run.described, call) == 0
    assert bool((before[0] == 12345).all()) and bool((before[8] == 12345).all())
    assert torch.equal(y, run(x))


def test_strided_inputs() -> None:
    format = Format()
    weight, x = layer(format, 21, 200, 0.3, 1), shapes.inputs(7, 400, 2)
    run = cpu.prepare(weight, format)
    for view in (x[:, 100:300], x[:, ::2], x.T[:200, :7].T):
        assert torch.equal(run(view), run(view.contiguous()))
    assert run(x[:, :200].view(7, 1, 200)).shape == (7, 1, 21)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    format = Format(weight_scale="group", activation_group=128)
    weight, x = layer(format, 300, 700, 0.3, 1), shapes.inputs(60, 700, 2)
    before = torch.get_num_threads()
    alone = cpu.prepare(weight, format)(x)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(cpu.prepare(weight, format)(x), alone)
    finally:
        torch.set_num_threads(before)


def test_copies_and_pickles_have_memory_of_their_own() -> None:
    format = Format()
    run, x = cpu.prepare(layer(format, 21, 200, 0.3, 1), format), shapes.inputs(3, 200, 2)
    expected = run(x)
    copies = [copy.deepcopy(run), pickle.loads(pickle.dumps(run))]
    for tensor in run.tensors:
        tensor.zero_()
    for each in copies:
        assert torch.equal(each(x), expected)


def test_mistakes_are_told() -> None:
    format = Format()
    weight = layer(format, 21, 200, 0.3, 1)
    run = cpu.prepare(weight, format)
    with pytest.raises(MixllmError, match="199 features, weight 200"):
        run(torch.zeros(2, 199))
    with pytest.raises(MixllmError, match=r"bias must be \[21\]"):
        run(torch.zeros(2, 200), torch.zeros(20))
    with pytest.raises(MixllmError, match=r"input is torch\.int64"):
        run(torch.zeros(2, 200, dtype=torch.int64))
    with pytest.raises(MixllmError, match="no altivec here"):
        cpu.prepare(weight, format, "altivec")


def test_the_operator_is_traced_and_meets_torchs_checks() -> None:
    format = Format()
    run, x = cpu.prepare(layer(format, 21, 200, 0.3, 1), format), shapes.inputs(3, 200, 2)
    args = (x, torch.ones(21), run.tensors, run.numbers, run.isa)
    torch.library.opcheck(torch.ops.mixllm.cpu_linear.default, args)
    assert torch.equal(torch.ops.mixllm.cpu_linear(*args), run(x, torch.ones(21)))


@isas
@pytest.mark.parametrize("scale", ["group", "group_int", "row"])
def test_weights_and_inputs_against_a_guard_page(isa: str, scale: str) -> None:
    """Every tensor ends at a page's end, and the next page may not be read: nothing reads past one."""
    format = Format.model_validate({"weight_scale": scale})
    weight, x = layer(format, 37, 200, 0.3, 1), shapes.inputs(25, 200, 2)
    run = cpu.prepare(weight, format, isa)
    expected = run(x)
    with guarded([*run.tensors, x]) as (*tensors, guarded_x):
        assert torch.equal(
            cpu.ops.run(cpu.ops.describe(tensors, run.numbers), guarded_x, None, run.isa), expected
        )
