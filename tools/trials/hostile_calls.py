"""Hostile arguments of raw ops, public ops and models."""

from __future__ import annotations

import os
import random
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from losatok_ext.models import LoSATok
from ops.hostile_calls import MOST, valid_calls, wrong
from ops.public_calls import Call, public_calls
from trials import commands
from trials.trial import FoundError, Trial

CALLS = 1000
LONGEST = 300.0
"""Seconds after which so many calls count as hung."""


class _HostileCalls(Trial):
    """Each attempt makes a thousand calls in one process, with one to three arguments of each made wrong."""

    which: str

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Run one process of calls."""
        log, seed = self.folder / "last-call", chance.randrange(2**31)
        try:
            refused, problems = commands.ask(
                call_many, self.which, seed, str(log), seconds=LONGEST, when=f"seed {seed}"
            )
        except FoundError as error:
            raise FoundError(f"{error}, at {log.read_text()}") from None
        counts["calls"] += CALLS
        counts["refused"] += refused
        if problems:
            raise FoundError(f"seed {seed}: {len(problems)} calls: " + "\n".join(problems[:5]))


class RawCalls(_HostileCalls):
    """Raw ops of the CPU."""

    name = which = "raw"
    summary = "hostile arguments of `torch.ops.losatok.*` on the CPU"


class PublicCalls(_HostileCalls):
    """Public functions and methods."""

    name = which = "public"
    summary = "hostile arguments of `losatok_ext.ops` and of `LoSATok`"


def raw_calls() -> list[Call]:
    """A call of each raw op."""
    return [
        (name, getattr(torch.ops.losatok, name).default, arguments)
        for name, cases in valid_calls().items()
        for arguments in cases
    ]


def calls_of(which: str) -> list[Call]:
    """A call of each raw op (``"raw"``), or of each public op and of the model."""
    if which == "raw":
        return raw_calls()
    torch.manual_seed(0)
    model = LoSATok.from_pretrained("tiny")
    with torch.inference_mode():
        latents = model.encode(0.1 * torch.randn(1, 4000)).mu.clone()
    batch, lengths = 0.1 * torch.randn(2, 4000), torch.tensor([4000, 1000])
    return [*public_calls(), ("encode", model.encode, (batch, 16_000, lengths)), ("decode", model.decode, (latents,))]


def _strange(chance: random.Random) -> tuple[str, Any]:
    """A value of a kind that no op takes there."""
    values = (None, "evil", "", b"x", [], {}, object(), 2**62, -1, float("nan"), 1e300, torch, [1, "a"], (None,), True)
    value = chance.choice(values)
    return repr(value)[:40], value


def call_many(connection: Connection, which: str, seed: int, log: str) -> None:
    """Make the calls; send how many were refused, and of which something did not hold."""
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    chance = random.Random(seed)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch warns of complex numbers that become real
    calls = calls_of(which)
    # A raw op may raise what it likes, as long as it raises.
    allowed = (Exception,) if which == "raw" else (ValueError, TypeError, IndexError, RuntimeError)
    wrongs: dict[tuple[int, int], list[tuple[str, Any]]] = {}
    refused, problems = 0, []
    with Path(log).open("w") as file:
        for _ in range(CALLS):
            number = chance.randrange(len(calls))
            name, function, arguments = calls[number]
            changed, told = list(arguments), []
            for position in chance.sample(range(len(arguments)), min(len(arguments), chance.choice((1, 1, 2, 3)))):
                if (number, position) not in wrongs:
                    wrongs[number, position] = list(wrong(arguments[position]))
                choices = wrongs[number, position]
                odd = not choices or chance.random() < 0.2
                what, changed[position] = _strange(chance) if odd else chance.choice(choices)
                told.append(f"argument {position} is {what}")
            line = f"{name}: {', '.join(told)}"
            file.seek(0)
            file.truncate()
            file.write(line)
            file.flush()
            try:
                results = function(*changed)
            except allowed:
                refused += 1
            except Exception as error:
                problems.append(f"{line}: {type(error).__name__}: {str(error)[:200]}")
            else:
                found = results if isinstance(results, tuple | list) else [results]
                held = (each for each in found if isinstance(each, torch.Tensor) and not each.is_meta)
                sizes = [each.numel() for each in held]
                if any(size > MOST for size in sizes):
                    problems.append(f"{line}: a result of {max(sizes)} elements")
    connection.send((refused, problems))
