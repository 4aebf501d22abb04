"""The time-relation Triton kernels against the reference: in Triton's interpreter, or on a GPU where there is one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext import use_backend
from losatok_ext.ops.time_relation import gram_energy, time_relation_loss
from losatok_ext.triton_kernels import time_relation as kernels
from losatok_ext.triton_kernels import time_relation_factored as factored_kernels
from ops.triton_cases import DTYPES, check_op, evaluate, fill_with_nan, needs_working_triton

NEED = [True, False]


pytestmark = needs_working_triton


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)


def features(clips=2, time=37, low=9, high=33):
    return [torch.randn(clips, time, low), torch.randn(clips, time, high)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [None, [35, 0, 16]], ids=["full", "lengths"])
@pytest.mark.parametrize("algorithm", ["tiled", "factored"])
def test_all_pairs(algorithm, lengths, dtype, device):
    options = {"algorithm": algorithm, "lengths": None if lengths is None else torch.tensor(lengths)}
    check_op(time_relation_loss, features(3, 35), NEED, dtype, device, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["tiled", "factored"])
def test_without_gradient(algorithm, dtype, device):
    options = {"algorithm": algorithm, "lengths": torch.tensor([37, 21])}
    check_op(time_relation_loss, features(), [False, False], dtype, device, **options)


@pytest.mark.parametrize("window", [0, 1, 15, 16, 20, 35, 36, 1000])
def test_window(window, device):
    options = {"window": window, "lengths": torch.tensor([37, 21])}
    low, high = features()
    check_op(time_relation_loss, [low, high], NEED, torch.float32, device, **options)
    check_op(time_relation_loss, [low, high], [False, False], torch.float32, device, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 0, 5])
def test_gram_energy(window, dtype, device):
    check_op(gram_energy, features()[1:], [False], dtype, device, window=window, lengths=torch.tensor([37, 21]))


def test_gram_energy_of_few_features(device):
    """Few features and many frames: factored."""
    check_op(gram_energy, [torch.randn(2, 40, 7)], [False], torch.float32, device, lengths=torch.tensor([40, 9]))


@pytest.mark.parametrize("algorithm", ["tiled", "factored", "auto"])
def test_high_energy(algorithm, device):
    low, high = features()
    options = {"lengths": torch.tensor([37, 21]), "algorithm": algorithm}
    with use_backend("triton"):
        energy = gram_energy(high.to(device), options["lengths"].to(device))
    with_energy = evaluate(
        time_relation_loss, "triton", [low, high], NEED, torch.float32, device, high_energy=energy, **options
    )
    without = evaluate(time_relation_loss, "triton", [low, high], NEED, torch.float32, device, **options)
    for a, b in zip(with_energy, without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 2, 3, 4), (2, 32, 16, 16), (1, 70, 20, 5)], ids=str)
def test_sizes(sizes, device):
    check_op(time_relation_loss, features(*sizes), NEED, torch.float32, device, algorithm="tiled")


@pytest.mark.parametrize("algorithm", ["tiled", "factored"])
def test_one_frame_agrees_with_itself(algorithm, device):
    """The Gram matrix of one frame is 1 on both sides: what remains is rounding."""
    low, high = features(5, 1, 16, 32)
    loss, gradient = evaluate(
        time_relation_loss, "triton", [low, high], NEED, torch.float32, device, algorithm=algorithm
    )
    assert 0 <= loss < 5e-7
    assert gradient.abs().max() * low.norm(dim=-1).min() < 5e-6


@pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3])
def test_factored_error_is_bounded_as_stated(spread, device):
    """Cancellation costs a few 1e-7 of the mean of (h_i.h_j)^2, however small the loss is beside it."""
    high = torch.randn(2, 1, 33) + spread * torch.randn(2, 60, 33)  # frames much alike: the mean is near 1
    low = high + spread * torch.randn(2, 60, 33)
    options = {"algorithm": "factored"}
    loss, gradient = evaluate(time_relation_loss, "triton", [low, high], NEED, torch.float32, device, **options)
    exact, expected = evaluate(time_relation_loss, "reference", [low, high], NEED, torch.float64, device)
    assert (loss.double() - exact).abs() < 5e-7
    # sum_j E_ij l_j is a difference of sums that are about 60 long: 4 / 60^2 of their rounding, over the rows' norm
    assert (gradient.double() - expected).abs().max() < 4 / 60 * 1e-6 / low.norm(dim=-1).min()


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)], ids=str)
def test_no_pairs(shape, device):
    low, high = torch.randn(*shape, 4), torch.randn(*shape, 6)
    for result in evaluate(time_relation_loss, "triton", [low, high], NEED, torch.float32, device):
        assert (result == 0).all()
    with use_backend("triton"):
        assert torch.equal(gram_energy(high.to(device)).cpu(), torch.zeros(shape[0]))
        none = torch.zeros(2, dtype=torch.int64, device=device)
        x = torch.randn(2, 5, 4, device=device)
        assert time_relation_loss(x, x, lengths=none) == 0


def test_wide_latent(device, monkeypatch):
    """The gradient of a latent wider than one program gathers."""
    monkeypatch.setattr(kernels, "OUTPUT_TILE", 16)
    check_op(time_relation_loss, features(low=40), NEED, torch.float32, device, algorithm="tiled")


@pytest.mark.parametrize("elements", [42 * 8, 42 * 40])
def test_factored_in_groups_and_chunks(elements, device, monkeypatch):
    """Copies of 8 frames at a time; then of one clip at a time."""
    monkeypatch.setattr(factored_kernels, "COPY_ELEMENTS", elements)
    lengths = torch.tensor([37, 12, 0])
    check_op(time_relation_loss, features(3), NEED, torch.float32, device, algorithm="factored", lengths=lengths)
    check_op(gram_energy, [torch.randn(3, 37, 7)], [False], torch.float32, device, lengths=lengths)


def test_strided_inputs(device):
    base = torch.randn(37, 2, 60, device=device)
    low, high = base.transpose(0, 1)[..., :9], base.transpose(0, 1)[..., 20:53]
    scattered = torch.randn(2, 37, 18, device=device)[..., ::2]
    for algorithm in ("tiled", "factored"):
        for latent in (low, scattered):
            with use_backend("triton"):
                loss = time_relation_loss(latent, high, algorithm=algorithm)
            with use_backend("reference"):
                expected = time_relation_loss(latent, high)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["tiled", "factored", "banded"])
def test_nan_past_a_length_never_leaks(algorithm, device):
    low, high = features()
    lengths = torch.tensor([37, 21])
    options = {"lengths": lengths, "algorithm": algorithm, "window": 5 if algorithm == "banded" else None}
    clean = evaluate(time_relation_loss, "triton", [low, high], NEED, torch.float32, device, **options)
    low[1, 21:], high[1, 21:] = float("nan"), float("nan")
    padded = evaluate(time_relation_loss, "triton", [low, high], NEED, torch.float32, device, **options)
    assert all(torch.equal(a, b) for a, b in zip(clean, padded, strict=True))
    assert (padded[1][1, 21:] == 0).all()


def test_zero_rows(device):
    low, high = features()
    high[0, 3] = 0
    high[1, 30] = 0
    for algorithm in ("tiled", "factored"):
        check_op(time_relation_loss, [low, high], NEED, torch.float32, device, algorithm=algorithm)


@settings(max_examples=5, deadline=None)
@given(time=st.integers(2, 40), size=st.integers(1, 24), seed=st.integers(0, 99))
def test_properties(time, size, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    low, high = (x.to(device) for x in features(1, time, size, size + 3))
    order = torch.randperm(time, device=device)
    turn = torch.linalg.qr(torch.randn(size, size, device=device))[0]
    with use_backend("triton"):
        loss = time_relation_loss(low, high, algorithm="tiled")
        close = {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(time_relation_loss(low, high, algorithm="factored"), loss, **close)
        torch.testing.assert_close(time_relation_loss(low[:, order], high[:, order], algorithm="tiled"), loss, **close)
        torch.testing.assert_close(time_relation_loss(low, high, window=time - 1), loss, **close)
        assert time_relation_loss(low, low @ turn, algorithm="tiled") < 1e-10
        assert 0 <= time_relation_loss(low, low @ turn, algorithm="factored") < 2e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("algorithm", ["tiled", "factored", "banded"])
def test_sizes_of_the_model(algorithm, dtype, device):
    window = 40 if algorithm == "banded" else None
    options = {"algorithm": algorithm, "window": window, "lengths": torch.tensor([750, 333, 0, 749])}
    check_op(time_relation_loss, features(4, 750, 128, 1280), NEED, dtype, device, **options)
    check_op(time_relation_loss, features(4, 750, 128, 1280), [False, False], dtype, device, **options)


def test_repeats_bit_for_bit(device):
    for algorithm in ("tiled", "factored"):
        tensors = features(1, 70, 9, 20)
        first, second = (
            evaluate(time_relation_loss, "triton", tensors, NEED, torch.float32, device, algorithm=algorithm)
            for _ in range(2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_auto_takes_the_fewest_multiplications():
    def choose(time, window=-1, energy=False, need_grad=True):
        return kernels.chosen_algorithm("auto", time, 128, 1280, window, energy, need_grad)

    assert choose(250) == "tiled"
    assert choose(750, energy=True) == "factored"
    assert choose(7500) == "factored"
    assert choose(7500, window=10) == "banded"
    assert choose(250, window=249) == "tiled"
    assert kernels.chosen_algorithm("auto", 128, 4, 16, -1, True, True) == "tiled"
    assert kernels.chosen_algorithm("auto", 129, 4, 16, -1, True, True) == "factored"


def test_float64_is_refused_with_a_cure(device):
    low, high = (x.double().to(device) for x in features())
    with use_backend("triton"), pytest.raises(TypeError, match=r"low should be float32.*use_backend\('reference'\)"):
        time_relation_loss(low, high)
