"""Latent files whose every value is known, in every storage, and ways to damage them."""

import json
import struct
from dataclasses import replace

import torch

from losatok_ext.formats.latent_files import LatentFile, LatentHeader

STORAGES = ("float32", "float16", "int8", "int4", "codes")


def latents(tokens=5, dim=8, logvar=False, storage="float32", sizes=(1024, 3, 1), **changes):
    """A recording of ``tokens`` tokens; codes for ``sizes`` where codes are stored."""
    header = LatentHeader(
        fingerprint="0123456789abcdef",
        frame_rate=25.0,
        samples_per_token=640,
        sample_rate=16_000,
        tokens=tokens,
        latent_dim=dim,
        samples=tokens * 640 - 17,
        source_name='ein "Name" 音.flac',
        source_rate=44_100,
        source_samples=round((tokens * 640 - 17) * 44_100 / 16_000),
    )
    generator = torch.Generator().manual_seed(1)
    mu = torch.randn(tokens, dim, generator=generator)
    codes = None
    if storage == "codes":
        header = replace(header, quantizer="fedcba9876543210", quantizer_name="odd", code_sizes=tuple(sizes))
        codes = torch.stack([torch.randint(size, (tokens,), generator=generator) for size in sizes], 1)
    return LatentFile(replace(header, **changes), mu, -mu if logvar else None, codes, storage)


def parts(path):
    """The file's safetensors header, the JSON entry in it, and the bytes that follow."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    head = json.loads(raw[8 : 8 + length])
    return head, json.loads(head["__metadata__"]["losatok"]), raw[8 + length :]


def write_parts(path, head, entry, payload):
    """Put a file together again from :func:`parts`."""
    if "__metadata__" in head:
        head["__metadata__"]["losatok"] = json.dumps(entry)
    new = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + payload)


def rewrite(path, change):
    """Write the file anew with its headers changed by ``change(head, entry)`` and everything else as it was."""
    head, entry, payload = parts(path)
    change(head, entry)
    write_parts(path, head, entry, payload)
