"""nn.DiTBlock and its parts: what they are defined to be, starting values, lengths, compile, bad input."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext.errors import ConfigError
from losatok_ext.nn import DiTBlock, DiTBlockConfig, FeedForward, ModulatedNorm, Modulation, RotaryEmbedding
from losatok_ext.nn.modulation import GATES
from small_models import lively

NAN = float("nan")
FULL = DiTBlockConfig(
    width=64, heads=2, activation="geglu", norm_weights="affine", qk_norm="rms", rotary_dim=16, gate="sigmoid(1-g)",
    aligned_dim=12, aligned_norm=True, context_dim=20, context_norm=True, skip=True, skip_norm=True,
)  # fmt: skip


def inputs_of(config, batch=3, time=7, size=5, per_frame=False):
    x = torch.randn(batch, time, config.width)
    dim = config.condition_dim or config.width
    inputs = {"condition": torch.randn(batch, time, dim) if per_frame else torch.randn(batch, dim)}
    if config.modulation == "none":
        del inputs["condition"]
    if config.modulation == "shared":
        inputs["shared"] = torch.randn(batch, 6 * config.width)
    if config.rotary_dim:
        inputs["rope"] = RotaryEmbedding(config.rotary_dim)(time)
    if config.aligned_dim:
        inputs["aligned"] = torch.randn(batch, time, config.aligned_dim)
    if config.context_dim:
        inputs["context"] = torch.randn(batch, size, config.context_dim)
    if config.skip:
        inputs["skip"] = torch.randn(batch, time, config.width)
    return x, inputs


# -- parts -------------------------------------------------------------------------------------------------------------


def test_rotary_tables_are_exact_far_out():
    cos, sin = RotaryEmbedding(8, base=100.0)(200_000)
    assert cos.shape == sin.shape == (200_000, 4)
    assert cos.dtype == torch.float32
    exact = 199_999 * 100.0 ** (-2 / 8)
    assert cos[-1, 1].item() == pytest.approx(torch.tensor(exact, dtype=torch.float64).cos().item(), abs=1e-7)
    torch.testing.assert_close(cos**2 + sin**2, torch.ones_like(cos))
    assert RotaryEmbedding(8).bfloat16()(3)[0].dtype == torch.float32
    assert RotaryEmbedding(8)(3, torch.float64)[0].dtype == torch.float64
    with pytest.raises(ValueError, match="dim should be a positive even number of features, got 7"):
        RotaryEmbedding(7)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "geglu", "geglu_tanh", "swiglu"])
def test_feed_forward_is_its_formula(activation):
    layer = FeedForward(6, 10, activation)
    x = torch.randn(2, 3, 6)
    hidden = F.linear(x, layer.fc1.weight, layer.fc1.bias)
    kind = "tanh" if "tanh" in activation else "none"
    if "glu" in activation:
        value, gate = hidden.chunk(2, dim=-1)
        hidden = value * (F.silu(gate) if activation == "swiglu" else F.gelu(gate, approximate=kind))
    else:
        hidden = F.gelu(hidden, approximate=kind)
    torch.testing.assert_close(layer(x), F.linear(hidden, layer.fc2.weight, layer.fc2.bias))


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("weights", ["none", "scale", "affine"])
def test_weights_of_a_norm_fold_into_its_modulation(weights, per_frame):
    norm = lively(ModulatedNorm(6, weights, eps=1e-5))
    x = torch.randn(2, 3, 6)
    shift, scale = torch.randn(2, 2, 3, 6) if per_frame else torch.randn(2, 2, 6)
    plain = F.layer_norm(x, (6,), norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(norm(x), plain)
    rows = (shift, scale) if per_frame else (shift[:, None], scale[:, None])
    torch.testing.assert_close(norm(x, shift, scale), plain * (1 + rows[1]) + rows[0], rtol=1e-5, atol=1e-5)


def test_gates():
    g = torch.tensor([-0.5, 0.0, 2.0])
    assert torch.equal(GATES["g"](g), g)
    torch.testing.assert_close(GATES["1-g"](g), torch.tensor([1.5, 1.0, -1.0]))
    torch.testing.assert_close(GATES["tanh(1-g)"](g), torch.tensor([1.5, 1.0, -1.0]).tanh())
    torch.testing.assert_close(GATES["sigmoid(1-g)"](g), torch.tensor([1.5, 1.0, -1.0]).sigmoid())


def test_a_shared_modulation_is_a_table_apart_from_the_others():
    modulation = lively(Modulation(4, 6, 5, shared=True, rank=2))
    condition, shared = torch.randn(3, 5), torch.randn(3, 24)
    parts = torch.stack(modulation(condition, shared), dim=1)
    low = modulation.up(modulation.down(condition))
    torch.testing.assert_close(parts, (shared + low).view(3, 6, 4) + modulation.table)
    with pytest.raises(ValueError, match=r"shared should be given \(\[B, 24\]\)"):
        modulation(condition)
    with pytest.raises(ValueError, match="a modulation with rank depends on it"):
        modulation(None, shared)
    with pytest.raises(ValueError, match="condition should be given"):
        Modulation(4, 6, 5)(None)


# -- the block ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize("modulation", ["block", "shared", "none"])
def test_a_new_block_is_the_identity(gate, modulation):
    config = dataclasses.replace(FULL, gate=gate, modulation=modulation, skip=False)
    x, inputs = inputs_of(config)
    if modulation == "shared":
        inputs["shared"].zero_()  # the shared map starts at zero too
    block = DiTBlock(config)
    assert torch.equal(block(x, **inputs), x)
    loose = DiTBlock(dataclasses.replace(config, zero_init=False))
    assert (loose(x, **inputs) - x).abs().max() > 1e-2


def test_conditions_for_each_frame_are_those_of_the_clip_where_equal():
    block = lively(DiTBlock(FULL))
    x, inputs = inputs_of(FULL)
    whole = block(x, **inputs)
    inputs["condition"] = inputs["condition"][:, None].expand(-1, 7, -1)
    torch.testing.assert_close(block(x, **inputs), whole, rtol=1e-5, atol=1e-5)
    _, others = inputs_of(FULL, per_frame=True)
    assert (block(x, **{**inputs, "condition": others["condition"]}) - whole).abs().max() > 1e-2


@pytest.mark.parametrize("order", ["shift scale gate", "scale shift gate", "gate shift scale", "gate scale shift"])
def test_the_order_of_the_modulation_is_that_of_its_rows(order):
    names = ["shift", "scale", "gate"]
    plain = lively(DiTBlock(FULL))
    ordered = DiTBlock(dataclasses.replace(FULL, modulation_order=order))
    ordered.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for name in ("weight", "bias"):
            rows = getattr(plain.modulation.linear, name).unflatten(0, (2, 3, FULL.width))
            moved = rows[:, [names.index(part) for part in order.split()]].flatten(0, 2)
            getattr(ordered.modulation.linear, name).copy_(moved)
    x, inputs = inputs_of(FULL)
    torch.testing.assert_close(ordered(x, **inputs), plain(x, **inputs))


BLOCK = lively(DiTBlock(FULL))


@settings(max_examples=15, deadline=None)
@given(
    frames=st.lists(st.integers(0, 7), min_size=3, max_size=3),
    sizes=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    fill=st.sampled_from([NAN, 1e30, float("inf")]),
)
def test_nothing_past_a_length_reaches_what_is_below(frames, sizes, fill):
    lengths, context_lengths = torch.tensor(frames), torch.tensor(sizes)
    x, inputs = inputs_of(FULL)
    past, unread = torch.arange(7) >= lengths[:, None], torch.arange(5) >= context_lengths[:, None]
    spoilt = {**inputs, "context": inputs["context"].masked_fill(unread[..., None], fill)}
    for name in ("aligned", "skip"):
        spoilt[name] = inputs[name].masked_fill(past[..., None], fill)
    told = {"lengths": lengths, "context_lengths": context_lengths}
    with torch.no_grad():
        together = BLOCK(x.masked_fill(past[..., None], fill), **spoilt, **told)
        for row, count in enumerate(frames):
            alone = {name: y[[row]] for name, y in inputs.items() if name != "rope"}
            for name in ("aligned", "skip"):
                alone[name] = alone[name][:, :count]
            alone["rope"] = tuple(y[:count] for y in inputs["rope"])
            alone["context"] = alone["context"][:, : sizes[row]]
            expected = BLOCK(x[[row], :count], **alone)
            torch.testing.assert_close(together[row, :count], expected[0], rtol=1e-4, atol=1e-4)


def test_cross_attention_to_as_many_tokens_as_frames():
    # S = T: the lengths of the frames are not those of the context.
    x, inputs = inputs_of(FULL, time=6, size=6)
    with torch.no_grad():
        whole = BLOCK(x, **inputs, lengths=torch.tensor([6, 6, 6]))
        short = BLOCK(x, **inputs, lengths=torch.tensor([6, 3, 6]))
        alone = {name: y[[1]] for name, y in inputs.items() if name != "rope"}
        for name in ("aligned", "skip"):
            alone[name] = alone[name][:, :3]
        alone["rope"] = tuple(y[:3] for y in inputs["rope"])
        torch.testing.assert_close(short[1, :3], BLOCK(x[[1], :3], **alone)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(short[[0, 2]], whole[[0, 2]])


def test_every_weight_has_a_gradient():
    block = lively(DiTBlock(FULL)).train()
    x, inputs = inputs_of(FULL)
    block(x, **inputs, lengths=torch.tensor([7, 4, 1])).square().sum().backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_block_has_the_gradients_of_differences():
    config = dataclasses.replace(FULL, width=8, heads=2, rotary_dim=4, aligned_dim=3, context_dim=5, mlp_ratio=1)
    block = lively(DiTBlock(config)).double()
    x, inputs = inputs_of(config, batch=2, time=3, size=2)
    x, inputs = x.double(), {n: y if n == "rope" else y.double() for n, y in inputs.items()}
    names = [name for name in inputs if name != "rope"]
    rope = RotaryEmbedding(4)(3, torch.float64)

    def run(x, *values):
        given = dict(zip(names, values, strict=True))
        return block(x, **given, rope=rope, lengths=torch.tensor([3, 3]), context_lengths=torch.tensor([2, 1]))

    arguments = [y.requires_grad_() for y in (x, *(inputs[name] for name in names))]
    assert torch.autograd.gradcheck(run, arguments)


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    "config",
    [
        FULL,
        DiTBlockConfig(
            width=64,
            heads=4,
            modulation="shared",
            modulation_rank=2,
            rotary_dim=16,
            rotary_heads=1,
            qk_norm="layer",
            qk_bias=True,
            context_dim=20,
            context_heads=2,
        ),
    ],
    ids=["full", "other"],
)
def test_training_compiles_once(config):
    block = lively(DiTBlock(config))

    def step(x, lengths, inputs):
        return block(x, lengths=lengths, **inputs).square().mean()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True, error_on_recompile=True):
        for batch, time, size in [(3, 7, 5), (5, 9, 11), (6, 31, 13)]:
            x, inputs = inputs_of(config, batch, time, size)
            lengths = torch.arange(1, batch + 1)
            x.requires_grad_()
            ours, theirs = compiled(x, lengths, inputs), step(x, lengths, inputs)
            torch.testing.assert_close(ours, theirs)
            weights = [x, block.attention.qkv.weight, block.mlp.fc2.weight]
            torch.testing.assert_close(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"rope": None}, "rope should be given: the block is built with rotary_dim=16"),
        ({"aligned": None}, "aligned should be given: the block is built with aligned_dim=12"),
        ({"context": None}, "context should be given"),
        ({"skip": None}, "skip should be given: the block is built with skip=True"),
        ({"condition": None}, "condition should be given"),
    ],
)
def test_what_is_missing_is_named(change, match):
    x, inputs = inputs_of(FULL)
    with pytest.raises(ValueError, match=match):
        BLOCK(x, **{**inputs, **change})


def test_what_has_no_use_is_named():
    plain = DiTBlock(DiTBlockConfig(width=64, heads=2))
    x, inputs = inputs_of(FULL)
    for name in ("rope", "aligned", "context", "skip"):
        with pytest.raises(ValueError, match=f"{name} should not be given: the block is built with"):
            plain(x, inputs["condition"], **{name: inputs[name]})


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"width": 0}, "width should be a whole number within 1..65536, got 0"),
        ({"width": 64.0}, "width should be a whole number"),
        ({"heads": 3}, r"heads should be a divisor of width \(512\) where head_dim is not given, got 3"),
        ({"head_dim": 0}, "head_dim should be a whole number within 1..65536 or null, got 0"),
        ({"rotary_dim": 5}, "rotary_dim should be a whole number within 0..65536 that is even"),
        ({"rotary_dim": 66}, r"at most the head size \(64\), got 66"),
        ({"rotary_heads": 9}, r"rotary_heads should be at most heads \(8\)"),
        ({"context_heads": 3}, r"context_heads should be a divisor of heads \(8\)"),
        ({"qk_bias": True}, "qk_norm should be 'layer' with qk_bias, got 'none'"),
        ({"modulation_rank": 2}, "modulation should be 'shared' with modulation_rank, got 'block'"),
        ({"gate": "g2"}, "gate should be one of"),
        ({"mlp_gate": "g2"}, r"mlp_gate should be one of .* or null, got 'g2'"),
        ({"modulation_order": "gate scale"}, "modulation_order should be one of"),
        ({"norm_eps": 0.0}, "norm_eps should be a number above 0"),
        ({"mlp_ratio": True}, "mlp_ratio should be a number"),
        ({"skip": 1}, "skip should be true or false"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(values, match):
    with pytest.raises(ConfigError, match=match):
        DiTBlockConfig(**values)
