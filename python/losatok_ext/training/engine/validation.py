"""Validation: losses on clips that are not trained on, always with the same random numbers, and what to hear and see.

It changes nothing of the run: no weight, no buffer, no random number of a step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from losatok_ext.errors import TrainingError
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.engine.checkpoint import keep_random
from losatok_ext.training.engine.latent_statistics import LatentStatistics
from losatok_ext.training.engine.log import TrainingLog
from losatok_ext.training.engine.parts import VALIDATION, cut
from losatok_ext.training.engine.reports import Validation
from losatok_ext.training.stages.base import Shown, ShownStage

if TYPE_CHECKING:
    from losatok_ext.training.engine.loop import Trainer


class Validator:
    """Validates a stage on the same crops every time.

    Args:
        source: of crops; its first batches are taken.
        clips: so many crops at least.
        shown: clips to hear and see.
    """

    def __init__(self, source: CropSource, clips: int, shown: int) -> None:
        self.source = source
        self.batches = math.ceil(clips / source.batch_size)
        self.shown = shown

    @torch.no_grad()
    def run(self, trainer: Trainer, log: TrainingLog | None) -> Validation:
        """Validate ``trainer``'s model as it is; audio and pictures go to ``log``."""
        sums: dict[str, Tensor] = {}
        stage, processes = trainer.stage, trainer.processes
        statistics, shown = LatentStatistics(), list[Shown]()
        modules = [stage.model] if trainer.critic is None else [stage.model, trainer.critic]
        # A part of a validation batch is as large as one of a training step: it fits the same memory.
        accumulate = trainer.config.optimizer.accumulate
        with keep_random(processes.device), _evaluating(modules):
            for number in range(self.batches):
                rows = self.source.batch(number, trainer.rows)
                for part in cut(rows, processes, accumulate, self.source.multiple):
                    with part.random(trainer.config.seed, VALIDATION, number):
                        total, losses = trainer.objective(lambda part=part: trainer.part_losses(part))
                        for name, value in {".total": total, **losses}.items():
                            sums[name] = sums.get(name, 0.0) + value / self.batches
                        if isinstance(stage, ShownStage):
                            latents = trainer.objective(lambda part=part: stage.latents(part.batch))
                            if latents is not None:
                                statistics.update(latents)
                            if len(shown) < self.shown and number == 0:
                                shown += trainer.objective(lambda part=part: stage.show(part.batch))
        found = processes.total(torch.stack([value.double() for value in sums.values()])).tolist()
        losses_found = dict(zip(sums, found, strict=True))
        total_found = losses_found.pop(".total")
        if statistics.sums is not None:
            statistics.sums = processes.total(statistics.sums.to(processes.device)).cpu()
        best = trainer.best is None or total_found < trainer.best.total
        if log is not None:
            log.show(trainer.step, shown[: self.shown], statistics.dimensions())
        return Validation(trainer.step, losses_found, total_found, statistics.scalars(), best)


@contextmanager
def _evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """Modules in eval mode; afterwards each of their parts is in the mode it was in."""
    training = [part for module in modules for part in module.modules() if part.training]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def hold_out(corpus: Corpus, share: float, data: object) -> tuple[Corpus, Corpus]:
    """``corpus`` without about ``share`` of its clips, and these alone; a clip's name decides, so that clips which are
    added later move no other.

    Raises:
        TrainingError: nothing is left on one side.
    """
    held = [_fraction(clip.name) < share for clip in corpus.clips]
    if all(held) or not any(held):
        raise TrainingError(
            f"{data}: validation.share {share:g} of its {len(corpus.clips)} clips leaves none to "
            f"{'train' if all(held) else 'validate'} on; take another share, or validation.data"
        )
    return corpus.pick([not h for h in held]), corpus.pick(held)


def _fraction(name: str) -> float:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
