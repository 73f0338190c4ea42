import json

import pytest

from mixllm.cli.console import duration, print_json, size
from mixllm.plan import Share


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


def test_json_of_dataclasses_and_plain_values(capsys):
    print_json(Share(rows=4, wide=1))
    assert json.loads(capsys.readouterr().out) == {"rows": 4, "wide": 1}
    print_json({"a": [1.5, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [1.5, None]}
