#!/usr/bin/env python3
"""How fast a generator learns three kinds of latents, drawn as one picture: loss and quality against steps.

    python benchmarks/generator_convergence.py -o DIR --minutes 20

Renders a corpus (tools/make_corpus.py), trains three small tokenizers on it for equally many steps, encodes it with
each, trains the same generator on each for equally many steps, and measures what it generates on the way:

- LoSATok 128-d: the tokenizer with its semantic branch and supervision;
- acoustic 128-d: the same network, its semantic branch silenced and without semantic losses;
- LoSATok 1280-d: as the first, with latents as wide as the features.

Quality is the Frechet distance between log-mel frames of generated and of real clips (80 bins; means and covariances of
three frames at a time, 40 ms apart), over the same texts and seeds. Each curve's floor is the same distance of what
the tokenizer makes of real latents. All of it is small: a few minutes of synthetic audio, tokenizers of a few
million weights, one seed, and a teacher with random weights unless ``--teacher`` gives real ones. It shows how to
measure the claim and whether its direction holds at this size, not what holds for published models.

Writes DIR/convergence.png, DIR/results.json and the runs themselves; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from losatok_ext.audio.files import read_audio
from losatok_ext.audio.plots import mel_decibels
from losatok_ext.files import atomic_path
from losatok_ext.formats.latent_files import SUFFIX, load_latents
from losatok_ext.generation.generation import generate
from losatok_ext.generation.sampling import SamplerConfig
from losatok_ext.jobs.tokenize import encode_files
from losatok_ext.models import LoSATok
from losatok_ext.models.generator.generator import Generator
from losatok_ext.recordings import find_inputs, place_outputs
from losatok_ext.training import TrainConfig, read_log, train_generator, train_sembo, train_tokenizer

TOOL = Path(__file__).parents[1] / "tools" / "make_corpus.py"
MODEL = {"embed_dim": 1280, "depth": 2, "num_heads": 16, "bottleneck_dim": 512}
"""Of the tiny tokenizer preset: features as wide as the published model's, in two encoder blocks."""


@dataclass(frozen=True)
class Kind:
    """A kind of latents."""

    name: str
    latent_dim: int
    semantic: bool
    colour: str


