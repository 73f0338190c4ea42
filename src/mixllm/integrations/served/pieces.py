"""A layer's tensors as an engine hands them out, and the weight that a rank makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from mixllm.config import Format
from mixllm.errors import MixllmError
from mixllm.format.config import QuantizedModule
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import for_kernels, pack_nibbles, shapes
from mixllm.format.parts import join, select_channels, select_inputs
from mixllm.format.validate import GUARD
from mixllm.format.values import check_values

LayerLoader = Callable[..., None]
NOT_AS_TOLD = "tensors are missing, or not of the shapes that config.json tells"


class Pieces:
    """The checkpoint's tensors of one layer of the engine, by the shard ("q", 0, None ...) they are of."""

    def __init__(self, format: Format, modules: Mapping[str, QuantizedModule], prefix: str) -> None:
        self.format, self.modules, self.prefix = format, modules, prefix
        self.shards: dict[Hashable, dict[str, Tensor]] = {}
        self.assembled = False

    def loader(self, name: str) -> Callable[..., None]:
        """The weight_loader of the parameter of that name: keeps the whole tensor."""

        def load(parameter: Parameter, tensor: Tensor, shard: Hashable = None) -> None:
            check_new(self.prefix, self.assembled)
            self.shards.setdefault(shard, {})[name] = on_host(tensor)

        return load

    def assemble(self, load: LayerLoader, channels: int, first_input: int, inputs: int) -> MixedWeight:
        """This rank's weight [channels, inputs], once; then the pieces are forgotten.

        load: the layer's own weight_loader. It knows which rows of which shard this rank holds, and
        where; so it is asked, by being given row numbers to load where others give it rows.
        Raises MixllmError for a checkpoint that lacks tensors or whose tensors are not sound.
        """
        numbers = Parameter(torch.full((channels,), -1), requires_grad=False)
        vars(numbers)["output_dim"] = 0
        wholes: dict[int, MixedWeight] = {}  # by the number of its first row
        first = 0
        for shard, tensors in self.shards.items():
            weight = wholes[first] = self._whole(tensors)
            here = torch.arange(first, first + weight.out_features)
            load(numbers, here, *(() if shard is None else (shard,)))
            first += weight.out_features
        self.shards, self.assembled = {}, True
        if bool((numbers < 0).any()):
            row = int((numbers < 0).nonzero()[0])
            raise MixllmError(f"{self.prefix}: the checkpoint has no tensors for its output channel {row}")
        parts: dict[int, MixedWeight] = {}  # by the number of its first channel here
        for first, weight in wholes.items():
            last = first + weight.out_features
            mine = ((numbers >= first) & (numbers < last)).nonzero().flatten()
            part = select_channels(weight, numbers[mine] - first)
            if inputs != weight.in_features:
                part = select_inputs(part, self.format, first_input, first_input + inputs)
            parts[int(mine[0])] = part
        return join([parts[channel] for channel in sorted(parts)])

    def _whole(self, tensors: dict[str, Tensor]) -> MixedWeight:
        """One shard's tensors as the weight of that of the layer's modules which has these shapes."""
        for module in self.modules.values():
            if has_shapes(tensors, module, self.format):
                return sound(tensors, module, self.format, self.prefix)
        raise MixllmError(f"{self.prefix}: {NOT_AS_TOLD}")


def has_shapes(tensors: Mapping[str, Tensor], module: QuantizedModule, format: Format) -> bool:
    """Whether these are all tensors of the module's, of the shapes that config.json tells."""
    expected = {name: shape for name, (shape, _) in shapes(format, module.rows, module.in_features).items()}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected | {GUARD: (0,)}


def sound(tensors: Mapping[str, Tensor], module: QuantizedModule, format: Format, where: str) -> MixedWeight:
    """A module's tensors, of the right shapes, as the weight that kernels have; MixllmError where dtypes or
    values are wrong. They are checked here, too, since a model on the hub comes unchecked."""
    held = {}
    for name, (_, dtypes) in shapes(format, module.rows, module.in_features).items():
        held[name] = tensors[name]
        if held[name].dtype not in dtypes:
            raise MixllmError(f"{where}: {name}: its dtype is {held[name].dtype}; download the model again")
    if fault := check_values(held, format, module.in_features):
        raise MixllmError(f"{where}: {fault[0]}: {fault[1]}")
    return for_kernels(MixedWeight(module.in_features, **held), format)


def check_new(prefix: str, assembled: bool) -> None:
    """Raise MixllmError where an engine reloads the weight of a layer that runs."""
    if assembled:
        raise MixllmError(f"{prefix}: a mixllm layer is loaded once; start the engine anew")


def on_host(tensor: Tensor) -> Tensor:
    """A checkpoint's tensor to be kept until its layer is whole: as it lies in the mapped file, but copied
    from a GPU, where loaders such as fastsafetensors put it in a buffer that they use again."""
    return tensor.cpu()


def all_rows(modules: Iterable[QuantizedModule]) -> dict[int, int]:
    """Rows by width of all these modules: whose tensors a layer made of them has to expect."""
    rows: Counter[int] = Counter()
    for module in modules:
        rows.update(module.rows)
    return dict(rows)


def wide_share(modules: Iterable[QuantizedModule]) -> float:
    """The share of these modules' rows that run as 8-bit rows."""
    rows = all_rows(modules)
    return sum(count for width, count in rows.items() if width > 4) / sum(rows.values())


def placeholder_weight(
    format: Format, channels: int, inputs: int, share: float, device: torch.device
) -> MixedWeight:
    """Random codes with plausible scales, `share` of the channels 8-bit: what load_format "dummy" serves."""
    n8 = round(share * channels)
    n4 = channels - n8
    generator = torch.Generator(device).manual_seed(0)

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.randint(low, high, shape, dtype=dtype, generator=generator, device=device)

    order = torch.randperm(channels, generator=generator, device=device).to(torch.int32)
    sizes = {name: shape for name, (shape, _) in shapes(format, {4: n4, 8: n8}, inputs).items()}
    groups = format.groups(inputs)
    zeros = 1 if format.weight_scale == "row" else groups
    scale = inputs**-0.5
    # multiplier x (code - zero) stays within int8 for zero 7 or 8 and multipliers up to 16.
    multipliers = integers(4, 12, n4, groups) if format.weight_scale == "group_int" else None
    return MixedWeight(
        in_features=inputs,
        rows=torch.cat((order[:n4].sort().values, order[n4:].sort().values)),
        codes4=pack_nibbles(integers(0, 16, n4, inputs)),
        zeros4=pack_nibbles(integers(7, 9, n4, zeros)),
        scales4=torch.full(sizes["scales4"], scale / (32 if multipliers is not None else 4), device=device),
        codes8=integers(-127, 128, n8, inputs, dtype=torch.int8),
        scales8=torch.full(sizes["scales8"], scale / 64, device=device),
        multipliers4=None if multipliers is None else pack_nibbles(multipliers),
    )
