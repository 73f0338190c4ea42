import pytest

from mixllm.placement import pick_device
from mixllm.ranks import joined
from mixllm.torchrun import here, is_first, number_here, world
from tests.saying import says

TOLD = {"RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "x", "MASTER_PORT": "1"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As the second of four processes on the second of two machines."""
    for name, value in {**TOLD, "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_what_torchrun_tells(started: pytest.MonkeyPatch) -> None:
    assert (world(), here(), number_here(), is_first()) == (8, 4, 1, False)
    started.setenv("RANK", "0")
    assert is_first()


def test_a_process_alone_is_the_first(started: pytest.MonkeyPatch) -> None:
    started.setenv("WORLD_SIZE", "1")
    assert (world(), here(), number_here(), is_first()) == (1, 1, 0, True)
    started.delenv("WORLD_SIZE")
    assert (world(), here(), number_here(), is_first()) == (1, 1, 0, True)


@pytest.mark.parametrize("missing", TOLD)
def test_a_scheduler_that_tells_only_how_many_there_are_is_one_line(
    started: pytest.MonkeyPatch, missing: str
) -> None:
    """A cluster's jobs have WORLD_SIZE, whether torchrun starts the process or not."""
    started.delenv(missing)
    with says(f"WORLD_SIZE: is 8 in the environment, but {missing} is not there; start .* with torchrun"):
        pick_device("cpu")
    with says("WORLD_SIZE: is 8"), joined(pick_device("cpu")):
        pass
