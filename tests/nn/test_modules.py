"""Blocks and losses against what they are defined to be."""

import math

import pytest
import torch
import torch.nn.functional as F

from losatok_ext.nn import Attention, Bottleneck, ConvNeXtBlock, MultiScaleMelLoss, kl_divergence, masked_mse
from losatok_ext.nn.bottleneck import upsample_tokens

NAN = float("nan")


def test_attention_is_softmax_attention():
    attention = Attention(160, 2)  # head size 80
    x = torch.randn(2, 7, 160)
    lengths = torch.tensor([7, 4])
    q, k, v = attention.qkv(x).view(2, 7, 3, 2, 80).unbind(2)
    scores = torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(80)
    scores = scores.masked_fill(torch.arange(7) >= lengths[:, None, None, None], -math.inf)
    expected = attention.proj(torch.einsum("bhij,bjhc->bihc", scores.softmax(-1), v).flatten(2))
    result = attention(x, lengths)
    torch.testing.assert_close(result[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result[1, :4], expected[1, :4], rtol=1e-5, atol=1e-5)


def test_a_clip_of_no_tokens_gives_no_nan():
    attention = Attention(16, 2)
    assert torch.isfinite(attention(torch.randn(2, 3, 16), torch.tensor([0, 3]))).all()


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_upsampling_is_linear_interpolation_of_each_clip_alone(factor):
    x = torch.randn(3, 6, 5)
    lengths = torch.tensor([6, 3, 0])
    spoiled = torch.where(torch.arange(6)[:, None] < lengths[:, None, None], x, NAN)
    result = upsample_tokens(spoiled, factor, lengths)
    assert result.shape == (3, 6 * factor, 5)
    for row, count in enumerate(lengths.tolist()):
        if count:
            alone = x[row : row + 1, :count].transpose(1, 2)
            expected = F.interpolate(alone, scale_factor=factor, mode="linear", align_corners=False).transpose(1, 2)
            torch.testing.assert_close(result[row, : count * factor], expected[0], rtol=1e-5, atol=1e-6)


def test_convnext_block_is_its_formula():
    block = ConvNeXtBlock(6, 12, 0.5)
    x = torch.randn(2, 9, 6)
    convolved = F.conv1d(x.transpose(1, 2), block.conv.weight, block.conv.bias, padding=3, groups=6).transpose(1, 2)
    hidden = F.gelu(block.fc1(F.layer_norm(convolved, (6,), block.norm.weight, block.norm.bias, 1e-6)))
    torch.testing.assert_close(block(x), x + 0.5 * block.fc2(hidden))


def test_bottleneck_losses_take_no_gradient_to_the_teacher():
    bottleneck = Bottleneck(12, 10, 4)
    features = torch.randn(2, 5, 12, requires_grad=True)
    losses = bottleneck.losses(features, torch.tensor([5, 2]))
    sum(losses.values()).backward()
    assert features.grad is None
    assert all(p.grad is not None and p.grad.any() for p in bottleneck.parameters())
    clean = features.detach().clone()
    clean[1, 2:] = NAN
    again = bottleneck.losses(clean, torch.tensor([5, 2]))
    for name, loss in losses.items():
        torch.testing.assert_close(again[name], loss)


def test_kl_is_that_of_two_normals():
    mu, logvar = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    ours = torch.distributions.Normal(mu, (logvar / 2).exp())
    nats = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).float()
    torch.testing.assert_close(kl_divergence(mu, logvar), nats.sum(-1).mean())
    torch.testing.assert_close(kl_divergence(mu, logvar, clamp=0.7), nats.clamp(min=0.7).sum(-1).mean())
    lengths = torch.tensor([4, 1])
    kept = torch.cat([nats[0, :4], nats[1, :1]])
    mu[1, 1:] = NAN
    logvar[0, 4:] = NAN
    mu.requires_grad_(True)
    masked = kl_divergence(mu, logvar, lengths)
    torch.testing.assert_close(masked, kept.sum(-1).mean())
    masked.backward()
    assert torch.isfinite(mu.grad).all()
    assert not mu.grad[1, 1:].any()


def test_kl_does_not_push_below_its_clamp():
    mu = torch.full((1, 4, 2), 0.01, requires_grad=True)
    kl_divergence(mu, torch.zeros(1, 4, 2), clamp=0.5).backward()
    assert not mu.grad.any()


def test_masked_losses_send_no_gradient_past_a_length():
    x = torch.randn(2, 4, 3, requires_grad=True)
    target = torch.randn(2, 4, 3)
    target[1, 2:] = NAN
    loss = masked_mse(x, target, torch.tensor([4, 2]))
    expected = torch.cat([(x[0] - target[0]).flatten(), (x[1, :2] - target[1, :2]).flatten()]).square().mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[1, 2:].any()
    assert masked_mse(x, target, torch.tensor([0, 0])) == 0


def test_mel_loss_measures_loudness_in_decades():
    loss = MultiScaleMelLoss((256, 512), (20, 40), 16000)
    audio = torch.randn(2, 4000)
    assert loss(audio, audio) == 0
    torch.testing.assert_close(loss(audio / 10, audio), torch.tensor(1.0), rtol=1e-3, atol=1e-3)


def test_mel_loss_hears_nothing_past_a_length():
    loss = MultiScaleMelLoss((64, 512), (10, 40), 16000)
    audio, target = torch.randn(2, 4000), torch.randn(2, 4000)
    lengths = torch.tensor([4000, 1234])
    expected = loss(audio, target, lengths)
    audio[1, 1234:] = NAN
    target[1, 1234:] = NAN
    audio.requires_grad_(True)
    result = loss(audio, target, lengths)
    torch.testing.assert_close(result, expected)
    result.backward()
    assert torch.isfinite(audio.grad).all()
    assert not audio.grad[1, 1234:].any()
    # A clip weighs by its frames: alone, its loss is the loss of a batch of it.
    alone = loss(audio[1:, :1234], target[1:, :1234])
    torch.testing.assert_close(loss(audio[1:], target[1:], lengths[1:]), alone)
