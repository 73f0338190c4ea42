"""What the accuracy table must show: differences between its lines, with errors paired over windows."""

from __future__ import annotations

from typing import Any

from accuracy_variants import AFTER, EQUAL, MORE_WIDTHS

from mixllm.config import PROFILES
from mixllm.evaluate import REFERENCE, Measurement, paired_difference

# (better, worse, what it shows): differences that must exceed two paired standard errors.
CLAIMS = [
    *(
        (f"{line} {better}", f"{line} {worse}", f"{better} beats {worse} at {equal}")
        for better, worse in (("global", "local"), ("local", "random"))
        for line, equal in (
            *((f"{p} {b} bits", "equal bits") for p in PROFILES for b in (4.4, 4.8)),
            *((f"paper {c} % channels", "an equal share of channels") for c in (10, 20, 50)),
        )
    ),
    ("paper W4A16 GPTQ+order+clip", "paper W4A16 RTN", "GPTQ with order and clip beats RTN"),
    ("paper W4A8 GPTQ+order+clip", "paper W4A8 RTN", "GPTQ with order and clip beats RTN"),
    (
        "fast 4.4 bits global",
        "paper 10 % channels global",
        "fast at 4.4 bits beats the paper at 10 % of channels",
    ),
    (EQUAL, "paper 10 % channels global", "fast beats the paper's rule at equal bits"),
    *(
        (f"{line}{better}", f"{line}{worse}", f"GPTQ{better} beats GPTQ{worse}")
        for line in (
            "fast 4.4 bits global",
            "fast 4.8 bits global",
            *(f"fast {bits} bits of 3-4-5-6-8 global" for bits in (4.0, 4.4, 4.8)),
        )
        for better, worse in (
            (", swept", ""),
            (", swept, tuned", ", swept"),
            (", swept, tuned", ""),
            *((", swept, tuned with codes", less) for less in (", swept, tuned", ", swept", "")),
        )
    ),
    *(
        (
            f"fast {bits} bits of {'-'.join(map(str, widths))} global{after}",
            f"fast {'W4A8 GPTQ+order+clip' if bits == 4.0 else f'{bits} bits global'}{after}",
            "more widths beat 4 and 8 at equal bits",
        )
        for bits in (4.0, 4.4, 4.8)
        for widths in MORE_WIDTHS
        for after in AFTER
    ),
    *(
        (f"fast {bits} bits of 3-4-5-6-8 global", f"fast {bits} bits of {fewer} global", "5 bits beat none")
        for bits in (4.0, 4.4, 4.8)
        for fewer in ("3-4-8", "3-4-6-8")
    ),
]
# A8 at groups of 128 must cost less than a tenth of what the best W4 costs.
A8, W4 = "float, A8 paper", "paper W4A16 GPTQ+order+clip"


def claims(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    """Each claim whose lines were measured: differences of NLL and KL with paired errors, and if it holds."""
    found = []

    def add(text: str, better: str, worse: str, *differences: tuple[float, float]) -> None:
        holds = all(mean > 2 * error for mean, error in differences)
        nll, kl = differences
        found.append({"claim": text, "better": better, "worse": worse, "nll": nll, "kl": kl, "holds": holds})

    for better, worse, text in CLAIMS:
        if better in measured and worse in measured:
            a, b = measured[better], measured[worse]
            add(text, better, worse, paired_difference(b.nll, a.nll), paired_difference(b.kl, a.kl))
    if A8 in measured and W4 in measured:
        plain, a, w = measured[REFERENCE], measured[A8], measured[W4]
        nll = paired_difference((w.nll - plain.nll) / 10, a.nll - plain.nll)
        add("A8 costs less than a tenth of W4", A8, W4, nll, paired_difference(w.kl / 10, a.kl))
    return found


def table(found: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "| format and choice | payload bits | bits | perplexity | KL | top-1 % |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        bits = [f"{row[key]:.2f}" if key in row else "16" for key in ("payload_bits", "bits")]
        kl, top1 = f"{row['kl']:.4f} +- {row['kl_error']:.4f}", f"{100 * row['top1']:.2f}"
        lines.append("| " + " | ".join([row["name"], *bits, f"{row['perplexity']:.3f}", kl, top1]) + " |")
    for claim in found["claims"]:
        differences = ", ".join(
            f"{name.upper()} {mean:.4f} +- {error:.4f}"
            for name in ("nll", "kl")
            for mean, error in [claim[name]]
        )
        verdict = "holds" if claim["holds"] else "DOES NOT HOLD"
        lines.append(
            f"{claim['better']} against {claim['worse']}: {claim['claim']}: {verdict}, {differences}"
        )
    return "\n".join(lines)
