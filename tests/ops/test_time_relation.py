"""The time-relation ops on the CPU against their definition: values, gradients, odd inputs, repeatability."""

import subprocess
import sys

import pytest
import torch

from losatok_ext import ops, use_backend
from ops.time_relation_cases import (
    CASES,
    LONG,
    SMALL,
    Case,
    assert_factored_bound,
    check_energy,
    check_loss,
    growth,
    run,
    run_reference,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WITH_ALGORITHMS = [pytest.param(case, a, id=f"{case}-{a}") for case in CASES for a in case.algorithms]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "algorithm"), WITH_ALGORITHMS)
def test_loss_and_gradient(case, algorithm, dtype):
    check_loss(case, dtype, algorithm=algorithm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [c for c in CASES if c.window is None], ids=str)
def test_loss_with_the_energy_given(case, dtype):
    check_loss(case, dtype, algorithm="factored", with_energy=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_energy(case, dtype):
    check_energy(case, dtype)


@pytest.mark.parametrize("algorithm", ["reference", "tiled", "factored", "banded"])
def test_gradcheck(algorithm):
    case = Case(2, 6, 3, 5, lengths=(6, 4), window=2 if algorithm == "banded" else None)
    low, high, lengths = case.make(torch.float64)
    backend, options = ("reference", {}) if algorithm == "reference" else ("native", {"algorithm": algorithm})

    def loss(low):
        with use_backend(backend):
            return ops.time_relation_loss(low, high, lengths, case.window, **options)

    assert torch.autograd.gradcheck(loss, low.requires_grad_())


def test_the_gradient_follows_what_comes_after_the_loss():
    low, high, _ = SMALL[0].make()
    low.requires_grad_()
    (3 * ops.time_relation_loss(low, high)).backward()
    torch.testing.assert_close(low.grad, 3 * run(low, high)[1])


def test_the_teacher_gets_no_gradient():
    low, high, _ = SMALL[0].make()
    high.requires_grad_()
    ops.time_relation_loss(low.requires_grad_(), high).backward()
    assert high.grad is None
    assert not ops.time_relation_loss(low.detach(), high).requires_grad
    assert not ops.gram_energy(high).requires_grad


def test_without_gradients_the_loss_is_the_same():
    for case in CASES:
        low, high, lengths = case.make()
        for algorithm in case.algorithms:
            alone = ops.time_relation_loss(low, high, lengths, case.window, algorithm)
            assert torch.equal(alone, run(low, high, lengths, case.window, algorithm=algorithm)[0])


def test_a_batch_weighs_clips_by_their_pairs():
    low, high, lengths = Case(3, 40, 6, 11, lengths=(40, 13, 0)).make(torch.float64)
    alone = [ops.time_relation_loss(low[b : b + 1, :n], high[b : b + 1, :n]) for b, n in enumerate((40, 13))]
    expected = (alone[0] * 40**2 + alone[1] * 13**2) / (40**2 + 13**2)
    torch.testing.assert_close(ops.time_relation_loss(low, high, lengths), expected)


@pytest.mark.parametrize("shape", [(2, 0, 3, 4), (0, 5, 3, 4), (0, 0, 3, 4)])
@pytest.mark.parametrize("algorithm", ["auto", "tiled", "factored", "banded"])
def test_nothing_to_compare_is_zero(shape, algorithm):
    low, high, _ = Case(*shape).make()
    loss, grad = run(low, high, window=1 if algorithm == "banded" else None, algorithm=algorithm)
    assert loss.item() == 0
    assert grad.shape == low.shape
    assert torch.equal(ops.gram_energy(high), torch.zeros(shape[0]))


def test_lengths_of_zero_and_one():
    low, high, _ = Case(3, 9, 4, 6).make()
    for algorithm in ("tiled", "factored", "auto"):
        loss, grad = run(low, high, torch.tensor([0, 0, 0]), algorithm=algorithm)
        assert loss.item() == 0
        assert not grad.any()
        loss, grad = run(low, high, torch.tensor([1, 0, 1]), algorithm=algorithm)  # only (l_0.l_0 - h_0.h_0)^2
        assert loss.item() < 1e-6
        assert grad.abs().max() < 1e-5
    torch.testing.assert_close(ops.gram_energy(high, torch.tensor([0, 1, 9]))[:2], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_lies_past_a_length_does_not_matter(dtype):
    for window, algorithms in ((None, ("tiled", "factored")), (4, ("banded",))):
        low, high, lengths = Case(3, 90, 6, 11, lengths=(90, 13, 0)).make(dtype)
        dirty_low, dirty_high = low.clone(), high.clone()
        for b, n in enumerate(lengths.tolist()):
            dirty_low[b, n:], dirty_high[b, n:] = torch.nan, torch.inf
        for algorithm in algorithms:
            clean = run(low, high, lengths, window, algorithm=algorithm)
            dirty = run(dirty_low, dirty_high, lengths, window, algorithm=algorithm)
            assert torch.equal(clean[0], dirty[0])
            assert torch.equal(clean[1], dirty[1])
        assert torch.equal(ops.gram_energy(high, lengths, window), ops.gram_energy(dirty_high, lengths, window))


def test_a_nan_within_the_length_is_not_hidden():
    low, high, _ = Case(2, 40, 6, 11).make()
    high[1, 3, 2] = torch.nan
    for algorithm in ("tiled", "factored"):
        assert run(low, high, algorithm=algorithm)[0].isnan()
    assert ops.gram_energy(high).isnan().tolist() == [False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_are_normalised_as_torch_does(dtype):
    low, high, _ = Case(2, 20, 6, 11).make(dtype)
    low[0, 3], high[1, 5], high[0, 3] = 0, 0, 0
    low[1, 7], high[1, 7] = 1e-7, 1e-7  # subnormal in float16
    for window, algorithm in ((None, "tiled"), (None, "factored"), (2, "banded")):
        loss, grad = run(low, high, window=window, algorithm=algorithm)
        exact, exact_grad = run_reference(low.double(), high.double(), window=window)
        torch.testing.assert_close(loss, exact.to(dtype))
        rest = torch.ones(2, 20, dtype=torch.bool)
        rest[0, 3] = False
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 3e-2)
        torch.testing.assert_close(
            grad[rest].double(), exact_grad[rest], rtol=tolerance, atol=tolerance * exact_grad[1, 0].abs().max().item()
        )
        if dtype != torch.float16:  # of size 1e12: d (x / 1e-12) / dx
            torch.testing.assert_close(grad[0, 3].double(), exact_grad[0, 3], rtol=tolerance, atol=tolerance * 1e11)


@pytest.mark.parametrize("dtype", LONG)
@pytest.mark.parametrize(("case", "algorithm"), [p for p in WITH_ALGORITHMS if p.values[0] in SMALL])
def test_a_row_may_be_so_long_that_its_squares_overflow(case, algorithm, dtype):
    check_loss(case, dtype, algorithm=algorithm, factors=growth(case.time, dtype))


@pytest.mark.parametrize("dtype", LONG)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_energy_of_rows_so_long_that_their_squares_overflow(case, dtype):
    check_energy(case, dtype, factors=growth(case.time, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [1e30, 1e38])
def test_rows_of_the_largest_numbers_are_as_in_float64(dtype, number):
    low, high, _ = Case(1, 6, 3, 5).make(dtype)
    low[0, 2] = high[0, 2] = number
    for window in (0, 2, None):
        exact = ops.gram_energy(high.double(), window=window)
        torch.testing.assert_close(ops.gram_energy(high, window=window).double(), exact, rtol=2e-2, atol=0)
    assert ops.time_relation_loss(low.float(), high.float(), window=0) < 1e-12


def test_an_infinity_in_a_row_is_not_hidden():
    low, high, _ = SMALL[0].make()
    high[1, 2, 1] = torch.inf
    assert ops.time_relation_loss(low, high).isnan()
    assert ops.gram_energy(high)[1].isnan()
    assert ops.gram_energy(high)[0].isfinite()


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_offsets(dtype):
    low, high, lengths = Case(2, 70, 6, 11, lengths=(70, 31)).make(dtype)
    expected = run(low, high, lengths)
    energy = ops.gram_energy(high, lengths)
    wide = torch.full((2, 72, 30), torch.nan, dtype=dtype)
    wide[:, 1:71, 3:14] = high
    tall_low = low.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    views = {
        "transposed": high.mT.contiguous().mT,
        "batch last": high.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "offset": wide[:, 1:71, 3:14],
        "every second": high.repeat_interleave(2, dim=1)[:, ::2],
    }
    for name, view in views.items():
        assert torch.equal(view, high), name
        for algorithm in ("tiled", "factored"):
            loss, grad = run(tall_low, view, lengths, algorithm=algorithm)
            torch.testing.assert_close(loss, expected[0])
            torch.testing.assert_close(grad, expected[1])
        torch.testing.assert_close(ops.gram_energy(view, lengths), energy)
    one = high[:1, :1].expand(2, 70, 11)  # all rows are the same memory
    torch.testing.assert_close(run(low, one)[1], run(low, one.contiguous())[1])


def test_auto_takes_the_cheapest():
    def same_as(case, algorithm, **options):
        low, high, lengths = case.make()
        auto, chosen = (run(low, high, lengths, case.window, algorithm=a, **options) for a in ("auto", algorithm))
        return torch.equal(auto[0], chosen[0]) and torch.equal(auto[1], chosen[1])

    assert same_as(Case(1, 60, 16, 160), "tiled")
    assert same_as(Case(1, 128, 4, 16), "tiled")  # cheaper by factors, but not to the last digit
    assert not same_as(Case(1, 129, 4, 16), "tiled")
    assert same_as(Case(1, 1500, 8, 40), "factored")
    assert not same_as(Case(1, 1500, 8, 40), "tiled")
    assert same_as(Case(1, 500, 8, 40, window=20), "banded")
    wide = Case(1, 200, 64, 640)
    assert same_as(wide, "tiled")
    energy = ops.gram_energy(wide.make()[1])
    assert same_as(wide, "factored", high_energy=energy)


def test_a_given_energy_is_used_by_the_factored_form_only():
    low, high, _ = Case(1, 30, 4, 9).make(torch.float64)
    energy = ops.gram_energy(high)
    right, wrong = (run(low, high, algorithm="factored", high_energy=e)[0] for e in (energy, energy + 30**2))
    torch.testing.assert_close(wrong - right, torch.ones((), dtype=torch.float64))
    assert torch.equal(*(run(low, high, algorithm="tiled", high_energy=e)[0] for e in (energy, None)))


@pytest.mark.parametrize("likeness", [0.9, 0.999, 1.0])
@pytest.mark.parametrize("time", [100, 1500, 5000])
def test_cancellation_in_the_factored_form_is_bounded(time, likeness):
    low, high, _ = Case(1, time, 16, 16, likeness=likeness).make()
    exact, exact_grad = run(low.double(), high.double(), algorithm="tiled")
    for energy in (None, ops.gram_energy(high)):
        loss, grad = run(low, high, algorithm="factored", high_energy=energy)
        assert loss.item() >= 0
        assert_factored_bound(loss, grad, low, high, exact, exact_grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(dtype):
    low, high, lengths = Case(2, 60, 8, 24, lengths=(60, 33)).make()
    with torch.autocast("cpu", dtype):
        loss, grad = run(low, high, lengths)
        energy = ops.gram_energy(high, lengths)
        mixed = ops.time_relation_loss(low.to(dtype), high, lengths)
        wide = ops.time_relation_loss(low.double(), high.double(), lengths)
        with use_backend("reference"):
            plain = ops.time_relation_loss(low, high, lengths)
    assert loss.dtype == grad.dtype == plain.dtype == mixed.dtype == torch.float32
    assert wide.dtype == torch.float64
    expected = run_reference(low.to(dtype).double(), high.to(dtype).double(), lengths)
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(grad.double(), expected[1], rtol=0, atol=0.01 * expected[1].abs().max().item())
    torch.testing.assert_close(plain, loss, rtol=0.02, atol=0)
    torch.testing.assert_close(mixed, loss)
    assert torch.equal(energy, ops.gram_energy(high.to(dtype), lengths))


_A_QUARTER_OF_AN_HOUR = """
import resource
import torch
from losatok_ext import ops
high = torch.randn(1, 22500, 1280)
low = torch.randn(1, 22500, 128, requires_grad=True)
ops.time_relation_loss(low[:, :64], high[:, :64]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.time_relation_loss(low, high).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
def test_memory_stays_linear_for_a_long_recording():
    pytest.importorskip("resource", reason="peak memory is read from getrusage")
    output = subprocess.run([sys.executable, "-c", _A_QUARTER_OF_AN_HOUR], capture_output=True, text=True, check=True)
    assert float(output.stdout) < 0.3  # GiB, for 15 minutes, where a Gram matrix takes 1.9 GiB
