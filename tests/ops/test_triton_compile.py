"""The Triton ops under torch.compile, and every kernel compiled ahead of time."""

import os
import re
import subprocess
import sys

import pytest
import torch

import kernel_evidence as evidence
from losatok_ext import use_backend
from losatok_ext.ops.bottleneck import bottleneck_project, normalized_reconstruction_loss
from losatok_ext.ops.dit_attention import dit_attention
from losatok_ext.ops.gated_residual import gated_residual
from losatok_ext.ops.layer_norm_modulate import layer_norm_modulate
from losatok_ext.ops.quantize import rvq_decode, rvq_encode, vq_nearest
from losatok_ext.ops.quantize_scalar import affine_dequantize, affine_quantize, fsq_dequantize, fsq_quantize
from losatok_ext.ops.time_relation import gram_energy, time_relation_loss
from losatok_ext.ops.vocoder import depthwise_conv_norm, polar_istft
from ops.triton_cases import needs_working_triton


def tensors(device):
    def make(*shape):
        return torch.randn(*shape, device=device)

    return {
        "x": make(5, 6),
        "parameters": (make(7, 6), make(7), make(4, 7), make(4)),
        "up": (make(7, 4), make(7), make(6, 7), make(6)),
        "low": make(2, 5, 4),
        "high": make(2, 5, 6),
        "lengths": torch.tensor([5, 3], device=device),
    }


@needs_working_triton
def test_compiles_whole_and_once(device):
    """fullgraph, dynamic: one graph for every batch size and length."""

    def step(x, low, high, lengths, w_in, b_in, w_out, b_out, up):
        z = bottleneck_project(x, w_in, b_in, w_out, b_out)
        restored = normalized_reconstruction_loss(low, high, *up, lengths)
        relation = time_relation_loss(low, high, lengths, high_energy=gram_energy(high, lengths))
        return z.square().mean() + restored + relation

    t = tensors(device)
    parameters = [p.requires_grad_() for p in t["parameters"]]
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True), use_backend("triton"):
        for rows, clips, time in ((11, 2, 5), (12, 3, 7), (13, 4, 9)):
            x = torch.randn(rows, 6, device=device)
            low = torch.randn(clips, time, 4, device=device, requires_grad=True)
            high = torch.randn(clips, time, 6, device=device)
            lengths = torch.full((clips,), time - 1, device=device)
            arguments = (x, low, high, lengths, *parameters, t["up"])
            results = []
            for function in (compiled, step):
                loss = function(*arguments)
                results.append([loss, *torch.autograd.grad(loss, [low, *parameters])])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)


@needs_working_triton
def test_quantizers_compile_whole_and_once(device):
    """fullgraph, dynamic: one graph for every batch size and length."""

    def step(x, codebooks, lengths):
        indices, distance = vq_nearest(x, codebooks[0], lengths)
        codes, quantized = rvq_encode(x, codebooks, lengths)
        levels, numbers = fsq_quantize(x, (8, 5, 3), lengths)
        back = affine_dequantize(*affine_quantize(x, bits=4, dim=1), bits=4, dim=1, size=x.shape[1])
        loss = distance.sum() + quantized.square().sum() + rvq_decode(codes, codebooks).sum() + levels.sum()
        return loss, indices, codes, numbers, fsq_dequantize(numbers, (8, 5, 3)), back

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True), use_backend("triton"):
        for clips, time in ((6, 4), (4, 5), (2, 7)):  # the first sizes all differ: equal ones would share a symbol
            x = torch.randn(clips, time, 3, device=device, requires_grad=True)
            codebooks = torch.randn(2, 9, 3, device=device, requires_grad=True)
            lengths = torch.full((clips,), time - 1, device=device)
            results = []
            for function in (compiled, step):
                loss, *rest = function(x, codebooks, lengths)
                results.append([loss, *rest, *torch.autograd.grad(loss, [x, codebooks])])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)


