"""The dit ops under opcheck, torch.compile and torch.export, and what dit_attention says to bad input."""

import pytest
import torch

from losatok_ext import ops, use_backend
from losatok_ext.ops import checks
from ops.dit_cases import Case, modulation_inputs
from ops.opcheck import opchecked


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@opchecked(
    "layer_norm_modulate_forward",
    "layer_norm_modulate_backward",
    "gated_residual_forward",
    "gated_residual_backward",
)
def test_raw_modulation(dtype, device):
    for per_frame in ((False, True), (True, False)):
        x, shift, scale = (t.to(device) for t in modulation_inputs((2, 7, 5), per_frame, dtype))
        mean, rstd = (torch.rand(2, 7).to(device, checks.wide(x)) for _ in range(2))
        yield "layer_norm_modulate_forward", (x, shift, scale, 1e-6)
        yield "layer_norm_modulate_backward", (x, x, scale, mean, rstd, per_frame[0])
        yield "gated_residual_forward", (x, x.clone(), scale)
        yield "gated_residual_backward", (x, x.clone(), scale)


@opchecked("dit_attention_forward", "dit_attention_backward", dtypes=(torch.float32, torch.float16, torch.float64))
def test_raw_attention(dtype, device):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    cases = (
        Case(rope=8, lengths=(9, 4), packed=True),
        Case(keys=5, norm="layer", weights=False, key_lengths=(5, 3)),
        Case(norm=None),
    )
    for case in cases:
        *qkv, q_weight, k_weight = case.tensors(dtype)
        options = case.options(wide)
        weights = (w if w is None else w.to(wide) for w in (q_weight, k_weight))
        inputs = (*qkv, *weights, *options.get("rope", (None, None)), options["lengths"], options["key_lengths"])
        inputs = tuple(t if t is None else t.to(device) for t in inputs)
        end = (case.norm or "none", 1e-6, False)
        yield "dit_attention_forward", (*inputs, *end)
        batch, time, heads, _ = inputs[0].shape
        out, lse = torch.randn_like(inputs[0]), torch.randn(batch, heads, time).to(device, wide)
        yield "dit_attention_backward", (out, *inputs, out, lse, *end)


def block(x, condition, rope, lengths, weight):
    """Half a transformer block: all three ops, with what they need from one packed projection."""
    shift, scale, gate = condition.chunk(3, dim=-1)
    q, k, v = (ops.layer_norm_modulate(x, shift, scale) @ weight).unflatten(-1, (3, 2, 8)).unbind(2)
    attended = ops.dit_attention(q, k, v, torch.ones(8), None, rope, lengths)
    across = ops.dit_attention(q, k[:, :3], v[:, :3], norm=None, key_lengths=lengths.clamp(max=3))
    return ops.gated_residual(x, (attended + across).flatten(2), gate)


def block_inputs(batch, time, dtype=torch.float32):
    x = torch.randn(batch, time, 16, dtype=dtype)
    angles = torch.randn(time, 4)
    lengths = torch.tensor([time - i for i in range(batch)])
    condition, weight = torch.randn(batch, 48, dtype=dtype), torch.randn(16, 48, dtype=dtype) / 4
    return x, condition, (angles.cos(), angles.sin()), lengths, weight


def with_gradients(function, x, condition, rope, lengths, weight):
    leaves = [t.clone().requires_grad_() for t in (x, condition, weight)]
    y = function(leaves[0], leaves[1], rope, lengths, leaves[2])
    return [y.detach(), *torch.autograd.grad(y.square().mean(), leaves)]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_training_compiles_once(backend):
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True, error_on_recompile=True):
        for batch, time in [(2, 7), (3, 7), (5, 11), (4, 30)]:
            inputs = block_inputs(batch, time)
            torch.testing.assert_close(with_gradients(compiled, *inputs), with_gradients(block, *inputs))


def test_one_tensor_in_several_places_compiles():
    def forward(x):
        y = ops.dit_attention(x, x, x).flatten(2)
        return ops.gated_residual(y, y, ops.layer_norm_modulate(y, y, y))

    x = torch.randn(2, 7, 2, 4, requires_grad=True)
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    expected, result = (torch.autograd.grad(f(x).sum(), x) for f in (forward, compiled))
    torch.testing.assert_close(result, expected)


def test_inference_compiles_once():
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1, error_on_recompile=True):
        for batch, time in [(2, 7), (3, 10), (5, 33)]:
            inputs = block_inputs(batch, time)
            torch.testing.assert_close(compiled(*inputs), block(*inputs))


