"""Write what was measured into the documents: tables, and a picture.

``make bench RESULTS=benchmarks/results`` keeps the figures of the ops, ``losatok evaluate precision`` those of
precisions with ``-o benchmarks/results/<device>/precision/<model>``. ``make report`` then writes the tables
between the marks ``<!-- measured: NAME -->`` and ``<!-- end -->`` of README.md, docs/performance.md and docs/speed.md,
and draws docs/performance.png. Figures between the marks are never typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from losatok_ext.evaluation.reporting import markdown
from losatok_ext.evaluation.tasks.precision import PrecisionResult
from losatok_ext.evaluation.tasks.precision_report import EXPLANATION, precision_table
from targets import TARGETS

ROOT = Path(__file__).parent.parent
HIGHLIGHTS = (
    "time_relation float32 B=8 T=750",
    "time_relation float32 B=8 T=750, high_energy",
    "time_relation float32 B=1 T=7500",
    "time_relation float32 one hour",
    "normalized_reconstruction_loss + backward float32 N=25000",
    "bottleneck_project float32 N=25",
    "bottleneck_project bfloat16 N=250",
    "vq_nearest float32 N=6000 K=8192",
    "rvq_encode float32 N=6000 Q=8 K=1024",
    "dit_attention float32",
    "nn.DiTBlock of 512 float32",
    "nn.DiTBlock of 512 + backward float32",
    "decode base bfloat16 B=1",
    "encode base bfloat16 B=1",
)
"""Rows of the README's table."""
PICTURED = (
    *HIGHLIGHTS,
    "polar_istft float32 B=1 T=500",
    "depthwise_conv_norm float32 B=1 T=500",
    "ResidualVQ step N=6000 Q=8 K=1024",
    "decode base float32 B=1",
    "decode base int8 B=1",
    "encode base float32 B=1",
    "encode base int8 B=1",
)
"""Rows of the picture."""
VARIANTS = ("fast", "recomputed", "ours compiled", "ours bfloat16", "1280-d at 512", "1280-d at 1536")
"""Variants of our own that are timed beside ours: left out of the picture."""


def load(paths: list[Path]) -> list[dict]:
    """The newest result of every device, newest device first."""
    newest: dict[str, dict] = {}
    for path in sorted(paths, key=lambda path: path.name):
        newest[path.parent.name] = json.loads(path.read_text())
    return sorted(newest.values(), key=lambda result: result["date"], reverse=True)


def peers(row: dict) -> list[str]:
    """Names of the peers that a row was timed beside."""
    return [key.removeprefix("x_") for key in row if key.startswith("x_") and not key.endswith("_median")]


def spell_time(microseconds: float) -> str:
    """Three digits with the unit that suits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.3g} us"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(result: dict) -> str:
    """Where and when a result was measured, in a line."""
    libraries = result.get("ceiling_libraries", {})  # results of before 2026-12 do not say
    ceilings = ", ".join(
        f"{dtype} {value / 1e9:.0f} GFLOP/s" + (f" ({libraries[dtype]})" if dtype in libraries else "")
        for dtype, value in result["ceilings"].items()
    )
    commits = dict.fromkeys(row.get("commit", result["commit"]) for row in result["rows"])
    return (
        f"{result['machine']}, torch {result['torch']}, {result['threads']} threads, {result['date']}, "
        f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}; matrix ceiling of the run: {ceilings}"
    )


def measured_rows(result: dict, labels: list[str] | None = None) -> str:
    """All rows of a result (or those of ``labels``) as a table."""
    found = {row["label"]: row for row in result["rows"]}
    rows = []
    for label in labels or found:
        if (row := found.get(label)) is None:
            continue
        share = f"{100 * row['ceiling_share']:.0f} %" if "ceiling_share" in row else ""
        ratios = ", ".join(f"{row[f'x_{name}']:.2f}x {name}" for name in peers(row))
        memory = ""
        if "ours_mib" in row:
            memory = f"{row['ours_mib']:.0f} MiB" + "".join(f", {name} {row[f'{name}_mib']:.0f}" for name in peers(row))
        rows.append([label, spell_time(row["ours_us"]), ratios, share, memory])
    return table(["", "ours", "peer's time over ours", "of the ceiling", "peak memory"], rows)


def precision_tables(folder: Path) -> str:
    """A table for each report that ``losatok evaluate precision`` wrote to ``folder``/<device>/precision/<model>."""
    paths = sorted(folder.glob("*/precision/*/precision.json"))
    tables = [precision_table(PrecisionResult.from_dict(json.loads(path.read_text()))) for path in paths]
    parts = [f"{markdown.table(table.columns, table.rows)}\n{markdown.escape(table.note)}" for table in tables]
    return "\n\n".join([*parts, f"{EXPLANATION}."])


def targets_table(result: dict) -> str:
    """Each target of the result's kind of device beside what was measured."""
    found = {row["label"]: row for row in result["rows"]}
    rows = []
    for target in TARGETS:
        if target.device != result["device"]:
            continue
        value = target.measured(found[target.label]) if target.label in found else None
        verdict = "not measured" if value is None else "met" if target.met(value) else "**missed**"
        measured = "" if value is None else target.spell(value)
        rows.append([target.label, target.spell(target.value, True), measured, verdict])
    return table(["", "target", "measured", ""], rows)


