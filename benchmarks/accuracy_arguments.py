"""What every benchmark of accuracy is told: a model, texts, windows, a device and where results go."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import torch

from mixllm.kernels import Backend


def shared_arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="directory, hub name or GGUF file")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument(
        "--windows", type=int, help="how many windows of the text to measure; all of them without"
    )
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--tune-text", help="what lines with tuned scales see instead of --calibration")
    parser.add_argument("--tune-samples", type=int, help="windows of it; as many as --samples without")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", default="auto", choices=get_args(Backend), help="of the mixed layers")
    parser.add_argument("--batch", type=int, default=1, help="windows that go through a model at once")
    parser.add_argument("--work", default=".work", help="where saliences and checkpoints lie for a while")
    parser.add_argument(
        "--only", nargs="*", help="only lines so named, or whose names contain these, in this order"
    )
    parser.add_argument("--label", help="the model's name in the result")
    parser.add_argument("--commit", help="the commit to state, where there is no repository")
    parser.add_argument("--json")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with the working directory made."""
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    return args
