"""Validation: losses on clips that are not trained on, with the same random numbers each time; audio and pictures.

It changes nothing of the run: no weight, no buffer, no random number of a step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from losatok_ext.errors import TrainingError
from losatok_ext.training.data.corpus import Corpus
from losatok_ext.training.data.crops import CropSource
from losatok_ext.training.engine.checkpoint import keep_random
from losatok_ext.training.engine.dimension_statistics import DimensionStatistics
from losatok_ext.training.engine.log import TrainingLog
from losatok_ext.training.engine.objective import Objective
from losatok_ext.training.engine.parts import VALIDATION, rows_of_process
from losatok_ext.training.engine.reports import Best, Validation
from losatok_ext.training.stages.base import Shown, ShownStage


class Validator:
    """Validates a stage on the same crops every time.

    Args:
        source: of crops; its first batches are taken.
        clips: the least number of crops; batches are always full.
        shown: the number of clips whose audio and pictures go to TensorBoard.
    """

    def __init__(self, source: CropSource, clips: int, shown: int) -> None:
        self.source = source
        self.batches = math.ceil(clips / source.batch_size)
        self.shown = shown

    @torch.no_grad()
    def run(self, objective: Objective, step: int, best: Best | None, log: TrainingLog | None) -> Validation:
        """Validate the model as it is.

        Args:
            objective: of the run that trains it.
            step: steps done.
            best: the best validation before; None where there was none.
            log: takes audio and pictures; None: another process writes them.
        """
        sums: dict[str, Tensor] = {}
        stage, processes, config = objective.stage, objective.processes, objective.config
        statistics, shown = DimensionStatistics(), list[Shown]()
        rows = rows_of_process(config.batch_size, processes, config.optimizer.accumulate)
        modules = [stage.model] if objective.critic is None else [stage.model, objective.critic]
        with keep_random(processes.device), _evaluating(modules):
            for number in range(self.batches):
                # In as many parts as a training step, so that it fits into the same memory.
                for part in objective.parts(self.source.batch(number, rows)):
                    with part.random(config.seed, VALIDATION, number):
                        total, losses = objective.losses(part, step)
                        for name, value in {".total": total, **losses}.items():
                            sums[name] = sums.get(name, 0.0) + value / self.batches
                        if isinstance(stage, ShownStage):
                            latents = objective.compute(partial(stage.latents, part.batch))
                            if latents is not None:
                                statistics.update(latents)
                            if len(shown) < self.shown and number == 0:
                                shown += objective.compute(partial(stage.show, part.batch))
        found = processes.total(torch.stack([value.double() for value in sums.values()])).tolist()
        losses_found = dict(zip(sums, found, strict=True))
        total_found = losses_found.pop(".total")
        if statistics.sums is not None:
            statistics.sums = processes.total(statistics.sums.to(processes.device)).cpu()
        is_best = best is None or total_found < best.total
        if log is not None:
            log.show(step, shown[: self.shown], statistics.dimensions())
        return Validation(step, losses_found, total_found, statistics.scalars(), is_best)


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
    """Divide a corpus into clips to train on and clips to validate on.

    A hash of a clip's name decides, so that clips which are added later do not move others.

    Args:
        corpus: the clips.
        share: about this part of them is held out, 0..1.
        data: what the corpus was opened from, for the message.

    Returns:
        (clips to train on, clips that are held out).

    Raises:
        TrainingError: one of the two has no clip.
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
