"""The measure that benchmarks/generator_convergence.py draws, against closed forms."""

import numpy as np
import pytest
import torch

from generator_convergence import chosen, draw, frames, frechet


def test_the_distance_of_gaussians_is_its_formula():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 5)) @ rng.standard_normal((5, 5))
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-9)
    away = np.array([1.0, 0.0, -2.0, 0.5, 0.0])
    assert frechet(rows, rows + away) == pytest.approx(away @ away)
    assert frechet(rows, 3 * rows - 2 * rows.mean(0)) == pytest.approx(4 * np.trace(np.cov(rows.T)))  # (3 - 1)^2 tr C
    assert frechet(rows, rows[:200]) == pytest.approx(frechet(rows[:200], rows))


def test_frames_are_three_neighbours_of_each_clip():
    clips = [torch.randn(16000, generator=torch.Generator().manual_seed(i)) / 10 for i in range(2)]
    both = frames(clips, 16000)
    assert both.shape == (2 * (101 - 8), 240)
    assert np.array_equal(both[:93], frames(clips[:1], 16000))


def test_the_picture_is_drawn(tmp_path):
    curve = {"loss": [(i, 2 / i) for i in range(1, 60)], "distance": [(20, 3.0), (40, 2.0)], "floor": 1.0}
    results = dict.fromkeys(("LoSATok 128-d", "acoustic 128-d", "LoSATok 1280-d"), curve)
    draw(results, tmp_path / "convergence.png", "a title")
    assert (tmp_path / "convergence.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "list.jsonl").write_text("\n".join(f'{{"path": {i}}}' for i in range(10)))
    assert [line["path"] for line in chosen(tmp_path / "list.jsonl", 4)] == [0, 2, 5, 7]
