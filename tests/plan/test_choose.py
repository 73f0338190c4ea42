import time
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.saliences import LLAMA_8B, SHAPES, random_salience

from mixllm.config import PROFILES, Format
from mixllm.errors import MixllmError
from mixllm.plan import ModuleSalience, Plan, Salience, choose

WEIGHTS = sum(n * k for n, k in SHAPES.values())
ROWS = sum(n for n, _ in SHAPES.values())
LONGEST = max(k for _, k in SHAPES.values())
SCOPES = ("global", "local", "random")


def one_layer(losses: dict[int, list[float]], k: int = 10) -> Salience:
    loss = {width: torch.tensor(values, dtype=torch.float64) for width, values in losses.items()}
    return Salience({"m": ModuleSalience(k, loss)}, "taylor", "rtn", 1, Format())


def widths(plan: Plan) -> list[int]:
    return torch.cat([module.widths for module in plan.modules.values()]).tolist()


def payload(plan: Plan) -> int:
    return sum(int(module.widths.long().sum()) * module.in_features for module in plan.modules.values())


def test_bits_takes_loss_avoided_per_extra_bit_over_all_layers():
    # b's rows avoid more in all, but are four times as long as a's.
    a = ModuleSalience(10, {4: torch.tensor([3.0, 1.0]), 8: torch.tensor([0.0, 0.0])})
    b = ModuleSalience(40, {4: torch.tensor([10.0, 4.1]), 8: torch.tensor([0.0, 0.0])})
    salience = Salience({"a": a, "b": b}, "taylor", "rtn", 1, Format())
    order = [(a.in_features, [8, 4, 4, 4]), (40, [8, 4, 8, 4]), (40, [8, 4, 8, 8]), (10, [8, 8, 8, 8])]
    spent = 0
    for cost, expected in order:
        spent += 4 * cost
        assert widths(choose(salience, bits=4 + spent / 100)) == expected


@pytest.mark.parametrize("budget", [{"bits": 6.0}, {"channels": 50.0}])
@pytest.mark.parametrize("zero", [0.0, -0.0, 1.0])
def test_equal_losses_go_by_the_models_order(budget: dict[str, float], zero: float):
    # As of experts that no token reached; a tie must not fall another way on another machine.
    losses = {4: torch.full((4,), zero), 8: torch.zeros(4)}
    losses[4][1] = 2.0
    modules = {name: ModuleSalience(8, losses) for name in ("z", "a")}
    plan = choose(Salience(modules, "fisher", "gptq", 1, Format()), **budget)
    assert list(plan.modules) == ["z", "a"]
    assert widths(plan) == [8, 8, 8, 4, 4, 8, 4, 4]


def test_of_equal_steps_the_farthest_is_one():
    """Rows in between would be no cheaper, and kernels run those of 6 bits as 8."""
    salience = one_layer({4: [4.0, 4.0], 6: [2.0, 2.0], 8: [0.0, 0.0]})
    assert widths(choose(salience, bits=6)) == [8, 4]


def test_rounding_puts_no_step_of_a_row_before_an_earlier_one():
    """Slopes that are one in truth, of which the later comes out larger in its last bit."""
    losses = [0.7756898608761937, -1.214256950829202, -4.199177168387296]
    first, whole, second = ((losses[i] - losses[j]) / w for i, j, w in ((0, 1, 2), (0, 2, 5), (1, 2, 3)))
    assert second > first > whole
    salience = one_layer({width: [loss] for width, loss in zip((3, 5, 8), losses, strict=True)}, k=8)
    for bits, width in ((4, 3), (5, 5), (6, 5), (7, 5), (8, 8)):
        assert widths(choose(salience, bits=bits)) == [width]


def test_bits_counts_what_eight_bits_leave_but_channels_is_the_papers_rule():
    salience = one_layer({4: [5.0, 4.0], 8: [4.9, 0.0]})
    assert widths(choose(salience, bits=6)) == [4, 8]
    assert widths(choose(salience, channels=50)) == [8, 4]


@given(st.sampled_from(SCOPES), st.decimals(4, 8, places=3), st.integers(0, 5))
def test_bits_are_never_exceeded_and_met_within_one_row(scope, bits, seed):
    plan = choose(random_salience(seed=seed), bits=float(bits), scope=scope, seed=seed)
    budget = Fraction(bits) * WEIGHTS
    assert budget - 4 * LONGEST < payload(plan) <= budget
    assert plan.payload_bits == pytest.approx(payload(plan) / WEIGHTS)


@given(st.sampled_from(SCOPES), st.decimals(0, 100, places=2), st.integers(0, 5))
def test_channels_are_never_exceeded_and_met_within_one_row(scope, percent, seed):
    plan = choose(random_salience(seed=seed), channels=float(percent), scope=scope, seed=seed)
    assert widths(plan).count(8) == Fraction(percent) * ROWS // 100


@pytest.mark.parametrize("scope", SCOPES)
def test_the_ends_of_the_budget_are_uniform(scope):
    # A row that 8 bits would make worse is still stored at 8 bits when the budget says so.
    salience = random_salience()
    salience.modules["model.layers.1.mlp.down_proj"].loss[8][:] = 1.0
    for budget, width in (({"bits": 4}, 4), ({"bits": 8}, 8), ({"channels": 0}, 4), ({"channels": 100}, 8)):
        assert widths(choose(salience, scope=scope, **budget)) == [width] * ROWS


