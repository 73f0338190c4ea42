"""llama.cpp's whole engine beside ours: a process of its own, asked for one round at a time.

    python benchmarks/llama_cpp.py GGUF THREADS PROMPT TOKENS

Uses the wheel xllamacpp, which has llama.cpp built in. The first line of standard output says what was built,
then each line of standard input asks for a round and a line answers it: JSON of the tokens a second of the
prompt and after it. A process of its own, since llama.cpp brings its own OpenMP threads; what it logs stays
on standard error, so that a failure says why.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any


class LlamaCpp:
    """A process with the model loaded. described: the wheel's version and what its build uses of the CPU."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.described: str = self._answer()

    def speeds(self) -> tuple[float, float]:
        """Tokens a second: of the prompt, and after it."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        prompt, tokens = self._answer()
        return prompt, tokens

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("llama.cpp ended; its last lines above say why")
        return json.loads(line)


@contextmanager
def started(gguf: Path, threads: int, prompt: int, tokens: int) -> Iterator[LlamaCpp]:
    command = [sys.executable, __file__, str(gguf), *map(str, (threads, prompt, tokens))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield LlamaCpp(process)
        finally:
            process.terminate()


def serve(gguf: str, threads: int, prompt: int, tokens: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = gguf, prompt + tokens + 8, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(json.dumps(f"xllamacpp {version('xllamacpp')}, {xllamacpp.get_system_info().strip()}"), flush=True)
    # The tokens' numbers, so that the prompt has as many as it should.
    asked = {"prompt": [1000] * prompt, "n_predict": tokens, "cache_prompt": False, "ignore_eos": True}
    for _ in sys.stdin:
        timings = server.handle_completions(asked)["timings"]
        assert timings["prompt_n"] == prompt and timings["predicted_n"] == tokens, timings
        print(json.dumps([timings["prompt_per_second"], timings["predicted_per_second"]]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
