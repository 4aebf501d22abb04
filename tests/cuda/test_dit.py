"""The CUDA kernels and bindings of the transformer block's ops, executed on the CPU by the host shim, against the
reference in fp64.
"""

import pytest
import torch

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext.ops.reference import dit_attention as reference_attention
from losatok_ext.ops.reference import gated_residual as reference_residual
from losatok_ext.ops.reference import layer_norm_modulate as reference_modulate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(function, tensors, grad, dtype=None):
    """The output of ``function``, and its gradients by those ``tensors`` that are there."""
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    found = iter(torch.autograd.grad(out, [leaf for leaf in leaves if leaf is not None], grad.to(out.dtype)))
    return out.detach(), [None if leaf is None else next(found) for leaf in leaves]


def compare(names, outputs, same, exact):
    """(output, gradients) of the op against those of the reference in the same dtype and in fp64."""
    assert_within_budget(outputs[0], same[0], exact[0], name="output")
    for name, mine, theirs, truth in zip(names, outputs[1], same[1], exact[1], strict=True):
        if truth is None:
            assert mine.shape == (0,)
        else:
            assert_within_budget(mine, theirs, truth, factor=GRADIENT_FACTOR, name=f"gradient of {name}")


# --- modulated layer norm and gated residual ------------------------------------------------------------------------


def draw_modulated(dtype, batch, time, channels, *per_frame):
    """x, and what goes with it: [B, T, C] where ``per_frame``, else [B, C]."""
    x = (torch.randn(batch, time, channels) + 0.5).to(dtype)
    return [x, *(torch.randn(*((batch, time, channels) if p else (batch, channels))).to(dtype) for p in per_frame)]


def check_modulate(ops, x, shift, scale, eps=1e-6, call=None):
    grad = torch.randn(x.shape).to(x.dtype)

    def run():
        y, mean, rstd = ops("layer_norm_modulate_forward", x, shift, scale, eps)
        grads = ops("layer_norm_modulate_backward", grad, x, scale, mean, rstd, shift.dim() == 3)
        return [y, *grads]

    y, *grads = call(run) if call else run()

    def define(*tensors):
        return reference_modulate.layer_norm_modulate(*tensors, eps)

    tensors = [x, shift, scale]
    same, exact = (gradients(define, tensors, grad, dtype) for dtype in (None, torch.float64))
    compare(["x", "shift", "scale"], (y, grads), same, exact)
    return y


def check_residual(ops, x, branch, gate, call=None):
    grad = torch.randn(x.shape).to(x.dtype)

    def run():
        y = ops("gated_residual_forward", x, branch, gate)
        return [y, *ops("gated_residual_backward", grad, branch, gate)]

    y, *grads = call(run) if call else run()
    define = reference_residual.gated_residual
    same, exact = (gradients(define, [x, branch, gate], grad, dtype) for dtype in (None, torch.float64))
    compare(["branch", "gate"], (y, grads), (same[0], same[1][1:]), (exact[0], exact[1][1:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_frame", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_modulate_in_every_order_of_threads(ops, in_every_order, dtype, per_frame):
    check_modulate(ops, *draw_modulated(dtype, 2, 9, 20, *per_frame), call=in_every_order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_frame", [False, True])
def test_residual_in_every_order_of_threads(ops, in_every_order, dtype, per_frame):
    check_residual(ops, *draw_modulated(dtype, 2, 9, 20, True, per_frame), call=in_every_order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 2), (3, 2, 129), (1, 200, 5), (2, 7, 300)], ids=str)
def test_rows_of_any_size(ops, dtype, sizes):
    for per_frame in (False, True):
        check_modulate(ops, *draw_modulated(dtype, *sizes, per_frame, not per_frame))
        check_residual(ops, *draw_modulated(dtype, *sizes, True, per_frame))


def test_more_clips_than_a_warp_has_lanes(ops, in_every_order):
    check_modulate(ops, *draw_modulated(torch.float32, 40, 2, 8, False, False), call=in_every_order)


def test_a_mean_far_from_zero_costs_no_precision(ops):
    x, shift, scale = draw_modulated(torch.float32, 2, 5, 96, False, False)
    check_modulate(ops, x + 300, shift, scale)


def test_a_large_eps_is_the_one_that_counts(ops):
    check_modulate(ops, *draw_modulated(torch.float32, 2, 5, 9, False, False), eps=0.3)


@pytest.mark.parametrize("first", [0, 1])
def test_modulations_may_be_columns_of_one_projection(ops, first):
    """Aligned for vectors of four and not."""
    x = torch.randn(2, 7, 40)[:, 1:, first : first + 24]
    projection = torch.randn(2, 72 + first)[:, first:]
    y = check_modulate(ops, x, projection[:, :24], projection[:, 48:])
    check_residual(ops, x, x.flip(1), projection[:, 24:48])
    packed = [t.contiguous() for t in (x, projection[:, :24], projection[:, 48:])]
    torch.testing.assert_close(y, check_modulate(ops, *packed))


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)], ids=str)
def test_rows_that_are_not_there(ops, shape):
    x, shift, scale = draw_modulated(torch.float32, *shape, False, False)
    y, mean, rstd = ops("layer_norm_modulate_forward", x, shift, scale, 1e-6)
    assert y.shape == shape
    grads = ops("layer_norm_modulate_backward", y, x, scale, mean, rstd, False)
    assert [g.shape for g in grads] == [x.shape, shift.shape, scale.shape]
    branch_grad, gate_grad = ops("gated_residual_backward", y, x, scale)
    assert branch_grad.shape == shape
    for grad in (*grads[1:], gate_grad):
        assert grad.equal(torch.zeros(shape[0], shape[2]))


