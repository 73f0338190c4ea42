import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's own functions ask for it when they are declared, at whoever's first import of triton.
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import settings

# Workers that each start a thread per core would only wait for each other.
torch.set_num_threads(1)
# A shared machine stalls now and then; a property is not wrong because it was slow once.
settings.register_profile("mixllm", deadline=None, max_examples=50)
settings.load_profile("mixllm")


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """A test's random tensors do not depend on which tests its worker ran before."""
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu-library", type=Path, help="test this build of the CPU kernels")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--cpu-library"):
        from mixllm.kernels.cpu import library

        library.LIBRARY = path.resolve(strict=True)
