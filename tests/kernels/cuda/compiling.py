"""What is compiled in CI for each architecture, and what ptxas says of it.

python -m tests.kernels.cuda.compiling > tests/kernels/cuda/ptxas.json      (after a change that is meant)
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from mixllm.kernels.cuda import hopper, quantizing, skinny, strips
from mixllm.kernels.cuda.build import SOURCES, options
from mixllm.kernels.cuda.tiles import Scales, choose, shared_bytes, table

# Bytes of shared memory that a block can have.
LIMITS = {
    "sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90a": 232448, "sm_100": 232448, "sm_120": 101376
}  # fmt: skip
KINDS = [Scales(0, True), Scales(1, False), Scales(1, True), Scales(0, False), Scales(2, False)]
# VECTORS, ROTATE, TAIL, GROUP, FUSED, PARTS
QUANTIZERS = [
    (1, 1, 0, 0, 0, 1), (2, 0, 0, 128, 0, 1), (4, 1, 1, 0, 0, 1), (4, 1, 0, 512, 0, 1), (4, 1, 1, 256, 0, 1),
    (2, 1, 0, 0, 1, 1), (2, 1, 0, 0, 2, 1), (2, 1, 0, 512, 0, 1), (2, 1, 1, 0, 0, 8), (1, 0, 0, 128, 1, 4),
]  # fmt: skip
# ROTATE, TAIL, GROUP, SUMMED
MANY = [(1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 0, 1), (0, 1, 128, 0), (1, 0, 512, 0)]
# How strips.cu quantizes: not at all, one token, several.
FRESH: list[dict[str, int]] = [
    {"QUANTIZE": 0},
    {"QUANTIZE": 1, "VECTORS": 4, "INPUT": 1, "ROTATE": 1, "TAIL": 0},
    {"QUANTIZE": 2, "VECTORS": 4, "INPUT": 2, "ROTATE": 1, "TAIL": 1},
]
CLUSTERS = {"sm_90a", "sm_100", "sm_120"}
REPORT = Path(__file__).with_name("ptxas.json")

Job = tuple[str, dict[str, int], int]  # source, macros, dynamic shared memory
Entry = dict[str, int]


def jobs(arch: str) -> dict[str, Job]:
    """Each kernel that the table can ask for, and quantizers of every input, width and group."""
    found: dict[str, Job] = {}
    for scales in KINDS:
        for most, _ in table(scales.key):
            tile = choose(scales, most, LIMITS[arch])
            macros = {**tile.macros(), **scales.macros()}
            # grouped.cu is gemm.cu's code with another entry: the two profiles' kinds show it.
            also = scales in KINDS[:2] and not tile.stream
            for source in [tile.source, "grouped.cu"] if also else [tile.source]:
                name = " ".join([source, *map(str, macros.values())])
                found[name] = (source, macros, shared_bytes(tile, scales))
    if arch == "sm_90a":
        for scales in KINDS:
            for many in hopper.TILES[scales.key]:
                macros = {**many.macros(), **scales.macros()}
                name = " ".join(["hopper.cu", *map(str, macros.values())])
                found[name] = ("hopper.cu", macros, many.shared_bytes(scales))
            for few in (row.tile for row in skinny.table(scales.key)):
                macros = {**few.macros(), **scales.macros()}
                name = " ".join(["skinny.cu", *map(str, macros.values())])
                found[name] = ("skinny.cu", macros, few.shared_bytes(scales))
            alone = {row.tile for row in strips.table(scales.key, "fresh")} if scales.token else set()
            every = strips.tiles(scales.key)
            pairs = [(strip, fresh) for fresh in FRESH for strip in (alone if fresh["QUANTIZE"] else every)]
            for strip, fresh in sorted(pairs, key=str):
                macros = {**strip.macros(), **scales.macros(), **fresh}
                name = " ".join(["strips.cu", *map(str, macros.values())])
                found[name] = ("strips.cu", macros, strip.shared)
        for kind, many_of in product((0, 1), MANY):
            values = (kind, *many_of, quantizing.MANY_THREADS)
            macros = dict(zip(("INPUT", "ROTATE", "TAIL", "GROUP", "SUMMED", "THREADS"), values, strict=True))
            found[" ".join(["quantize_many.cu", *map(str, values)])] = ("quantize_many.cu", macros, 0)
    found["route.cu 128"] = ("route.cu", {"EXPERTS": 128}, 0)
    for kind in range(3):
        for quantizer in QUANTIZERS:
            names = ("VECTORS", "ROTATE", "TAIL", "GROUP", "FUSED", "PARTS")
            if quantizer[-1] > 1 and arch not in CLUSTERS:
                continue
            vectors, group, parts = quantizer[0], quantizer[3], quantizer[-1]
            heavy = arch == "sm_90a" and (vectors < 4 or parts > 1)
            for tiled in range(2 + (group == 0 and parts == 1) if heavy else 1):
                macros = {"INPUT": kind, **dict(zip(names, quantizer, strict=True)), "TILED": tiled}
                found[" ".join(["quantize.cu", *map(str, macros.values())])] = ("quantize.cu", macros, 0)
    return found


def compile_one(job: Job, arch: str) -> Entry:
    """Registers, bytes spilled and bytes of shared memory; raises where nvcc refuses or warns."""
    source, macros, shared = job
    with tempfile.TemporaryDirectory() as directory:
        target = f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"
        command = [nvcc(), "-cubin", target, "-Xptxas", "-v", "-Werror", "all-warnings", *options(macros)]
        command += ["-o", f"{directory}/kernel.cubin", str(SOURCES / source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(f"{source} {macros} for {arch}:\n{done.stderr}")
    log = done.stdout + done.stderr
    if "serialized" in log:  # ptxas only remarks that it waits after each wgmma
        raise AssertionError(f"{source} {macros} for {arch}:\n{log}")
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", log))
    static = sum(int(n) for n in re.findall(r"(\d+) bytes smem", log))
    registers = int(re.findall(r"Used (\d+) registers", log)[-1])
    return {"registers": registers, "spilled": spilled, "shared": shared + static}


def compile_all(arch: str) -> dict[str, Entry]:
    work = jobs(arch)
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(work, pool.map(lambda job: compile_one(job, arch), work.values()), strict=True))


def nvcc() -> str:
    found = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if not Path(found).exists():
        raise AssertionError("the CUDA kernels are checked with nvcc: install the CUDA toolkit")
    return found


def nvcc_version() -> str:
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"V([\d.]+)", text)[0]


if __name__ == "__main__":
    report = {"nvcc": nvcc_version(), **{arch: compile_all(arch) for arch in sys.argv[1:] or LIMITS}}
    print(json.dumps(report, indent=1))
