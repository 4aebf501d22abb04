"""``losatok fit-quantizer``: codes for a model that was trained without them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.cli.common import (
    DeviceOption,
    ModelOption,
    OverwriteOption,
    check_model_output,
    load_model,
    require_model,
    stage_bar,
)
from losatok_ext.errors import UserError
from losatok_ext.text import printable

if TYPE_CHECKING:
    from losatok_ext.nn.quantizers import QuantizerConfig

_FRAMES_PER_CODE = 20  # with fewer, a codebook fits only the frames it was made from: see docs/latent-files.md


def fit_quantizer(
    latents: Annotated[
        list[str],
        typer.Option(
            "--latents",
            "-l",
            help="Latent files, folders, patterns or manifests (.jsonl); may be repeated.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.", show_default=False)],
    model: ModelOption = None,
    vq: Annotated[str | None, typer.Option(help="One code per token: codes, such as 1024.", show_default=False)] = None,
    rvq: Annotated[
        str | None, typer.Option(help="Codes in stages: stages x codes, such as 8x1024.", show_default=False)
    ] = None,
    fsq: Annotated[
        str | None,
        typer.Option(
            help="Levels per dimension, such as 8,5,5,5; 4x8,5,5,5 for four such codes per token.", show_default=False
        ),
    ] = None,
    affine: Annotated[
        str | None, typer.Option(help="Integers of 8 or 4 bits, with a scale per token.", show_default=False)
    ] = None,
    groups: Annotated[
        int,
        typer.Option(
            help="Equal groups of the latent's features, each with such a quantizer of its own.", min=1, max=1024
        ),
    ] = 1,
    iterations: Annotated[int, typer.Option(help="Iterations of k-means, for each stage.", min=1)] = 25,
    passes: Annotated[
        int, typer.Option(help="Passes over all latents, where there are more frames than --sample-frames.", min=0)
    ] = 2,
    sample_frames: Annotated[
        int, typer.Option(help="Frames in memory at once, which k-means starts from.", min=1)
    ] = 262_144,
    seed: Annotated[
        int, typer.Option(help="Decides the drawn frames, the initial codes and the order.", min=0, max=2**63 - 1)
    ] = 0,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
) -> None:
    """Fit a quantizer to latents of a model, and write a copy of the model with the quantizer.

    Any amount of latents is read in bounded memory. Files that cannot be used are left out and named at the end (exit
    code 2).
    """
    each = config = _config({"vq": vq, "rvq": rvq, "fsq": fsq, "affine": affine})
    if groups > 1:
        from losatok_ext.nn.quantizers import GroupedConfig

        config = GroupedConfig(groups, each)
    model = require_model(model)
    check_model_output(output, overwrite)
    if output.exists() and model.exists() and output.samefile(model):
        raise UserError(f"{output} is the model itself; choose another folder for the copy that has a quantizer")
    from losatok_ext.formats.latent_files import SUFFIX
    from losatok_ext.recordings import find_inputs
    from losatok_ext.training.fitting.quantizer_fit import FitOptions, fit_quantizer

    found = find_inputs(latents, (SUFFIX,), "latent")
    if not found.sources:
        raise UserError("; ".join(failure.message for failure in found.failures))
    tokenizer = load_model(model, device)
    options = FitOptions(sample_frames, iterations, passes, seed)
    with stage_bar() as say:
        fit = fit_quantizer(tokenizer, [source.path for source in found.sources], config, options, say)
    fit.model.save_pretrained(output)
    failures = [*found.failures, *fit.failures]
    for failure in failures:
        print(f"losatok: {printable(failure.message)}", file=sys.stderr)
    assert fit.model.quantizer is not None
    rate = fit.model.quantizer.bits_per_token * fit.model.frame_rate
    used = f", {100 * sum(fit.used) / len(fit.used):.0f} % of the codes used" if fit.used else ""
    name = printable(str(output))
    print(
        f"{name}: model {fit.model.fingerprint()} with {fit.model.quantizer_name}, {rate:.0f} bits per second, "
        f"fitted to {fit.frames} frames of {fit.files} files; relative error on them {fit.relative_rms:.3f}{used}"
    )
    codes = fit.model.code_sizes[0]
    if each.kind in ("vq", "rvq") and fit.frames < _FRAMES_PER_CODE * codes:
        print(
            f"{fit.frames} frames are few for {codes} codes: the error on other recordings will be larger "
            "(`losatok evaluate storage` measures it); encode more recordings, or ask for fewer codes"
        )
    if failures:
        raise typer.Exit(2)


def _config(options: dict[str, str | None]) -> QuantizerConfig:
    """The configuration that the one option given asks for."""
    given = {name: text for name, text in options.items() if text is not None}
    if len(given) != 1:
        raise UserError(f"pass one of --vq, --rvq, --fsq and --affine, got {len(given)}")
    ((name, text),) = given.items()
    from losatok_ext.errors import ConfigError
    from losatok_ext.nn.quantizers import FSQConfig, ResidualVQConfig, VQConfig
    from losatok_ext.nn.quantizers.config import quantizer_config

    examples = {"vq": "1024", "rvq": "8x1024", "fsq": "8,5,5,5 or 4x8,5,5,5", "affine": "8 or 4"}
    first, times, rest = text.lower().partition("x")
    try:
        if name == "vq":
            return VQConfig(codebook_size=int(text))
        if name == "rvq":
            if not times:
                raise ValueError("stages")
            return ResidualVQConfig(stages=int(first), codebook_size=int(rest))
        if name == "fsq":
            levels = tuple(int(level) for level in (rest if times else first).split(","))
            return FSQConfig(levels=levels, num_codebooks=int(first) if times else 1)
        return quantizer_config({"kind": "affine", "bits": int(text)})
    except ConfigError as error:
        raise UserError(f"--{name} {text}: {error}") from error
    except ValueError as error:
        raise UserError(f"--{name} is {text!r}; it takes {examples[name]}") from error
