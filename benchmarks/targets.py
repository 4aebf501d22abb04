"""The targets of the ops' benchmarks; report.py compares them with what was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A row of a benchmark's table, and the value that one of its figures should reach.

    Attributes:
        label: the row's label, as the benchmark prints it.
        figure: ``"x_<peer>"``, the peer's time divided by ours; ``"memory_<peer>"``, its peak memory divided by ours;
            ``"seconds"`` or ``"mib"``, our time or our peak memory in MiB.
        value: the target: at least this for a ratio, at most this for ``"seconds"`` and ``"mib"``.
        device: ``"cpu"`` or ``"cuda"``.
    """

    label: str
    figure: str
    value: float
    device: str = "cpu"

    def measured(self, row: dict) -> float | None:
        """The value of the figure in ``row``, or None where it was not measured."""
        if self.figure == "seconds":
            return row["ours_us"] / 1e6
        if self.figure == "mib":
            return row.get("ours_mib")
        kind, peer = self.figure.split("_", 1)
        if kind == "x":
            return row.get(self.figure)
        theirs, ours = row.get(f"{peer}_mib"), row.get("ours_mib")
        return None if theirs is None or ours is None else theirs / max(ours, 0.1)

    def met(self, value: float) -> bool:
        """Whether ``value`` reaches the target; a ratio is rounded to two decimals first."""
        return value <= self.value if self.figure in ("seconds", "mib") else round(value, 2) >= self.value

    def spell(self, value: float, least: bool = False) -> str:
        """``value`` in words; with ``least``, the target in words ('at least 2.00x eager')."""
        bound = ("at most " if self.figure in ("seconds", "mib") else "at least ") if least else ""
        if self.figure == "seconds":
            return f"{bound}{value:.1f} s"
        if self.figure == "mib":
            return f"{bound}{value:.0f} MiB"
        kind, peer = self.figure.split("_", 1)
        return f"{bound}{value:.2f}x {'less memory than ' if kind == 'memory' else ''}{peer}"


def _bottleneck() -> list[Target]:
    dtypes, rows = ("float32", "bfloat16"), (1, 25, 250, 2500, 25_000)
    project = [Target(f"bottleneck_project {dtype} N={n}", "x_eager", 1.0) for dtype in dtypes for n in rows]
    memory = [
        Target(f"normalized_reconstruction_loss + backward {dtype} N={n}", "memory_eager", 3.0)
        for dtype in dtypes
        for n in (2500, 25_000)
    ]
    return project + memory


TARGETS = [
    *_bottleneck(),
    Target("time_relation float32 B=8 T=250", "x_eager", 1.3),
    Target("time_relation float32 B=8 T=750", "x_eager", 2.0),
    Target("time_relation float32 B=8 T=750, high_energy", "x_eager", 4.0),
    Target("time_relation float32 B=1 T=7500", "x_eager", 10.0),
    Target("time_relation float32 one hour", "seconds", 10.0),
    Target("time_relation float32 one hour", "mib", 2048),
    Target("vq_nearest float32 N=6000 K=8192", "x_vector-quantize-pytorch", 8.0),
    Target("vq_nearest float32 N=6000 K=1024", "x_vector-quantize-pytorch", 2.5),
    Target("rvq_encode float32 N=6000 Q=8 K=1024", "x_vector-quantize-pytorch", 4.0),
    Target("nn.DiTBlock of 512 float32", "x_eager", 2.2),
    Target("nn.DiTBlock of 512 float32", "x_compile", 1.3),
    Target("nn.DiTBlock of 512 + backward float32", "x_compile", 1.1),
    Target("decode base float32 B=1", "x_published", 1.5),
    Target("decode base bfloat16 B=1", "x_published", 4.0),
    Target("encode base float32 B=1", "x_published", 2.5),
    Target("encode base bfloat16 B=1", "x_published", 6.0),
]
"""In the order of the report. The project's plan derived them from the ceilings of its machines."""
