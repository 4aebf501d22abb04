"""Rounding in stages: each stage takes up what the stages before left over, and how the gradient passes."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from losatok_ext.nn import ResidualFSQConfig, ResidualLFQConfig, build_quantizer
from nn.quantizer_cases import batch

LENGTHS = torch.tensor([20, 4, 13])
CONFIGS = {
    "rfsq": ResidualFSQConfig(levels=(4, 5), stages=4),
    "rlfq": ResidualLFQConfig(bits=2, stages=4, commitment_weight=0.3, entropy_weight=0.0),
}
both = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@both
def test_each_stage_leaves_less_over(config):
    quantizer = build_quantizer(config, 2).eval()
    x = torch.rand(1, 500, 2) * 1.8 - 0.9
    target = quantizer._bounded(x)
    codes = quantizer.encode(x)
    errors = [(quantizer.decode(codes[..., :count]) - target).square().mean().sqrt() for count in range(1, 5)]
    assert all(later < 0.6 * earlier for earlier, later in pairwise(errors))


def test_levels_are_their_formula():
    """Stage by stage in float64: the nearest of L values from -1 to 1, of the residual times L^s."""
    levels = torch.tensor([4, 5, 2])
    quantizer = build_quantizer(ResidualFSQConfig(levels=(4, 5, 2), stages=3), 3).double().eval()
    x = torch.randn(2, 40, 3, dtype=torch.float64)
    bound = 1 + 1 / (levels.double() - 1)
    residual, total, codes = torch.tanh(x / bound) * bound, 0.0, []
    for stage in range(3):
        nearest = []
        for dimension, count in enumerate(levels.tolist()):
            values = torch.linspace(-1, 1, count, dtype=torch.float64) / count**stage
            nearest.append((residual[..., dimension, None] - values).abs().argmin(-1))
        digits = torch.stack(nearest, dim=-1)
        chosen = (digits * 2 / (levels - 1).double() - 1) / levels.double() ** stage
        codes.append(digits[..., 0] + 4 * digits[..., 1] + 20 * digits[..., 2])
        total, residual = total + chosen, residual - chosen
    result = quantizer(x)
    assert torch.equal(result.codes, torch.stack(codes, dim=-1))
    # Steps of the double formula are those of float32 where the configuration is divided.
    torch.testing.assert_close(result.quantized, total, rtol=1e-6, atol=1e-7)


@both
@pytest.mark.parametrize("each", [False, True], ids=["once", "each"])
def test_the_gradient_passes_once_or_for_each_stage(config, each):
    quantizer = build_quantizer(replace(config, stage_gradients=each), 2)
    x = (0.2 * torch.randn(2, 9, 2, dtype=torch.float64)).requires_grad_()
    (grad,) = torch.autograd.grad(quantizer(x, torch.tensor([9, 4])).quantized.sum(), x)
    own = x.detach().clone().requires_grad_()
    (slope,) = torch.autograd.grad(quantizer._bounded(own).sum(), own)
    inside = torch.arange(9) < torch.tensor([[9], [4]])
    factor = torch.full_like(grad, 4.0 if each else 1.0)
    if each and config.kind == "rfsq":  # a stage passes nothing where its residual lies beyond its levels
        levels, _ = quantizer._levels(x.device)
        residual, factor = quantizer._bounded(x.detach()), torch.zeros_like(grad)
        for stage in range(4):
            factor += residual.abs() <= quantizer._scale(levels, stage, x.dtype)
            residual = residual - quantizer._round(stage, residual).values
        assert (factor < 4).any()
        assert (factor == 4).any()
    torch.testing.assert_close(grad, slope * factor * inside[..., None])


def test_losses_are_those_of_the_stages_that_a_clip_uses():
    values = {"bits": 3, "stages": 4, "commitment_weight": 0.3, "entropy_weight": 0.2, "dropout": 1.0}
    quantizer = build_quantizer(ResidualLFQConfig(**values, temperature=0.5, dropout_multiple_of=2), 3).double()
    x = batch(clips=12, dim=3, dtype=torch.float64)
    lengths = torch.tensor([20, 4, 13, 0] * 3)
    result = quantizer(x, lengths)
    used = (result.codes >= 0).sum(-1)
    assert set(used[:, 0].tolist()) == {0, 2, 4}
    expected, residual = {"commitment": 0.0, "entropy": 0.0}, x
    for stage in range(4):
        rows = residual[used > stage]
        scale = 2.0**-stage
        signs = torch.where(rows > 0, scale, -scale)
        expected["commitment"] += 0.3 * (rows - signs).square().mean()
        every = torch.tensor([[int(bit) for bit in f"{code:03b}"] for code in range(8)]).double() * 2 * scale - scale
        probability = (-torch.cdist(rows, every).square() / 0.5).softmax(-1)
        entropies = [-(p * p.clamp(min=1e-300).log()).sum(-1) for p in (probability, probability.mean(0))]
        expected["entropy"] += 0.2 * (entropies[0].mean() - entropies[1])
        residual = residual - torch.where(residual > 0, scale, -scale)
    for name, value in expected.items():
        torch.testing.assert_close(result.losses[name], value)
    assert torch.equal(result.quantized, quantizer.decode(result.codes).double())


@both
def test_stages_can_be_left_out_and_decoded(config):
    quantizer = build_quantizer(config, 5)
    codes = quantizer.encode(batch(dim=5))
    dropped = torch.where(torch.arange(4) < 2, codes, -1)
    assert torch.equal(quantizer.decode(codes[..., :2]), quantizer.decode(dropped))
    for count in (0, 5):
        with pytest.raises(ValueError, match=r"codes should have shape \[\.\.\., q\], the first q of the Q = 4 codes"):
            quantizer.decode(torch.zeros(3, count, dtype=torch.int64))


def test_values_that_are_not_finite():
    quantizer = build_quantizer(CONFIGS["rfsq"], 2).eval()
    x = torch.tensor([[torch.nan, 0.1], [torch.inf, -torch.inf]])
    quantized, codes, _ = quantizer(x)
    assert quantized.isnan().tolist() == [[True, False], [False, False]]
    assert (codes[0] % 4 == 0).all()
    assert codes[1, 0] == 3
    assert ((codes >= 0) & (codes < 20)).all()
