"""What must hold of the dit ops whatever the sizes and values: properties, in float64."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext import ops

every = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
sizes = {"time": st.integers(1, 150), "heads": st.integers(1, 3), "size": st.integers(1, 40)}
norms = st.sampled_from(["rms", "layer", None])


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def qkv(seed, time, heads, size):
    return normal(seed, 2, time, 3, heads, size).unbind(2)


@every
@given(seed=seeds, norm=norms, **sizes)
def test_constant_values_come_back(seed, norm, time, heads, size):
    q, k, _ = qkv(seed, time, heads, size)
    v = normal(seed + 1, 2, 1, heads, size).expand(2, time, heads, size)
    torch.testing.assert_close(ops.dit_attention(q, k, v, norm=norm), v, rtol=1e-12, atol=1e-13)


@every
@given(seed=seeds, norm=norms, interleaved=st.booleans(), turn=st.floats(-100, 100), **sizes)
def test_rotating_every_position_alike_changes_nothing(seed, norm, interleaved, turn, time, heads, size):
    q, k, v = qkv(seed, time, heads, 2 * size)
    rates = normal(seed + 1, size)
    angles = torch.arange(time)[:, None] * rates
    moved = angles + turn * rates
    results = [
        ops.dit_attention(q, k, v, norm=norm, rope=(a.cos(), a.sin()), interleaved=interleaved) for a in (angles, moved)
    ]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-10)


@every
@given(seed=seeds, norm=norms, **sizes)
def test_the_order_of_keys_does_not_matter(seed, norm, time, heads, size):
    q, k, v = qkv(seed, time, heads, size)
    order = torch.randperm(time, generator=torch.Generator().manual_seed(seed))
    shuffled = ops.dit_attention(q, k[:, order], v[:, order], norm=norm)
    torch.testing.assert_close(shuffled, ops.dit_attention(q, k, v, norm=norm), rtol=1e-11, atol=1e-12)


@every
@given(seed=seeds, scale=st.floats(1e-3, 1e3), norm=st.sampled_from(["rms", "layer"]), **sizes)
def test_the_length_of_normalised_heads_does_not_matter(seed, scale, norm, time, heads, size):
    q, k, v = qkv(seed, time, heads, size)
    scaled = ops.dit_attention(q * scale, k / scale, v, norm=norm, eps=0.0 if size > 1 else 1e-6)
    plain = ops.dit_attention(q, k, v, norm=norm, eps=0.0 if size > 1 else 1e-6)
    tolerance = 1e-9 if size > 1 else 1e-1  # a head of one feature is its sign, but for eps
    torch.testing.assert_close(scaled, plain, rtol=tolerance, atol=tolerance)


@every
@given(seed=seeds, norm=norms, padding=st.integers(0, 100), **sizes)
def test_padding_changes_nothing(seed, norm, padding, time, heads, size):
    q, k, v = (t.requires_grad_() for t in qkv(seed, time, heads, size))
    lengths = torch.tensor([time, time // 2])
    out = ops.dit_attention(q, k, v, norm=norm, lengths=lengths)
    padded = [
        torch.nn.functional.pad(t.detach(), (0, 0, 0, 0, 0, padding), value=torch.nan).requires_grad_()
        for t in (q, k, v)
    ]
    longer = ops.dit_attention(*padded, norm=norm, lengths=lengths)
    torch.testing.assert_close(longer[:, :time], out, rtol=1e-11, atol=1e-12)
    assert not longer[:, time:].any()
    weights = normal(seed + 1, *out.shape)
    grads = torch.autograd.grad((out * weights).sum(), [q, k, v])
    for a, b in zip(torch.autograd.grad((longer[:, :time] * weights).sum(), padded), grads, strict=True):
        torch.testing.assert_close(a[:, :time], b, rtol=1e-9, atol=1e-11)
        assert not a[:, time:].any()


@every
@given(seed=seeds, time=st.integers(1, 80), channels=st.integers(1, 70), per_frame=st.booleans())
def test_a_zero_gate_is_the_identity(seed, time, channels, per_frame):
    x, branch = normal(seed, 2, time, channels), normal(seed + 1, 2, time, channels)
    gate = torch.zeros((2, time, channels) if per_frame else (2, channels), dtype=torch.float64)
    assert torch.equal(ops.gated_residual(x, branch, gate), x)


@every
@given(seed=seeds, time=st.integers(1, 80), channels=st.integers(2, 70))
def test_one_modulation_for_all_frames_is_that_of_every_frame(seed, time, channels):
    x, grad = normal(seed, 2, time, channels), normal(seed + 2, 2, time, channels)
    shift, scale = (t.requires_grad_() for t in normal(seed + 1, 2, 2, channels).unbind())
    frames = [t.detach()[:, None].repeat(1, time, 1).requires_grad_() for t in (shift, scale)]
    for op in (ops.layer_norm_modulate, ops.gated_residual):
        first = (shift, scale) if op is ops.layer_norm_modulate else (grad, scale)
        second = frames if op is ops.layer_norm_modulate else (grad, frames[1])
        one, many = op(x, *first), op(x, *second)
        torch.testing.assert_close(one, many, rtol=1e-12, atol=1e-12)
        (a,), (b,) = torch.autograd.grad(one, [scale], grad), torch.autograd.grad(many, [frames[1]], grad)
        torch.testing.assert_close(a, b.sum(1), rtol=1e-9, atol=1e-10)


@every
@given(seeds, st.integers(1, 40), st.integers(8, 70), st.floats(0.1, 10), st.floats(-9, 9))
def test_the_norm_forgets_the_level_and_size_of_a_frame(seed, time, channels, factor, level):
    x = normal(seed, 2, time, channels)
    shift, scale = normal(seed + 1, 2, 2, channels).unbind()
    moved = ops.layer_norm_modulate(factor * x + level, shift, scale, eps=0.0)
    torch.testing.assert_close(moved, ops.layer_norm_modulate(x, shift, scale, eps=0.0), rtol=1e-8, atol=1e-8)
