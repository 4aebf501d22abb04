"""The options that ``losatok generate`` and ``losatok edit`` share: how to sample, and with which models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from losatok_ext.cli.common import (
    DeviceOption,
    GeneratorOption,
    ModelOption,
    OverwriteFileOption,
    check_dtype,
    check_outputs,
    load_model,
    pick_device,
    require_generator,
    require_model,
)
from losatok_ext.errors import UserError

if TYPE_CHECKING:
    from losatok_ext.generation.sampling import SamplerConfig
    from losatok_ext.models import LoSATok
    from losatok_ext.models.generator.generator import Generator

MAX_SECONDS = 600.0
"""Of new audio. Attention over more than ten minutes at once takes hours; a long piece is made in several edits."""


@dataclass(frozen=True)
class SamplingOptions:
    """The options themselves."""

    generator: GeneratorOption = None
    model: ModelOption = None
    steps: Annotated[int, typer.Option(help="Steps of the sampler.", min=1)] = 20
    cfg: Annotated[float, typer.Option("--cfg", help="Guidance scale; 1 is no guidance.")] = 3.0
    cfg_interval: Annotated[
        str,
        typer.Option(
            "--cfg-interval", metavar="LOW:HIGH", help="Noise levels (1 noise, 0 data) at which guidance is applied."
        ),
    ] = "0:1"
    cfg_rescale: Annotated[
        float, typer.Option("--cfg-rescale", help="0..1, against over-saturation by strong guidance.")
    ] = 0.0
    solver: Annotated[str, typer.Option(help="euler, midpoint, heun or rk4.")] = "euler"
    schedule: Annotated[str, typer.Option(help="Steps between noise and data: uniform, sway or shifted.")] = "uniform"
    seed: Annotated[int, typer.Option(help="The same seed gives the same result.")] = 0
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="Compute in float32, bfloat16 or int8 (the tokenizer; the generator is then in bfloat16); as the "
            "models were saved if left out.",
            show_default=False,
        ),
    ] = None
    device: DeviceOption = "auto"
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Record the steps once and replay them (GPU).")] = (
        False
    )
    overwrite: OverwriteFileOption = False

    def check(self, text: str, source: Path | None, output: Path, plot: Path | None) -> SamplerConfig:
        """Check all that can be checked before a model is loaded.

        Returns:
            The sampler that the options describe.

        Raises:
            UserError: ``text`` is not valid text, or an output is the input, exists, or is of an unknown kind.
            ConfigError: an option of the sampler does not fit.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError("--text holds bytes that are not valid UTF-8; type the text anew") from None
        if not -(2**63) <= self.seed < 2**64:
            raise UserError(f"--seed is {self.seed}; it takes whole numbers from -2^63 to 2^64 - 1")
        check_outputs(source, output, plot, overwrite=self.overwrite)
        if plot is not None:
            from losatok_ext.audio.plots import check_picture

            check_picture(plot)
        return sampler_config(
            self.steps, self.cfg, self.cfg_interval, self.cfg_rescale, self.solver, self.schedule, self.cuda_graphs
        )

    def summary(self) -> str:
        """How was sampled, for the title of a picture."""
        return f"seed {self.seed}, {self.steps} {self.solver} steps, guidance {self.cfg:g}"

    def load(self, output: Path) -> tuple[Generator, LoSATok]:
        """The generator and the tokenizer that will write ``output``; see :func:`load_both`."""
        return load_both(self.generator, self.model, self.device, self.dtype, output)


def sampler_config(
    steps: int, cfg: float, interval: str, rescale: float, solver: str, schedule: str, cuda_graphs: bool
) -> SamplerConfig:
    """The sampler that the options describe.

    Raises:
        ConfigError: a value that the sampler does not take; the message names it.
        UserError: ``--cfg-interval`` is not two numbers.
    """
    from losatok_ext.generation.sampling import SamplerConfig

    bounds = two_numbers("--cfg-interval", interval, "two noise levels such as 0.2:0.8")
    guidance = {"scale": cfg, "interval": bounds, "rescale": rescale}
    values = {"steps": steps, "solver": solver, "schedule": {"name": schedule}, "guidance": guidance}
    return SamplerConfig.from_dict({**values, "cuda_graphs": cuda_graphs})


def two_numbers(option: str, text: str, should: str) -> tuple[float, float]:
    """``"a:b"`` as two finite numbers.

    Raises:
        UserError: it is something else; ``should`` says what it should be.
    """
    first, colon, second = text.partition(":")
    try:
        numbers = float(first), float(second)
    except ValueError:
        numbers = math.nan, math.nan
    if not colon or not all(map(math.isfinite, numbers)):
        raise UserError(f"{option} takes {should}, got {text!r}")
    return numbers


def load_both(
    generator: Path | None, model: Path | None, device: str, dtype: str | None, output: Path
) -> tuple[Generator, LoSATok]:
    """The generator and the tokenizer, in eval mode.

    Args:
        generator: ``--generator``.
        model: ``--model``; None: the bundled tokenizer.
        device: ``--device``.
        dtype: ``--dtype`` of both; None: as they were saved. With ``int8`` the generator is in bfloat16, as the weights
            of an int8 tokenizer are that are not int8.
        output: the audio file that will be written.

    Raises:
        AudioFileError: ``output`` cannot be written at the tokenizer's sample rate.
        UserError: no generator is given, a folder does not exist, there is no such device or dtype, or the generator
            was trained on another tokenizer.
        CheckpointError: a folder holds no usable model of its type.
    """
    check_dtype(dtype)
    generator, model = require_generator(generator), require_model(model)
    chosen = pick_device(device)
    from losatok_ext.audio.files import check_writable
    from losatok_ext.models.generator.generator import Generator
    from losatok_ext.models.storage.precision import floats_of

    floats = None if dtype is None else floats_of(dtype)
    maker = Generator.from_pretrained(generator, chosen, floats)
    tokenizer = load_model(model, device, dtype)
    maker.dit.check_tokenizer(tokenizer.fingerprint())
    check_writable(output, tokenizer.sample_rate)
    return maker.eval(), tokenizer
