import pytest

from mixllm.human import duration, size


@pytest.mark.parametrize(
    ("count", "text"), [(98_123_456, "98.1 MB"), (0, "0.0 MB"), (4_870_000_000, "4.87 GB")]
)
def test_sizes(count: int, text: str):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text
