import pytest

from mixllm.disk import measuring_bytes, parse_size, run_bytes
from mixllm.errors import MixllmError


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("1000", 1000), (" 2TB ", 2 * 10**12)],
)
def test_sizes_as_people_type_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5 apples", "-5GB", "1.2.3GB", "0", "inf", "5G B", "9" * 400])
def test_what_is_no_size_is_a_one_line_error(text: str) -> None:
    with pytest.raises(MixllmError, match="is no size; give one such as 5GB"):
        parse_size(text)


def test_a_run_needs_its_result_and_a_shard_or_what_measuring_keeps() -> None:
    assert run_bytes(100, 30, 50, tuned=False) == 130
    assert run_bytes(100, 300, 50, tuned=False) == 200
    assert run_bytes(100, 30, 500, tuned=False) == 500
    assert run_bytes(100, 30, 50, tuned=True) == 230
    assert measuring_bytes(7, 40) == 54
