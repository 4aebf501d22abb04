#!/usr/bin/env python3
"""Train, measure and export the model that comes with the package.

    python tools/bundled_model.py -o runs/tiny [--export]

Renders three hours of recordings (tools/make_corpus.py), trains teacher, bottleneck and tokenizer by
``losatok_ext.training.config.recipes.tiny_recipe``, and measures the model on clips of a seed it never saw, beside one
with random weights. With --export the model goes into python/losatok_ext/pretrained/tiny, in half precision, with the
figures in its card. The same command goes on where it was stopped: an hour or two of one processor core in all.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from reproduction import measure, plan
from reproduction.report import table

from losatok_ext.audio.files import read_audio
from losatok_ext.evaluation.metrics.spectra import log_band_score
from losatok_ext.files import atomic_path
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import Item, find_items
from losatok_ext.training.config.recipes import tiny_recipe

TARGET = Path(__file__).parents[1] / "python" / "losatok_ext" / "pretrained" / "tiny"
TRAINING_SEED, TEST_SEED, CLIPS, TEST_CLIPS = 1, 9001, 1200, 60
"""Clips are per domain."""
LIMIT = 12_000_000
"""Bytes that the weights may take in a wheel."""

CARD = """# tiny

A LoSATok model of {weights:.2f} M weights that comes with losatok_ext: `LoSATok.from_pretrained("tiny")`. {rate} tokens
of {dims} dimensions per second of 16 kHz audio. Weights are stored in half precision and computed with in float32.

**For** trying everything out offline, for tests, and as a start of one's own training. It is not the published model
and not made for listening: it has heard nothing but synthetic recordings.

**Data**: {hours:.1f} hours rendered by tools/make_corpus.py, seed {seed}: {clips} clips each of speech (espeak-ng,
eight English voices), music (FluidR3 General MIDI sound font, twelve instruments) and environmental sounds (NumPy). No
recording of a person.

**Training**: tools/bundled_model.py, on a CPU: a masked autoencoder as the teacher, the semantic bottleneck on it, then
acoustic encoder, latent and decoder with mel, semantic and KL losses, without discriminators (steps: {steps}).

**Held out**: {test} clips of seed {test_seed}, none of them heard in training. Log-band distance (80 equal bands of a
1024-point, hop 256 magnitude STFT, floor 1e-4) over that of a constant spectrum, the mean of the clips compared; in
brackets the distance in nepers. Smaller is better.

{spectra}
A linear probe on the mean over a clip's frames, accuracy, mean of three splits: the spoken digit by unheard voices, the
voice, the instrument, the sound event.

{probes}
Measured with torch {torch}, {date}. Licence: MIT, as the package.
"""


def half(model: LoSATok, folder: Path) -> LoSATok:
    """Write ``model`` with its weights in float16, its statistics as they are; what is read back from there.

    Raises:
        SystemExit: the weights take more than LIMIT.
    """
    stored = copy.deepcopy(model)
    for parameter in stored.parameters():
        parameter.data = parameter.data.half()
    stored.save_pretrained(folder)
    size = (folder / "model.safetensors").stat().st_size
    if size > LIMIT:
        raise SystemExit(f"the weights take {size} bytes, and {LIMIT} is what a wheel may carry")
    return LoSATok.from_pretrained(folder, dtype="float32")


def scores(model: LoSATok, items: list[Item]) -> dict[str, tuple[float, float]]:
    """By domain, and of all: log-band distance in nepers, and over that of a constant spectrum."""
    pairs: dict[str, list] = {domain: [] for domain in measure.DOMAINS}
    for item in items:
        audio = read_audio(item.path, model.sample_rate)
        pairs[item.domain].append((model.reconstruct(audio)[0], audio))
    pairs["all"] = [pair for domain in measure.DOMAINS for pair in pairs[domain]]
    found = {name: log_band_score(some) for name, some in pairs.items()}
    return {name: (score.distance, score.ratio) for name, score in found.items()}


def card(ours: LoSATok, items: list[Item], minutes: float, folder: Path, steps: Mapping[str, int]) -> str:
    """The model card."""
    torch.manual_seed(0)
    models = {"this model": ours, "random weights": LoSATok(ours.config).eval()}
    spectra, probed = {}, {}
    for name, model in models.items():
        spectra[name] = scores(model, items)
        features = measure.features_of(model, items, ["latents", "semantic"], folder / "features")
        found = measure.probes(features, ["latents", "semantic"])
        probed |= {f"latents, {name}": found["latents"], f"semantic features, {name}": found["semantic"]}
    rows = [
        [name, *(f"{v[d][1]:.3f} ({v[d][0]:.2f})" for d in (*measure.DOMAINS, "all"))] for name, v in spectra.items()
    ]
    probe_rows = [[name, *(f"{values[task]:.3f}" for task in measure.TASKS)] for name, values in probed.items()]
    return CARD.format(
        weights=sum(p.numel() for p in ours.parameters()) / 1e6,
        rate=ours.frame_rate,
        dims=ours.config.latent_dim,
        hours=minutes / 60,
        seed=TRAINING_SEED,
        clips=CLIPS,
        steps=", ".join(f"{stage} {count}" for stage, count in steps.items()),
        test=3 * TEST_CLIPS,
        test_seed=TEST_SEED,
        spectra="\n".join(table(["", *measure.DOMAINS, "all"], rows)),
        probes="\n".join(table(["features", *measure.TASKS], probe_rows)),
        torch=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/tiny"))
    parser.add_argument("--export", action="store_true", help=f"write {TARGET.relative_to(TARGET.parents[3])}")
    options = parser.parse_args()
    data = plan.corpus(options.output / "train", CLIPS, TRAINING_SEED)
    test = plan.corpus(options.output / "held", TEST_CLIPS, TEST_SEED)
    recipe = tiny_recipe(options.output, device="cpu")
    for stage, config in recipe.items():
        print(f"{time.strftime('%H:%M:%S')}  {stage}", flush=True)
        path = plan.train(stage, data, options.output / stage, config)
    exported = half(LoSATok.from_pretrained(path), TARGET if options.export else options.output / "tiny")
    items, _ = find_items([test])
    minutes = sum(float(item.values["seconds"]) for item in find_items([data])[0]) / 60
    steps = {stage: config.steps or 0 for stage, config in recipe.items()}
    text = card(exported, items, minutes, options.output, steps)
    print(text)
    if options.export:
        with atomic_path(TARGET / "README.md") as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
