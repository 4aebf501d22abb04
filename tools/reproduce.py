#!/usr/bin/env python3
"""The paper's tables at a small scale: teacher, bottlenecks and tokenizers, trained and measured for four seeds.

    python tools/reproduce.py -o runs/reproduce [--scale 1] [--jobs 2]        # make reproduce

Renders a corpus for training and one for testing (tools/make_corpus.py: espeak-ng, fluidsynth). For each seed it trains
a teacher on unlabelled clips (masked autoencoder), five bottlenecks on it, and six tokenizers on the first bottleneck.
The features that each of them computes for the test corpus, mixed with noise, are probed and compared with the paper's
claims. Seeds run in parallel. The same command continues after an interruption.
Writes OUTPUT/figures.json and OUTPUT/reproduction.md; with ``--keep docs`` also docs/reproduction.json and the tables
between the marks of docs/reproduction.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from reproduction import measure, noise, plan, report

from losatok_ext.errors import UserError
from losatok_ext.files import atomic_path
from losatok_ext.models import LoSATok
from losatok_ext.recordings.labelled import find_items
from report import fill

SPECTRA_CLIPS = 20
"""Clips of the test corpus per domain that tokenizers reconstruct."""
DECIBELS = -5.0
"""Signal-to-noise ratio in dB of the clips that are probed. Without noise, even random weights answer nearly all."""


def of_seed(seed: int, output: Path, data: Path, test: Path, heard: Path, scale: float, threads: int) -> dict[str, Any]:
    """Train and measure all models of one seed: spectra on the ``test`` corpus, probes on the noisy one, ``heard``."""
    torch.set_num_threads(threads)
    items, _ = find_items([heard])
    folder = output / f"seed-{seed}"
    kept = folder / "figures.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))

    def trained(stage: str, name: str, changes: dict[str, Any], init: Path | None) -> LoSATok:
        place = folder / f"{stage}-{name.replace(' ', '-').replace(',', '')}"
        say(f"seed {seed}: {stage}, {name}")
        path = plan.train(stage, data, place, plan.settings(stage, seed, scale, changes, init))
        paths[stage, name] = path
        return LoSATok.from_pretrained(path)

    paths: dict[tuple[str, str], Path] = {}
    d = plan.DIMS
    figures: dict[str, Any] = {"compression": {report.CHANCE: {"probes": measure.chance(items)}}, "tokenizers": {}}
    torch.manual_seed(seed)
    untrained = LoSATok(trained("teacher", "own", {}, None).config).eval()
    found = measure.probes(measure.features_of(untrained, items, ["semantic"], folder / "features"), ["semantic"])
    figures["compression"][report.UNTRAINED] = {"probes": found["semantic"]}
    for variant in plan.BOTTLENECKS:
        model = trained("sembo", variant.name, variant.changes, paths["teacher", "own"])
        names = ["semantic_low"]
        if variant is plan.BOTTLENECKS[0]:
            names += ["semantic", f"semantic+merge:{d}", f"semantic+pca:{d}"]
        features = measure.features_of(model, items, names, folder / "features")
        found = measure.probes(features, names)
        figures["compression"][variant.name] = {"probes": found["semantic_low"]}
        if len(names) > 1:
            for shown, name in zip((report.TEACHER, report.MERGE, report.PCA), names[1:], strict=True):
                figures["compression"][shown] = {"probes": found[name]}
            figures["ranks"] = measure.ranks(features, "semantic")
    clean, _ = find_items([test])
    few = [i for domain in measure.DOMAINS for i in [i for i in clean if i.domain == domain][:SPECTRA_CLIPS]]
    for variant in plan.TOKENIZERS:
        init = paths["sembo", plan.BOTTLENECKS[0].name]
        model = trained("tokenizer", variant.name, variant.changes, init)
        features = measure.features_of(model, items, ["latents"], folder / "features")
        probes = measure.probes(features, ["latents"])["latents"]
        figures["tokenizers"][variant.name] = {"probes": probes, "spectra": measure.spectra(model, few)}
    with atomic_path(kept) as temporary:
        temporary.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return figures


def say(text: str) -> None:
    """Print one line with the time, unbuffered."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def setting(count: int, options: argparse.Namespace) -> str:
    """One paragraph about models, data and measures."""
    steps = ", ".join(f"{stage} {max(round(n * options.scale), 1)}" for stage, n in plan.STEPS.items())
    return (
        f"Trained on {3 * options.clips} rendered clips (seed {plan.TRAINING_SEED}), tested on "
        f"{3 * options.test_clips} of seed {plan.TEST_SEED}; the `tiny` preset with d = {plan.DIMS}; steps: {steps}; "
        f"{count} seeds, each with its own teacher: mean ± standard deviation over them. Probes are linear, on the "
        f"mean over a clip's frames, with pink noise of {-DECIBELS:+.0f} dB in each clip: the spoken digit by voices "
        "the probe was not trained on (mean accuracy of twelve splits), the voice, the instrument, the sound event "
        "(three splits). Spectra: log-band distance of reconstructed clips, divided by that of a "
        f"constant spectrum; smaller is better. torch {torch.__version__}, {time.strftime('%Y-%m-%d')}."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/reproduce"))
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of training steps")
    parser.add_argument("--clips", type=int, default=200, help="training clips per domain")
    parser.add_argument("--test-clips", type=int, default=400, help="test clips per domain")
    parser.add_argument("--keep", type=Path, help="folder of reproduction.md, whose tables are written again")
    parser.add_argument("--jobs", type=int, default=2, help="seeds that run in parallel; they share the cores")
    options = parser.parse_args()
    if not (options.scale > 0 and options.clips > 0 and options.test_clips > 0 and options.jobs > 0):
        parser.error("--scale, --clips, --test-clips and --jobs must be above 0")
    data = plan.corpus(options.output / "corpus", options.clips, plan.TRAINING_SEED)
    test = plan.corpus(options.output / "test", options.test_clips, plan.TEST_SEED)
    heard = noise.noisy(test, options.output / "heard", DECIBELS, plan.TEST_SEED)
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        runs = [
            pool.submit(of_seed, seed, options.output, data, test, heard, options.scale, threads) for seed in plan.SEEDS
        ]
        try:
            seeds = [run.result() for run in runs]
        except UserError as error:
            pool.shutdown(cancel_futures=True)
            parser.exit(2, f"reproduce: {error}\n")
    with atomic_path(options.output / "figures.json") as temporary:
        temporary.write_text(json.dumps(seeds, indent=1), encoding="utf-8")
    text = report.write(seeds, setting(len(seeds), options))
    with atomic_path(options.output / "reproduction.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    if options.keep is not None:
        with atomic_path(options.keep / "reproduction.json") as temporary:
            temporary.write_text(json.dumps(seeds, indent=1) + "\n", encoding="utf-8")
        fill(options.keep / "reproduction.md", {"reproduction": text.strip()})
    print(text)


if __name__ == "__main__":
    main()
