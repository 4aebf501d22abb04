#!/usr/bin/env python3
"""Render a labelled corpus of speech, music and environmental sound at 16 kHz mono, without a download.

All of it is synthesised here, the same for the same seed: speech by espeak-ng, music by fluidsynth with a General MIDI
sound font, environmental sounds by NumPy. Needs Debian's espeak-ng, fluidsynth and fluid-soundfont-gm for the first
two, and Python's numpy, soundfile and soxr.

    tools/make_corpus.py OUT --clips-per-domain 200 --seed 0

Writes OUT/<domain>/<number>.flac and OUT/manifest.jsonl with a line per clip: "path", "domain", "seconds", "labels"
and, for speech, "text". The bundled recordings are its seed 1234 with 16 clips per domain.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000
DOMAINS = ("speech", "music", "environment")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VOICES = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us+f2", "en-us+f4", "en-gb+m3", "en-gb+m7"]
SUBJECTS = [
    "the engineer", "a small child", "my neighbour", "the orchestra", "our teacher", "that old sailor",
    "the quiet river", "a red fox",
]  # fmt: skip
VERBS = ["recorded", "remembered", "crossed", "painted", "repaired", "discovered", "followed", "measured"]
OBJECTS = [
    "the long bridge", "a broken clock", "seven letters", "the winter sky", "a distant signal", "the wooden boat",
    "every answer", "the morning train",
]  # fmt: skip
INSTRUMENTS = {
    "piano": 0, "vibraphone": 11, "organ": 19, "guitar": 24, "bass": 33, "violin": 40, "strings": 48, "trumpet": 56,
    "saxophone": 65, "clarinet": 71, "flute": 73, "lead": 80,
}  # fmt: skip
"""General MIDI programs by name."""
SOUND_FONT = "/usr/share/sounds/sf2/FluidR3_GM.sf2"


def speak(text: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """``text`` by espeak-ng, [N]."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", file.name, text]
        subprocess.run(command, check=True)
        audio, rate = soundfile.read(file.name, dtype="float32")
    return soxr.resample(audio, rate, RATE)


def midi_file(notes: list[tuple[float, float, int, int]], program: int) -> bytes:
    """A MIDI file of one track; notes are (start s, length s, key, velocity), 480 ticks a beat at 120 bpm."""

    def ticks(seconds: float) -> int:
        return round(seconds * 960)

    events = [(0, bytes([0xC0, program]))]
    for start, length, key, velocity in notes:
        events.append((ticks(start), bytes([0x90, key, velocity])))
        events.append((ticks(start + length), bytes([0x80, key, 0])))
    track, now = b"", 0
    for when, message in sorted(events, key=lambda event: event[0]):
        delta, now = when - now, when
        size = bytes([delta & 0x7F])
        while delta := delta >> 7:
            size = bytes([0x80 | (delta & 0x7F)]) + size
        track += size + message
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + track