@needs_working_triton
def test_a_block_compiles_whole_and_once(device):
    """fullgraph, dynamic: one graph for every batch size and length."""

    def block(x, shift, scale, gate, q_weight, k_weight, cos, sin, lengths):
        y = layer_norm_modulate(x, shift, scale)
        q, k, v = torch.cat([y, y.sin(), y.cos()], -1).unflatten(-1, (3, 2, 16)).unbind(2)
        out = dit_attention(q, k, v, q_weight, k_weight, (cos, sin), lengths)
        return gated_residual(x, out.flatten(2), gate).square().mean()

    weights = [torch.randn(16, device=device, requires_grad=True) for _ in range(2)]
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True), use_backend("triton"):
        for clips, time in ((2, 5), (3, 7), (4, 9)):
            x = torch.randn(clips, time, 32, device=device, requires_grad=True)
            modulations = [torch.randn(clips, 32, device=device, requires_grad=True) for _ in range(3)]
            angles = [torch.randn(time, 8, device=device) for _ in range(2)]
            lengths = torch.full((clips,), time - 1, device=device)
            leaves = [x, *modulations, *weights]
            results = []
            for function in (compiled, block):
                loss = function(*leaves, *angles, lengths)
                results.append([loss, *torch.autograd.grad(loss, leaves)])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)


@needs_working_triton
def test_a_vocoder_compiles_whole_and_once(device):
    """fullgraph, dynamic: one graph for every batch size and length."""

    def vocode(x, out, window, lengths, weight, bias, gain, shift):
        y = depthwise_conv_norm(x, weight, bias, gain, shift, 1e-5, lengths)
        return polar_istft(y @ out, window, 4, lengths).square().sum()

    parameters = [torch.randn(*sizes, device=device, requires_grad=True) for sizes in ((6, 1, 7), (6,), (6,), (6,))]
    out, window = torch.randn(6, 18, device=device), torch.hann_window(16, device=device)
    compiled = torch.compile(vocode, fullgraph=True, dynamic=True, backend="aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True), use_backend("triton"):
        for clips, time in ((2, 9), (3, 11), (5, 8)):  # unlike channels and taps: equal sizes would share a symbol
            x = torch.randn(clips, time, 6, device=device, requires_grad=True)
            lengths = torch.full((clips,), time - 1, device=device)
            results = []
            for function in (compiled, vocode):
                loss = function(x, out, window, lengths, *parameters)
                results.append([loss, *torch.autograd.grad(loss, [x, *parameters])])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles for the GPU at hand here")
def test_without_the_interpreter_a_cpu_tensor_is_refused():
    code = (
        "import torch, losatok_ext.ops\n"
        "try:\n"
        "    torch.ops.losatok_triton.gram_energy_forward(torch.ones(1, 2, 3), None, -1)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("BackendUnavailableError")
    assert "TRITON_INTERPRET=1" in result.stdout


# Each run takes minutes on two cores. The rest of the targets and dtypes: python tests/triton_ahead.py
@pytest.mark.parametrize("run", evidence.AHEAD, ids=lambda run: evidence.ahead_name(*run))
def test_every_kernel_compiles_ahead_of_time_as_is_kept(run):
    if evidence.unchanged("triton", evidence.ahead_name(*run), "all", evidence.triton_digest(*run)):
        return  # compiled for docs/kernels.json from these very sources
    table, said = evidence.compile_ahead(*run)
    print(said)
    assert re.search(r"[1-9]\d* kernels compiled, 0 failed", said)
    try:
        kept = evidence.kept_rows("triton", evidence.ahead_name(*run))
    except evidence.OtherCompilerError as other:
        pytest.skip(str(other))
    rows = evidence.triton_rows(table)
    spilling = {name: row["spilled"] for name, row in rows.items() if row["spilled"]}
    more = [
        f"{name}: {spilt} bytes" for name, spilt in spilling.items() if spilt > kept.get(name, {}).get("spilled", 0)
    ]
    assert not more, "\n".join(["kernels spill more registers to memory than before:", *more])
    changed = evidence.differences(rows, kept)
    assert not changed, "\n".join([*changed, "docs/kernels.json has other figures; meant? make evidence"])
