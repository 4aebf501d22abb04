"""What holds for the bottleneck ops whatever their inputs: hypothesis looks for sizes and values where it does not."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext import ops
from losatok_ext.ops.reference.bottleneck import ACTIVATIONS
from ops.bottleneck_cases import cast, evaluate, loss_inputs, projection

SIZES = st.integers(1, 70)
DTYPE = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
ACTIVATION = st.sampled_from(list(ACTIVATIONS))
SEED = st.integers(0, 2**31)
GRADIENTS = [0, 2, 3, 4, 5]


def assert_same(one, other, dtype):
    """Equal but for the order of sums: a few roundings of the largest value."""
    tolerance = 16 * torch.finfo(dtype).eps
    for a, b in zip(one, other, strict=True):
        scale = b.double().abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale + torch.finfo(dtype).smallest_normal)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), SIZES, SIZES, SIZES, DTYPE, ACTIVATION, st.booleans(), SEED)
def test_permuting_rows_permutes_results(rows, features, hidden, out, dtype, activation, bias, seed):
    x, *weights = cast(projection((rows,), features, hidden, out, bias, seed), dtype)
    order = torch.randperm(rows)
    z, grad = evaluate(ops.bottleneck_project, [x, *weights], [0], "native", activation=activation)
    moved = ops.bottleneck_project(x[order], *weights, activation)
    assert_same([moved], [z[order]], dtype)
    assert grad.shape == x.shape


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), SIZES, SIZES, SIZES, DTYPE, ACTIVATION, SEED)
def test_splitting_a_batch_changes_nothing(rows, share, features, hidden, out, dtype, activation, seed):
    x, *weights = cast(projection((rows,), features, hidden, out, True, seed), dtype)
    cut = int(rows * share)
    whole = ops.bottleneck_project(x, *weights, activation)
    parts = [ops.bottleneck_project(part, *weights, activation) for part in (x[:cut], x[cut:])]
    assert_same([torch.cat(parts)], [whole], dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 90), SIZES, SIZES, st.integers(2, 70), DTYPE, ACTIVATION, SEED)
def test_padding_and_other_clips_change_nothing(clips, time, latent, hidden, features, dtype, activation, seed):
    """A batch with padding, against its valid frames alone."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, time + 1, (clips,), generator=generator)
    z, target, *weights, _ = cast(loss_inputs(clips, time, latent, hidden, features, None, True, seed), dtype)
    valid = torch.arange(time) < lengths[:, None]
    z[~valid], target[~valid] = float("nan"), float("nan")
    batch = [z, target, *weights, lengths]
    alone = [z[valid], target[valid], *weights, None]
    loss, grad_z, *grads = evaluate(
        ops.normalized_reconstruction_loss, batch, GRADIENTS, "native", activation=activation
    )
    expected, expected_z, *expected_grads = evaluate(
        ops.normalized_reconstruction_loss, alone, GRADIENTS, "native", activation=activation
    )
    assert_same([loss, grad_z[valid], *grads], [expected, expected_z, *expected_grads], dtype)
    assert (grad_z[~valid] == 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), SIZES, SIZES, st.integers(2, 70), st.integers(-8, 8), st.integers(-8, 8), DTYPE, SEED)
def test_scale_of_target_and_restored_does_not_matter(rows, latent, hidden, features, up, out, dtype, seed):
    """Powers of two, which no dtype rounds (float16 runs out of range, so it takes smaller ones)."""
    if dtype == torch.float16:
        up, out = up // 3, out // 3
    z, target, *weights, _ = cast(loss_inputs(1, rows, latent, hidden, features, None, True, seed), dtype)
    loss = ops.normalized_reconstruction_loss(z, target, *weights)
    scaled = [*weights[:2], weights[2] * 2.0**out, weights[3] * 2.0**out]
    assert_same([ops.normalized_reconstruction_loss(z, target * 2.0**up, *scaled)], [loss], dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), SIZES, SIZES, st.integers(2, 70), SEED)
def test_loss_lies_between_equal_and_opposite(rows, latent, hidden, features, seed):
    """0 for a target along the restored features, 4 / D against them; and the loss is mean 2 (1 - cos) / D."""
    z, target, *weights, _ = cast(loss_inputs(1, rows, latent, hidden, features, None, True, seed), torch.float64)
    restored = ops.bottleneck_project(z, *weights)
    loss = ops.normalized_reconstruction_loss
    assert loss(z, 3 * restored, *weights) < 1e-20
    torch.testing.assert_close(loss(z, -restored, *weights) * features, torch.tensor(4.0, dtype=torch.float64))
    cosine = torch.nn.functional.cosine_similarity(restored, target, dim=-1)
    torch.testing.assert_close(loss(z, target, *weights), (2 * (1 - cosine) / features).mean())
