"""The results as Markdown: tables with standard deviations, and the paper's claims compared with them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from losatok_ext.evaluation.reporting.markdown import Markdown, bold, table
from losatok_ext.evaluation.reporting.numbers import mean_and_spread, with_spread
from reproduction.measure import TASKS
from reproduction.plan import BOTTLENECKS, DIMS, TOKENIZERS

Figures = Mapping[str, Any]
"""Results of one seed: ``ranks``, ``compression`` and ``tokenizers``."""
MEAN = "mean"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """``mean ± standard deviation`` over seeds."""
    mean, deviation, _ = mean_and_spread(values)
    return with_spread(mean, deviation, digits)


def average(accuracies: Mapping[str, float]) -> float:
    """Mean accuracy over the tasks."""
    return statistics.fmean(accuracies[task] for task in TASKS)


def rank_table(seeds: Sequence[Figures]) -> Markdown:
    """Table: how compressible the teacher's features are, by domain."""
    rows = []
    for domain in seeds[0]["ranks"]:
        found = [figures["ranks"][domain] for figures in seeds]
        values = [spread([f["effective_rank"] for f in found], 1), spread([100 * f["tenth"] for f in found], 1) + " %"]
        rows.append([domain, *values])
    return table(["teacher's features (160 dimensions)", "effective rank", "variance in 16 dimensions"], rows)


def probe_rows(seeds: Sequence[Figures], group: str, names: Sequence[str], more: str | None = None) -> list[list[str]]:
    """One row for each of ``names``: its accuracies, their mean, and the figure ``more`` if it is given."""
    rows = []
    for name in names:
        found = [figures[group][name] for figures in seeds]
        row = [name, *(spread([f["probes"][task] for f in found]) for task in TASKS)]
        row.append(spread([average(f["probes"]) for f in found]))
        if more is not None:
            row.append(spread([f[more] for f in found]))
        rows.append(row)
    return rows


TEACHER, MERGE, PCA = "teacher (160 dimensions)", f"channel merge to {DIMS}", f"PCA to {DIMS}"
CHANCE, UNTRAINED = "the most frequent answer", "teacher, random weights"
COMPRESSIONS = (CHANCE, UNTRAINED, TEACHER, MERGE, PCA, *(variant.name for variant in BOTTLENECKS))
BOTH, HIGH, LOW, NEITHER, SMALL_KL, NO_KL = (variant.name for variant in TOKENIZERS)


_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % points of Student's distribution with 1, 2, ... degrees of freedom."""


def interval(differences: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean of paired differences, at least two."""
    freedom = len(differences) - 1
    return _STUDENT[min(freedom, len(_STUDENT)) - 1] * statistics.stdev(differences) / len(differences) ** 0.5


def claim(text: str, differences: Sequence[float]) -> list[str]:
    """A row: the claim of the paper, the difference measured here (positive agrees with the claim), and the verdict."""
    middle = statistics.fmean(differences)
    if len(differences) < 2:
        return [text, f"{middle:+.3f}", "one seed is not enough"]
    unsure = interval(differences)
    verdict = "no significant difference" if abs(middle) <= unsure else "agrees" if middle > 0 else bold("contradicts")
    return [text, f"{middle:+.3f} ± {unsure:.3f}", verdict]


def claims(seeds: Sequence[Figures]) -> list[list[str]]:
    """The claims of the paper that these runs can test; accuracies are means over the tasks."""

    def gain(group: str, better: str, worse: str) -> list[float]:
        return [average(f[group][better]["probes"]) - average(f[group][worse]["probes"]) for f in seeds]

    def clearer(better: str, worse: str) -> list[float]:
        return [f["tokenizers"][worse]["spectra"] - f["tokenizers"][better]["spectra"] for f in seeds]

    low = [0.5 * 160 - max(d["effective_rank"] for d in f["ranks"].values()) for f in seeds]
    return [
        claim("the teacher's effective rank is under half of its dimensions (difference: 80 - rank)", low),
        claim("(a check) training improves the teacher's accuracy", gain("compression", TEACHER, UNTRAINED)),
        claim("SemBo is more accurate than channel merging", gain("compression", "SemBo", MERGE)),
        claim("SemBo is more accurate than PCA", gain("compression", "SemBo", PCA)),
        claim("the teacher is more accurate than SemBo", gain("compression", TEACHER, "SemBo")),
        claim("the time-relation loss helps SemBo", gain("compression", "SemBo", "no time relation")),
        claim("it matters more than reconstruction", gain("compression", "no reconstruction", "no time relation")),
        claim("all pairs of frames are better than neighbours", gain("compression", "SemBo", BOTTLENECKS[3].name)),
        claim("L_L improves accuracy", gain("tokenizers", BOTH, HIGH)),
        claim("L_H improves accuracy", gain("tokenizers", BOTH, LOW)),
        claim("both together are better than neither", gain("tokenizers", BOTH, NEITHER)),
        claim("a smaller KL weight reconstructs better (difference of spectra)", clearer(SMALL_KL, BOTH)),
        claim("a smaller KL weight improves accuracy", gain("tokenizers", SMALL_KL, BOTH)),
    ]  # fmt: skip


def write(seeds: Sequence[Figures], setting: str) -> str:
    """The tables of the page, below one paragraph ``setting``."""
    head = ["linear probe of", *TASKS, MEAN]
    lines = [setting, "", "## How compressible the teacher is", "", rank_table(seeds)]
    lines += ["## Bottlenecks", "", table(head, probe_rows(seeds, "compression", COMPRESSIONS))]
    names = [variant.name for variant in TOKENIZERS]
    more = probe_rows(seeds, "tokenizers", names, "spectra")
    lines += ["## Tokenizers", "", table([*head, "spectra"], more)]
    lines += ["## Beside the paper", "", table(["claim of the paper", "difference here, 95 %", ""], claims(seeds))]
    return "\n".join(lines)