def test_a_budget_written_in_decimals_is_met_exactly():
    # 4.4 - 4 is a little more than 0.4 in floating point, and 0.4 x 10 rows of 4 extra bits are one row.
    salience = one_layer({4: [float(i) for i in range(10)], 8: [0.0] * 10}, k=1)
    assert widths(choose(salience, bits=4.4)) == [4] * 9 + [8]
    assert widths(choose(salience, channels=10)) == [4] * 9 + [8]


def test_local_gives_each_layer_the_same_share():
    salience = random_salience({f"layers.{i}.m": (20, 16 + i) for i in range(6)})
    for plan in (choose(salience, bits=5, scope="local"), choose(salience, channels=25, scope="local")):
        assert {int((module.widths == 8).sum()) for module in plan.modules.values()} == {5}


def test_local_takes_the_most_salient_rows_of_each_layer():
    salience = random_salience()
    plan = choose(salience, channels=50, scope="local")
    for name, module in plan.modules.items():
        loss = salience.modules[name].loss[4]
        assert loss[module.widths == 8].min() >= loss[module.widths == 4].max()


def test_random_follows_its_seed_and_not_the_salience():
    def draw(seed: int, salience_seed: int = 0) -> list[int]:
        return widths(choose(random_salience(seed=salience_seed), bits=6, scope="random", seed=seed))

    assert draw(1) == draw(1) == draw(1, salience_seed=2)
    assert len({tuple(draw(seed)) for seed in range(5)}) > 1


def hull_by_trying_all(points: dict[int, float]) -> list[int]:
    """The lower hull's widths: no other two points have a line between them that passes below."""
    bits = sorted(points)

    def below(middle: int) -> bool:
        return any(
            points[a] + (points[c] - points[a]) * (middle - a) / (c - a) < points[middle] - 1e-9
            for a in bits
            for c in bits
            if a < middle < c
        )

    return [width for width in bits if not below(width)]


@given(st.lists(st.integers(0, 20), min_size=4, max_size=4))
def test_a_single_row_walks_along_its_lower_hull(losses):
    points = dict(zip((3, 4, 6, 8), map(float, losses), strict=True))
    salience = one_layer({width: [loss] for width, loss in points.items()}, k=1)
    reached = {widths(choose(salience, bits=bits))[0] for bits in range(3, 9)}
    corners = set(hull_by_trying_all(points))
    assert {3, 8} <= reached <= corners
    # Points on a straight line between others may be passed over; true corners may not.
    assert corners - reached <= {
        w for w in corners if w not in hull_by_trying_all(points | {w: points[w] + 1e-6})
    }


@given(st.integers(0, 1000), st.decimals(3, 8, places=2))
def test_many_widths_meet_the_budget_with_the_steepest_steps(seed, bits):
    salience = random_salience(widths=(3, 4, 6, 8), seed=seed)
    plan = choose(salience, bits=float(bits))
    budget = Fraction(bits) * WEIGHTS
    assert budget - 5 * LONGEST < payload(plan) <= budget
    # loss = c 4^(3 - width): every width is a corner. Steps not taken are no steeper than steps taken.
    taken, open_ = [], []
    for name, module in plan.modules.items():
        loss = {width: values.double() for width, values in salience.modules[name].loss.items()}
        for row, width in enumerate(module.widths.tolist()):
            for low, high in ((3, 4), (4, 6), (6, 8)):
                slope = float(loss[low][row] - loss[high][row]) / ((high - low) * module.in_features)
                (taken if high <= width else open_).append(slope)
    assert not taken or not open_ or min(taken) >= max(open_) * (1 - 1e-6)


def test_the_plan_says_how_it_was_chosen():
    salience = random_salience(format=PROFILES["paper"])
    plan = choose(salience, channels=12.5, scope="random", seed=3)
    assert (plan.rule, plan.budget, plan.scope, plan.seed) == ("channels", 12.5, "random", 3)
    assert (plan.score, plan.error, plan.widths) == ("fisher", "gptq", (4, 8))
    assert (plan.format, plan.other_bytes) == (PROFILES["paper"], 12345)
    assert [(m.out_features, m.in_features) for m in plan.modules.values()] == list(SHAPES.values())


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "either bits or channels"),
        ({"bits": 5, "channels": 10}, "either bits or channels"),
        ({"bits": 3.9}, "bits: 3.9 is outside the widths; choose 4 to 8"),
        ({"bits": 8.1}, "bits: 8.1 is outside"),
        ({"bits": float("nan")}, "bits: nan is outside"),
        ({"channels": -1}, "channels: -1 is not a percentage"),
        ({"channels": 101}, "channels: 101 is not a percentage"),
    ],
)
def test_bad_budgets(budget, message):
    with pytest.raises(MixllmError, match=message):
        choose(random_salience(), **budget)


def test_bad_salience():
    with pytest.raises(MixllmError, match="m: a loss is NaN or infinite"):
        choose(one_layer({4: [1.0, float("nan")], 8: [0.0, 0.0]}), bits=5)
    with pytest.raises(MixllmError, match="no layers"):
        choose(Salience({}, "fisher", "gptq", 1, Format()), bits=5)


def test_a_new_budget_for_an_8b_model_takes_under_a_second(tmp_path):
    random_salience(LLAMA_8B).save(tmp_path / "salience")
    best = float("inf")
    for bits in (4.4, 4.8, 5.2):
        began = time.process_time()
        plan = choose(Salience.load(tmp_path / "salience"), bits=bits)
        plan.save(tmp_path / "plan.json")
        best = min(best, time.process_time() - began)
    assert best < 1.0
    assert (tmp_path / "plan.json").stat().st_size < 2_000_000
