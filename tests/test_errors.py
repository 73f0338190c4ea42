import pytest

from mixllm.errors import one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\n  and\ttwo \n"), "one and two"),
        (KeyError(), "KeyError"),
        (OSError(2, "No such file", "x"), "[Errno 2] No such file: 'x'"),
        (ValueError("long " * 100), ("long " * 60)[:300]),
    ],
)
def test_a_librarys_message_fits_a_line(error: Exception, line: str):
    assert one_line(error) == line
