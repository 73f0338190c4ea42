"""The lines of the accuracy table: which weights, chosen how, rounded how, with which activations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mixllm.config import KERNEL_WIDTHS, PROFILES, Format, QuantConfig, Scope

# What follows GPTQ, which the paper has not: nothing, better codes, tuned scales too, tuned codes with them.
PLAIN: dict[str, Any] = {"sweeps": 0, "tune": 0}
SWEPT: dict[str, Any] = {"sweeps": 2, "tune": 0}
TUNED: dict[str, Any] = {"sweeps": 2, "tune": 4}
CODES: dict[str, Any] = {"sweeps": 2, "clip_by": "gptq", "tune": 2, "tune_codes": True}
AFTER: dict[str, dict[str, Any]] = {
    "": PLAIN,
    ", swept": SWEPT,
    ", swept, tuned": TUNED,
    ", swept, tuned with codes": CODES,
}
METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"rounding": "rtn", "clip": False},
    "clip": {"rounding": "rtn", "clip": True},
    "GPTQ": {"rounding": "gptq", "clip": False, "order": False, **PLAIN},
    "GPTQ+order+clip": {"rounding": "gptq", "clip": True, "order": True, **PLAIN},
}
BUDGETS: list[dict[str, float]] = [
    {"channels": 10},
    {"channels": 20},
    {"channels": 50},
    {"bits": 4.4},
    {"bits": 4.8},
]
# The paper's own salience, and the one that mixllm uses by default.
PAPER_SCORE = {"score": "taylor", "error": "rtn"}
OUR_SCORE = {"score": "fisher", "error": "gptq"}
# More than the two widths that kernels have.
MORE_WIDTHS = ((3, 4, 8), (4, 6, 8), (3, 4, 6, 8), (3, 4, 5, 8), (3, 4, 5, 6, 8))
EQUAL = "fast, bits of paper 10 %, global"


@dataclass(frozen=True)
class Variant:
    """One line of the table. config None: float weights; activations: bits of the activations, 8 or 16;
    equal: another config, whose plan's payload bits are this one's budget."""

    name: str
    config: QuantConfig | None
    activations: int
    format: Format | None = None
    equal: QuantConfig | None = None


def variants(base: dict[str, Any]) -> list[Variant]:
    """base: QuantConfig fields that all share (calibration, samples, window)."""
    found = [Variant(f"float, A8 {name}", None, 8, format) for name, format in PROFILES.items()]
    ours, paper = (
        mixed("fast", {"bits": 4.4}, "global", base),
        mixed("paper", {"channels": 10}, "global", base),
    )
    found += [ours, paper, replace(ours, name=EQUAL, equal=paper.config)]
    found += [
        mixed("fast", {"bits": bits}, "global", base, AFTER[how]) for bits in (4.4, 4.8) for how in AFTER
    ]
    for bits in (4, 8):
        for method, fields in reversed(METHODS.items()):
            config = QuantConfig(format=PROFILES["paper"], bits=bits, **fields, **base)
            found += [Variant(f"paper W{bits}A{a} {method}", config, a) for a in (16, 8)]
        for after, fields in AFTER.items() if bits == 4 else [("", PLAIN)]:
            config = QuantConfig(format=PROFILES["fast"], bits=bits, **fields, **base)
            found += [Variant(f"fast W{bits}A{a} GPTQ+order+clip{after}", config, a) for a in (16, 8)]
    scopes: tuple[Scope, ...] = ("global", "local", "random")
    found += [mixed("paper", budget, scope, base) for budget in reversed(BUDGETS) for scope in scopes]
    found += [
        mixed("fast", budget, scope, base) for budget in ({"bits": 4.4}, {"bits": 4.8}) for scope in scopes
    ]
    # Predicted to be as accurate as 4.4 bits of all widths, which take more than this on the device.
    found.append(mixed("fast", {"bits": 5.0}, "global", base))
    found += [
        mixed("fast", {"bits": bits}, "global", base, AFTER[how], widths)
        for bits in (4.0, 4.4, 4.8)
        for widths in MORE_WIDTHS
        for how in AFTER
        if bits > widths[0]
    ]
    return list({variant.name: variant for variant in found}.values())


def mixed(
    profile: str,
    budget: dict[str, float],
    scope: Scope,
    base: dict[str, Any],
    after: dict[str, Any] = PLAIN,
    widths: tuple[int, ...] = KERNEL_WIDTHS,
) -> Variant:
    """Rows of these widths: the paper's rule with the paper's score, true bits with mixllm's own."""
    score = PAPER_SCORE if "channels" in budget else OUR_SCORE
    fields = {"format": PROFILES[profile], "scope": scope, **budget, **score, **after, **base}
    fields["widths"] = widths
    text = f"{budget['bits']} bits" if "bits" in budget else f"{budget['channels']} % channels"
    if widths != KERNEL_WIDTHS:
        text += f" of {'-'.join(map(str, widths))}"
    name = f"{profile} {text} {scope}" + next(name for name, found in AFTER.items() if found is after)
    return Variant(name, QuantConfig.model_validate(fields), 8)
