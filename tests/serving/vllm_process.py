"""Starting vLLM in processes of its own, with the settings that a small CPU machine needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ENGINE = Path(__file__).with_name("engine.py")


def environment(compile: bool, **more: str) -> dict[str, str]:
    quick = {} if compile else {"TORCH_COMPILE_DISABLE": "1"}
    return {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        **quick,
        **more,
    }


def engines(jobs: list[dict[str, Any]], compile: bool = False) -> subprocess.CompletedProcess[str]:
    """Run tests/serving/engine.py, its engines inside the one process where they are of one rank."""
    job = [sys.executable, str(ENGINE), json.dumps(jobs)]
    env = environment(compile, VLLM_ENABLE_V1_MULTIPROCESSING="0")
    return subprocess.run(job, env=env, capture_output=True, text=True, timeout=600)


def results(jobs: list[dict[str, Any]], compile: bool = False) -> list[list[dict[str, Any]]]:
    done = engines(jobs, compile)
    assert done.returncode == 0, done.stderr[-5000:]
    answers: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answers
