"""The model card: README.md of a checkpoint, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard import metadata_load

from mixllm.config import QuantConfig, parse
from mixllm.files import at_home, read_json, write_text
from mixllm.human import size
from mixllm.plan.report import wide_name
from mixllm.records import SUMMARY
from mixllm.report.store import read_measured
from mixllm.report.tables import Table, measured_table
from mixllm.source.hub import NAME

CARD = "README.md"
TAGS = ["mixllm", "quantized", "mixed-precision", "W4A8"]
# Of the float model's card, what holds for the quantized model as well.
KEPT = ("license", "license_name", "license_link", "language")
_LOAD = """```python
import mixllm  # lets transformers read the format
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
```"""


def new_card(out: Path, source: Path, model: str) -> None:
    """Write the card of a new checkpoint `out`, whose summary is there already.

    source: directory of the float model, whose licence and language are taken over; model: its name as it
    was given, the base model where it is one of the hub's.
    """
    on_hub = not at_home(model).exists() and NAME.fullmatch(model)
    metadata = _metadata(source / CARD)
    about: dict[str, Any] = {key: metadata[key] for key in KEPT if key in metadata}
    if on_hub:
        about["base_model"] = model
    _write(out, {**about, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": TAGS})


def renew_card(out: Path) -> None:
    """Write the card again, with what was measured since; its metadata stays."""
    _write(out, _metadata(out / CARD))


def _metadata(card: Path) -> dict[str, Any]:
    return (metadata_load(card) or {}) if card.is_file() else {}


def _write(out: Path, metadata: Mapping[str, Any]) -> None:
    data: Any = ModelCardData(**metadata)
    body = "\n\n".join(_body(out))
    write_text(out / CARD, f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _body(out: Path) -> Iterator[str]:
    summary = read_json(out / SUMMARY)
    found, format = summary["report"], summary["config"]["format"]
    widths = parse(QuantConfig, summary["config"], str(out / SUMMARY)).widths
    *fewer, most = map(str, widths)
    name = Path(summary["out"]).name
    base = Path(summary["model"]).name if Path(summary["model"]).exists() else summary["model"]
    yield f"# {name}"
    yield (
        f"{base}, quantized by [MixLLM](https://arxiv.org/abs/2412.14590)'s method: each output channel has "
        f"{', '.join(fewer)} or {most} bits, chosen over the whole model; activations are int8."
    )
    yield _markdown(
        Table(
            "",
            ("", ""),
            [
                ("payload bits a quantized weight", f"{found['payload_bits']:.2f}"),
                ("with scales and zeros", f"{found['bits']:.2f}"),
                ("quantized weights", f"{found['weights'] / 1e6:,.1f} M"),
                ("size", size(found["checkpoint_bytes"])),
                (
                    "format",
                    f"weights {format['weight_scale']}, rotation {format['rotation']}, "
                    f"activations {format['activation_group']}",
                ),
                ("made with", ", ".join(f"{k} {v}" for k, v in summary["versions"].items())),
            ],
        )
    )
    yield "## Load it\n\n" + _LOAD.format(name=name)
    measured, _ = read_measured(out)
    if measured is not None:
        table = measured_table(measured)
        yield f"## Measured\n\n{table.caption}; ±: standard error over windows.\n\n{_markdown(table)}"
    kinds = [
        (kind, f"{share['rows']:,}", f"{100 * share['wide'] / share['rows']:.1f}")
        for kind, share in found["by_kind"].items()
    ]
    wide = wide_name(widths)
    yield f"## {wide} by kind of layer\n\n" + _markdown(Table("", ("layer", "rows", f"{wide} %"), kinds))


def _markdown(table: Table) -> str:
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
