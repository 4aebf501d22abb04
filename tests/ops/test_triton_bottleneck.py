"""The bottleneck's Triton kernels against the reference: in Triton's interpreter, or on a GPU where there is one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext import use_backend
from losatok_ext.ops.bottleneck import bottleneck_project, normalized_reconstruction_loss
from losatok_ext.ops.reference.bottleneck import ACTIVATIONS
from losatok_ext.triton_kernels import bottleneck, launch
from losatok_ext.triton_kernels import normalized_reconstruction_loss as loss_kernels
from ops.triton_cases import DTYPES, check_op, evaluate, fill_with_nan, needs_working_triton

pytestmark = needs_working_triton


@pytest.fixture(autouse=True)
def _nan_filled(monkeypatch):
    fill_with_nan(monkeypatch)


def parameters(features, hidden, outputs, bias=True):
    return [
        torch.randn(hidden, features) / features**0.5,
        torch.randn(hidden) if bias else None,
        torch.randn(outputs, hidden) / hidden**0.5,
        torch.randn(outputs) if bias else None,
    ]


def projection(rows, features, hidden, outputs, bias=True):
    return [torch.randn(rows, features), *parameters(features, hidden, outputs, bias)]


def loss_inputs(clips, time, latent, hidden, features):
    return [torch.randn(clips, time, latent), torch.randn(clips, time, features), *parameters(latent, hidden, features)]


NEED_ALL = [True] * 5
NEED_LOSS = [True, False, True, True, True, True]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, dtype, device):
    check_op(bottleneck_project, projection(19, 21, 37, 9), NEED_ALL, dtype, device, activation=activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1, 1),
        (32, 32, 64, 16),  # tiles divide everything
        (17, 5, 16, 300),  # more outputs than one program holds
        (40, 33, 17, 130),
    ],
    ids=str,
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_sizes(sizes, bias, dtype, device):
    check_op(bottleneck_project, projection(*sizes, bias), NEED_ALL, dtype, device)


def test_no_rows(device):
    z, *grads = check_op(bottleneck_project, projection(0, 5, 6, 7), NEED_ALL, torch.float32, device)
    assert z.shape == (0, 7)
    assert all((grad == 0).all() for grad in grads)


def test_tall_projection_is_not_split(device, monkeypatch):
    """Beyond FEW_ROWS a program takes all hidden features; on a GPU the sizes of the published model."""
    sizes = (20000, 1280, 512, 128) if device.type == "cuda" else (33, 40, 48, 20)
    if device.type == "cpu":
        monkeypatch.setattr(bottleneck, "FEW_ROWS", 8)
        monkeypatch.setattr(bottleneck, "SOME_ROWS", 16)
    check_op(bottleneck_project, projection(*sizes), NEED_ALL, torch.float32, device)


def test_wide_projection_in_several_chunks(device, monkeypatch):
    monkeypatch.setattr(bottleneck, "CHUNK_ELEMENTS", 20 * 16)
    check_op(bottleneck_project, projection(50, 7, 20, 260), NEED_ALL, torch.float32, device)


def test_strided_and_leading_dimensions(device):
    weights = [p.to(device) for p in parameters(12, 24, 8)]
    base = torch.randn(4, 6, 40, device=device)
    for x in (base[:, ::2, 3:15], base[..., ::3][..., :12], base.transpose(0, 1)[..., 8:20], base[0, 0, :12]):
        with use_backend("triton"):
            z = bottleneck_project(x, *weights)
        with use_backend("reference"):
            expected = bottleneck_project(x, *weights)
        torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)


def test_nan_row_stays_in_its_row(device):
    tensors = projection(20, 16, 24, 8)
    tensors[0][7] = float("nan")
    (z,) = evaluate(bottleneck_project, "triton", tensors, [False] * 5, torch.float32, device)
    assert z[7].isnan().all()
    assert torch.isfinite(z[torch.arange(20) != 7]).all()


@settings(max_examples=6, deadline=None)
@given(
    rows=st.integers(1, 40),
    features=st.integers(1, 40),
    hidden=st.integers(1, 40),
    outputs=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_permuting_or_splitting_rows_changes_nothing(rows, features, hidden, outputs, seed):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    tensors = [t.to(device) for t in projection(rows, features, hidden, outputs)]
    order = torch.randperm(rows, device=device)
    with use_backend("triton"):
        z = bottleneck_project(*tensors)
        permuted = bottleneck_project(tensors[0][order], *tensors[1:])
        parts = [bottleneck_project(part, *tensors[1:]) for part in tensors[0].split(17)]
    torch.testing.assert_close(permuted, z[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(parts), z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [None, [9, 0, 4]], ids=["full", "lengths"])
def test_loss(lengths, dtype, device):
    options = {} if lengths is None else {"lengths": torch.tensor(lengths)}
    inputs = loss_inputs(3, 9, 7, 20, 33)
    check_op(normalized_reconstruction_loss, inputs, NEED_LOSS, dtype, device, **options)
    check_op(normalized_reconstruction_loss, inputs, [False] * 6, dtype, device, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_at_the_size_of_the_model(dtype, device):
    inputs = loss_inputs(4, 250, 128, 512, 1280)
    check_op(normalized_reconstruction_loss, inputs, NEED_LOSS, dtype, device, lengths=torch.tensor([250, 3, 0, 99]))


def test_loss_over_several_chunks_and_blocks_of_features(device, monkeypatch):
    monkeypatch.setattr(loss_kernels, "CHUNK_ELEMENTS", 33 * 10)
    monkeypatch.setattr(launch, "tile", lambda size: 16)  # the row kernel then loops over a row
    inputs = loss_inputs(3, 9, 7, 20, 33)
    check_op(normalized_reconstruction_loss, inputs, NEED_LOSS, torch.float32, device, lengths=torch.tensor([9, 2, 8]))


def test_small_loss_keeps_its_digits(device):
    """A restored feature almost parallel to its target: 2 - 2 cos would have lost most digits."""
    inputs = loss_inputs(2, 8, 7, 20, 33)
    with use_backend("reference"):
        restored = bottleneck_project(inputs[0], *inputs[2:])
    inputs[1] = 3 * restored + 1e-3 * torch.randn_like(restored)
    loss, *_ = check_op(normalized_reconstruction_loss, inputs, NEED_LOSS, torch.float32, device)
    assert 0 < loss < 1e-6


def test_loss_with_a_target_of_another_dtype(device):
    inputs = [t.to(device) for t in loss_inputs(2, 8, 7, 20, 33)]
    inputs[1] = inputs[1].half()
    with use_backend("triton"):
        loss = normalized_reconstruction_loss(*inputs)
    with use_backend("reference"):
        expected = normalized_reconstruction_loss(inputs[0], inputs[1].float(), *inputs[2:])
    torch.testing.assert_close(loss, expected)


def test_loss_ignores_nan_past_a_length(device):
    inputs = loss_inputs(3, 9, 7, 20, 33)
    lengths = torch.tensor([9, 0, 4])
    clean = evaluate(
        normalized_reconstruction_loss, "triton", inputs, NEED_LOSS, torch.float32, device, lengths=lengths
    )
    for clip, length in enumerate(lengths):
        inputs[0][clip, length:] = float("nan")
        inputs[1][clip, length:] = float("nan")
    padded = evaluate(
        normalized_reconstruction_loss, "triton", inputs, NEED_LOSS, torch.float32, device, lengths=lengths
    )
    assert all(torch.equal(a, b) for a, b in zip(clean, padded, strict=True))
    assert (padded[1][1] == 0).all()


@pytest.mark.parametrize("shape", [(2, 0), (0, 5)], ids=str)
def test_loss_of_nothing_is_zero(shape, device):
    inputs = loss_inputs(*shape, 7, 20, 33)
    results = evaluate(normalized_reconstruction_loss, "triton", inputs, NEED_LOSS, torch.float32, device)
    assert all((r == 0).all() for r in results)
    inputs = loss_inputs(2, 5, 7, 20, 33)
    none = torch.zeros(2, dtype=torch.int64)
    results = evaluate(normalized_reconstruction_loss, "triton", inputs, NEED_LOSS, torch.float32, device, lengths=none)
    assert all((r == 0).all() for r in results)


def test_repeats_bit_for_bit(device):
    inputs, loss_tensors = projection(40, 33, 40, 20), loss_inputs(2, 9, 7, 20, 33)
    for op, tensors, need in (
        (bottleneck_project, inputs, NEED_ALL),
        (normalized_reconstruction_loss, loss_tensors, NEED_LOSS),
    ):
        first, second = (evaluate(op, "triton", tensors, need, torch.float32, device) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_float64_is_refused_with_a_cure(device):
    with use_backend("triton"), pytest.raises(TypeError, match=r"x should be float32.*use_backend\('reference'\)"):
        bottleneck_project(*(t.double().to(device) for t in projection(3, 4, 5, 6)))
