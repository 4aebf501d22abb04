"""Whole, undamaged files of every kind: what the trials damage, encode, train on and convert."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch

from formats.latent_cases import STORAGES, latents
from losatok_ext.audio.samples import sample_folder
from losatok_ext.formats.latent_files import save_latents
from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.registry import open_teacher
from losatok_ext.models.tokenizer.published import to_published
from losatok_ext.training import TrainConfig, train_sembo
from losatok_ext.training.engine.reports import StepReport
from losatok_ext.training.precompute.tokens import precompute_features, shard_recordings
from small_models import save_model
from training_runs import MODEL

ENCODINGS = {
    "a.wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "a.flac": ("FLAC", "PCM_16"),
    "a.ogg": ("OGG", "VORBIS"),
    "a.opus": ("OGG", "OPUS"),
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.aiff": ("AIFF", "PCM_24"),
    "a.au": ("AU", "PCM_16"),
    "a.caf": ("CAF", "ALAC_16"),
    "a.w64": ("W64", "PCM_16"),
    "a.rf64": ("RF64", "PCM_16"),
    "adpcm.wav": ("WAV", "IMA_ADPCM"),
}
"""A recording of each: name, container and encoding of libsndfile."""
STEPS = 4


def run_config(model: Path) -> TrainConfig:
    """A short run of the bottleneck, with a checkpoint at every step."""
    return TrainConfig.from_dict(
        {
            "init": str(model),
            "steps": STEPS,
            "batch_size": 2,
            "device": "cpu",
            "data": {"crop_seconds": 0.4},
            "checkpoint": {"every": 1, "keep": 2},
        }
    )


def make_clips(folder: Path, count: int) -> Path:
    """``count`` of the bundled clips as a folder."""
    for index, path in enumerate(sorted(sample_folder().glob("*/*.flac"))[:: max(1, 48 // count)][:count]):
        place = folder / path.parent.name / f"{index:02}{path.suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return folder


def make_recordings(folder: Path) -> Path:
    """A second of music in each of :data:`ENCODINGS`, two channels at 44.1 kHz or what the encoding takes."""
    folder.mkdir(parents=True)
    sound, rate = soundfile.read(sorted((sample_folder() / "music").glob("*.flac"))[0], dtype="float32")
    for name, (container, encoding) in ENCODINGS.items():
        taken = 48_000 if encoding == "OPUS" else 44_100
        times = np.arange(taken) / taken * rate
        one = np.interp(times, np.arange(len(sound)), sound)
        with soundfile.SoundFile(folder / name, "w", taken, 2, encoding, format=container) as file:
            for start in range(0, taken, 4096):
                file.write(np.stack([one, 0.5 * one], 1)[start : start + 4096])
    return folder


def make_latents(folder: Path) -> Path:
    """Latent files of every storage, with and without the variance."""
    folder.mkdir(parents=True)
    for storage in STORAGES:
        for logvar in (False, True):
            save_latents(folder / f"{storage}-{logvar}.losatok", latents(logvar=logvar, storage=storage))
    return folder


def make_all(folder: Path) -> Path:
    """All of it, in folders by kind; made anew where ``folder`` exists."""
    shutil.rmtree(folder, ignore_errors=True)
    make_recordings(folder / "recordings")
    make_latents(folder / "latents")
    clips = make_clips(folder / "clips", 6)
    model = folder / "model"
    save_model(model, **{k: tuple(v) if isinstance(v, list) else v for k, v in MODEL.items()})
    shard_recordings(clips, folder / "shards")
    (folder / "shard").mkdir()
    shutil.copy(next((folder / "shards").glob("*.tar")), folder / "shard" / "alone.tar")
    precompute_features(clips, folder / "features", open_teacher(str(model)), audio=True)
    manifest = folder / "manifest"
    shutil.copytree(clips, manifest / "sound")
    lines = []
    for path in sorted(manifest.glob("sound/*/*.flac")):
        facts = {"path": str(path.relative_to(manifest)), "seconds": 3.0, "text": "a sound", "label": path.parent.name}
        lines.append(json.dumps(facts | {"domain": "x", "segments": [{"start": 0.0, "end": 1.0, "text": "b"}]}))
    (manifest / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "configuration").mkdir()
    (folder / "configuration" / "run.yaml").write_text(
        "preset: tiny\nsteps: 10\nmodel: {depth: 2, mel_loss_windows: [128, 512], mel_loss_bins: [20, 40]}\n"
        "data: {crop_seconds: 1.5, balance: {a: 1, b: 2.5}}\noptimizer: {lr: 1.0e-3, ema_decay: 0.9}\n"
        "discriminator: {kinds: [mfd]}\nsembo: {prefixes: [4, 8]}\ncheckpoint: {every: 5, keep: 2}\nseed: 7\n"
    )
    published = folder / "published"
    published.mkdir()
    loaded = LoSATok.from_pretrained(model)
    torch.save(to_published(loaded.state_dict(), loaded.config), published / "weights.pth")
    shutil.copyfile(model / "config.json", published / "config.json")
    with contextlib.suppress(_StopError):
        train_sembo(clips, folder / "run", run_config(model), on_step=_stop)
    shutil.copytree(folder / "run", folder / "finished" / "run")
    train_sembo(clips, folder / "finished" / "run", run_config(model))
    return folder


class _StopError(Exception):
    pass


def _stop(report: StepReport) -> None:
    """End the run before its last step."""
    if report.step == STEPS - 1:
        raise _StopError
