"""Hostile command lines."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from trials import jobs
from trials.commands import Command
from trials.trial import FoundError, Trial

NUMBERS = (
    "0",
    "-1",
    "1",
    "3",
    "1e300",
    "-1e300",
    "nan",
    "inf",
    "-inf",
    "1e-320",
    str(2**31),
    str(2**63),
    "9" * 400,
    "0x10",
)
WORDS = (
    "",
    " ",
    "evil",
    "..",
    "/",
    "/dev/null",
    "/dev/full",
    "/proc/self/mem",
    "\x1b[31mred",
    "line\nbreak",
    "\udcff\udcfe",
    "x" * 300,
    "x" * 70_000,
    "a=b=c",
    "{",
    "[[[[",
    "*",
    "**/*",
    "-",
    "--",
    "hub:",
    "hf:",
    "nowhere/at/all",
    "int8",
    "codes",
    "bfloat16",
    "cuda:99",
    "float32",
)
SETTINGS = (
    "steps",
    "batch_size",
    "data.crop_seconds",
    "optimizer.lr",
    "seed",
    "checkpoint.every",
    "model.depth",
    "nothing",
)


class CommandLines(Trial):
    """Each attempt runs some command lines, of which some options and arguments are wrong."""

    name = "lines"
    summary = "hostile command lines: options and arguments of nearly all commands"

    def prepare(self) -> None:
        """Make what valid arguments name."""
        self.inputs = jobs.make_inputs(self.folder / "inputs")
        (self.inputs / "file").write_text("in the way")

    def attempt(self, chance: random.Random, counts: Counter[str]) -> None:
        """Run eight command lines."""
        problems = []
        for _ in range(8):
            words = self._words(chance)
            jobs.make_empty(self.folder / "out")
            try:
                outcome = Command(words, self.folder / "log", self.folder / "out").wait(120)
                outcome.check([0, 2])
            except FoundError as error:
                problems.append(f"{[word[:80] for word in words]}: {error}")
                continue
            counts["command lines"] += 1
            counts["refused" if outcome.code == 2 else "done"] += 1
            lines = outcome.output.splitlines()
            if outcome.code == 2 and not any(line.startswith("losatok") or "losatok" in line for line in lines):
                problems.append(
                    f"{[word[:80] for word in words]}: exit code 2 without a reason: {outcome.output[-500:]}"
                )
            if len(outcome.output) > 20_000:
                problems.append(f"{[word[:80] for word in words]}: {len(outcome.output)} characters of output")
        if problems:
            raise FoundError("\n".join(problems))

    def _words(self, chance: random.Random) -> list[str]:
        """A command line, with the paths of files that are there or not."""
        i, o = self.inputs, self.folder / "out"
        paths = [i / "clips", i / "latents", i / "model", i / "other", i / "file", i / "none", o / "a", i]
        clip, latent = sorted((i / "clips").rglob("*.flac"))[0], sorted((i / "latents").rglob("*.losatok"))[0]
        model = ["-m", str(i / "model")]
        training = [i / "clips", "-o", o / "t", "--init", i / "model"]
        lines = [
            ["encode", clip, "-o", o / "e", *model, "--store", "int8", "--dims", "4", "--max-minutes", "1"],
            ["decode", latent, "-o", o / "d", *model, "--format", "flac"],
            ["reconstruct", clip, "-o", o / "r.wav", *model, "--plot", o / "r.png"],
            ["info", latent],
            ["info", i / "model"],
            ["convert", i / "model", "-o", o / "m", "--dtype", "bfloat16"],
            ["shard", i / "clips", o / "s", "--megabytes", "1", "--sample-rate", "16000"],
            ["precompute", "features", i / "clips", "-o", o / "p", "-t", i / "model", "--store", "float32"],
            ["precompute", "latents", i / "clips", "-o", o / "p", *model, "--store", "float32"],
            ["profile", "encode", clip, *model, "--runs", "1"],
            ["train", "sembo", *training, "--steps", "1", "--set", "batch_size=2"],
            ["train", "tokenizer", *training, "--steps", "0", "--lr", "1e-3"],
            ["evaluate", "storage", i / "clips", "-o", o / "v", *model],
            ["analyze", i / "clips", "-o", o / "y", "-t", i / "model"],
        ]
        words = [str(word) for word in chance.choice(lines)]
        steps = chance.choice((1, 1, 2, 3))
        for _ in range(steps):
            place = chance.randrange(1, len(words)) if len(words) > 1 else 0
            value = chance.choice((chance.choice(NUMBERS), chance.choice(WORDS), str(chance.choice(paths))))
            change = chance.randrange(6)
            if change < 3:
                words[place] = value
            elif change == 3:
                words.insert(place, value)
            elif change == 4:
                words += ["--set", f"{chance.choice(SETTINGS)}={value}"]
            else:
                del words[place]
        return [word.replace("\0", "") for word in words if not _leaves(word, self.folder)]


def _leaves(word: str, folder: Path) -> bool:
    """Whether a command could write outside of ``folder`` if it took ``word`` as its output."""
    return word in ("/", "..") or (word.startswith("/") and not word.startswith((str(folder), "/dev", "/proc")))
