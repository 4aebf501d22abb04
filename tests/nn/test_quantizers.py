"""All quantizers by their common interface: codes and back, padding, dtypes, checkpoints, bad input."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext import ops
from losatok_ext.errors import ConfigError
from losatok_ext.nn import (
    AffineConfig,
    FSQConfig,
    LFQConfig,
    ResidualVQConfig,
    VQConfig,
    build_quantizer,
    quantizer_config,
)
from losatok_ext.nn.quantizers.config import CONFIGS as KINDS
from nn.quantizer_cases import CONFIGS, DIM, batch, spoiled, total

every = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def trained(config, steps=2, dim=DIM):
    quantizer = build_quantizer(config, dim)
    for step in range(steps):
        quantizer(batch(seed=step, dim=dim))
    return quantizer


@every
def test_codes_decode_to_what_was_quantized(config):
    quantizer = trained(config).eval()
    x = batch(seed=5)
    result = quantizer(x)
    assert result.quantized.shape == x.shape
    assert result.quantized.dtype == x.dtype
    assert result.codes.dtype == torch.int64
    assert result.codes.shape[:2] == x.shape[:2]
    assert result.codes.dim() == 3 if quantizer.code_dim else result.codes.shape == x.shape[:2]
    assert result.losses == {}
    assert torch.equal(quantizer.encode(x), result.codes)
    torch.testing.assert_close(quantizer.decode(result.codes), result.quantized, rtol=0, atol=1e-6)
    if config.kind != "affine":
        assert 0 <= result.codes.min() <= result.codes.max() < quantizer.codebook_size
        assert quantizer.bits_per_token == math.log2(quantizer.codebook_size) * result.codes[0, 0].numel()


@pytest.mark.parametrize("name", ["vq", "vq-cosine", "vq-learned", "vq-learned-cosine", "lfq", "affine", "affine-time"])
def test_what_is_quantized_maps_to_itself(name):
    quantizer = trained(CONFIGS[name]).eval()
    quantized, codes, _ = quantizer(batch(seed=5))
    again = quantizer(quantized)
    torch.testing.assert_close(again.quantized, quantized, rtol=1e-5, atol=1e-5)
    if name != "affine" and name != "affine-time":  # whose scale is rounded anew
        assert torch.equal(again.codes, codes)


@every
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_nothing_past_a_length_matters(config, training):
    start = trained(config).train(training)
    lengths = torch.tensor([20, 0, 13])
    results, states = [], []
    for spoil in (False, True):
        torch.manual_seed(3)
        quantizer = copy.deepcopy(start)
        x = batch(seed=6)
        x = (spoiled(x, lengths) if spoil else x).requires_grad_()
        result = quantizer(x, lengths)
        total(result).backward()
        grads = [x.grad, *(p.grad for p in quantizer.parameters() if p.grad is not None)]
        results.append((result.quantized, result.codes, *result.losses.values(), *grads))
        states.append(quantizer.state_dict())
    past = torch.arange(20) >= lengths[:, None]
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
        assert torch.isfinite(clean).all()
    (
        quantized,
        codes,
        *_,
    ) = results[0]
    assert (quantized[past] == 0).all()
    assert (codes[past] == -1).all()
    assert (codes[~past][..., 0] >= 0).all()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (start.decode(codes)[past] == 0).all()


@every
def test_a_split_batch_has_the_same_codes(config):
    quantizer = trained(config).eval()
    x = batch(clips=4, seed=8)
    whole = quantizer(x)
    parts = [quantizer(part) for part in x.split((1, 3))]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in parts]))
    torch.testing.assert_close(whole.quantized, torch.cat([part.quantized for part in parts]))
    lengths = torch.tensor([20, 7, 1, 0])
    masked = quantizer.encode(x, lengths)
    if config != CONFIGS["affine-time"]:  # where a clip's range depends on its end
        for clip, end in enumerate(lengths):
            assert torch.equal(masked[clip, :end], whole.codes[clip, :end])


@every
def test_any_leading_shape(config):
    quantizer = trained(config).eval()
    x = batch(clips=2, time=6)
    for lead in ((12,), (2, 3, 2), (1, 12)):
        if config == CONFIGS["affine-time"]:
            continue
        shaped = quantizer(x.view(*lead, DIM))
        assert shaped.quantized.shape == (*lead, DIM)
        assert torch.equal(shaped.codes.flatten(), quantizer(x).codes.flatten())
        assert torch.equal(quantizer.decode(shaped.codes).flatten(), quantizer.decode(quantizer(x).codes).flatten())
    for empty in (torch.zeros(0, DIM), torch.zeros(2, 0, DIM)):
        result = quantizer(empty)
        assert result.quantized.shape == empty.shape
        assert result.codes.shape[: empty.dim() - 1] == empty.shape[:-1]
        assert quantizer.decode(result.codes).shape == empty.shape
        quantizer.train()(empty)
        quantizer.eval()
    assert torch.isfinite(quantizer(x).quantized).all()


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(config, dtype):
    quantizer = trained(config).to(dtype)
    x = batch(seed=2, dtype=dtype).requires_grad_()
    result = quantizer(x, torch.tensor([20, 5, 9]))
    assert result.quantized.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(loss.dtype == wide and loss.dim() == 0 for loss in result.losses.values())
    total(result).backward()
    assert x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


@every
def test_autocast_computes_codes_in_float32(config):
    quantizer = trained(config).eval()
    x = batch(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        result = quantizer(x)
        assert torch.equal(quantizer.encode(x), result.codes)
    assert result.quantized.dtype == x.dtype
    if not any("project_in" in name for name in quantizer.state_dict()):
        assert torch.equal(result.codes, quantizer(x).codes)


@every
def test_gradient_flows_in_eval_as_in_training(config):
    quantizer = trained(config).eval()
    x = batch(seed=2).requires_grad_()
    quantizer(x).quantized.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


@every
def test_training_goes_on_from_its_state_bit_for_bit(config):
    first = trained(config)
    second = build_quantizer(config, DIM)
    second.load_state_dict(first.state_dict())
    runs = []
    for quantizer in (first, second):
        torch.manual_seed(11)
        optimizer = torch.optim.SGD(list(quantizer.parameters()) or [torch.zeros(1)], lr=0.1)
        for step in range(3):
            result = quantizer(batch(seed=20 + step).requires_grad_())
            optimizer.zero_grad()
            total(result).backward()
            optimizer.step()
        runs.append((result.codes, result.quantized.detach(), *quantizer.state_dict().values()))
    assert all(map(torch.equal, *runs))


@every
def test_configurations_survive_json(config):
    assert quantizer_config(config.to_dict()) == config
    assert type(quantizer_config(config.to_dict())) is type(config)
    assert config.to_dict()["kind"] == config.kind


def test_kinds_have_defaults():
    assert list(KINDS) == ["vq", "rvq", "simvq", "grouped", "fsq", "rfsq", "lfq", "rlfq", "affine"]
    for kind in KINDS:
        assert build_quantizer(quantizer_config({"kind": kind}), 16).config.kind == kind
    assert quantizer_config({"kind": "rvq", "stages": 8, "codebook_size": 1024}) == ResidualVQConfig()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "kind should be one of 'vq', 'rvq'"),
        ({"kind": "pq"}, "got 'pq'"),
        ({"kind": ["vq"]}, "kind should be one of"),
        ([], "should be a mapping of keys to values, got "),
        ({"kind": "vq", "size": 4}, "size is not a key; the keys here are codebook_size"),
        ({"kind": "vq", "codebook_size": 0}, "codebook_size should be a whole number within 1..2147483647, got 0"),
        ({"kind": "vq", "codebook_size": True}, "codebook_size should be"),
        ({"kind": "vq", "codebook_dim": 0}, "codebook_dim should be a whole number within 1..2147483647 or null"),
        ({"kind": "vq", "codebook": "fixed"}, "codebook should be one of 'ema', 'learned'"),
        ({"kind": "vq", "decay": 1.0}, "decay should be a number of at least 0 and below 1"),
        ({"kind": "vq", "epsilon": 0}, "epsilon should be a number above 0"),
        ({"kind": "vq", "gradient": "none"}, "gradient should be one of 'rotation', 'straight_through', 'directional'"),
        ({"kind": "vq", "commitment_weight": float("nan")}, "commitment_weight should be a number of at least 0"),
        ({"kind": "vq", "kmeans": 1}, "kmeans should be true or false"),
        ({"kind": "vq", "dead_below": 2.0}, r"revived_at should be at least dead_below \(2.0\)"),
        ({"kind": "rvq", "stages": 2, "min_stages": 3}, r"min_stages should be at most the number of stages \(2\)"),
        (
            {"kind": "rvq", "stages": 2, "min_stages": 1, "dropout_multiple_of": 3},
            r"dropout_multiple_of should be at most the number of stages \(2\)",
        ),
        ({"kind": "grouped", "groups": 0}, "groups should be a whole number within 1..1024"),
        ({"kind": "grouped", "each": {"kind": "vq", "size": 3}}, "each.size is not a key"),
        ({"kind": "grouped", "each": {"kind": "grouped"}}, "each should be of another kind: groups have no groups"),
        ({"kind": "rvq", "cosine": True}, "cosine should be false in a chain"),
        ({"kind": "rvq", "dropout": 1.5}, "dropout should be a number within 0..1"),
        ({"kind": "fsq", "levels": [1, 4]}, "levels\\[0\\] should be a whole number within 2..65536"),
        ({"kind": "fsq", "levels": []}, "levels should be"),
        ({"kind": "fsq", "levels": [65536] * 4}, "product is below"),
        ({"kind": "vq", "gradient": "directional"}, 'codebook should be "learned" with the gradient "directional"'),
        (
            {"kind": "simvq", "gradient": "directional", "stage_gradients": True},
            'stage_gradients should be false with the gradient "directional"',
        ),
        ({"kind": "rfsq", "num_codebooks": 2}, "num_codebooks should be 1 with stages"),
        ({"kind": "rlfq", "num_codebooks": 2}, "num_codebooks should be 1 with stages"),
        ({"kind": "rfsq", "stages": 2, "min_stages": 3}, "min_stages should be at most"),
        ({"kind": "lfq", "bits": 63}, "bits should be a whole number within 1..62"),
        ({"kind": "lfq", "temperature": 0.0}, "temperature should be"),
        ({"kind": "affine", "bits": 6}, "bits should be one of 8, 4"),
        ({"kind": "affine", "dim": 0}, "dim should be one of -1, 1"),
    ],
)
def test_bad_configurations_are_named(values, words):
    with pytest.raises(ConfigError, match=words):
        quantizer_config(values)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="config should be one of VQConfig, ResidualVQConfig"):
        build_quantizer({"kind": "vq"}, 8)
    for dim in (0, 8.0):
        with pytest.raises(ValueError, match="dim should be a positive whole number"):
            build_quantizer(VQConfig(), dim)
    for name, config in CONFIGS.items():
        quantizer = build_quantizer(config, DIM)
        with pytest.raises(ValueError, match="x should have dim = 8 features"):
            quantizer(torch.zeros(2, 3, 9))
        with pytest.raises(ValueError, match=r"\[B, T, features\] with lengths"):
            quantizer(torch.zeros(3, DIM), torch.tensor([3]))
        with pytest.raises(ValueError, match=r"lengths should lie within 0\.\.3"):
            quantizer(torch.zeros(2, 3, DIM), torch.tensor([3, 4]))
        with pytest.raises(TypeError, match="x should be one of float32"):
            quantizer(torch.zeros(2, DIM, dtype=torch.int64))
        with pytest.raises(TypeError, match="codes should be int64"):
            quantizer.decode(torch.zeros(2, 3))
        if quantizer.code_dim:
            with pytest.raises(ValueError, match=r"codes should have shape \[\.\.\., "):
                quantizer.decode(torch.tensor(0))
            with pytest.raises(ValueError, match="codes should have shape"):
                quantizer.decode(torch.zeros(2, 99, dtype=torch.int64))
        if config.kind != "affine":
            count = {"fsq-two": 2, "lfq-two": 2, "vq-grouped": 2, "rvq-grouped": 4}.get(name, 1)
            codes = torch.full((2, count), quantizer.codebook_size)
            with pytest.raises(ValueError, match=r"should lie within -1\.\."):
                quantizer.decode(codes)


@pytest.mark.parametrize("lengths", [None, torch.tensor([20, 0, 13])], ids=["whole", "padded"])
def test_affine_is_what_storage_gives(lengths):
    x = batch(seed=1)
    for bits, dim in ((8, -1), (4, -1), (8, 1), (4, 1)):
        quantizer = build_quantizer(AffineConfig(bits, dim), DIM)
        result = quantizer(x, lengths)
        for clip, end in enumerate([20] * 3 if lengths is None else lengths.tolist()):
            if end:
                own = x[clip, :end]
                packed, scale, offset = ops.affine_quantize(own, bits, dim=-1 if dim == -1 else 0)
                axis = -1 if dim == -1 else 0
                stored = ops.affine_dequantize(packed, scale, offset, bits, axis, own.shape[axis])
                assert torch.equal(result.quantized[clip, :end], stored)
                assert (result.codes[clip, :end, :DIM] < 2**bits).all()


def test_affine_keeps_the_sign_of_offsets():
    quantizer = build_quantizer(AffineConfig(), 3)
    x = torch.tensor([[-7.0, -8.0, -9.5], [0.0, 0.0, -0.0], [1e-40, 3e38, -1.0]])
    result = quantizer(x)
    assert torch.equal(quantizer.decode(result.codes), result.quantized)
    torch.testing.assert_close(result.quantized[:2], x[:2], rtol=1e-2, atol=0)
    with pytest.raises(ValueError, match="x should hold finite values"):
        quantizer(torch.full((2, 3), torch.nan))


def test_finite_levels_are_those_of_the_op():
    x = batch(dim=8)
    two = build_quantizer(FSQConfig(levels=(3, 4, 5, 2), num_codebooks=2), 8)
    quantized, codes, losses = two(x, torch.tensor([20, 3, 0]))
    assert losses == {}
    for half in range(2):
        own = slice(4 * half, 4 * half + 4)
        expected = ops.fsq_quantize(x[..., own].contiguous(), (3, 4, 5, 2), torch.tensor([20, 3, 0]))
        assert torch.equal(quantized[..., own], expected[0])
        assert torch.equal(codes[..., half], expected[1])
    assert two.codebook_size == 120


@settings(max_examples=25, deadline=None)
@given(
    config=st.one_of(
        st.builds(
            VQConfig, codebook_size=st.integers(1, 40), cosine=st.booleans(), kmeans_iterations=st.integers(0, 3)
        ),
        st.builds(ResidualVQConfig, codebook_size=st.integers(1, 20), stages=st.integers(1, 4), shared=st.booleans()),
        st.builds(
            FSQConfig, levels=st.lists(st.integers(2, 9), min_size=1, max_size=4), num_codebooks=st.integers(1, 3)
        ),
        st.builds(LFQConfig, bits=st.integers(1, 9), num_codebooks=st.integers(1, 3), entropy_group=st.integers(1, 9)),
    ),
    clips=st.integers(1, 4),
    time=st.integers(1, 12),
    dim=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_padding_changes_nothing_for_any_size(config, clips, time, dim, seed):
    torch.manual_seed(seed)
    quantizer = build_quantizer(config, dim)
    twin = copy.deepcopy(quantizer)
    x = torch.randn(clips, time, dim)
    lengths = torch.full((clips,), time)
    longer = spoiled(torch.cat((x, torch.zeros(clips, 3, dim)), dim=1), lengths)
    results = []
    for module, arguments in ((quantizer, (x, None)), (twin, (longer, lengths))):
        torch.manual_seed(seed)
        module(*arguments)
        module.eval()
        results.append(module(*arguments))
    assert torch.equal(results[0].codes, results[1].codes[:, :time])
    assert (results[1].codes[:, time:] == -1).all()
    torch.testing.assert_close(results[0].quantized, results[1].quantized[:, :time])
    torch.testing.assert_close(quantizer.decode(results[0].codes), results[0].quantized, rtol=1e-5, atol=1e-5)