# --- attention ------------------------------------------------------------------------------------------------------


def draw_heads(dtype, batch=2, time=70, heads=2, size=32, keys=None, lengths=None, key_lengths=None):
    """q, k, v, with NaN past the lengths."""
    keys = time if keys is None else keys
    q, k, v = (torch.randn(batch, n, heads, size).to(dtype) for n in (time, keys, keys))
    for tensors, counts in (((q,), lengths), ((k, v), key_lengths)):
        for b, count in enumerate([] if counts is None else counts.tolist()):
            for tensor in tensors:
                tensor[b, count:] = float("nan")
    return q, k, v


def weights(size):
    return [1 + 0.2 * torch.randn(size) for _ in range(2)]


def angles(time, pairs):
    turns = torch.arange(time)[:, None] * 10000.0 ** (-torch.arange(pairs) / pairs)
    return turns.cos(), turns.sin()


def check_attention(
    ops, q, k, v, norm_weights=(None, None), rope=(None, None), lengths=None, key_lengths=None, norm="none",
    eps=1e-6, interleaved=False, call=None,
):  # fmt: skip
    grad = torch.randn(q.shape).to(q.dtype)
    if lengths is not None:
        for b, length in enumerate(lengths.tolist()):
            grad[b, length:] = float("nan")
    arguments = (q, k, v, *norm_weights, *rope, lengths, key_lengths)
    options = (norm, eps, interleaved)

    def run():
        out, lse = ops("dit_attention_forward", *arguments, *options)
        return [out, lse, *ops("dit_attention_backward", grad, *arguments, out, lse, *options)]

    out, lse, *grads = call(run) if call else run()
    rope = None if rope[0] is None else rope

    def define(q, k, v, *norm_weights):
        return reference_attention.dit_attention(
            q, k, v, *norm_weights, rope, lengths, None if norm == "none" else norm, eps, interleaved, key_lengths
        )

    tensors = [q.nan_to_num(), k.nan_to_num(), v.nan_to_num(), *norm_weights]
    clean = grad.nan_to_num()
    same, exact = (gradients(define, tensors, clean, dtype) for dtype in (None, torch.float64))
    compare(["q", "k", "v", "q_weight", "k_weight"], (out, grads), same, exact)
    return out, lse


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_attention_in_every_order_of_threads_with_nan_past_lengths(ops, in_every_order, dtype, norm):
    lengths = torch.tensor([70, 0, 66])
    tensors = draw_heads(dtype, 3, 70, 1, 32, None, lengths, lengths)
    norm_weights = (None, None) if norm == "none" else weights(32)
    out, lse = check_attention(ops, *tensors, norm_weights, angles(70, 16), lengths, lengths, norm, call=in_every_order)
    for b, length in enumerate(lengths.tolist()):
        assert (out[b, length:] == 0).all()
        assert (lse[b, :, length:] == float("-inf")).all()
        assert lse[b, :, :length].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 80, 96, 128])
