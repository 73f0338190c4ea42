"""Parts of stored layers: some channels, some inputs, several layers joined into one.

What a serving engine does to a layer: split it over GPUs, and join q, k and v (gate and up) into one
product. Mixed rows stay mixed in both, so the result is again a layer of the format. All layers here have
rows of 4 and 8 bits alone, as kernels run them (see mixllm.format.pack.for_kernels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixllm.config import GROUP_SIZE, Format
from mixllm.errors import MixllmError
from mixllm.format.mixed import MixedWeight
from mixllm.format.pack import pack_nibbles, unpack_nibbles


def select_channels(weight: MixedWeight, channels: Tensor) -> MixedWeight:
    """The layer whose output i is output channels[i] of `weight`; channels: int [n], each at most once."""
    place = torch.empty(weight.out_features, dtype=torch.long, device=weight.rows.device)
    place[weight.rows.long()] = torch.arange(len(place), device=place.device)
    stored, n4 = place[channels], len(weight.codes4)
    narrow = stored < n4
    kept = {"4": stored[narrow], "8": stored[~narrow] - n4}
    tensors = {name: tensor[kept[name[-1]]] for name, tensor in weight.tensors().items() if name != "rows"}
    rows = torch.cat((narrow.nonzero(), (~narrow).nonzero())).flatten().to(torch.int32)
    return MixedWeight(weight.in_features, rows, **tensors)


def select_inputs(weight: MixedWeight, format: Format, start: int, stop: int) -> MixedWeight:
    """The layer that sees inputs start to stop - 1 only; summed over a cut of all inputs, such layers give
    y of the whole up to the rounding of activations (one scale a token becomes one a part).

    Raises MixllmError where a border falls inside a group of 128, of weights' scales or of the rotation.
    """
    k = weight.in_features
    if not 0 <= start < stop <= k or start % GROUP_SIZE or (stop % GROUP_SIZE and stop != k):
        raise MixllmError(f"inputs {start} to {stop - 1} of {k} are not whole groups of {GROUP_SIZE}")
    groups = slice(start // GROUP_SIZE, format.groups(stop))

    def of_groups(packed: Tensor) -> Tensor:
        return pack_nibbles(unpack_nibbles(packed, format.groups(k))[:, groups])

    by_group, by_row = format.weight_scale == "group", format.weight_scale == "row"
    return MixedWeight(
        in_features=stop - start,
        rows=weight.rows,
        codes4=weight.codes4[:, start // 2 : (stop + 1) // 2],
        zeros4=weight.zeros4 if by_row else of_groups(weight.zeros4),
        scales4=weight.scales4[:, groups] if by_group else weight.scales4,
        codes8=weight.codes8[:, start:stop],
        scales8=weight.scales8[:, groups] if by_group else weight.scales8,
        multipliers4=None if weight.multipliers4 is None else of_groups(weight.multipliers4),
    )


def join(weights: Sequence[MixedWeight]) -> MixedWeight:
    """One layer with the outputs of all, one after the other; all have the same format and inputs."""
    if len(weights) == 1:
        return weights[0]
    joined: dict[str, Tensor] = {}
    for name in weights[0].tensors():
        parts = [weight.tensors()[name] for weight in weights]
        if name != "rows":
            joined[name] = torch.cat(parts)  # float16 beside float32 scales become float32
    first, fours, eights = 0, [], []
    for weight in weights:
        n4 = len(weight.codes4)
        fours.append(weight.rows[:n4] + first)
        eights.append(weight.rows[n4:] + first)
        first += weight.out_features
    return MixedWeight(weights[0].in_features, rows=torch.cat((*fours, *eights)), **joined)
