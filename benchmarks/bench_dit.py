"""The dit ops, and a transformer block built of them, beside eager, torch.compile, SDPA and FlexAttention.

The block is nn.DiTBlock of width 512 with 8 heads, B=4, T=750: RMS norm of queries and keys, rotary embedding, an MLP
of four times the width with GELU, and six modulations for each clip (adaLN). Peers do the same with the same weights in
plain PyTorch around ``scaled_dot_product_attention``.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention

from losatok_ext import nn, ops

B, T, H, SIZE = 4, 750, 8, 64
C = H * SIZE
DTYPES = [torch.float32, torch.bfloat16]
ATTENTION = 4 * B * H * T * T * SIZE  # FLOP of its two products
LINEAR = 2 * B * T * 12 * C * C  # and of the block's linear layers


def name(dtype):
    return str(dtype).removeprefix("torch.")


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def step(function, leaves, training):
    """A call, or a call and its gradients."""
    if not training:
        return function
    shape = function().shape
    grad = torch.randn(shape, device=leaves[0].device).to(leaves[0].dtype)
    return lambda: torch.autograd.grad(function(), leaves, grad)


def angles(device):
    rates = 10_000.0 ** -torch.linspace(0, 1, SIZE // 2)
    turns = torch.arange(T)[:, None] * rates
    return turns.cos().to(device), turns.sin().to(device)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def sdpa(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def flex(q, k, v):
    return flex_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def eager_attention(q, k, v, q_weight, k_weight, rope, attend=sdpa):
    q, k = F.rms_norm(q, (SIZE,), q_weight, 1e-6), F.rms_norm(k, (SIZE,), k_weight, 1e-6)
    return attend(rotate(q, *rope), rotate(k, *rope), v)


def fused_attention(q, k, v, q_weight, k_weight, rope):
    return ops.dit_attention(q, k, v, q_weight, k_weight, rope)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_attention(compare, device, dtype, training):
    qkv = torch.randn(B, T, 3, H, SIZE).to(device, dtype).requires_grad_(training)
    weights = [torch.ones(SIZE, device=device, dtype=dtype, requires_grad=training) for _ in range(2)]
    rope = angles(device)

    def run(function, **options):
        return step(lambda: function(*qkv.unbind(2), *weights, rope, **options), [qkv, *weights], training)

    best = compiled(eager_attention)
    peers = {
        "eager": run(eager_attention),
        "compile": run(best),
        "SDPA alone": step(lambda: sdpa(*qkv.unbind(2)), [qkv], training),
    }
    if device == "cuda" or not training:  # FlexAttention has no backward on a CPU
        around = torch.compile(lambda *a: eager_attention(*a, attend=flex), dynamic=False)
        peers["FlexAttention"] = run(around)
    with torch.set_grad_enabled(training):
        compare(
            f"dit_attention{' + backward' if training else ''} {name(dtype)}",
            run(fused_attention),
            peers,
            ATTENTION * (3.5 if training else 1),
            dtype,
            memory=True,
        )


@pytest.mark.parametrize("size", [32, 80, 96, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_attention_of_other_head_sizes(compare, device, dtype, size):
    """Beside bare SDPA, without norm and rotation."""
    q, k, v = torch.randn(B, T, 3, H, size).to(device, dtype).unbind(2)
    with torch.no_grad():
        compare(
            f"dit_attention bare {name(dtype)} h={size}",
            lambda: ops.dit_attention(q, k, v, norm=None),
            {"SDPA alone": lambda: sdpa(q, k, v)},
            4 * B * H * T * T * size,
            dtype,
        )


@pytest.mark.parametrize("time", [25, 250, 7500])
def test_attention_of_one_clip(compare, device, time):
    q, k, v = torch.randn(1, time, 3, H, SIZE).to(device).unbind(2)
    with torch.no_grad():
        compare(
            f"dit_attention bare float32 B=1 T={time}",
            lambda: ops.dit_attention(q, k, v, norm=None),
            {"SDPA alone": lambda: sdpa(q, k, v)},
            4 * H * time**2 * SIZE,
        )


def eager_modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def eager_gated(x, branch, gate):
    return x + gate[:, None] * branch


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("op", ["layer_norm_modulate", "gated_residual"])
def test_neighbours(compare, device, op, dtype, training):
    shapes = [(B, T, C), (B, C), (B, C)] if op == "layer_norm_modulate" else [(B, T, C), (B, T, C), (B, C)]
    leaves = [torch.randn(shape).to(device, dtype).requires_grad_(training) for shape in shapes]
    eager = eager_modulate if op == "layer_norm_modulate" else eager_gated
    best = compiled(eager)

    def run(function):
        return step(lambda: function(*leaves), leaves, training)

    with torch.set_grad_enabled(training):
        compare(
            f"{op}{' + backward' if training else ''} {name(dtype)}",
            run(getattr(ops, op)),
            {"eager": run(eager), "compile": run(best)},
        )


def plain_block(block, x, condition, rope):
    """What nn.DiTBlock computes, with its weights, in plain PyTorch."""
    attention, mlp = block.attention, block.mlp
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = block.modulation.linear(condition).chunk(6, dim=-1)
    q, k, v = attention.qkv(eager_modulate(x, shift, scale)).unflatten(-1, (3, H, SIZE)).unbind(2)
    attended = eager_attention(q, k, v, attention.q_weight, attention.k_weight, rope).flatten(2)
    x = eager_gated(x, attention.out(attended), gate)
    hidden = F.gelu(mlp.fc1(eager_modulate(x, mlp_shift, mlp_scale)))
    return eager_gated(x, mlp.fc2(hidden), mlp_gate)


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_block(compare, device, dtype, training):
    config = nn.DiTBlockConfig(width=C, heads=H, activation="gelu", qk_norm="rms", rotary_dim=SIZE, zero_init=False)
    block = nn.DiTBlock(config).to(device, dtype).requires_grad_(training)
    x, condition = (torch.randn(shape).to(device, dtype).requires_grad_(training) for shape in ((B, T, C), (B, C)))
    rope = angles(device)

    def run(function):
        return step(lambda: function(x, condition), [x, condition, *block.parameters()], training)

    def ours(x, condition):
        return block(x, condition, rope=rope)

    def plain(x, condition):
        return plain_block(block, x, condition, rope)

    with torch.no_grad():  # the same block, or the comparison is worth nothing
        close = 1e-3 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(ours(x, condition), plain(x, condition), rtol=close, atol=close)
    best, best_of_ours = compiled(plain), torch.compile(ours, dynamic=False)
    with torch.set_grad_enabled(training):
        compare(
            f"nn.DiTBlock of 512{' + backward' if training else ''} {name(dtype)}",
            run(ours),
            {"eager": run(plain), "compile": run(best), "ours compiled": run(best_of_ours)},
            LINEAR * (3 if training else 1) + ATTENTION * (3.5 if training else 1),
            dtype,
            memory=True,
        )
