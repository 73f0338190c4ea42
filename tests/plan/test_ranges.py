import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixllm.plan.ranges import read_ranges, write_ranges


@pytest.mark.parametrize(
    ("rows", "text"),
    [([], ""), ([5], "5"), ([0, 1, 2, 3, 7, 12, 13], "0-3,7,12-13"), ([0, 2, 4], "0,2,4"), ([0, 1], "0-1")],
)
def test_ranges_read_as_a_person_writes_them(rows: list[int], text: str):
    assert write_ranges(torch.tensor(rows, dtype=torch.int64)) == text
    assert torch.nonzero(read_ranges(text, 20))[:, 0].tolist() == rows


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_every_set_of_rows_comes_back(mask: list[bool]):
    rows = torch.nonzero(torch.tensor(mask))[:, 0]
    assert read_ranges(write_ranges(rows), len(mask)).tolist() == mask


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3-1", "out of order"),
        ("5,5", "out of order"),
        ("2-6,6", "out of order"),
        ("7,3", "out of order"),
        ("8-10", "row 10 is out of range, there are 10 rows"),
        ("99999999999999999999", "out of range"),
        ("-3", "not a row"),
        ("1,,2", "not a row"),
        ("all", "not a row"),
        ("1-2-3", "not a row"),
    ],
)
def test_bad_ranges_say_what_is_wrong(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_ranges(text, 10)
