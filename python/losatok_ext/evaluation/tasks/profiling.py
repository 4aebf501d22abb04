"""Where encoding and decoding spend their time: by stage, beside what the machine's matrix products could do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from losatok_ext.evaluation.tasks.ceiling import Ceiling, matrix_ceiling
from losatok_ext.models import LoSATok
from losatok_ext.nn.attention import Attention
from losatok_ext.nn.bottleneck import Projection
from losatok_ext.nn.convnext import TimeConv
from losatok_ext.nn.linear import Int8Linear

# What a module spends beside its parts belongs to the first stage whose pattern its name matches.
STAGES = [
    (r"semantic_encoder\.mel|semantic_encoder\.batch_norm", "semantic mel"),
    (r"semantic_encoder\.patch_embed", "semantic patches"),
    (r"semantic_encoder\.blocks\.\d+\.attention\.", "attention: linear"),
    (r"semantic_encoder\.blocks\.\d+\.attention", "attention"),
    (r"semantic_encoder\.blocks\.\d+\.fc", "MLP"),
    (r"semantic_encoder\.(blocks\.\d+\.)?norm", "norms"),
    (r"semantic_encoder\.blocks\.\d+", "residuals"),
    (r"bottleneck", "bottleneck"),
    (r"acoustic_encoder\.mel", "acoustic mel"),
    (r"acoustic_encoder", "acoustic patches"),
    (r"fc_", "latent"),
    (r"decoder\.backbone\.embed", "first convolution"),
    (r"decoder\.backbone\.blocks\.\d+\.fc", "ConvNeXt: linear"),
    (r"decoder\.backbone\.blocks\.\d+", "ConvNeXt: convolution, norm, residual"),
    (r"decoder\.backbone\..*norm", "norms"),
    (r"decoder\.head\.out", "head: linear"),
    (r"decoder\.head", "head: inverse STFT"),
    (r"decoder", "upsampling"),
]
OTHER = "other"


@dataclass
class Stage:
    """One stage of a run.

    Attributes:
        name: what it is.
        seconds: it took, without its parts that are stages of their own.
        flop: its matrix products and convolutions.
    """

    name: str
    seconds: float = 0.0
    flop: float = 0.0


@dataclass
class Profile:
    """The stages of a run, in the order of their first end, and what they are set beside.

    Attributes:
        stages: they add up to :attr:`seconds`.
        seconds: of the whole run, the fastest of those measured.
        ceiling: the fastest square matrix product in the model's dtype on the same machine, measured just before.
    """

    stages: list[Stage]
    seconds: float
    ceiling: Ceiling

    def table(self) -> str:
        """Stage, milliseconds, percent of the run, GFLOP, and percent of the ceiling while it ran."""
        lines = [f"{'stage':<40}{'ms':>10}{'% of time':>11}{'GFLOP':>9}{'% of ceiling':>14}"]
        total = Stage("all", self.seconds, sum(stage.flop for stage in self.stages))
        for stage in (*self.stages, total):
            share = 100 * stage.seconds / self.seconds if self.seconds else 0.0
            line = f"{stage.name:<40}{1e3 * stage.seconds:>10.2f}{share:>11.1f}"
            if stage.flop and stage.seconds:
                reached = stage.flop / stage.seconds / self.ceiling.flop_per_second
                line += f"{stage.flop / 1e9:>9.2f}{100 * reached:>14.1f}"
            lines.append(line)
        return "\n".join([*lines, f"ceiling {self.ceiling}, measured in this run"])


def _flop(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> float:
    """Twice the multiply-adds of ``module`` itself, without its parts."""
    if isinstance(module, (nn.Linear, Int8Linear)):
        return 2.0 * output.numel() * module.in_features
    if isinstance(module, Projection):
        rows = output.numel() // module.fc2.out_features
        return 2.0 * rows * (module.fc1.weight.numel() + module.fc2.weight.numel())
    if isinstance(module, TimeConv):
        return 2.0 * output.numel() * module.weight[0].numel()
    if isinstance(module, Attention):
        return 4.0 * inputs[0].numel() * inputs[0].shape[1]
    return 0.0


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Clock:
    """Times modules by hooks; what runs inside another is taken off its time."""

    def __init__(self, model: LoSATok) -> None:
        self.model, self.device = model, model.device
        self.stages: dict[str, Stage] = {}
        self._inside: list[list[float]] = []  # of each module that runs: its start, and its parts' seconds

    def __enter__(self) -> _Clock:
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                stage = next((stage for pattern, stage in STAGES if re.match(pattern, name)), None)
                if stage is not None and not isinstance(module, nn.ModuleList):
                    stack.callback(module.register_forward_pre_hook(self._begin).remove)
                    stack.callback(module.register_forward_hook(self._end(stage)).remove)
            self._hooks = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        _synchronize(self.device)
        self._inside.append([time.perf_counter(), 0.0])

    def _end(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def end(module: nn.Module, inputs: Any, output: Any) -> None:
            _synchronize(self.device)
            begin, parts = self._inside.pop()
            seconds = time.perf_counter() - begin
            if self._inside:
                self._inside[-1][1] += seconds
            stage = self.stages.setdefault(name, Stage(name))
            stage.seconds += seconds - parts
            stage.flop += _flop(module, inputs, output)

        return end


def profile(model: LoSATok, run: Callable[[], Tensor | object], repeats: int = 3) -> Profile:
    """Time the stages of ``run()``, a call of ``model.encode`` or ``model.decode``, over ``repeats`` runs after one.

    Args:
        model: whose modules are timed; on a GPU each is waited for, which makes the whole slower than it is.
        run: what to time.
        repeats: at least 1; the fastest is told.
    """
    run()  # weights are packed, libraries started
    ceiling = matrix_ceiling(model.decoder.upsample_weight.dtype, model.device.type, 0.5)
    best: Profile | None = None
    for _ in range(repeats):
        with _Clock(model) as clock:
            _synchronize(model.device)
            begin = time.perf_counter()
            run()
            _synchronize(model.device)
            seconds = time.perf_counter() - begin
        if best is None or seconds < best.seconds:
            stages = list(clock.stages.values())
            rest = seconds - sum(stage.seconds for stage in stages)
            best = Profile([*stages, Stage(OTHER, rest)], seconds, ceiling)
    assert best is not None
    return best
