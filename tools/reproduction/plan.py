"""What is trained: one teacher per seed, bottlenecks on it, and tokenizers that differ in one thing each."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import make_corpus

from losatok_ext.files import atomic_path
from losatok_ext.training import TrainConfig, train_sembo, train_teacher, train_tokenizer

SEEDS = (0, 1, 2, 3)
DIMS = 16
"""d: a tenth of the teacher's 160 dimensions, as 128 is of 1280."""
TRAINING_SEED, TEST_SEED = 11, 9011
"""Of the corpora: no clip of one is in the other."""


@dataclass(frozen=True)
class Variant:
    """A run that differs from the paper's recipe in ``changes``, a nested configuration."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)


BOTTLENECKS = (
    Variant("SemBo"),
    Variant("no time relation", {"sembo": {"relation": 0.0}}),
    Variant("no reconstruction", {"sembo": {"reconstruction": 0.0}}),
    Variant("neighbours only (window 1)", {"sembo": {"window": 1}}),
    Variant("within half a second (window 12)", {"sembo": {"window": 12}}),
)
TOKENIZERS = (
    Variant("L_H and L_L, KL 1e-2"),
    Variant("L_H alone", {"tokenizer": {"semantic_low": 0.0}}),
    Variant("L_L alone", {"tokenizer": {"semantic_high": 0.0}}),
    Variant("neither", {"tokenizer": {"semantic_high": 0.0, "semantic_low": 0.0}}),
    Variant("KL 1e-3", {"tokenizer": {"kl": 1e-3}}),
    Variant("KL 0", {"tokenizer": {"kl": 0.0}}),
)
"""All on the first of :data:`BOTTLENECKS`; the first is the recipe, the next three are about supervision."""

STEPS = {"teacher": 4000, "sembo": 600, "tokenizer": 800}
_BATCHES = {"teacher": (8, 2.56, 1e-3), "sembo": (8, 1.28, 4e-3), "tokenizer": (4, 0.64, 2e-3)}  # crops, s, rate


def corpus(folder: Path, clips: int, seed: int) -> Path:
    """A rendered corpus of ``clips`` per domain; its manifest. One that is there already is taken."""
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.exists() else []
    if len(lines) != 3 * clips:
        domains = list(make_corpus.DOMAINS)
        lacking = make_corpus.missing(domains, make_corpus.SOUND_FONT)
        if lacking:
            sys.exit(f"make_corpus: {lacking}")
        make_corpus.make_corpus(folder, clips, seed, domains)
    return manifest


def settings(stage: str, seed: int, scale: float, changes: dict[str, Any], init: Path | None) -> TrainConfig:
    """The configuration of one run."""
    crops, seconds, rate = _BATCHES[stage]
    values: dict[str, Any] = {
        "steps": max(round(STEPS[stage] * scale), 1),
        "batch_size": crops,
        "seed": seed,
        "device": "cpu",
        "data": {"crop_seconds": seconds, "cache_megabytes": 2000},
        "optimizer": {"lr": rate},
        "checkpoint": {"every": 200, "keep": 1},
        "log": {"every": 20},
    }
    if stage == "tokenizer":
        values["discriminator"] = {"kinds": []}
    if init is None:
        values |= {"preset": "tiny", "model": {"latent_dim": DIMS}}
    else:
        values["init"] = str(init)
    for group, change in changes.items():
        values[group] = {**values.get(group, {}), **change}
    return TrainConfig.from_dict(values)


TRAIN = {"teacher": train_teacher, "sembo": train_sembo, "tokenizer": train_tokenizer}


def train(stage: str, data: Path, folder: Path, config: TrainConfig) -> Path:
    """The model folder of a run; one that is finished is taken, one that was cut goes on."""
    done = folder / "done.json"
    facts = json.dumps(config.to_dict(), sort_keys=True)
    if not (done.exists() and done.read_text(encoding="utf-8") == facts):
        TRAIN[stage](data, folder, config)
        with atomic_path(done) as temporary:
            temporary.write_text(facts, encoding="utf-8")
    return folder / "model"
