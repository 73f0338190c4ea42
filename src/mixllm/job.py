"""A model and its calibration text, opened: what every stage of the pipeline works on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mixllm.blocks import Decoder, Room
from mixllm.config import KERNEL_WIDTHS, QuantConfig, Rounding
from mixllm.experts import routed
from mixllm.needs import Needs, Sizes, needs
from mixllm.placement import pick_device, pick_dtype
from mixllm.ranks import ALONE, Ranks
from mixllm.source import Source, open_source
from mixllm.texts import open_tokenizer, text_windows


@dataclass(frozen=True)
class Job:
    """A model opened for quantization, its calibration windows int64 [samples, window], of all processes
    together, and these. widths: those a row may get; error: of which rounding salience is measured.
    tuning: the windows that tuning sees, where they are not the calibration's."""

    source: Source
    decoder: Decoder
    ids: Tensor
    ranks: Ranks = ALONE
    widths: tuple[int, ...] = KERNEL_WIDTHS
    error: Rounding = "gptq"
    tuning: Tensor | None = None

    @property
    def sizes(self) -> Sizes:
        decoder = self.decoder
        blocks = [
            {name: (layer.out_features, layer.in_features) for name, layer in decoder.linears(i).items()}
            for i in range(len(decoder))
        ]
        share = routed(decoder.model, decoder.source.config.get_text_config())
        return Sizes(blocks, decoder.hidden_size, decoder.vocabulary, decoder.outside, share)

    def needs(self, *, measured: bool) -> Needs:
        """What a walk of this process takes, with what is free now; measured: one that measures salience."""
        tokens, window, decoder = self.ranks.share(self.ids).numel(), self.ids.shape[1], self.decoder
        candidates = self.widths if measured else ()
        return needs(
            self.sizes, tokens, window, decoder.device, decoder.dtype, measured=candidates, error=self.error
        )  # fmt: skip

    @property
    def boundary(self) -> int:
        """Bytes of the hidden states of all windows at one boundary, or of their gradient."""
        return self.ids.numel() * self.decoder.hidden_size * self.decoder.dtype.itemsize

    @property
    def batch(self) -> int:
        """Windows that go through a block at once."""
        return self.needs(measured=True).batch // self.ids.shape[1]

    def room(self, work: Path, *, measured: bool) -> Room:
        """What boundary states may take; work: a directory for those that fit no memory."""
        return replace(self.needs(measured=measured).room, disk=work)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every linear layer to be quantized, in model order."""
        linears = {
            name: layer for i in range(len(self.decoder)) for name, layer in self.decoder.linears(i).items()
        }
        return {name: (layer.out_features, layer.in_features) for name, layer in linears.items()}

    @property
    def other_bytes(self) -> int:
        """Bytes on disk of the tensors that stay as they are."""
        quantized = {f"{name}.weight" for name in self.shapes}
        return sum(self.source.bytes(name) for name in self.source.names_but(quantized))


def open_job(
    model: str,
    config: QuantConfig,
    *,
    device: str = "auto",
    dtype: str = "auto",
    ranks: Ranks = ALONE,
) -> Job:
    """Open `model` (directory, hub name or GGUF) and cut its calibration text, and what it is tuned on, into
    windows.

    device, dtype: where the float blocks run and in what arithmetic (see mixllm.placement).
    """
    where = pick_device(device)
    source = open_source(model)
    kind = pick_dtype(dtype, where, source.config)
    tokenizer = open_tokenizer(source.path)

    def cut(text: str, samples: int) -> Tensor:
        return text_windows(text, tokenizer, source.config, config.window, samples, config.seed)

    ids, tuning = cut(config.calibration, config.samples), None
    if config.tune_text is not None or config.tune_samples is not None:
        tuning = cut(config.tune_text or config.calibration, config.tune_samples or config.samples)
    decoder = Decoder.open(source, where, kind)
    return Job(source, decoder, ids, ranks, config.widths, config.error, tuning)
