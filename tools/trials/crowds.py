"""Several threads at once, and other programs on the same cores: the same bits, and no thread waits for ever."""

from __future__ import annotations

import random
import threading
from collections import Counter
from multiprocessing.connection import Connection

import torch

from losatok_ext.models import LoSATok
from trials import commands
from trials.trial import FoundError, Trial


class Crowds(Trial):
    """Each attempt encodes and decodes in several threads of a process with programs beside it, and compares."""

    name = "crowds"
    summary = "threads that share a model, beside programs that never rest: the bits of a single call"

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Run one process of threads."""
        threads, beside, seed = chance.choice((2, 3, 5)), chance.choice((0, 1, 2, 4)), chance.randrange(2**31)
        programs = [commands.context.Process(target=never_rest, daemon=True) for _ in range(beside)]
        for program in programs:
            program.start()
        when = f"{threads} threads beside {beside} programs (seed {seed})"
        try:
            calls, problems = commands.ask(crowd, threads, seed, seconds=600, when=when)
        finally:
            for program in programs:
                program.kill()
                program.join()
        counts["calls"] += calls
        if problems:
            raise FoundError(f"{when}: {problems[0]}")


def never_rest() -> None:
    """Use a core until the process is killed."""
    while True:
        pass


def crowd(connection: Connection, threads: int, seed: int) -> None:
    """Encode and decode clips in ``threads`` threads; send the number of calls, and what differed."""
    torch.manual_seed(seed)
    torch.set_num_threads(random.Random(seed).choice((1, 2, 4)))
    model = LoSATok.from_pretrained("tiny")
    clips = [0.1 * torch.randn(1, int(n)) for n in torch.randint(640, 48_000, (8,))]
    problems: list[str] = []

    def compute(clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.inference_mode():
            latents = model.encode(clip)
            return latents.mu, model.decode(latents)

    alone = [compute(clip) for clip in clips]

    def work(number: int) -> None:
        try:
            for turn in range(10):
                index = (number + turn) % len(clips)
                for name, one, other in zip(("latents", "audio"), compute(clips[index]), alone[index], strict=True):
                    if not torch.equal(one, other):
                        problems.append(f"{name} of clip {index} differ by {(one - other).abs().max():.2e}")
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    connection.send((len(clips) + 10 * threads, problems))
