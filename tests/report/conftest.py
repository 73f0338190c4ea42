from mixllm.cli import main
from tests.cli.conftest import Tiny, tiny

__all__ = ["Tiny", "run", "tiny"]


def run(*arguments: object) -> int:
    return main.run([str(argument) for argument in arguments])
