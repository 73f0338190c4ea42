import math

import pytest

from mixllm.report.charts import models, pareto
from mixllm.report.curve import Point
from mixllm.report.measured import Row


def row(name: str, kl: float, error: float | None = None) -> Row:
    return Row(
        name=name, payload_bits=4.5, bits=4.7, bytes=None, perplexity=9.0, perplexity_error=None, kl=kl,
        kl_error=error, top1=0.9, top1_error=None, nll_difference=0.1, nll_difference_error=None,
    )  # fmt: skip


FLOAT = row("float", 0.0)


def test_a_model_without_a_distance_is_drawn_at_none():
    """As a float checkpoint beside itself has it."""
    chart = models([FLOAT, row("same", 0.0), row("other", 0.25, 0.01)])
    assert chart is not None and [cells[0] for cells in chart.table.rows] == ["same", "other"]
    assert "Of 2 quantized models same is nearest" in chart.summary
    assert models([FLOAT, row("same", 0.0)]) is not None


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_broken_models_distance_is_left_out(kl: float):
    assert models([FLOAT, row("broken", kl)]) is None
    chart = models([FLOAT, row("broken", kl), row("sound", 0.5)])
    assert chart is not None and [cells[0] for cells in chart.table.rows] == ["sound"]
    curve = [Point(4.0, 0.2), Point(8.0, 0.01)]
    drawn = pareto(curve, curve[0], [row("broken", kl), row("sound", 0.5)])
    assert [cells[1] for cells in drawn.table.rows[-1:]] == ["sound, measured KL"] and len(
        drawn.table.rows
    ) == 4


def test_a_name_is_no_formula():
    chart = models([FLOAT, row(r"$\foo$", 0.5)])
    assert chart is not None and r"$\foo$" in chart.svg
