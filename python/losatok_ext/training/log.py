"""What a run writes down: ``log.jsonl``, one line per logged step, and TensorBoard scalars when asked."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from losatok_ext.errors import TrainingError
from losatok_ext.files import atomic_path
from losatok_ext.training.options import LogConfig

if TYPE_CHECKING:
    from losatok_ext.training.loop import StepReport


class TrainingLog:
    """Writes the log of a run that goes on from ``start`` steps; what was logged of later steps before a crash is
    dropped.

    Args:
        output: the run's folder.
        config: what to write and how often.
        start: steps done.

    Raises:
        TrainingError: TensorBoard is asked for and not installed.
    """

    def __init__(self, output: Path, config: LogConfig, start: int) -> None:
        self.path = output / "log.jsonl"
        self.every = config.every
        self._tensorboard = _summary_writer(output / "tensorboard", start) if config.tensorboard else None
        lines = [line for line in _complete_lines(self.path) if line["step"] <= start]
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

    def write(self, report: StepReport) -> None:
        """Log a step: the first, the last, every ``every``-th, and each that was skipped."""
        if not (report.step in (1, report.steps) or report.step % self.every == 0 or not report.finite):
            return
        values = {
            "total": report.total,
            **report.losses,
            "grad_norm": report.grad_norm,
            **({} if report.critic_grad_norm is None else {"critic_grad_norm": report.critic_grad_norm}),
            "lr": report.lr,
            "audio_rate": report.audio_rate,
            "skipped": report.skipped,
        }
        # JSON has no word for what is not finite: such values are written as text.
        plain = {key: value if value - value == 0 else str(value) for key, value in values.items()}
        self._file.write(json.dumps({"step": report.step, **plain}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            for name, value in values.items():
                group = "loss" if name == "total" or name in report.losses else "training"
                self._tensorboard.add_scalar(f"{report.stage}/{group}/{name}", value, report.step)


def read_log(output: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's ``log.jsonl``, as mappings.

    Keys: ``step``, ``total``, each loss by name, ``grad_norm``, ``lr``, ``audio_rate``, ``skipped``. What was not
    finite is text (``"nan"``).
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