def fill(path: Path, blocks: dict[str, str]) -> None:
    """Replace what stands between the marks of each block in ``path``.

    Raises:
        SystemExit: the document has a mark without its end, or of a name that is not known.
    """
    text = path.read_text()

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in blocks:
            raise SystemExit(f"{path} asks for {name!r}; there are {', '.join(blocks)}")
        return f"<!-- measured: {name} -->\n{blocks[name]}\n<!-- end -->"

    if text.count("<!-- measured: ") != text.count("<!-- end -->"):
        raise SystemExit(f"{path} has a mark 'measured' without its 'end'")
    path.write_text(re.sub(r"<!-- measured: (\S+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL))


def draw(result: dict, path: Path, labels: Sequence[str] | None = None) -> None:
    """Bars: for each row of ``labels`` (None: all) beside a peer, how many times our time its time is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    beside = {row["label"]: [name for name in peers(row) if name not in VARIANTS] for row in result["rows"]}
    rows = [row for row in result["rows"] if beside[row["label"]] and (labels is None or row["label"] in labels)]
    figure, axes = plt.subplots(figsize=(10, 0.42 * len(rows) + 1.6), layout="constrained")
    names = list(dict.fromkeys(name for row in rows for name in beside[row["label"]]))
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    for position, row in enumerate(rows):
        own = beside[row["label"]]
        height = 0.8 / len(own)
        for index, name in enumerate(own):
            y = position - 0.4 + (index + 0.5) * height
            axes.barh(y, row[f"x_{name}"], height * 0.9, color=colours[name], label=name)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("peer's time over ours (log): right of 1, ours is faster")
    title = f"{result['machine']}, {result['threads']} threads, torch {result['torch']}, {result['date']}"
    axes.set_title(title, fontsize=9)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    axes.legend(handles, names, loc="lower right", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str]) -> None:
    """Read the results and write the documents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, default=sorted((ROOT / "benchmarks/results").glob("*/*.json")))
    paths = parser.parse_args(arguments).results
    if not paths:
        raise SystemExit("no results; make bench RESULTS=benchmarks/results first")
    results = load(paths)
    cpu = next((result for result in results if result["device"] == "cpu"), results[0])
    blocks = {
        "machine": machine(cpu),
        "targets": "\n\n".join(f"{machine(result)}\n\n{targets_table(result)}" for result in results),
        "rows": "\n\n".join(f"{machine(result)}\n\n{measured_rows(result)}" for result in results),
        "precision": precision_tables(ROOT / "benchmarks/results"),
        "highlights": f"{measured_rows(cpu, list(HIGHLIGHTS))}\n\n{machine(cpu)}.",
    }
    for name in ("README.md", "docs/performance.md", "docs/speed.md"):
        fill(ROOT / name, blocks)
    draw(cpu, ROOT / "docs/performance.png", PICTURED)


if __name__ == "__main__":
    main(sys.argv[1:])