def play(notes: list[tuple[float, float, int, int]], program: int, font: str) -> np.ndarray:
    """``notes`` by fluidsynth, [N]."""
    with tempfile.TemporaryDirectory() as folder:
        score, rendered = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        score.write_bytes(midi_file(notes, program))
        command = ["fluidsynth", "-ni", "-q", "-g", "0.8", "-r", "32000", "-F", str(rendered), font, str(score)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        audio, rate = soundfile.read(rendered, dtype="float32")
    return soxr.resample(audio.mean(1), rate, RATE)


def coloured(white: np.ndarray, exponent: float) -> np.ndarray:
    """Noise whose spectrum falls with frequency to the power ``-exponent``, peak 1."""
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.arange(1, len(spectrum)) ** exponent
    out = np.fft.irfft(spectrum, len(white))
    return out / np.abs(out).max()


def tone(frequency: np.ndarray) -> np.ndarray:
    """A sine of that frequency (Hz) at each sample."""
    return np.sin(2 * np.pi * np.cumsum(frequency) / RATE)


def rain(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    drops = (rng.random(len(t)) < 0.004) * rng.standard_normal(len(t))
    return 0.25 * coloured(white, 0.2) + 0.6 * np.convolve(drops, np.exp(-np.arange(200) / 25.0), "same")


def wind(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    gusts = np.sin(2 * np.pi * rng.uniform(0.15, 0.5) * t + rng.uniform(0, 6))
    return coloured(white, 0.9) * (0.55 + 0.45 * gusts)


def siren(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    base, swing, rate = rng.uniform(500, 900), rng.uniform(150, 350), rng.uniform(0.3, 2.0)
    return 0.5 * tone(base + swing * np.sin(2 * np.pi * rate * t))


def clicks(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    out = np.zeros(len(t))
    for start in np.cumsum(rng.uniform(0.08, 0.5, 40)):
        at = int(start * RATE)
        if at + 400 < len(t):
            out[at : at + 400] += rng.standard_normal(400) * np.exp(-np.arange(400) / 40.0)
    return 0.5 * out


def bird(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    out, now, seconds = np.zeros(len(t)), 0.1, len(t) / RATE
    while now < seconds - 0.3:
        size, at = int(rng.uniform(0.06, 0.2) * RATE), int(now * RATE)
        chirp = np.hanning(size) * tone(np.linspace(rng.uniform(2500, 5000), rng.uniform(2500, 6500), size))
        out[at : at + size] += chirp[: len(t) - at]
        now += size / RATE + rng.uniform(0.05, 0.5)
    return 0.5 * out


def engine(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    pitch = rng.uniform(25, 60)
    buzz = sum(np.sin(2 * np.pi * pitch * k * t + rng.uniform(0, 6)) / k for k in range(1, 25))
    throb = 1 + 0.3 * np.sin(2 * np.pi * rng.uniform(1, 6) * t)
    return 0.2 * buzz * throb + 0.05 * white


def alarm(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    gate = np.sin(2 * np.pi * rng.uniform(1.5, 5) * t) > 0
    return 0.4 * gate * np.sign(np.sin(2 * np.pi * rng.uniform(700, 2400) * t))


def waves(t: np.ndarray, white: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # noqa: D103
    swell = np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * t) + 0.3
    return coloured(white, 0.6) * np.clip(swell, 0.05, 1.2)


EVENTS: list[Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = [
    rain, wind, siren, clicks, bird, engine, alarm, waves,
]  # fmt: skip


def render(domain: str, index: int, rng: np.random.Generator, font: str) -> tuple[np.ndarray, dict]:
    """Clip ``index`` of ``domain``: its samples [N], and what the manifest says of it."""
    if domain == "speech":
        voice = VOICES[index % len(VOICES)]
        if index % 2:
            text = DIGITS[int(rng.integers(10))]
            labels = {"digit": text, "voice": voice}
        else:
            text = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}."
            labels = {"sentence": text, "voice": voice}
        audio = speak(text, voice, int(rng.integers(120, 200)), int(rng.integers(25, 75)))
        return audio, {"labels": labels, "text": text}
    if domain == "music":
        name = list(INSTRUMENTS)[index % len(INSTRUMENTS)]
        root, scale = int(rng.integers(45, 70)), np.array([0, 2, 4, 5, 7, 9, 11, 12])
        now, notes = 0.0, []
        while now < 3.5:
            length = float(rng.choice([0.25, 0.375, 0.5, 1.0]))
            for offset in rng.choice(scale, size=int(rng.integers(1, 4)), replace=False):
                notes.append((now, length, root + int(offset), int(rng.integers(60, 110))))
            now += length
        audio = play(notes, INSTRUMENTS[name], font)[: 4 * RATE]
        return audio, {"labels": {"instrument": name, "root": root}}
    event = EVENTS[index % len(EVENTS)]
    time = np.arange(int(rng.uniform(2.5, 4.5) * RATE)) / RATE
    return event(time, rng.standard_normal(len(time)), rng), {"labels": {"event": event.__name__}}


def missing(domains: list[str], font: str) -> str | None:
    """What ``domains`` need and this machine lacks, in one sentence."""
    if "speech" in domains and shutil.which("espeak-ng") is None:
        return "speech needs espeak-ng (apt-get install espeak-ng); or leave it out: --domains music environment"
    if "music" in domains and (shutil.which("fluidsynth") is None or not Path(font).exists()):
        return (
            f"music needs fluidsynth and the sound font {font} (apt-get install fluidsynth fluid-soundfont-gm); or "
            "leave it out: --domains speech environment"
        )
    return None


def make_corpus(out: Path, clips_per_domain: int, seed: int, domains: list[str], font: str = SOUND_FONT) -> Path:
    """Render a corpus into ``out``; the path of its manifest."""
    lines = []
    for domain in domains:
        (out / domain).mkdir(parents=True, exist_ok=True)
        for index in range(clips_per_domain):
            rng = np.random.default_rng([seed, DOMAINS.index(domain), index])
            audio, facts = render(domain, index, rng, font)
            audio = (audio / max(np.abs(audio).max(), 1e-6) * rng.uniform(0.3, 0.9)).astype(np.float32)
            path = out / domain / f"{index:05d}.flac"
            soundfile.write(path, audio, RATE)
            seconds = round(len(audio) / RATE, 3)
            lines.append({"path": path.relative_to(out).as_posix(), "domain": domain, "seconds": seconds, **facts})
    manifest = out / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines)} clips, {sum(line['seconds'] for line in lines) / 60:.1f} minutes in {out}")
    return manifest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips-per-domain", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--sound-font", default=SOUND_FONT)
    options = parser.parse_args()
    reason = missing(options.domains, options.sound_font)
    if reason:
        sys.exit(f"make_corpus: {reason}")
    make_corpus(options.out, options.clips_per_domain, options.seed, options.domains, options.sound_font)


if __name__ == "__main__":
    main()
