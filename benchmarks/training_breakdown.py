#!/usr/bin/env python3
"""Where the time of a training step goes, stage by stage, with the fused ops and with plain PyTorch.

    python benchmarks/training_breakdown.py --results benchmarks/results

Every stage takes real steps on the bundled recordings, of a new model of the preset, by the calls that training makes.
Modules are timed by hooks (on a GPU each is waited for), what runs inside another is taken off its time, and what is
left over of a call has a name of its own. Steps with fused ops and steps under ``use_backend("reference")`` take turns;
of each the step of median length is told, so that its parts add up. With ``--results DIR`` the figures are kept in
DIR/<device>/training/<date>.json and the table is written into docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import report
from losatok_ext.audio.samples import sample_folder
from losatok_ext.models import LoSATok
from losatok_ext.models.teachers.registry import open_teacher
from losatok_ext.ops.dispatch import use_backend
from losatok_ext.training import TrainConfig
from losatok_ext.training.engine.optimizer import Learner
from losatok_ext.training.precompute.tokens import precompute_features
from losatok_ext.training.stages.generator import GeneratorStage
from losatok_ext.training.stages.sembo import SemBoStage
from losatok_ext.training.stages.teacher import TeacherStage
from losatok_ext.training.stages.tokenizer import TokenizerStage
from machine import commit, device_slug, machine_name

BACKENDS = {"fused ops": None, "plain PyTorch": "reference"}
SIZES = {
    "tiny": {"batch_size": 8, "crop_seconds": 1.28, "channels": 1 / 16},
    "base": {"batch_size": 16, "crop_seconds": 4.0, "channels": 1.0},
}
"""Crops per step, their length, and the discriminators' factor of channels, by preset."""
STORED = "stored features"
STAGES = (
    "teacher",
    "sembo",
    "sembo, 3 prefixes",
    "tokenizer",
    f"tokenizer, {STORED}",
    "tokenizer, mfd",
    "generator",
)


class Clock:
    """Seconds by part; a part inside another is taken off it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.prefix = ""
        """What the names of parts begin with."""
        self.parts: dict[str, float] = {}
        self._inside: list[tuple[str, float, list[float]]] = []

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def begin(self, name: str) -> None:
        """Start a part."""
        self._inside.append((self.prefix + name, self._now(), [0.0]))

    def end(self) -> None:
        """End the part that began last."""
        name, began, within = self._inside.pop()
        spent = self._now() - began
        self.parts[name] = self.parts.get(name, 0.0) + spent - within[0]
        if self._inside:
            self._inside[-1][2][0] += spent

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs within."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def watch(self, module: nn.Module, name: str, stack: ExitStack) -> None:
        """Time every call of ``module`` until ``stack`` closes."""
        stack.callback(module.register_forward_pre_hook(lambda *_: self.begin(name)).remove)
        stack.callback(module.register_forward_hook(lambda *_: self.end()).remove)


class Steps:
    """A stage that trains, step after step.

    Args:
        stage: with its options; not yet open.
        config: of the run.
        device: to train on.
    """

    def __init__(self, stage: Any, config: TrainConfig, device: torch.device) -> None:
        self.stage, self.config, self.device = stage, config, device
        corpus, self.source = stage.open_data(stage.data, stage.model_config())
        stage.start(stage.build(corpus).to(device))
        self.critic = getattr(stage, "critic", None)
        self.learner = Learner(stage.model, config.optimizer, 1000)
        self.critic_learner = None
        if self.critic is not None:
            self.critic_learner = Learner(self.critic.requires_grad_(True), config.optimizer, 1000, critic=True)
        self.step = 0

    def _watched(self, clock: Clock) -> ExitStack:
        stack = ExitStack()
        model = self.stage.model
        tokenizer = model if isinstance(model, LoSATok) else getattr(self.stage, "tokenizer", None)
        if tokenizer is not None:
            clock.watch(tokenizer.semantic_encoder, "semantic encoder", stack)
            for name in ("acoustic_encoder", "decoder", "mel_loss"):
                clock.watch(getattr(tokenizer, name), name.replace("_", " "), stack)
        if self.critic is not None:
            clock.watch(self.critic["discriminators"], "discriminators", stack)
        return stack

    def take(self) -> dict[str, float]:
        """One step; seconds by part."""
        clock = Clock(self.device)
        mixed = self.config.precision == "bfloat16"

        def autocast() -> Any:
            return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()

        with self._watched(clock):
            with clock.part("data"):
                batch = self.source.batch(self.step).to(self.device)
            if self.critic is not None:
                self.critic.requires_grad_(False)
            with clock.part("network and losses"), autocast():
                losses = self.stage.losses(batch, self.step)
                total = weighted(losses, self.stage.weights)
            self._learn(clock, self.learner, total)
            if self.critic_learner is not None:
                self.critic.requires_grad_(True)
                clock.prefix = "critic: "
                with clock.part("losses"), autocast():
                    total = weighted(self.stage.critic_losses(), self.stage.critic_weights)
                self._learn(clock, self.critic_learner, total)
        self.step += 1
        return clock.parts

    def _learn(self, clock: Clock, learner: Learner, total: Tensor) -> None:
        with clock.part("backward"):
            learner.zero()
            total.backward()
        with clock.part("optimizer"):
            learner.clip()
            learner.take(self.step)


def weighted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The total that is trained on."""
    return torch.stack([weights[name] * loss.float() for name, loss in losses.items() if name in weights]).sum()


