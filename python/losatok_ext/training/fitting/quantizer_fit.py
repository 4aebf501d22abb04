"""A quantizer for a model that was trained without one, fitted to its latents; the model's weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from losatok_ext import ops
from losatok_ext.errors import ConfigError, UserError
from losatok_ext.models import LoSATok
from losatok_ext.nn.quantizers import (
    FSQ,
    AffineConfig,
    FSQConfig,
    GroupedConfig,
    GroupedQuantizer,
    Quantizer,
    QuantizerConfig,
    ResidualVQ,
    ResidualVQConfig,
    VectorQuantizer,
    VQConfig,
    build_quantizer,
)
from losatok_ext.nn.quantizers.kmeans import count_and_sum, kmeans
from losatok_ext.recordings.find import Failure
from losatok_ext.training.fitting.finite_fit import fit_levels
from losatok_ext.training.fitting.latent_stream import FRAMES_AT_ONCE, LatentStream

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class FitOptions:
    """How much work a fit does.

    Attributes:
        sample_frames: frames drawn evenly from all, on which k-means (and the scales of levels) are computed. They
            bound the memory: 4 d bytes each, and the same again for the residuals of a stage.
        iterations: of Lloyd's algorithm on these frames, for each stage of a residual quantizer.
        passes: by mini-batches over all frames afterwards, where there are more than were drawn.
        seed: of the frames drawn, the initial codes and the order.
    """

    sample_frames: int = 262_144
    iterations: int = 25
    passes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("sample_frames", 1), ("iterations", 1), ("passes", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} should be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Fit:
    """The result of :func:`fit_quantizer`.

    Attributes:
        model: the tokenizer with its quantizer, in eval mode; it shares the weights of the one it was made from.
        frames: number of frames in the files.
        files: number of files that were used.
        relative_rms: root mean square of the quantization error, divided by the standard deviation of the latents; on
            the frames that were drawn.
        used: share of the codes that these frames use, for each code of a token; empty for affine integers.
        failures: files that were left out, and why.
    """

    model: LoSATok
    frames: int
    files: int
    relative_rms: float
    used: tuple[float, ...]
    failures: tuple[Failure, ...]


def fit_quantizer(
    model: LoSATok,
    latents: Sequence[str | Path],
    config: QuantizerConfig,
    options: FitOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Fit:
    """Fit a quantizer to latent files of a model. Memory is bounded by ``options`` and the longest file.

    Codebooks: k-means of a sample of frames, stage by stage on what the stages before left over, then mini-batch
    k-means (Sculley 2010) through all frames. Levels (FSQ): principal components, each scaled so that its levels fit
    best, and the linear map back that errs least. Affine integers have nothing to fit and are measured only. Equal
    arguments give equal bits on a CPU.

    Args:
        model: the tokenizer that encoded the files; on the device to compute on.
        latents: latent files, of any storage but codes.
        config: what to fit: VQConfig or ResidualVQConfig (of the latent's own width, not cosine, not shared),
            FSQConfig (of fewer dimensions than the latent), AffineConfig, or GroupedConfig of one of these.
        options: how much work to do; None: the defaults.
        on_progress: called now and then.

    Raises:
        UserError: no file can be used, or the frames are too few.
        ConfigError: a configuration that cannot be fitted to latents afterwards.
    """
    options = options or FitOptions()
    say = on_progress or (lambda *_: None)
    dim = model.config.latent_dim
    _check_fittable(config, dim)
    stream = LatentStream([Path(path) for path in latents], model.fingerprint(), dim)
    _check_enough(config, stream.frames)
    counted = _counter(say, "drawing frames", stream.frames)
    drawn = stream.sample(max(options.sample_frames, _fewest(config)), options.seed, counted)
    _check_enough(config, len(drawn))
    drawn = drawn.to(model.device)
    generator = torch.Generator().manual_seed(options.seed)
    state = torch.random.get_rng_state()
    quantizer = build_quantizer(config, dim).to(model.device).eval()
    torch.random.set_rng_state(state)  # its random weights are overwritten; the caller's random numbers do not change
    parts = quantizer.quantizers if isinstance(quantizer, GroupedQuantizer) else [quantizer]
    chains = [part for part in parts if isinstance(part, VectorQuantizer | ResidualVQ)]
    if chains:
        _fit_codebooks(chains, drawn, stream, options, generator, say)
    for number, (part, rows) in enumerate(zip(parts, drawn.chunk(len(parts), dim=-1), strict=True)):
        if isinstance(part, FSQ):
            say("scaling levels", number, len(parts))
            fit_levels(part, rows)
            say("scaling levels", number + 1, len(parts))
    error, used = _measure(quantizer, drawn)
    return Fit(model.with_quantizer(quantizer), stream.frames, stream.files, error, used, tuple(stream.failures))


def _each(config: QuantizerConfig) -> QuantizerConfig:
    """The configuration of a group where there are groups, else ``config`` itself."""
    return config.each if isinstance(config, GroupedConfig) else config


def _check_fittable(config: QuantizerConfig, dim: int) -> None:
    config.check_dim(dim)
    if isinstance(config, GroupedConfig):
        _check_fittable(config.each, dim // config.groups)
    elif isinstance(config, VQConfig):
        shared = isinstance(config, ResidualVQConfig) and config.shared
        if config.cosine or shared or config.codebook_dim not in (None, dim):
            raise ConfigError(
                "a codebook that is fitted afterwards should be of the latent's own width, without cosine or shared; "
                "train such a quantizer with the model (losatok train tokenizer --set quantizer.kind=...)"
            )
    elif type(config) is FSQConfig:  # not its kind with stages
        size = len(config.levels) * config.num_codebooks
        if size >= dim:
            raise ConfigError(
                f"levels should be fewer than the latent's {dim} dimensions to be fitted afterwards, got {size}"
            )
    elif not isinstance(config, AffineConfig):
        raise ConfigError(
            f"a quantizer of kind {config.kind} is not fitted afterwards; "
            "train it with the model (losatok train tokenizer --set quantizer.kind=...)"
        )


def _fewest(config: QuantizerConfig) -> int:
    """The least number of frames to which ``config`` can be fitted."""
    config = _each(config)
    if isinstance(config, VQConfig):
        return config.codebook_size
    return len(config.levels) * config.num_codebooks + 1 if isinstance(config, FSQConfig) else 1


def _check_enough(config: QuantizerConfig, frames: int) -> None:
    fewest = _fewest(config)
    if frames < fewest:
        codebook = isinstance(_each(config), VQConfig)
        what = f"a codebook of {fewest} codes" if codebook else f"{fewest - 1} dimensions of levels"
        raise UserError(
            f"there are {frames} frames of latents, too few for {what}: at least {fewest} are needed, and tens of "
            "times as many make a good one; encode more recordings, or ask for less"
        )


def _counter(say: OnProgress, what: str, total: int) -> Callable[[int], None]:
    done = 0
    say(what, 0, total)

    def advance(frames: int) -> None:
        nonlocal done
        done += frames
        say(what, done, total)

    return advance


class _Fitted:
    """The codebooks of a quantizer while they are fitted: a table and the rows so far of each code, for each stage.

    Args:
        quantizer: a chain of codebooks.
        features: of the latents, those that it quantizes.
    """

    def __init__(self, quantizer: VectorQuantizer | ResidualVQ, features: slice) -> None:
        self.quantizer, self.features = quantizer, features
        self.tables: list[Tensor] = []
        self.counts: list[Tensor] = []

    def start(self, drawn: Tensor, iterations: int, generator: torch.Generator, advance: Callable[[int], None]) -> None:
        """k-means of ``drawn`` [N, d], stage by stage."""
        residual = drawn[:, self.features].clone()
        valid = torch.tensor(len(drawn), device=drawn.device)
        for _ in range(self.quantizer.stages):
            noise = torch.rand(self.quantizer.codebook_size, generator=generator).to(drawn.device)
            centres, chosen = kmeans(residual, valid, self.quantizer.codebook_size, iterations, noise)
            for rows in residual.split(FRAMES_AT_ONCE):
                rows -= centres[ops.vq_nearest(rows, centres)[0]]
            self.tables.append(centres)
            self.counts.append(chosen)
            advance(1)

    def learn(self, batch: Tensor) -> None:
        """Move the codes of each stage to the running mean of their rows; ``batch`` [n, d] holds the next rows."""
        batch = batch[:, self.features].contiguous()
        for table, count in zip(self.tables, self.counts, strict=True):
            codes, _ = ops.vq_nearest(batch, table)
            batch = batch - table[codes]
            chosen, left = count_and_sum(batch.unsqueeze(0), codes.unsqueeze(0), len(table))
            count += chosen
            table += left / count.clamp(min=1).unsqueeze(-1)

    @torch.no_grad()
    def store(self) -> None:
        """Give the quantizer its codebooks."""
        books = self.quantizer.codebooks
        for stage, (table, count) in enumerate(zip(self.tables, self.counts, strict=True)):
            books.codes[stage].copy_(table)
            books.usage[stage].copy_(count / count.mean())
            if books.sums is not None:
                books.sums[stage].copy_(table * books.usage[stage].unsqueeze(-1))
        books.finish_start()


def _fit_codebooks(
    chains: list[VectorQuantizer | ResidualVQ],
    drawn: Tensor,
    stream: LatentStream,
    options: FitOptions,
    generator: torch.Generator,
    say: OnProgress,
) -> None:
    """Fit the codebooks of ``chains``, each of which quantizes an equal part of the features, in their order."""
    dim = chains[0].dim
    fits = [_Fitted(chain, slice(number * dim, (number + 1) * dim)) for number, chain in enumerate(chains)]
    counted = _counter(say, "k-means of stages", len(chains) * chains[0].stages)
    for fit in fits:
        fit.start(drawn, options.iterations, generator, counted)
    if stream.frames > len(drawn):
        for number in range(options.passes):
            what = f"pass {number + 1} of {options.passes} over all frames"
            for batch in stream.batches(options.seed + 1 + number, _counter(say, what, stream.frames)):
                rows = batch.to(drawn.device)
                for fit in fits:
                    fit.learn(rows)
    for fit in fits:
        fit.store()


@torch.no_grad()
def _measure(quantizer: Quantizer, drawn: Tensor) -> tuple[float, tuple[float, ...]]:
    """Relative error of the frames that were drawn, and the share of the codes that they use at each place."""
    mean = drawn.double().mean(0)
    lost = total = 0.0
    places: list[Tensor] = []
    for rows in drawn.split(FRAMES_AT_ONCE):
        codes = quantizer.encode(rows)
        lost += float((quantizer.decode(codes).double() - rows.double()).square().sum())
        total += float((rows.double() - mean).square().sum())
        places.append(codes.view(len(rows), -1))
    error = (lost / total) ** 0.5 if total > 0 else 0.0
    if isinstance(_each(quantizer.config), AffineConfig):
        return error, ()
    codes = torch.cat(places)
    return error, tuple(len(column.unique()) / quantizer.codebook_size for column in codes.unbind(1))
