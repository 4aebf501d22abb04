"""What the bottleneck ops keep in memory, by the peak of the process: worker threads and libraries included."""

import platform

import pytest
import torch
import torch.nn.functional as F

from losatok_ext import ops, use_backend
from losatok_ext.evaluation.tasks.side_by_side import peak_memory
from ops.bottleneck_cases import cast, loss_inputs, projection

MEBI = 2**20

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="peak memory is read from /proc, which only Linux has"
)


def loss_step(function, rows):
    z, target, *weights, _ = cast(loss_inputs(1, rows, 128, 512, 1280, None), torch.float32)
    leaves = [t.requires_grad_() for t in (z, *weights)]
    return lambda: torch.autograd.grad(function(leaves[0], target, *leaves[1:]), leaves)


def eager_loss(z, target, weight_in, bias_in, weight_out, bias_out):
    restored = F.linear(F.gelu(F.linear(z, weight_in, bias_in)), weight_out, bias_out)
    return F.mse_loss(F.normalize(restored, dim=-1), F.normalize(target, dim=-1))


def test_loss_and_backward_take_a_third_of_eager():
    rows = 6000
    ours, eager = (
        peak_memory(loss_step(ops.normalized_reconstruction_loss, rows)),
        peak_memory(loss_step(eager_loss, rows)),
    )
    assert ours <= eager / 3, f"{ours / MEBI:.1f} MiB, eager {eager / MEBI:.1f} MiB"


def test_memory_of_the_loss_does_not_grow_with_frames_times_features():
    few, many = 4000, 16000
    growth = peak_memory(loss_step(ops.normalized_reconstruction_loss, many)) - peak_memory(
        loss_step(ops.normalized_reconstruction_loss, few)
    )
    per_frame = growth / (many - few)
    # The gradient of z takes 128 floats, twice: as saved, and scaled. One row of features would be 1280.
    assert per_frame <= 3 * 128 * 4, f"{per_frame:.0f} bytes for each frame"


def test_inference_keeps_no_hidden_values():
    rows = 8000
    x, *weights = cast(projection((rows,), 256, 512, 32), torch.float32)
    with torch.no_grad():
        ours = peak_memory(lambda: ops.bottleneck_project(x, *weights))
        with use_backend("reference"):
            eager = peak_memory(lambda: ops.bottleneck_project(x, *weights))
    hidden = rows * 512 * 4
    assert eager > hidden
    assert ours < hidden / 2, f"{ours / MEBI:.1f} MiB beside {hidden / MEBI:.1f} MiB of hidden values"
