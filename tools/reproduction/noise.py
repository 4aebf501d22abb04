"""Clips mixed with noise, so that probing them is not too easy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from make_corpus import RATE, coloured

from losatok_ext.files import atomic_path


def noisy(manifest: Path, folder: Path, decibels: float, seed: int) -> Path:
    """A copy of a corpus with pink noise added; returns its manifest. An existing copy is used again.

    Args:
        manifest: of the corpus.
        folder: of the copy.
        decibels: signal-to-noise ratio of each clip in dB.
        seed: of the noise.
    """
    copy = folder / "manifest.jsonl"
    text = manifest.read_text(encoding="utf-8")
    if copy.exists() and copy.read_text(encoding="utf-8") == text:
        return copy
    for index, line in enumerate(text.splitlines()):
        path = json.loads(line)["path"]
        clean, _ = soundfile.read(manifest.parent / path, dtype="float32")
        noise = coloured(np.random.default_rng([seed, index]).standard_normal(len(clean)), 0.5)
        noise *= np.sqrt((clean**2).mean() / (noise**2).mean()) * 10 ** (-decibels / 20)
        mixed = clean + noise
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / path, (0.9 * mixed / np.abs(mixed).max()).astype(np.float32), RATE)
    with atomic_path(copy) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return copy
