"""Files that hold all experts of a layer as two tensors, as transformers' own modules do.

X.experts.gate_up_proj [E, 2 I, H] and X.experts.down_proj [E, H, I] are read as the matrices that other
files hold one by one: X.experts.3.gate_proj.weight [I, H], up_proj [I, H] and down_proj [H, I].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from mixllm.names import FUSED, LEAVES

# Models (by model_type) whose published files call an expert's layers w1, w3 and w2.
NUMBERED = {"lfm2_moe", "minimax", "minimax_m2", "mixtral", "phimoe"}


@dataclass(frozen=True)
class Part:
    """Rows first .. last - 1 of one expert's matrix in the tensor `whole`."""

    whole: str
    expert: int
    first: int
    last: int


def published(name: str, model_type: str) -> str:
    """What published files of this model_type call the tensor that transformers' modules call `name`."""
    if model_type not in NUMBERED - {"lfm2_moe"}:
        return name
    return name.replace(".mlp.router.", ".block_sparse_moe.gate.").replace(".mlp.", ".block_sparse_moe.")


def expert_parts(
    names: Collection[str], shape: Callable[[str], tuple[int, ...]], model_type: str
) -> dict[str, dict[str, Part]]:
    """By fused tensor, in the order of `names`: the matrices that it holds, by name.

    The matrices have the names that transformers knows from published files of this model_type. Left out
    are experts with more tensors than these two (a bias), or laid out otherwise (transposed, as Llama 4's
    and gpt-oss's are): they are no linear layers that could be quantized one by one.
    """
    found: dict[str, dict[str, Part]] = {}
    gate, up, last = LEAVES[model_type in NUMBERED]
    for parent, leaves in _by_parent(names).items():
        if not parent.endswith(".experts") or leaves != set(FUSED):
            continue
        both, down = (f"{parent}.{leaf}" for leaf in FUSED)
        count, hidden, inner = shape(down) if len(shape(down)) == 3 else (0, 0, 0)
        if shape(both) == (count, 2 * inner, hidden):
            found[both] = _parts(both, count, {gate: (0, inner), up: (inner, 2 * inner)})
            found[down] = _parts(down, count, {last: (0, hidden)})
    return {name: found[name] for name in names if name in found}


def _parts(whole: str, count: int, rows: dict[str, tuple[int, int]]) -> dict[str, Part]:
    parent = whole.rpartition(".")[0]
    return {
        f"{parent}.{expert}.{leaf}.weight": Part(whole, expert, *cut)
        for expert in range(count)
        for leaf, cut in rows.items()
    }


def _by_parent(names: Iterable[str]) -> dict[str, set[str]]:
    """The last parts of these names by what is before them."""
    found: dict[str, set[str]] = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        found.setdefault(parent, set()).add(leaf)
    return found