def stages(options: argparse.Namespace, device: torch.device, folder: Path) -> Iterator[tuple[str, Steps]]:
    """Each stage, ready to take steps; a tokenizer with random weights stands for what the stage before would leave.
    Features are stored before the first step."""
    size = SIZES[options.preset]
    common = {"batch_size": size["batch_size"], "data": {"crop_seconds": size["crop_seconds"]}, "device": str(device)}
    common["precision"] = options.precision
    init = folder / "model"

    def config(**more: Any) -> TrainConfig:
        return TrainConfig.from_dict({**common, **more})

    data = sample_folder()
    for name in options.stages:
        kind, _, variant = name.partition(", ")
        if kind in ("tokenizer", "generator") and not init.exists():
            SemBoStage(data, config(preset=options.preset), device).build(None).save_pretrained(init)
        stage: Any
        if kind == "teacher":
            chosen = config(preset=options.preset)
            stage = TeacherStage(data, chosen, device)
        elif kind == "sembo":
            d = SemBoStage(data, config(preset=options.preset), device).model_config().latent_dim
            chosen = config(preset=options.preset, sembo={"prefixes": [d // 4, d // 2] if variant else []})
            stage = SemBoStage(data, chosen, device)
        elif kind == "tokenizer":
            kinds = [variant] if variant and variant != STORED else []
            chosen = config(init=str(init), discriminator={"kinds": kinds, "channels": size["channels"]})
            recordings = data
            if variant == STORED:
                recordings = folder / "features"
                precompute_features(data, recordings, open_teacher(str(init)).to(device), audio=True)
            stage = TokenizerStage(recordings, chosen, device)
        else:
            chosen = config(preset=options.preset, generator={"tokenizer": str(init), "statistics_seconds": 10})
            stage = GeneratorStage(data, chosen, device)
        yield name, Steps(stage, chosen, device)


def measure(steps: Steps, count: int, budget: float) -> dict[str, dict[str, float]]:
    """Milliseconds by part of the median step, by backend; at most ``count`` steps of each, and ``budget`` seconds."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in BACKENDS}
    end = time.perf_counter() + budget
    for turn in range(count + 1):
        for name, backend in BACKENDS.items():
            with use_backend(backend) if backend else nullcontext():
                parts = steps.take()
            if turn:  # the first packs weights and starts libraries
                taken[name].append(parts)
        if turn >= 3 and time.perf_counter() > end:
            break
    result = {}
    for name, found in taken.items():
        median = sorted(found, key=lambda parts: sum(parts.values()))[len(found) // 2]
        result[name] = {part: round(1e3 * seconds, 3) for part, seconds in median.items()}
    return result


def table(result: dict[str, Any]) -> str:
    """Each stage, part by part, and where it was measured."""
    rows = []
    ours, theirs = BACKENDS
    for stage, found in result["stages"].items():
        parts, plain = found[ours], found[theirs]
        total, plain_total = sum(parts.values()), sum(plain.values())
        whole = [stage, f"{total:.1f}", "", f"{plain_total:.1f}", f"{plain_total / total:.2f}x"]
        rows.append([text and f"**{text}**" for text in whole])
        rows += [
            [part, f"{spent:.1f}", f"{100 * spent / total:.0f} %", f"{plain[part]:.1f}", f"{plain[part] / spent:.2f}x"]
            for part, spent in parts.items()
        ]
    columns = ["ms of a step", ours, "of the step", theirs, f"{theirs} over {ours}"]
    where = (
        f"Preset {result['preset']}, {result['batch_size']} crops of {result['crop_seconds']} s, "
        f"{result['precision']}; discriminators of {result['channels']:g} of their channels; {result['machine']}, "
        f"torch {result['torch']}, threads: {result['threads']}, {result['date']}, commit {result['commit']}."
    )
    return f"{report.table(columns, rows)}\n\n{where}"


def run(options: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure what was asked for."""
    device = TrainConfig(device=options.device).torch_device()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, steps in stages(options, device, Path(folder)):
            found[name] = measure(steps, options.steps, options.seconds)
            totals = ", ".join(f"{backend} {sum(parts.values()):.1f} ms" for backend, parts in found[name].items())
            say(f"{name}: {totals}")
    return {
        "machine": machine_name(device.type),
        "device": device.type,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": str(date.today()),
        "commit": commit(),
        "preset": options.preset,
        "precision": options.precision,
        **SIZES[options.preset],
        "stages": found,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SIZES, default="tiny")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="which, in this order")
    parser.add_argument("--steps", type=int, default=15, help="steps at most with each kind of ops")
    parser.add_argument("--seconds", type=float, default=12.0, help="for each stage, beyond three steps of each kind")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--results", type=Path, help="folder to keep the figures in; docs/training.md is filled, too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep where asked."""
    options = parse(arguments)
    result = run(options)
    print(table(result))
    if options.results is not None:
        path = options.results / device_slug(result["device"]) / "training" / f"{result['date']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        report.fill(report.ROOT / "docs/training.md", {"steps": table(result)})
        print(f"kept in {path}")


if __name__ == "__main__":
    main()
