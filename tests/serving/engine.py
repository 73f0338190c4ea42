"""Runs vLLM on the jobs of a JSON list, one engine after the other in this process.

    python engine.py '[{"model": DIR, "dtype": "float32", ...}]'

A job is what vllm.LLM takes, and the directory of an "adapter" if there is one. The last line printed is a
JSON list with, for each job, the token ids of each answer, the log-probability of every token but the first,
of prompt and answer, and how many tokens of its prompt were in the prefix cache. They are of the answer only
with an adapter, since vLLM's CPU engine has no others then, and with a prefix cache, which is not read for
others: the prompts are sent twice, and the second answers told. A job with "runner": "pooling" tells each
prompt's "embedding" instead.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

PROMPTS = [[1, *range(5, 45)], [1, *range(250, 90, -7)]]
ANSWER = 6


def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm import LLM, SamplingParams
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
    from vllm.lora.request import LoRARequest

    adapter = job.pop("adapter", None)
    cached = job.get("enable_prefix_caching", False)
    limits = {"max_model_len": 128, "max_num_batched_tokens": 128, "enable_prefix_caching": False}
    engine = LLM(**{**limits, **job}, enable_lora=adapter is not None)
    of_prompt = None if adapter or cached else 0
    sampling = SamplingParams(
        max_tokens=ANSWER, temperature=0, prompt_logprobs=of_prompt, logprobs=0, ignore_eos=True
    )
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    if job.get("runner") == "pooling":
        return [{"embedding": output.outputs.embedding} for output in engine.embed(prompts, use_tqdm=False)]
    lora = None if adapter is None else LoRARequest("adapter", 1, adapter)
    for _ in range(1 + cached):
        outputs = engine.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
    answers = []
    for ids, output in zip(PROMPTS, outputs, strict=True):
        answer = list(output.outputs[0].token_ids)
        steps = [*(output.prompt_logprobs or [])[1:], *output.outputs[0].logprobs]
        tokens = [*ids[1:], *answer][-len(steps) :]
        found = [step[token].logprob for step, token in zip(steps, tokens, strict=True)]
        answers.append({"answer": answer, "logprobs": found, "cached": output.num_cached_tokens})
    engine.llm_engine.engine_core.shutdown()
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return answers


def main() -> None:
    results = [run(job) for job in json.loads(sys.argv[1])]
    print(json.dumps(results))


if __name__ == "__main__":  # vLLM's workers import this file again
    main()
