"""How long each stage of encoding or decoding takes, compared with the speed of the machine's matrix products."""

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

# The time of a module, without that of its submodules, counts for the first stage whose pattern matches its name.
PATTERNS = [
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
class StageTime:
    """Time and work of one stage of a run.

    Attributes:
        name: of the stage.
        seconds: without the parts that are stages of their own.
        flop: floating-point operations of its matrix products and convolutions.
    """

    name: str
    seconds: float = 0.0
    flop: float = 0.0


@dataclass
class Profile:
    """The stages of a run, in the order in which they first ended, and the machine's ceiling.

    Attributes:
        stages: their seconds add up to :attr:`seconds`.
        seconds: of the fastest run.
        ceiling: the fastest square matrix product in the model's dtype, measured just before on the same machine.
    """

    stages: list[StageTime]
    seconds: float
    ceiling: Ceiling


def _flop(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> float:
    """Twice the multiply-adds of ``module`` itself, without its submodules."""
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
    """Times modules by hooks; the time of a submodule is subtracted from that of its module."""

    def __init__(self, model: LoSATok) -> None:
        self.model, self.device = model, model.device
        self.stages: dict[str, StageTime] = {}
        self._inside: list[list[float]] = []  # of each running module: its start, and the seconds of its submodules

    def __enter__(self) -> _Clock:
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                stage = next((stage for pattern, stage in PATTERNS if re.match(pattern, name)), None)
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
            stage = self.stages.setdefault(name, StageTime(name))
            stage.seconds += seconds - parts
            stage.flop += _flop(module, inputs, output)

        return end


def profile(model: LoSATok, run: Callable[[], Tensor | object], repeats: int = 3) -> Profile:
    """Time the stages of ``run()``, a call of ``model.encode`` or ``model.decode``.

    Args:
        model: the model whose modules are timed. On a GPU the clock waits for each module, so the total is longer than
            without timing.
        run: what to time. It is called once before, so that packing weights and starting libraries do not count.
        repeats: timed runs, at least 1; the fastest one is returned.
    """
    run()
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
            best = Profile([*stages, StageTime(OTHER, rest)], seconds, ceiling)
    assert best is not None
    return best
