"""Joins what runs of accuracy.py or accuracy_peers.py measured on the same windows of one model, paired.

    python benchmarks/accuracy_join.py FIRST.json SECOND.json ... -o JOINED.json

A line that several runs have is taken from the last. What was measured of each window serves the claims,
and is left out of what is written. Runs of other windows or another model are refused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from accuracy_claims import claims, table
from accuracy_peers_claims import claims as peers_claims

from mixllm.evaluate import REFERENCE, Measurement

SAME = ("model", "calibration", "text", "window")
# Stated together where the runs differ in it.
STATED = ("device", "backend", "commit")
# Two runs of one float model on one GPU differ by the order of sums alone.
NLL_BY_WINDOW = 1e-3


def measurement(row: dict[str, Any]) -> Measurement:
    values = {
        key: torch.tensor([float(value) for value in text.split()], dtype=torch.float64)
        for key, text in row["by_window"].items()
    }
    return Measurement(**values)


def tuned_on(run: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """A run's row, with the run's tuning text where the row is of a tuned model."""
    return {**row, "tuning": run["tuning"]} if "tuned" in row["name"] and "tuning" in run else row


def join(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs as one, in the first one's order."""
    rows: dict[str, dict[str, Any]] = {}
    windows = measurement(runs[0]["rows"][0]).nll
    for run in runs:
        for key in SAME:
            if run[key] != runs[0][key]:
                raise SystemExit(f"{key}: {run[key]} is not {runs[0][key]}; these runs cannot be paired")
        own = next(measurement(row).nll for row in run["rows"] if row["name"] == REFERENCE)
        if len(own) != len(windows) or (own - windows).abs().max() > NLL_BY_WINDOW:
            raise SystemExit("rows: the float model's windows differ; these runs cannot be paired")
        rows |= {row["name"]: tuned_on(run, row) for row in run["rows"]}
    measured = {name: measurement(row) for name, row in rows.items()}
    found = claims(measured) + peers_claims(measured, {n: row for n, row in rows.items() if "bits" in row})
    for row in rows.values():
        del row["by_window"]
    stated = {key: list(dict.fromkeys(str(run[key]) for run in runs if key in run)) for key in STATED}
    first = {key: value for key, value in runs[0].items() if key != "tuning"}
    return {
        **first,
        **{key: ", ".join(values) for key, values in stated.items()},
        "seconds": sum(run["seconds"] for run in runs),
        "rows": list(rows.values()),
        "claims": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("-o", "--out", required=True)
    args = parser.parse_args()
    joined = join([json.loads(Path(path).read_text()) for path in args.runs])
    Path(args.out).write_text(json.dumps(joined, indent=1) + "\n")
    print(table(joined))


if __name__ == "__main__":
    main()
