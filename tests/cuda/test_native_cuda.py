"""What only a GPU can show of the native CUDA ops: streams, graphs, synchronisation, memory, real sizes.

The numeric tests of tests/ops run on a GPU as well where there is one; here are the points that are CUDA's own.
"""

import pytest
import torch

import losatok_ext
from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext import ops
from losatok_ext.ops import dispatch
from losatok_ext.ops.reference import bottleneck as reference_bottleneck
from losatok_ext.ops.reference import time_relation as reference_relation
from ops import dit_cases, vocoder_cases
from ops.quantize_cases import HARD, assert_chain, assert_decides, assert_nearest

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _native_cuda():
    reason = dispatch.unavailable("native", "cuda")
    if reason is not None:
        pytest.skip(reason)
    with losatok_ext.use_backend("native"):
        yield


pytestmark = pytest.mark.gpu


def draw(dtype, *shape, scale=1.0):
    return (scale * torch.randn(*shape, device="cuda")).to(dtype)


def mlp(dtype, features=1280, hidden=512, out=128):
    return (
        draw(dtype, hidden, features, scale=features**-0.5),
        draw(dtype, hidden, scale=0.1),
        draw(dtype, out, hidden, scale=hidden**-0.5),
        draw(dtype, out, scale=0.1),
    )


def wide(*tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 250, 4096, 4097, 20000])
@pytest.mark.parametrize(("features", "hidden", "out"), [(1280, 512, 128), (128, 512, 1280), (77, 33, 19)])
def test_project_and_backward(dtype, rows, features, hidden, out):
    x, parameters = draw(dtype, rows, features), mlp(dtype, features, hidden, out)
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    z = ops.bottleneck_project(*leaves)
    same = reference_bottleneck.bottleneck_project(x, *parameters)
    exact_leaves = [t.requires_grad_() for t in wide(x, *parameters)]
    exact = reference_bottleneck.bottleneck_project(*exact_leaves)
    assert_within_budget(z.detach(), same, exact.detach(), name="z")
    grad = draw(dtype, rows, out)
    same_leaves = [t.clone().requires_grad_() for t in (x, *parameters)]
    same_grads = torch.autograd.grad(reference_bottleneck.bottleneck_project(*same_leaves), same_leaves, grad)
    exact_grads = torch.autograd.grad(exact, exact_leaves, grad.double())
    for mine, theirs, truth in zip(torch.autograd.grad(z, leaves, grad), same_grads, exact_grads, strict=True):
        assert_within_budget(mine, theirs, truth, factor=GRADIENT_FACTOR, name="gradient")


def loss_case(dtype, batch=4, time=750):
    z, target = draw(dtype, batch, time, 128), draw(dtype, batch, time, 1280)
    lengths = torch.randint(1, time + 1, (batch,), device="cuda")
    for b, length in enumerate(lengths.tolist()):
        z[b, length:] = float("nan")
        target[b, length:] = float("nan")
    return z, target, mlp(dtype, 128, 512, 1280), lengths


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradients(dtype):
    z, target, parameters, lengths = loss_case(dtype)

    def run(function, kind):
        leaves = [t.nan_to_num().to(kind).requires_grad_() for t in (z, *parameters)]
        loss = function(leaves[0], target.nan_to_num().to(kind), *leaves[1:], lengths)
        return loss.detach(), torch.autograd.grad(loss, leaves)

    exact, exact_grads = run(reference_bottleneck.normalized_reconstruction_loss, torch.float64)
    same, same_grads = run(reference_bottleneck.normalized_reconstruction_loss, dtype)
    leaves = [t.clone().requires_grad_() for t in (z, *parameters)]
    loss = ops.normalized_reconstruction_loss(leaves[0], target, *leaves[1:], lengths)
    assert_within_budget(loss.detach(), same, exact, name="loss")
    for mine, theirs, truth in zip(torch.autograd.grad(loss, leaves), same_grads, exact_grads, strict=True):
        assert_within_budget(mine, theirs, truth, factor=GRADIENT_FACTOR, name="gradient")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("algorithm", "window"), [("tiled", None), ("factored", None), ("banded", 1), ("banded", 100), ("auto", None)]
)
def test_time_relation(dtype, algorithm, window):
    low, high = draw(dtype, 4, 750, 128), draw(dtype, 4, 750, 1280)
    lengths = torch.tensor([750, 1, 333, 640], device="cuda")
    results = []
    for kind in (dtype, torch.float64):
        leaf = low.to(kind).requires_grad_()
        loss = reference_relation.time_relation_loss(leaf, high.to(kind), lengths, window)
        results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    leaf = low.clone().requires_grad_()
    loss = ops.time_relation_loss(leaf, high, lengths, window, algorithm)
    grad = torch.autograd.grad(loss, leaf)[0]
    assert_within_budget(loss.detach(), results[0][0], results[1][0], name="loss")
    assert_within_budget(grad, results[0][1], results[1][1], factor=GRADIENT_FACTOR, name="grad_low")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "count", "features"), [(6000, 8192, 128), (250, 1024, 128), (20000, 1024, 8)])
