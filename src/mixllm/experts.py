"""A mixture's experts as ordinary linear layers.

transformers keeps a layer's experts as two fused parameters, gate_up_proj [E, 2 I, H] and down_proj
[E, H, I]. Model files mostly hold three matrices an expert. Here the module that holds the fused ones
is replaced by one whose layers have the files' names, such as experts.3.gate_proj: each is scored,
rounded, stored and run like any other linear layer. The router is not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import for_kernels
from mixllm.format.parts import join
from mixllm.names import FUSED, LEAVES, Names, in_files
from mixllm.nn import MixLinear

if TYPE_CHECKING:
    from mixllm.kernels.cuda.grouped import GroupedExperts


class Expert(nn.Module):
    """One expert: down(act(gate(x)) * up(x)), with the model's own gating.

    tokens: int64 [T], the numbers of the tokens that it was given last, of all that the layer was given.
    """

    tokens: Tensor

    def __init__(self, leaves: Sequence[str], fused: nn.Module) -> None:
        super().__init__()
        up, down = map(fused.get_parameter, FUSED)
        sizes = (up.shape[2], down.shape[2]), (up.shape[2], down.shape[2]), (down.shape[2], down.shape[1])
        self.leaves = tuple(leaves)
        for leaf, (k, n) in zip(leaves, sizes, strict=True):
            linear = nn.Linear(k, n, bias=False, dtype=up.dtype, device="meta")
            self.add_module(leaf, linear.requires_grad_(up.requires_grad))
        self.apply_gate = cast("Callable[[Tensor], Tensor]", fused._apply_gate)

    def forward(self, x: Tensor) -> Tensor:
        """x [T, H] -> [T, H]."""
        gate, up, down = (self.get_submodule(leaf) for leaf in self.leaves)
        y: Tensor = down(self.apply_gate(torch.cat((gate(x), up(x)), dim=-1)))
        return y


class Experts(nn.ModuleList):
    """Stands where a module with fused experts stood, and computes what it did."""

    def __init__(self, leaves: Sequence[str], fused: nn.Module) -> None:
        super().__init__(Expert(leaves, fused) for _ in range(len(fused.get_parameter("down_proj"))))
        self._kernel: GroupedExperts | None = None
        # The gating is a method of the module, which need not keep its weights for it.
        for name in FUSED:
            fused.register_parameter(name, None)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens [T, H], each one's experts int64 [T, top k] and their weights [T, top k] -> [T, H]."""
        if grouped := self._grouped():
            return grouped(hidden_states, top_k_weights, top_k_index)
        out = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():
            token, place = (top_k_index == number).nonzero(as_tuple=True)
            expert = self[number]
            expert.tokens = token
            y = expert(hidden_states[token]) * top_k_weights[token, place, None]
            out = out.index_add(0, token, y.to(out.dtype))
        return out

    def _grouped(self) -> GroupedExperts | None:
        """All experts as one kernel, made at the first forward after loading, also anew, or moving.

        None where they are not quantized, or not on an NVIDIA GPU.
        """
        first = next(self[0].children())
        if not isinstance(first, MixLinear) or torch.version.hip is not None:
            return None
        where = first.get_buffer("rows").device
        if where.type != "cuda":
            return None
        if self._kernel is None:
            from mixllm.kernels.cuda.grouped import GroupedExperts

            experts = [cast(Expert, expert) for expert in self]
            layers = [[expert.get_submodule(leaf) for leaf in expert.leaves] for expert in experts]
            if not all(
                isinstance(layer, MixLinear) and layer.backend in ("auto", "cuda")
                for three in layers
                for layer in three
            ):
                return None
            pairs = [joined(*(cast(MixLinear, layer) for layer in three)) for three in layers]
            self._kernel = GroupedExperts(pairs, first.format, experts[0].apply_gate, where)
        return self._kernel

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kernel = None
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._kernel = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped


def joined(gate: MixLinear, up: MixLinear, down: MixLinear) -> tuple[MixedWeight, MixedWeight]:
    """An expert's gate and up as one layer, and its down, in rows of 4 and 8 bits, as kernels have them."""
    first, second, last = (for_kernels(layer.stored, layer.format) for layer in (gate, up, down))
    return join([first, second]), last


def split_experts(model: nn.Module, held: Names) -> list[str]:
    """Put linear layers on meta, to be loaded, in place of every fused expert; returns the paths of these.

    held: the names of the model's files, which name the layers. Experts that the files do not hold one
    by one, or that look otherwise than the two parameters above, stay as they are.
    """
    fused = {path: module for path, module in model.named_modules() if _is_fused(module)}
    split = {path: leaves for path in fused if (leaves := _leaves(path, held))}
    for path, leaves in split.items():
        model.set_submodule(path, Experts(leaves, fused[path]))
    return list(split)


def _leaves(path: str, held: Names) -> tuple[str, ...] | None:
    first = ((leaves, f"{path}.0.{leaves[0]}.weight") for leaves in LEAVES)
    return next((leaves for leaves, name in first if in_files(name, held) in held), None)


def owners(linears: Mapping[str, nn.Module], model: nn.Module) -> dict[str, Expert]:
    """The expert that each of these layers of `model` is part of, by the layer's name; others have none."""
    experts = (part for part in model.modules() if isinstance(part, Expert))
    found = {id(layer): expert for expert in experts for layer in expert.children()}
    return {name: found[id(layer)] for name, layer in linears.items() if id(layer) in found}


def routed(model: nn.Module, config: Any) -> float:
    """The share of a mixture's experts that a token meets, 1 for other models. config: the text model's."""
    mixtures = (len(module) for module in model.modules() if isinstance(module, Experts))
    return float(getattr(config, "num_experts_per_tok", 1)) / next(mixtures, 1)


def _is_fused(module: nn.Module) -> bool:
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    if shapes.keys() != set(FUSED) or not hasattr(module, "_apply_gate"):
        return False
    up, down = (shapes[name] for name in FUSED)
    return len(down) == 3 and up == (down[0], 2 * down[2], down[1])