def test_autocast_compiles():
    inputs = block_inputs(2, 7)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(with_gradients(compiled, *inputs), with_gradients(block, *inputs))


def test_exports_with_any_batch_and_length():
    class Block(torch.nn.Module):
        def forward(self, x, condition, cos, sin, lengths, weight):
            return block(x, condition, (cos, sin), lengths, weight)

    def flat(batch, time):
        x, condition, rope, lengths, weight = block_inputs(batch, time)
        return x, condition, *rope, lengths, weight

    batch, time = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("time", min=4, max=10_000)
    sizes = ({0: batch, 1: time}, {0: batch}, {0: time}, {0: time}, {0: batch}, {})
    program = torch.export.export(Block(), flat(2, 7), dynamic_shapes=sizes)
    for inputs in (flat(2, 7), flat(3, 31)):
        torch.testing.assert_close(program.module()(*inputs), Block()(*inputs))
    names = [str(node.target) for node in program.run_decompositions().graph.nodes]
    for op in ("layer_norm_modulate", "dit_attention", "gated_residual"):
        assert any(f"losatok.{op}_forward" in name for name in names), names


Q, COS = torch.randn(2, 5, 3, 8), torch.randn(5, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": [[1.0]]}, TypeError, "q should be a torch.Tensor, got list"),
        ({"q": Q.long()}, TypeError, "q should be one of float32, bfloat16, float16, float64, got int64"),
        ({"q": Q[0]}, ValueError, r"q should have shape \[B, T, H, h\].*got \[5, 3, 8\]"),
        ({"q": Q[..., :0]}, ValueError, "q should have heads of 1 to 256 features .*got 0"),
        ({"q": torch.randn(1, 2, 1, 257)}, ValueError, "q should have heads of 1 to 256 features .*got 257"),
        ({"k": None}, TypeError, "k should be a torch.Tensor, got NoneType"),
        ({"k": Q.bfloat16()}, TypeError, "k should have q's dtype torch.float32, got torch.bfloat16"),
        ({"v": Q.to("meta")}, ValueError, "v should be on q's device cpu, got meta"),
        (
            {"k": Q[:, :, :2]},
            ValueError,
            r"k should have shape \[B, S, H, h\], B, H and h those of q.*got \[2, 5, 2, 8",
        ),
        ({"v": Q[:, :4]}, ValueError, r"v should have as many frames as k, 5 \(S\), got 4"),
        ({"norm": "batch"}, ValueError, "norm should be one of 'rms', 'layer', None, got 'batch'"),
        ({"norm": None, "k_weight": torch.ones(8)}, ValueError, "k_weight should be None without a norm"),
        ({"q_weight": torch.ones(7)}, ValueError, r"q_weight should have shape \[h\] = \[8\], got \[7\]"),
        ({"q_weight": torch.ones(8).int()}, TypeError, "q_weight should be one of"),
        ({"k_weight": torch.ones(8, device="meta")}, ValueError, "k_weight should be on q's device cpu, got meta"),
        ({"eps": "small"}, TypeError, "eps should be a float, got str"),
        ({"eps": -1e-6}, ValueError, "eps should be at least 0"),
        ({"rope": COS}, TypeError, r"rope should be a pair \(cos, sin\) of tensors or None, got Tensor"),
        ({"rope": (COS, COS[:, :3])}, ValueError, "rope's cos and sin should have one shape"),
        ({"rope": (COS[:4],) * 2}, ValueError, r"rope's cos should have shape \[T, h_rope / 2\] = \[5, 1..4\]"),
        ({"rope": (torch.randn(5, 5),) * 2}, ValueError, r"or \[T, h_rope\] with each angle twice, got \[5, 5\]"),
        ({"rope": (torch.randn(5, 10),) * 2}, ValueError, r"with each angle twice, got \[5, 10\]"),
        ({"rope": (COS[:, :0],) * 2}, ValueError, r"with each angle twice, got \[5, 0\]"),
        ({"rope": (COS.expand(2, 5, 4),) * 2}, ValueError, r"with each angle twice, got \[2, 5, 4\]"),
        (
            {"rope": (torch.randn(5, 8),) * 2},
            ValueError,
            "cos of 8 columns should hold each angle twice, as two halves",
        ),
        (
            {"rope": (torch.cat([COS, COS], 1),) * 2, "interleaved": True},
            ValueError,
            "cos of 8 columns should hold each angle twice, as neighbours",
        ),
        ({"rope": (COS[:3],) * 2}, ValueError, r"look like \[B, H, T, h\]; give layout='BHTh'"),
        ({"layout": "THD"}, ValueError, "layout should be one of 'BTHh', 'BHTh', got 'THD'"),
        ({"layout": "BHTh", "k": Q[0]}, ValueError, r"k should have shape \[B, H, T, h\]"),
        ({"lengths": torch.tensor([[True] * 5, [True, False, True, True, True]])}, ValueError, "lengths .* gaps"),
        ({"key_lengths": torch.ones(2, 4, dtype=torch.bool)}, ValueError, r"key_lengths should have shape \[B, T\]"),
        ({"rope": (COS, COS.long())}, TypeError, "rope's sin should be one of"),
        ({"rope": (COS, COS.to("meta"))}, ValueError, "rope's sin should be on q's device"),
        ({"rope": (COS, COS), "k": Q[:, :4], "v": Q[:, :4]}, ValueError, "rope should be None in cross-attention"),
        ({"lengths": torch.tensor([5, 6])}, ValueError, r"lengths should lie within 0..5 .*got 5..6"),
        ({"lengths": torch.tensor([5.0, 2.0])}, TypeError, "lengths should be int64, got float32"),
        ({"key_lengths": torch.tensor([-1, 2])}, ValueError, r"key_lengths should lie within 0..5 .*got -1..2"),
        ({"key_lengths": [5, 2]}, TypeError, "key_lengths should be a torch.Tensor of int64 or None, got list"),
        ({"key_lengths": torch.tensor([5])}, ValueError, r"key_lengths should have shape \[B\]"),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input_is_named(change, error, message, backend):
    arguments = {"q": Q, "k": Q, "v": Q} | change
    with use_backend(backend), pytest.raises(error, match=message):
        ops.dit_attention(**arguments)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_angles_and_masks_in_the_forms_of_other_libraries(interleaved, backend):
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 6, 3, 8, generator=generator) for _ in range(3))
    lengths = torch.tensor([6, 4])
    mask = torch.arange(6) < lengths[:, None]
    with use_backend(backend):
        for pairs in (3, 4):
            angles = torch.randn(6, pairs, generator=generator)
            wide = angles.repeat_interleave(2, 1) if interleaved else torch.cat([angles, angles], 1)
            expected = ops.dit_attention(
                q, k, v, rope=(angles.cos(), angles.sin()), lengths=lengths, interleaved=interleaved
            )
            for form in (angles[None], wide, wide[None]):
                rope = (form.cos(), form.sin())
                got = ops.dit_attention(q, k, v, rope=rope, lengths=mask, interleaved=interleaved)
                assert torch.equal(got, expected)
        other = ops.dit_attention(q, k, v, key_lengths=lengths)
        assert torch.equal(ops.dit_attention(q, k, v, key_lengths=mask), other)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_heads_before_frames(backend):
    """The layout of F.scaled_dot_product_attention, and its result, forward and backward."""
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(2, 3, 6, 8, generator=generator, requires_grad=True) for _ in range(3))
    with use_backend(backend):
        got = ops.dit_attention(q, k, v, norm=None, layout="BHTh")
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(got, expected)
    grad = torch.randn(2, 3, 6, 8, generator=generator)
    ours = torch.autograd.grad(got, (q, k, v), grad)
    for one, other in zip(ours, torch.autograd.grad(expected, (q, k, v), grad), strict=True):
        torch.testing.assert_close(one, other)
    with use_backend(backend):
        swapped = ops.dit_attention(*(t.transpose(1, 2) for t in (q, k, v)), norm=None)
    assert torch.equal(got, swapped.transpose(1, 2))


def test_the_forms_of_other_libraries_compile_and_export():
    def attend(q, k, v, cos, sin, mask):
        return ops.dit_attention(q, k, v, rope=(cos, sin), lengths=mask, layout="BHTh")

    q = torch.randn(2, 3, 6, 8)
    angles = torch.randn(6, 4).repeat(1, 2)
    inputs = (q, q + 1, q - 1, angles.cos(), angles.sin(), torch.arange(6) < torch.tensor([[6], [4]]))
    expected = attend(*inputs)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), expected)

    class Module(torch.nn.Module):
        def forward(self, *arguments):
            return attend(*arguments)

    assert torch.equal(torch.export.export(Module(), inputs).module()(*inputs), expected)
