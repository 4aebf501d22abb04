"""The log of a run: ``log.jsonl`` with a line for each logged step, and TensorBoard scalars, audio and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from losatok_ext.audio.plots import mel_decibels
from losatok_ext.errors import TrainingError
from losatok_ext.files import atomic_path
from losatok_ext.training.config.options import LogConfig
from losatok_ext.training.engine.reports import StepReport
from losatok_ext.training.stages.base import Shown

_RANGE = 80.0


class TrainingLog:
    """Writes the log of a run that goes on from ``start`` steps; lines of later steps (before a crash) are removed.

    Args:
        output: the run's folder.
        config: what is written, and how often.
        start: steps done.

    Raises:
        TrainingError: TensorBoard is asked for and not installed.
    """

    def __init__(self, output: Path, config: LogConfig, start: int) -> None:
        self.path = output / "log.jsonl"
        self.every = config.every
        self._given = set[str]()
        self._tensorboard = _summary_writer(output / "tensorboard", start) if config.tensorboard else None
        lines = [line for line in _complete_lines(self.path) if line["step"] <= start]
        with self._writing():
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written ({error.strerror or error}); the last checkpoint is intact: make "
                "room, then the same command again goes on from it"
            ) from None

    def write(self, report: StepReport) -> None:
        """Log a step: the first, the last, every ``every``-th, and each that was skipped or validated.

        Raises:
            TrainingError: the disk is full.
        """
        found = report.validation
        due = report.step in (1, report.steps) or report.step % self.every == 0
        if not (due or not report.finite or found is not None):
            return
        values: dict[str, float] = {
            "total": report.total,
            **report.losses,
            "grad_norm": report.grad_norm,
            **({} if report.critic_grad_norm is None else {"critic_grad_norm": report.critic_grad_norm}),
            "lr": report.lr,
            "audio_rate": report.audio_rate,
            "skipped": report.skipped,
        }
        validated = {} if found is None else {"total": found.total, **found.losses, **found.statistics}
        entry = {**values, **{f"validation/{name}": value for name, value in validated.items()}}
        # JSON has no word for what is not finite: such values are written as text.
        plain = {key: value if value - value == 0 else str(value) for key, value in entry.items()}
        if found is not None:
            plain["validation/best"] = found.best
        with self._writing():
            self._file.write(json.dumps({"step": report.step, **plain}) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                group = "loss" if name == "total" or name in report.losses else "training"
                self._tensorboard.add_scalar(f"{report.stage}/{group}/{name}", value, report.step)
            for name, value in validated.items():
                self._tensorboard.add_scalar(f"{report.stage}/validation/{name}", value, report.step)

    def show(self, step: int, clips: Sequence[Shown], dimensions: Mapping[str, Tensor]) -> None:
        """Write clips and histograms to TensorBoard; without TensorBoard nothing is written.

        Args:
            step: steps done.
            clips: written as audio and as mel pictures; the recordings are written once.
            dimensions: [d] each, by the name of the statistic; written as histograms.
        """
        board = self._tensorboard
        if board is None:
            return
        for name, values in dimensions.items():
            board.add_histogram(f"latents/{name}", values, step)
        for clip in clips:
            if clip.name not in self._given:
                self._given.add(clip.name)
                board.add_audio(f"{clip.name}/given", _loud(clip.given), step, sample_rate=clip.sample_rate)
            board.add_audio(f"{clip.name}/made", _loud(clip.made), step, sample_rate=clip.sample_rate)
            board.add_image(f"{clip.name}/mel", mel_picture(clip), step)


def _loud(audio: Tensor) -> Tensor:
    return audio.detach().float().cpu().clamp(-1, 1)[None]


def mel_picture(clip: Shown) -> Tensor:
    """Mel spectrograms of the recording (above) and its reconstruction (below), [3, H, W] in 0..1. Black is 80 dB below
    the loudest bin of the recording; low frequencies are at the bottom of each."""
    given, made = (mel_decibels(audio, clip.sample_rate) for audio in (clip.given, clip.made))
    floor = float(given.max()) - _RANGE
    rows = [((mel - floor) / _RANGE).clamp(0, 1).flip(0) for mel in (given, made)]
    width = min(row.shape[1] for row in rows)
    line = torch.ones(2, width)
    level = torch.cat([rows[0][:, :width], line, rows[1][:, :width]])
    # From black over red and yellow to white, a third of the range each.
    return torch.stack([(3 * level - shift).clamp(0, 1) for shift in (0, 1, 2)])


def read_log(output: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's ``log.jsonl``, as mappings.

    Keys: ``step``, ``total``, each loss by name, ``grad_norm``, ``critic_grad_norm`` where a critic was trained,
    ``lr``, ``audio_rate``, ``skipped``; of a validated step also ``validation/total``, each loss and statistic of the
    latents likewise, and ``validation/best``. What was not finite is text (``"nan"``).
    """
    return _complete_lines(Path(output) / "log.jsonl")


def _complete_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    # A line that a crash cut off has no end: it belongs to a step that will be done again.
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _summary_writer(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            f"log.tensorboard needs TensorBoard ({error}); pip install 'losatok-ext[train]', or leave "
            "log.tensorboard off"
        ) from None
    return SummaryWriter(str(folder), purge_step=start + 1)