def test_every_head_size(ops, dtype, size):
    check_attention(ops, *draw_heads(dtype, 1, 67, 1, size), weights(size), angles(67, size // 2), norm="rms")


@pytest.mark.parametrize("size", [1, 7, 40, 72, 100])
def test_other_head_sizes_are_padded(ops, size):
    rope = angles(9, size // 4) if size // 4 else (None, None)
    check_attention(ops, *draw_heads(torch.float32, 2, 9, 2, size), weights(size), rope, norm="layer")


@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("pairs", [None, 20, 3])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_preparation(ops, norm, pairs, interleaved, weighted):
    norm_weights = weights(40) if weighted and norm != "none" else (None, None)
    rope = angles(5, pairs) if pairs else (None, None)
    tensors = draw_heads(torch.float32, 1, 5, 2, 40)
    check_attention(ops, *tensors, norm_weights, rope, norm=norm, interleaved=interleaved, eps=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("time", "keys"), [(5, 130), (130, 5), (2, 2), (64, 64)])
def test_other_numbers_of_keys(ops, dtype, time, keys):
    lengths, key_lengths = torch.tensor([time, 1, time]), torch.tensor([keys, keys - 1, 0])
    tensors = draw_heads(dtype, 3, time, 8 if time == keys else 1, 32, keys, lengths, key_lengths)
    out, _ = check_attention(ops, *tensors, weights(32), lengths=lengths, key_lengths=key_lengths, norm="rms")
    assert (out[2] == 0).all()


def test_one_key_gets_all_the_weight(ops):
    q, k, v = draw_heads(torch.float32, 2, 1)
    arguments = (q, k, v, *[None] * 6)
    out, lse = ops("dit_attention_forward", *arguments, "rms", 1e-6, False)
    torch.testing.assert_close(out, v)
    grad_q, grad_k, grad_v, *_ = ops("dit_attention_backward", v, *arguments, out, lse, "rms", 1e-6, False)
    assert max(grad_q.abs().max(), grad_k.abs().max()) < 1e-5
    torch.testing.assert_close(grad_v, v)


@pytest.mark.parametrize("offset", [0, 1])
def test_views_of_a_packed_projection(ops, offset):
    """Aligned for vectors of 16 bytes and not."""
    packed = torch.randn(2, 20, 3 * 64 + offset)[..., offset:].unflatten(-1, (3, 2, 32))
    out, _ = check_attention(ops, *packed.unbind(2), weights(32), angles(20, 16), norm="rms")
    assert out.is_contiguous()
    apart = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in packed.unbind(2)]
    check_attention(ops, *apart, weights(32), angles(20, 16), norm="rms")


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=str)
def test_nothing_to_attend(ops, shape):
    q, k, v = draw_heads(torch.float32, *shape)
    arguments = (q, k, v, *weights(32), *[None] * 4)
    out, lse = ops("dit_attention_forward", *arguments, "rms", 1e-6, False)
    assert out.shape == q.shape
    *grads, by_q_weight, by_k_weight = ops("dit_attention_backward", out, *arguments, out, lse, "rms", 1e-6, False)
    assert [g.shape for g in grads] == [q.shape] * 3
    assert by_q_weight.equal(torch.zeros(32))
    assert by_k_weight.equal(torch.zeros(32))


def test_scores_far_apart_stay_finite(ops):
    q, k, v = draw_heads(torch.float32, 1, 70, 1)
    arguments = (100 * q, 100 * k, v, *[None] * 6)
    out, lse = ops("dit_attention_forward", *arguments, "none", 1e-6, False)
    exact = reference_attention.dit_attention(100 * q.double(), 100 * k.double(), v.double(), norm=None)
    same = reference_attention.dit_attention(100 * q, 100 * k, v, norm=None)
    assert_within_budget(out, same, exact, name="output")
    grads = ops("dit_attention_backward", v, *arguments, out, lse, "none", 1e-6, False)
    assert all(grad.isfinite().all() for grad in grads)


def test_bad_input_is_named(ops):
    q, k, v = draw_heads(torch.float32, 1, 5)
    none = [None] * 6
    with pytest.raises(TypeError, match="q is Double; the CUDA kernels take float32"):
        ops("dit_attention_forward", q.double(), k.double(), v.double(), *none, "rms", 1e-6, False)
    with pytest.raises(TypeError, match="v should be Float"):
        ops("dit_attention_forward", q, k, v.bfloat16(), *none, "rms", 1e-6, False)
    with pytest.raises(ValueError, match="norm should be one of none, rms, layer"):
        ops("dit_attention_forward", q, k, v, *none, "batch", 1e-6, False)
    with pytest.raises(ValueError, match="heads of up to 128 features, got 160"):
        ops("dit_attention_forward", *draw_heads(torch.float32, 1, 5, 1, 160), *none, "rms", 1e-6, False)
    with pytest.raises(ValueError, match="k_weight should be None without a norm"):
        ops("dit_attention_forward", q, k, v, *weights(32), *none[2:], "none", 1e-6, False)
    with pytest.raises(TypeError, match="shift should be Float"):
        ops("layer_norm_modulate_forward", q[0], k[0, :, 0].double(), k[0, :, 0], 1e-6)
    with pytest.raises(TypeError, match="gate should be Float"):
        ops("gated_residual_forward", q[0], q[0], k[0, :, 0].double())
