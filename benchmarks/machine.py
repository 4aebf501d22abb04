"""What figures are signed with: the machine and the commit that they were measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import torch


def machine_name(device: str) -> str:
    """The GPU's name, or the processor's and how many cores this process may use."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.machine()}"


def device_slug(device: str) -> str:
    """The machine's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(\w+\)|@.*|CPU", "", machine_name(device)).lower()).strip("-")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def commit() -> str:
    """The commit that was measured; with a + where the tree had changes."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return described.stdout.strip() or "unknown"