def test_nearest_and_residual(dtype, rows, count, features):
    x, codebooks = draw(dtype, rows, features), draw(dtype, 3, count, features)
    assert_nearest(x, codebooks[0], *ops.vq_nearest(x, codebooks[0]))
    codes, quantized = ops.rvq_encode(x, codebooks)
    assert_chain(x, codebooks, codes, quantized)
    assert ops.rvq_decode(codes, codebooks).equal(quantized)


@pytest.mark.parametrize("name", HARD)
def test_nearest_in_hard_cases(name):
    assert_decides(ops.vq_nearest, *(t.cuda() for t in HARD[name]()))


def test_nearest_keeps_no_distances():
    x, codebook = draw(torch.float32, 500_000, 16), draw(torch.float32, 8192, 16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.vq_nearest(x, codebook)
    assert torch.cuda.max_memory_allocated() - before < 64 << 20  # all distances would take 16 GB


ATTENTION = [
    *dit_cases.SMALL,
    *(case for case in dit_cases.LARGE if case.size <= 128),
    *(
        dit_cases.Case(4, 750, 8, size, rope=size, packed=True, lengths=(750, 1, 640, 0))
        for size in (32, 64, 80, 96, 128)
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [case for case in ATTENTION if case.time > 1], ids=str)
def test_attention_and_gradients(dtype, case):
    dit_cases.check_attention(case, dtype, "native", "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_frame", dit_cases.PER_FRAME, ids=str)
@pytest.mark.parametrize("sizes", [*dit_cases.MODULATION_SIZES, (4, 750, 1536)], ids=str)
@pytest.mark.parametrize("op", [ops.layer_norm_modulate, ops.gated_residual])
def test_modulations_and_gradients(dtype, per_frame, sizes, op):
    frames = per_frame if op is ops.layer_norm_modulate else (True, per_frame[1])
    inputs = dit_cases.modulation_inputs(sizes, frames, dtype, "cuda")
    dit_cases.check(op, inputs, dtype, "native", "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [*vocoder_cases.ISTFT_CASES, (8, 500, 1280, 320, [500, 1, 0, 499, 3, 2, 250, 77])], ids=str
)
def test_istft_and_gradient(dtype, case):
    vocoder_cases.check_istft(case, dtype, "native", "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*vocoder_cases.CONV_CASES, (4, 500, 1280, 7, [500, 1, 333, 0])], ids=str)
def test_conv_norm_and_gradients(dtype, case):
    vocoder_cases.check_conv_norm(case, dtype, "native", "cuda")


def test_an_hour_of_frames_keeps_one_workspace_of_spectra():
    head, window = draw(torch.bfloat16, 1, 180_000, 1282), torch.hann_window(1280, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    audio = ops.polar_istft(head, window, 320)
    extra = torch.cuda.max_memory_allocated() - before - audio.numel() * 4
    assert extra < 512 << 20, f"{extra / 2**20:.0f} MiB"  # the spectrum alone would take 880 MiB


@pytest.mark.parametrize("gradients", [False, True])
def test_rows_past_two_billion_elements(gradients):
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GiB of free device memory")
    vocoder_cases.check_past_two_billion_elements(torch.ops.losatok, gradients)


def bottleneck_and_relation_calls(clips, time):
    x, parameters = draw(torch.bfloat16, clips * time, 1280), mlp(torch.bfloat16)
    z, target, restoring, lengths = loss_case(torch.bfloat16, clips, time)
    low, high = draw(torch.bfloat16, clips, time, 128), draw(torch.bfloat16, clips, time, 1280)
    kernels = torch.ops.losatok
    _, hidden = kernels.bottleneck_project_forward(x, *parameters, "gelu", True)
    grad = draw(torch.bfloat16, clips * time, 128)
    return {
        "project": lambda: kernels.bottleneck_project_forward(x, *parameters, "gelu", True),
        "project backward": lambda: kernels.bottleneck_project_backward(
            grad, x, hidden, parameters[0], parameters[2], "gelu", True, True
        ),
        "loss": lambda: kernels.normalized_reconstruction_loss_forward(z, target, *restoring, lengths, "gelu", True),
        "tiled": lambda: kernels.time_relation_forward(low, high, None, -1, "tiled", None, True),
        "factored": lambda: kernels.time_relation_forward(low, high, None, -1, "factored", None, True),
        "energy": lambda: (kernels.gram_energy_forward(high, None, -1),),
    }


def quantize_calls(clips, time):
    kernels = torch.ops.losatok
    rows, codebooks = draw(torch.bfloat16, clips, time, 128), draw(torch.float32, 3, 1024, 128)
    indices, distance = kernels.vq_nearest_forward(rows, codebooks[0], None, "exact")
    codes, _ = kernels.rvq_encode_forward(rows, codebooks, None, "exact")
    levels = (8, 5, 5, 5)
    stored = kernels.affine_quantize_forward(rows[0], 4)
    return {
        "nearest": lambda: kernels.vq_nearest_forward(rows, codebooks[0], None, "exact"),
        "nearest backward": lambda: kernels.vq_nearest_backward(distance, rows, codebooks[0], indices, True, True),
        "stages": lambda: kernels.rvq_encode_forward(rows, codebooks, None, "exact"),
        "decode": lambda: (kernels.rvq_decode_forward(codes[0], codebooks),),
        "decode backward": lambda: (kernels.rvq_decode_backward(rows[0], codes[0], codebooks),),
        "levels": lambda: kernels.fsq_quantize_forward(rows[..., :4], levels, None),
        "levels backward": lambda: (kernels.fsq_quantize_backward(rows[..., 4:8], rows[..., :4], levels, None),),
        "levels back": lambda: (kernels.fsq_dequantize_forward(indices[0], levels, torch.bfloat16),),
        "integers": lambda: kernels.affine_quantize_forward(rows[0], 8),
        "integers back": lambda: (kernels.affine_dequantize_forward(*stored, 4, 128, torch.bfloat16),),
    }


def block_calls(clips, time):
    kernels = torch.ops.losatok
    lengths = torch.randint(1, time + 1, (clips,), device="cuda")
    heads = draw(torch.bfloat16, clips, time, 3, 8, 64).unbind(2)
    angles = [draw(torch.float32, time, 32) for _ in range(2)]
    attention = (*heads, *[draw(torch.float32, 64) for _ in range(2)], *angles, lengths, lengths)
    options = ("rms", 1e-6, False)
    out, lse = kernels.dit_attention_forward(*attention, *options)
    rows, other = (draw(torch.bfloat16, clips, time, 512) for _ in range(2))
    shift, factor = (draw(torch.bfloat16, clips, 512) for _ in range(2))
    _, mean, rstd = kernels.layer_norm_modulate_forward(rows, shift, factor, 1e-6)
    return {
        "attention": lambda: kernels.dit_attention_forward(*attention, *options),
        "attention backward": lambda: kernels.dit_attention_backward(out, *attention, out, lse, *options),
        "modulate": lambda: kernels.layer_norm_modulate_forward(rows, shift, factor, 1e-6),
        "modulate backward": lambda: kernels.layer_norm_modulate_backward(other, rows, factor, mean, rstd, False),
        "gate": lambda: (kernels.gated_residual_forward(rows, other, shift),),
        "gate backward": lambda: kernels.gated_residual_backward(rows, other, shift),
    }


def vocoder_calls(clips, time):
    kernels = torch.ops.losatok
    lengths = torch.randint(1, time + 1, (clips,), device="cuda")
    head, window = draw(torch.bfloat16, clips, time, 1282), torch.hann_window(1280, device="cuda")
    wave = draw(torch.float32, clips, 320 * time)
    rows, other, weight = *(draw(torch.bfloat16, clips, time, 1280) for _ in range(2)), draw(torch.bfloat16, 1280, 1, 7)
    bias, gain, shift = (draw(torch.bfloat16, 1280) for _ in range(3))
    return {
        "istft": lambda: (kernels.polar_istft_forward(head, window, 320, lengths),),
        "istft backward": lambda: (kernels.polar_istft_backward(wave, head, window, 320, lengths),),
        "conv": lambda: (kernels.depthwise_conv_norm_forward(rows, weight, bias, gain, shift, 1e-6, lengths),),
        "conv backward": lambda: kernels.depthwise_conv_norm_backward(
            other, rows, weight, bias, gain, 1e-6, lengths, True, True
        ),
    }


CALLS = {
    bottleneck_and_relation_calls: ("project", "project backward", "loss", "tiled", "factored", "energy"),
    quantize_calls: (
        *("nearest", "nearest backward", "stages", "decode", "decode backward"),
        *("levels", "levels backward", "levels back", "integers", "integers back"),
    ),
    block_calls: ("attention", "attention backward", "modulate", "modulate backward", "gate", "gate backward"),
    vocoder_calls: ("istft", "istft backward", "conv", "conv backward"),
}
"""Functions of clips and frames to calls that take device tensors only, by name."""

FAMILIES = {name: family for family, names in CALLS.items() for name in names}
NAMES = list(FAMILIES)


def call_of(name, clips=3, time=600):
    return FAMILIES[name](clips, time)[name]


@pytest.mark.parametrize("name", NAMES)
def test_tiny(name):
    """What sanitizers can go through in a minute; also that the names are those of the calls."""
    assert set(FAMILIES[name](2, 5)) == set(CALLS[FAMILIES[name]])
    assert all(t.isfinite().all() for t in call_of(name, 2, 17))


@pytest.mark.parametrize("name", NAMES)
def test_runs_repeat_bit_for_bit_and_wait_for_nothing(name):
    call = call_of(name)
    first = call()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        repeats = [call() for _ in range(50)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for repeat in repeats:
        assert all(a.equal(b) for a, b in zip(first, repeat, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_ops_run_on_the_current_stream_and_in_graphs(name):
    call = call_of(name)
    expected = call()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()  # allocations and handles before the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for tensor in captured:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    graph.replay()
    torch.cuda.synchronize()
    assert all(a.equal(b) for a, b in zip(captured, expected, strict=True))


def test_loss_memory_does_not_hold_restored_features():
    z, target = draw(torch.bfloat16, 16, 7500, 128), draw(torch.bfloat16, 16, 7500, 1280)
    leaves = [t.requires_grad_() for t in (z, *mlp(torch.bfloat16, 128, 512, 1280))]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.normalized_reconstruction_loss(leaves[0], target, *leaves[1:]).backward()
    extra = torch.cuda.max_memory_allocated() - before
    # Two blocks' worth of workspace, and the float32 and final gradients; eager keeps several times target's size.
    assert extra < target.numel() * target.element_size() + (128 << 20), f"{extra / 2**20:.0f} MiB"


def test_attention_keeps_no_time_by_time_matrix():
    heads = [x.requires_grad_() for x in draw(torch.bfloat16, 1, 30000, 3, 2, 64).unbind(2)]
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ops.dit_attention(*heads).sum().backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra < 16 * heads[0].numel() * 2, f"{extra / 2**20:.0f} MiB"  # a [T, T] matrix would be 1.7 GiB a head


def test_an_hour_without_time_by_time_matrices():
    low, high = draw(torch.bfloat16, 1, 90000, 128), draw(torch.bfloat16, 1, 90000, 1280)
    low.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = ops.time_relation_loss(low, high)
    loss.backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert torch.isfinite(loss)
    assert torch.isfinite(low.grad).all()
    assert extra < 1 << 30, f"{extra / 2**20:.0f} MiB"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_ops_run_on_their_tensors_device():
    x, parameters = draw(torch.float32, 10, 1280), mlp(torch.float32)
    expected = ops.bottleneck_project(x, *parameters)
    moved = ops.bottleneck_project(x.to("cuda:1"), *(p.to("cuda:1") for p in parameters))
    assert moved.device.index == 1
    assert torch.allclose(moved.cpu(), expected.cpu())


def test_float64_is_refused_with_the_cure():
    with pytest.raises(TypeError, match="use_backend"):
        torch.ops.losatok.gram_energy_forward(torch.randn(1, 4, 8, device="cuda").double(), None, -1)
