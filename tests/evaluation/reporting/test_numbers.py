"""Figures as text."""

import pytest

from losatok_ext.evaluation.reporting.numbers import fixed, mean_and_spread, three_digits, with_spread


def test_means_and_spreads():
    assert mean_and_spread([None, 1.0, 3.0]) == (2.0, pytest.approx(2**0.5), 2)
    assert mean_and_spread([4.0]) == (4.0, None, 1)
    assert mean_and_spread([None]) == (None, None, 0)
    assert with_spread(None, None) == "–"
    assert with_spread(1.0, None, 1) == "1.0"
    assert with_spread(1.0, 0.25, 2) == "1.00 ± 0.25"


def test_digits():
    assert [fixed(None), fixed(0.12345), fixed(2.0, 0)] == ["–", "0.123", "2"]
    assert [three_digits(v) for v in (None, 0.0, 0.012345, 999.4, -12_345.6)] == ["–", "0", "0.0123", "999", "-12,346"]
