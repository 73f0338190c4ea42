import io
import json
import re
import time

import pytest
from rich.console import Console

from mixllm.progress import Bars, JsonLines, Progress, Silent, Together


def run(progress: Progress, steps: int = 3) -> None:
    with progress.stage("rounding", total=steps) as bar:
        for _ in range(steps):
            bar.advance()
    progress.note("[done]")


def events(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_give_rate_and_time_left_not_more_often_than_the_interval():
    stream, seconds = io.StringIO(), iter([0.0, 4.0, 6.0, 9.0, 12.0, 20.0])
    log = JsonLines(stream, interval=5.0, clock=lambda: next(seconds))
    with log.stage("rounding", total=8) as bar:
        for _ in range(4):
            bar.advance(2)
    start, first, second, end = events(stream.getvalue())
    assert (start["event"], start["stage"], start["total"]) == ("start", "rounding", 8)
    assert (first["done"], first["rate"], first["seconds_left"]) == (4, 0.667, 6.0)
    assert (second["done"], second["seconds_left"]) == (8, 0.0)
    assert (end["event"], end["done"], end["seconds"]) == ("end", 8, 20.0)


def test_json_lines_tell_the_block_and_the_memory():
    stream, seconds = io.StringIO(), iter([0.0, 6.0, 12.0, 13.0])
    with JsonLines(stream, clock=lambda: next(seconds)).stage("rounding", total=6, blocks=3) as bar:
        bar.advance()
        bar.advance(4)
    _, first, second, end = events(stream.getvalue())
    assert (first["block"], first["blocks"], second["block"]) == (0, 3, 2)
    for event in (first, second, end):
        assert isinstance(event["host_bytes"], int) and 10**7 < event["host_bytes"] < 10**11
        assert event["gpu_peak_bytes"] == 0


def test_json_lines_of_a_cut_stage_have_no_end():
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), JsonLines(stream).stage("salience", total=2):
        raise KeyboardInterrupt
    assert [event["event"] for event in events(stream.getvalue())] == ["start"]


def test_bars_show_stage_count_and_notes_as_they_are():
    stream = io.StringIO()
    run(Bars(Console(file=stream, width=100)))
    text = stream.getvalue()
    assert "rounding" in text and "3/3" in text and "[done]" in text


def test_bars_count_blocks_and_show_memory():
    stream = io.StringIO()
    with Bars(Console(file=stream, width=120)).stage("rounding", total=12, blocks=3) as bar:
        bar.advance(8)
    text = stream.getvalue()
    assert "block 2/3" in text and " GB" in text and "GPU" not in text


def test_bars_leave_the_terminal_usable_after_ctrl_c():
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=100))
    with pytest.raises(KeyboardInterrupt), bars.stage("salience", total=2):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is shown again
    run(bars)


def test_together_tells_all_and_silent_nothing(capsys: pytest.CaptureFixture[str]):
    logs = io.StringIO(), io.StringIO()
    run(Together(JsonLines(logs[0]), Silent(), JsonLines(logs[1])))
    for log in logs:
        start, end, note = events(log.getvalue())
        assert (start["event"], start["stage"], start["total"]) == ("start", "rounding", 3)
        assert (end["event"], end["stage"], end["done"]) == ("end", "rounding", 3)
        assert (note["event"], note["message"]) == ("note", "[done]")
    assert capsys.readouterr() == ("", "")


def test_a_narrow_terminal_has_a_shorter_bar_and_no_second_line() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=70, force_terminal=True, highlight=False)
    with Bars(console).stage("salience: backward", 60, 30) as stage:
        stage.advance()
        time.sleep(0.05)
        stage.advance(20)
        time.sleep(0.15)  # until it is drawn, with a rate
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).splitlines()
    assert any("block 10/30" in line and " second" in line and "GB" in line for line in drawn)


def test_a_very_narrow_terminal_has_what_is_done_and_the_time_whole() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=42, force_terminal=True, highlight=False)
    with Bars(console).stage("salience: backward", 60, 30) as stage:
        stage.advance(21)
        time.sleep(0.15)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"salience: backward block 10/30 (\d:\d\d:\d\d|-:--:--)", drawn) and "…" not in drawn
