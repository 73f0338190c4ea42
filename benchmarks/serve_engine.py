"""One vLLM engine under a bounded load; benchmarks/serve.py starts this once for each engine.

    python benchmarks/serve_engine.py '{"engine": {...}, "load": {...}, "turn": FILE, "result": FILE}'

"engine" is what vllm.LLM takes. Engines that start at one time share the lock of "turn" until they are ready;
then each is measured while it has that lock alone, with no other starting. Figures go to "result" row by row:
a run that is cut short tells what it can. What is printed is vLLM's.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def measure(engine: Any, vocabulary: int, load: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each concurrency, and one for a single prompt of load["prefill"] tokens, answered by one."""
    rng = random.Random(0)
    cases = [(n, load["prompt"], load["answer"]) for n in load["concurrency"]]
    for n, prompt, answer in [*cases, (1, load["prefill"], 1)]:
        rounds = [once(engine, vocabulary, n, prompt, answer, rng) for _ in range(1 + load["rounds"])][1:]
        row = {name: round(statistics.median(r[name] for r in rounds), 3) for name in rounds[0]}
        yield {"concurrency": n, "prompt": prompt, "answer": answer, **row}


def once(
    engine: Any, vocabulary: int, n: int, prompt: int, answer: int, rng: random.Random
) -> dict[str, float]:
    """n prompts sent together; medians over them: time to the first token, to each one after it (ms)."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": rng.choices(range(vocabulary), k=prompt)} for _ in range(n)]
    sampling = SamplingParams(max_tokens=answer, temperature=0, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - start
    times = [output.metrics for output in outputs]
    found = {
        "ttft_ms": statistics.median(t.first_token_latency for t in times) * 1e3,
        "tokens_per_s": n * answer / seconds,
    }
    if answer > 1:
        spans = [(t.last_token_ts - t.first_token_ts) / (answer - 1) for t in times]
        found["tpot_ms"] = statistics.median(spans) * 1e3
    return found


def weights_bytes(worker: Any) -> int:
    """What loading took of a rank's device memory; 0 from the CPU's engine, which does not say."""
    return getattr(worker.model_runner, "model_memory_usage", 0)


def main() -> None:
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # weights_bytes is sent to the worker
    job = json.loads(sys.argv[1])
    with open(job["turn"], "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_SH)
        from vllm import LLM

        start = time.perf_counter()
        # Without statistics there are no times of a request's tokens. Every prompt is new to the engine.
        engine = LLM(disable_log_stats=False, enable_prefix_caching=False, **job["engine"])
        ready = time.perf_counter() - start
        weights = max(engine.collective_rpc(weights_bytes))  # ranks of a mixed layer are unequal
        rows: list[dict[str, Any]] = []
        found = {"start_s": round(ready, 1), "weights_bytes": weights, "rows": rows}
        fcntl.flock(turn, fcntl.LOCK_EX)
        for row in measure(engine, engine.llm_engine.model_config.get_vocab_size(), job["load"]):
            rows.append(row)
            Path(job["result"]).write_text(json.dumps(found))
        # The engine's own process may have been forked with the file open: closing it here would not do.
        fcntl.flock(turn, fcntl.LOCK_UN)


if __name__ == "__main__":  # vLLM's own processes import this file again
    main()
