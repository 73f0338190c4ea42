"""Whether mixllm's lines are better than peers that take at least as many bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixllm.evaluate import Measurement, paired_difference


def claims(
    measured: Mapping[str, Measurement], facts: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Differences of NLL and KL, peer - mixllm, with errors paired over windows, of all pairs of such lines.

    facts: by line, "bits" (all that is stored for a weight) and, of a peer's lines, "peer". A claim holds
    when the KL is better by more than two errors.
    """
    found = []
    for better, own in facts.items():
        for worse, other in facts.items():
            if "peer" not in own and "peer" in other and own["bits"] <= other["bits"]:
                a, b = measured[better], measured[worse]
                nll, kl = paired_difference(b.nll, a.nll), paired_difference(b.kl, a.kl)
                text = f"{own['bits']:.3f} bits beat {other['bits']:.3f}"
                found.append(
                    {
                        "claim": text,
                        "better": better,
                        "worse": worse,
                        "nll": nll,
                        "kl": kl,
                        "holds": kl[0] > 2 * kl[1],
                    }
                )
    return found
