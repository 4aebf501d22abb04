"""Hostile arguments of raw ops, public ops and models."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from losatok_ext import ops
from losatok_ext.models import LoSATok
from ops.hostile_calls import MOST, valid_calls, wrong
from trials import commands
from trials.trial import FoundError, Trial

CALLS = 1000
LONGEST = 300.0
"""Seconds after which so many calls count as hung."""
Call = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""A name, a function and arguments that it takes."""


class _HostileCalls(Trial):
    """Each attempt makes a thousand calls in one process, with one to three arguments of each made wrong."""

    which: str

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Run one process of calls."""
        ours, theirs = commands.context.Pipe(duplex=False)
        log, seed = self.folder / "last-call", chance.randrange(2**31)
        process = commands.context.Process(target=call_many, args=(theirs, self.which, seed, str(log)))
        process.start()
        theirs.close()
        try:
            if not ours.poll(LONGEST):
                raise FoundError(f"seed {seed}: no end in {LONGEST:g} s, at {log.read_text()}")
            refused, problems = ours.recv()
        except EOFError:
            process.join()
            raise FoundError(f"seed {seed}: the process ended with {process.exitcode} at {log.read_text()}") from None
        finally:
            process.kill()
            process.join()
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


def public_calls() -> list[Call]:
    """A call of each public op, and of the model."""
    torch.manual_seed(0)
    r, lengths = torch.randn, torch.tensor([5, 3])
    q = r(2, 5, 4, 16)
    angles = r(5, 8)
    packed, scale, offset = ops.affine_quantize(r(2, 6, 8), 4)
    model = LoSATok.from_pretrained("tiny")
    width = model.config.latent_dim
    codes = torch.randint(0, 7, (2, 5, 3))
    window = torch.hann_window(16)
    calls: list[Call] = [
        ("bottleneck_project", ops.bottleneck_project, (r(2, 5, 8), r(16, 8), r(16), r(4, 16), r(4), "gelu")),
        (
            "normalized_reconstruction_loss",
            ops.normalized_reconstruction_loss,
            (r(2, 5, 4), r(2, 5, 8), r(16, 4), r(16), r(8, 16), r(8), lengths, "silu"),
        ),
        ("time_relation_loss", ops.time_relation_loss, (r(2, 5, 4), r(2, 5, 8), lengths, 2, "auto", r(2).abs())),
        ("gram_energy", ops.gram_energy, (r(2, 5, 8), lengths, 2)),
        ("dit_attention", ops.dit_attention, (q, q, q, r(16), r(16), (angles.cos(), angles.sin()), lengths, "rms")),
        ("layer_norm_modulate", ops.layer_norm_modulate, (r(2, 5, 8), r(2, 8), r(2, 8), 1e-6)),
        ("gated_residual", ops.gated_residual, (r(2, 5, 8), r(2, 5, 8), r(2, 8))),
        ("vq_nearest", ops.vq_nearest, (r(2, 5, 8), r(7, 8), lengths, "exact")),
        ("rvq_encode", ops.rvq_encode, (r(2, 5, 8), r(3, 7, 8), lengths, "fast")),
        ("rvq_decode", ops.rvq_decode, (codes, r(3, 7, 8))),
        ("fsq_quantize", ops.fsq_quantize, (r(2, 5, 3), (8, 5, 5), lengths)),
        ("fsq_dequantize", ops.fsq_dequantize, (codes[..., 0], (8, 5, 5))),
        ("affine_quantize", ops.affine_quantize, (r(2, 6, 8), 4)),
        ("affine_dequantize", ops.affine_dequantize, (packed, scale, offset, 4, -1, 8)),
        ("int8_linear", ops.int8_linear, (r(2, 5, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4), r(4))),
        ("depthwise_conv_norm", ops.depthwise_conv_norm, (r(2, 5, 8), r(8, 7), r(8), r(8), r(8), 1e-6, lengths)),
        ("polar_istft", ops.polar_istft, (r(2, 5, 18), window, 4, lengths)),
        ("encode", model.encode, (0.1 * r(2, 4000), 16_000, torch.tensor([4000, 1000]))),
    ]
    for name, function, arguments in calls:
        assert function(*arguments) is not None, name
    with torch.inference_mode():
        latents = model.encode(0.1 * r(1, 4000))
    calls.append(("decode", model.decode, (latents.mu.clone(),)))
    assert latents.mu.shape[-1] == width
    return calls


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
    calls = raw_calls() if which == "raw" else public_calls()
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
