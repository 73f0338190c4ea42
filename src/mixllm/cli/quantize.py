"""mixllm quantize"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixllm.cli.console import print_json, progress, quiet_libraries
from mixllm.cli.options import Device, Dtype, Json, Model, Quiet, config, config_flags
from mixllm.config import SHARD_SIZE
from mixllm.errors import Interrupted, MixllmError
from mixllm.human import duration, size
from mixllm.memory import grow_segments

if TYPE_CHECKING:
    from mixllm.estimate import Estimate

# Options that a salience file, and a plan file, have decided.
MEASURED = ("score", "error")
PLANNED = ("bits", "channels", "scope", "widths", *MEASURED)


@config_flags()
def quantize(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to write.")],
    plan: Annotated[
        Path | None, typer.Option(help="A plan file (mixllm plan -o) to follow; no salience is measured.")
    ] = None,
    salience: Annotated[
        Path | None,
        typer.Option(help="A salience file of an earlier run to choose from, instead of measuring."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the time, memory and disk that the run needs, and exit.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is not empty.")] = False,
    resume: Annotated[
        Literal["auto", "require", "never"],
        typer.Option(
            help="auto: continue an interrupted run with the same arguments, else start; require: continue "
            "or fail; never: start anew."
        ),
    ] = "auto",
    shard_size: Annotated[
        str, typer.Option(help="Largest size of a safetensors file, such as 5GB or 500MB.")
    ] = SHARD_SIZE,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Quantize MODEL into the directory OUT.

    An interrupted run (Ctrl-C, a kill, a full disk, a power failure) continues from the block it was at when
    the same command is given again, and ends with the same bytes. Its work is in .OUT.partial.
    """
    for file, flag, decided in ((plan, "--plan", PLANNED), (salience, "--salience", MEASURED)):
        if file is not None and (unused := [name for name in decided if name in given]):
            raise MixllmError(
                f"--{unused[0]}: has no effect on a finished {flag[2:]}; leave it or {flag} out"
            )
    chosen = config(given)
    quiet_libraries(bars=not quiet)
    if dry_run:
        from mixllm.choosing import is_uniform
        from mixllm.disk import parse_size
        from mixllm.estimate import estimate
        from mixllm.out import require_out

        require_out(out, model, overwrite=overwrite, resume=resume)
        measured = plan is None and salience is None and not is_uniform(chosen)
        needs = estimate(
            model, out, chosen, device=device, dtype=dtype, measured=measured,
            shard_bytes=parse_size(shard_size), plan=plan, salience=salience,
        )  # fmt: skip
        print_json(needs) if json else _tell(needs, out)
        return
    grow_segments()
    from mixllm import pipeline
    from mixllm.resume import partial_of
    from mixllm.torchrun import is_first

    try:
        summary = pipeline.quantize(
            model, out, chosen, device=device, dtype=dtype, plan=plan, salience=salience,
            overwrite=overwrite, resume=resume, shard_size=shard_size, progress=progress(quiet),
        )  # fmt: skip
    except KeyboardInterrupt:
        if not partial_of(out).exists():
            raise
        how = "it again with --resume auto" if resume == "never" else "the same command again"
        raise Interrupted(f"interrupted; run {how} to continue from {partial_of(out)}") from None
    if not is_first():
        return
    if json:
        print_json(summary)
        return
    found = summary.report
    print(
        f"{out}: {found['payload_bits']:.2f} bits a weight ({found['bits']:.2f} with scales), "
        f"{size(found['checkpoint_bytes'])}, {duration(sum(summary.seconds.values()))}"
    )


def _tell(needs: Estimate, out: Path) -> None:
    gpu = f", {size(needs.gpu_bytes)} on the GPU" if needs.gpu_bytes else ""
    print(
        f"time    about {duration(needs.seconds)} on {needs.device}\n"
        f"memory  about {size(needs.memory_bytes)}{gpu}\n"
        f"disk    {size(needs.checkpoint_bytes)} for {out}, at most {size(needs.disk_bytes)} during the run, "
        f"{size(needs.free_bytes)} free"
    )
    if needs.conversion_bytes:
        print(f"cache   {size(needs.conversion_bytes)} for what the GGUF file is converted to, once")
