import torch
from torch import Tensor, nn

from mixllm.rounding.fed import fed


def test_what_each_is_fed_and_who_read_it_before() -> None:
    linears = {name: nn.Linear(3, 5) for name in ("q", "k", "o")}
    seen: list[tuple[str, int, str | None]] = []

    def see(name: str, x: Tensor, before: str | None) -> None:
        seen.append((name, len(x), before))

    first, second = torch.zeros(7, 3), torch.zeros(9, 3)
    with fed(linears, see):
        for name, x in (("q", first), ("k", first), ("o", second), ("q", first), ("k", first.clone())):
            linears[name](x)
    linears["q"](first)
    assert seen == [("q", 7, None), ("k", 7, "q"), ("o", 9, None), ("q", 7, None), ("k", 7, None)]
