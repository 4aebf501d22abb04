"""Memory that does not grow over thousands of calls."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from losatok_ext import ops
from losatok_ext.audio.files import read_audio_with_info, write_audio
from losatok_ext.formats.latent_files import load_latents, save_latents
from losatok_ext.jobs.tokenize import encode_clip
from losatok_ext.models import LoSATok
from trials import commands
from trials.trial import FoundError, Trial

CALLS = 2000
_WARM = 500
"""Calls before the memory is first read: allocators keep what they have had once."""
_MEGABYTES = 24.0


def resident() -> float:
    """What this process holds in memory, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


class Memory(Trial):
    """Each attempt makes 2000 calls in one process, and compares its memory with that after the first 500."""

    name = "memory"
    summary = f"memory over {CALLS} calls of one kind in a process: encode, decode, files, ops forward and backward"

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Run one process of calls."""
        what, seed = chance.choice(list(CALLERS)), chance.randrange(2**31)
        grown = commands.ask(call_many, what, seed, seconds=1200, when=f"{what} (seed {seed})")
        counts["calls"] += CALLS
        counts["largest growth in MB"] = max(counts["largest growth in MB"], round(grown))
        if grown > _MEGABYTES:
            raise FoundError(f"{what} (seed {seed}): {grown:.1f} MB more after {CALLS} calls than after {_WARM}")


def call_many(connection: Connection, what: str, seed: int) -> None:
    """Make the calls, and send by how many MB the memory has grown since the first of them."""
    torch.set_num_threads(2)
    torch.manual_seed(seed)
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        call = CALLERS[what](Path(folder))
        warm = 0.0
        for number in range(CALLS):
            if number == _WARM:
                warm = resident()
            call(chance)
        connection.send(resident() - warm)


def _coding(folder: Path):
    model = LoSATok.from_pretrained("tiny")

    def call(chance: random.Random) -> None:
        audio = 0.1 * torch.randn(chance.choice((1, 2)), chance.randrange(640, 16_000))
        with torch.inference_mode():
            model.decode(model.encode(audio))

    return call


def _files(folder: Path):
    model = LoSATok.from_pretrained("tiny")
    sound = torch.randn(16_000).mul(0.1)

    def call(chance: random.Random) -> None:
        name = folder / chance.choice(("a.wav", "a.flac", "a.ogg", "a.mp3"))
        write_audio(name, sound[: chance.randrange(1600, 16_000)], 16_000)
        audio, info = read_audio_with_info(name)
        save_latents(folder / "a.losatok", encode_clip(model, audio, info))
        load_latents(folder / "a.losatok")

    return call


def _steps(folder: Path):
    def call(chance: random.Random) -> None:
        batch, time = chance.choice((1, 2, 3)), chance.randrange(1, 80)
        low = torch.randn(batch, time, 16, requires_grad=True)
        ops.time_relation_loss(low, torch.randn(batch, time, 64)).backward()
        q, k, v = (torch.randn(batch, 2, time, 32, requires_grad=True) for _ in range(3))
        ops.dit_attention(q, k, v, layout="BHTh").sum().backward()
        x = torch.randn(batch, time, 64, requires_grad=True)
        ops.layer_norm_modulate(x, torch.randn(batch, 64), torch.randn(batch, 64)).sum().backward()
        indices, _ = ops.rvq_encode(low.detach(), torch.randn(3, 32, 16))
        ops.rvq_decode(indices, torch.randn(3, 32, 16))

    return call


CALLERS = {"encode and decode": _coding, "files": _files, "ops": _steps}