KINDS = (
    Kind("LoSATok 128-d", 128, True, "#c2410c"),
    Kind("acoustic 128-d", 128, False, "#0f766e"),
    Kind("LoSATok 1280-d", 1280, True, "#6b7280"),
)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=20.0, help="about how long all of it may take (20)")
    parser.add_argument("--clips-per-domain", type=int, default=48)
    parser.add_argument(
        "--domains", nargs="+", default=["environment"], help="speech and music need espeak-ng and fluidsynth"
    )
    parser.add_argument("--data", type=Path, help="manifest of recordings, instead of rendered ones")
    parser.add_argument("--teacher", help="published weights for the semantic encoder (needs matching sizes)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=192, help="of the generator (192)")
    parser.add_argument("--depth", type=int, default=4, help="of the generator (4)")
    parser.add_argument("--points", type=int, default=6, help="checkpoints at which quality is measured")
    parser.add_argument("--generate", type=int, default=24, help="clips generated at each")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def corpus(options: argparse.Namespace) -> Path:
    """The manifest of recordings to learn, rendered if need be."""
    if options.data is not None:
        return options.data
    folder = options.output / "corpus"
    if not (folder / "manifest.jsonl").exists():
        counts = ["--clips-per-domain", str(options.clips_per_domain), "--seed", str(options.seed)]
        subprocess.run([sys.executable, TOOL, folder, *counts, "--domains", *options.domains], check=True)
    return folder / "manifest.jsonl"


def steps_for(seconds: float, train: Any, fixed: Path) -> int:
    """Steps that ``train(steps, on_step, output)`` does in ``seconds``, by the pace of its first; kept in ``fixed``."""
    if fixed.exists():
        return json.loads(fixed.read_text())
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(12, lambda report: times.append(time.perf_counter()), Path(folder))
    pace = float(np.median(np.diff(times[2:])))
    steps = max(int(seconds / pace), 20)
    fixed.parent.mkdir(parents=True, exist_ok=True)
    fixed.write_text(json.dumps(steps))
    return steps


def tokenizer(kind: Kind, data: Path, options: argparse.Namespace, seconds: float) -> LoSATok:
    """The trained tokenizer of ``kind``; each kind takes as many steps as the first."""
    root = options.output / kind.name.replace(" ", "-")
    common = {"batch_size": 4, "device": options.device, "seed": options.seed, "checkpoint": {"every": 500, "keep": 1}}

    def sembo(steps: int, on_step: Any = None, output: Path = root / "sembo") -> None:
        model = MODEL | {"latent_dim": kind.latent_dim}
        settings = {"preset": "tiny", "model": model, "teacher": options.teacher, "optimizer": {"lr": 2e-3}}
        config = TrainConfig.from_dict(common | settings | {"steps": steps, "data": {"crop_seconds": 1.28}})
        train_sembo(data, output, config, on_step=on_step)

    def codec(steps: int, on_step: Any = None, output: Path = root / "tokenizer") -> None:
        weights = {} if kind.semantic else {"semantic_high": 0.0, "semantic_low": 0.0}
        settings = {"init": str(root / "start"), "tokenizer": weights, "optimizer": {"lr": 2e-3}}
        settings["discriminator"] = {"kinds": []}
        config = TrainConfig.from_dict(common | settings | {"steps": steps, "data": {"crop_seconds": 0.64}})
        train_tokenizer(data, output, config, on_step=on_step)

    steps = steps_for(0.15 * seconds, sembo, options.output / "sembo.json")
    sembo(steps)
    start = LoSATok.from_pretrained(root / "sembo" / "model")
    if not kind.semantic:
        with torch.no_grad():  # what comes out of the semantic branch is zero: the latents are acoustic alone
            for parameter in start.bottleneck.down.parameters():
                parameter.zero_()
    start.save_pretrained(root / "start")
    steps = steps_for(0.85 * seconds, codec, options.output / "tokenizer.json")
    codec(steps)
    return LoSATok.from_pretrained(root / "tokenizer" / "model").to(device_of(options)).eval()


def device_of(options: argparse.Namespace) -> torch.device:
    """Where to compute."""
    return TrainConfig(device=options.device).torch_device()


def encode(model: LoSATok, data: Path, folder: Path) -> Path:
    """Latent files of the recordings of ``data``; their manifest."""
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    sources = find_inputs([data.parent / line["path"] for line in lines], (".flac", ".wav")).sources
    outputs = place_outputs(sources, folder, SUFFIX, (".flac", ".wav"))
    failures = encode_files(model, sources, outputs).failures
    if failures:
        sys.exit(failures[0].message)
    found = [
        json.dumps(line | {"path": os.path.relpath(path, folder)}) for line, path in zip(lines, outputs, strict=True)
    ]
    (folder / "manifest.jsonl").write_text("\n".join(found) + "\n")
    return folder / "manifest.jsonl"


def frames(clips: list[Tensor], rate: int) -> np.ndarray:
    """Log-mel frames of clips [N], three neighbours at a time: [frames, 240]."""
    found = []
    for clip in clips:
        mel = mel_decibels(clip, rate).clamp(min=-40.0).t() / 20  # [F, 80]
        found.append(torch.cat([mel[:-8], mel[4:-4], mel[8:]], dim=1))
    return torch.cat(found).double().numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to rows: |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau 1982)."""
    mean = a.mean(0) - b.mean(0)
    one, other = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T  # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2)
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(min=0)).sum()
    return float(mean @ mean + np.trace(one) + np.trace(other) - 2 * cross)


def chosen(manifest: Path, count: int) -> list[dict]:
    """``count`` lines of a manifest, evenly chosen."""
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    return [lines[i * len(lines) // count] for i in range(min(count, len(lines)))]


def learn(kind: Kind, data: Path, model: LoSATok, options: argparse.Namespace, seconds: float) -> dict:
    """Train a generator on latents of ``kind`` and measure it on the way: the figures of one curve."""
    root = options.output / kind.name.replace(" ", "-")
    latents = encode(model, data, root / "latents")

    def train(steps: int, on_step: Any = None, output: Path = root / "generator") -> None:
        dit = {
            "width": options.width,
            "depth": options.depth,
            "heads": options.width // 64,
            "text_dim": 64,
            "text_layers": 1,
        }
        settings = {"preset": "tiny", "model": dit, "steps": steps, "batch_size": 8, "device": options.device}
        settings |= {"seed": options.seed, "optimizer": {"lr": 1e-3, "final_lr": 1e-4}, "data": {"crop_seconds": 2.56}}
        settings |= {"checkpoint": {"every": max(steps // options.points, 1), "keep": 1000}, "log": {"every": 1}}
        settings |= {"generator": {"context": False}}
        train_generator(latents, output, TrainConfig.from_dict(settings), on_step=on_step)

    # All kinds take the steps of the widest, so that curves are of one length.
    steps = steps_for(seconds, train, options.output / "generator.json")
    train(steps)
    lines = chosen(latents, options.generate)
    real = [read_audio(data.parent / line["path"], model.sample_rate) for line in chosen(data, options.generate)]
    target = frames(real, model.sample_rate)
    truth = [load_latents(latents.parent / line["path"]).mu for line in lines]
    texts = [line.get("text") or " ".join(map(str, line["labels"].values())) for line in lines]
    curve = []
    generator = Generator.from_pretrained(root / "generator" / "model").to(model.device)
    for folder in sorted((root / "generator" / "checkpoints").glob("step-*")):
        generator.load_state_dict(load_file(folder / "model.safetensors"))
        made = generate(generator, [len(mu) for mu in truth], texts, SamplerConfig(), seed=options.seed)
        clips = [model.decode(z[None, : len(mu)])[0].cpu() for z, mu in zip(made, truth, strict=True)]
        curve.append((int(folder.name[5:]), frechet(frames(clips, model.sample_rate), target)))
        print(f"{kind.name}: step {curve[-1][0]}, Frechet mel distance {curve[-1][1]:.2f}", flush=True)
    rebuilt = [model.decode(mu[None].to(model.device))[0].cpu() for mu in truth]
    log = read_log(root / "generator")
    return {
        "loss": [(line["step"], line["flow_matching"]) for line in log if isinstance(line["flow_matching"], float)],
        "distance": curve,
        "floor": frechet(frames(rebuilt, model.sample_rate), target),
        "weights": sum(p.numel() for p in generator.parameters()),
        "mel": float(np.mean([line["mel"] for line in read_log(root / "tokenizer")[-10:]])),
    }


def draw(results: dict[str, dict], path: Path, title: str) -> None:
    """Both panels: training loss, smoothed, and distance with its floors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind in KINDS:
        result = results[kind.name]
        step, loss = np.array(result["loss"]).T
        size = max(len(loss) // 40, 1)
        smooth = np.convolve(loss, np.ones(size) / size, mode="valid")
        left.plot(step[size - 1 :], smooth, color=kind.colour, label=kind.name)
        at, distance = np.array(result["distance"]).T
        right.plot(at, distance, "o-", color=kind.colour, label=kind.name, markersize=4)
        right.axhline(result["floor"], color=kind.colour, linestyle=":", linewidth=1.2)
    left.set(xlabel="step", ylabel="flow-matching loss (normalised latents)", title="training loss, running mean")
    right.set(xlabel="step", ylabel="Frechet mel distance", title="generated audio (dotted: the tokenizer's floor)")
    right.set_yscale("log")
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main() -> None:
    """Run the experiment."""
    options, began = parse(), time.perf_counter()
    options.output.mkdir(parents=True, exist_ok=True)
    data, seconds = corpus(options), 60 * options.minutes / len(KINDS)
    models = {kind: tokenizer(kind, data, options, 0.45 * seconds) for kind in KINDS}
    # The widest first: it sets the number of steps that fit.
    results = {
        k.name: learn(k, data, models[k], options, 0.4 * seconds) for k in sorted(KINDS, key=lambda k: -k.latent_dim)
    }
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    facts = {
        "clips": len(lines),
        "seconds": sum(line["seconds"] for line in lines),
        "seed": options.seed,
        "teacher": options.teacher or "random weights",
        "width": options.width,
        "depth": options.depth,
        "minutes": (time.perf_counter() - began) / 60,
        "threads": torch.get_num_threads(),
        "device": str(device_of(options)),
    }
    (options.output / "results.json").write_text(json.dumps({"facts": facts, "results": results}, indent=1))
    steps = results[KINDS[0].name]["loss"][-1][0]
    title = (
        f"DiT {options.width} wide, {options.depth} blocks, {steps} steps of 8 clips; {facts['clips']} rendered clips "
        f"({facts['seconds'] / 60:.1f} min), teacher: {facts['teacher']}, seed {options.seed}"
    )
    draw(results, options.output / "convergence.png", title)
    for name, result in results.items():
        first, last = result["distance"][0][1], result["distance"][-1][1]
        loss = np.mean([value for _, value in result["loss"][-50:]])
        print(f"{name:<16} loss {loss:.3f}, distance {first:.2f} -> {last:.2f}, floor {result['floor']:.2f}")
    print(f"{options.output / 'convergence.png'}: {facts['minutes']:.1f} minutes")


if __name__ == "__main__":
    main()
