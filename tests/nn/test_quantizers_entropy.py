"""The entropy loss of lookup-free quantization against all codes written out, and codes of signs."""

import pytest
import torch

from losatok_ext.nn import LFQ, LFQConfig
from losatok_ext.nn.quantizers.lookup_free import entropy_loss, joint

LENGTHS = torch.tensor([9, 0, 4])


def every_code(bits, scale):
    signs = (torch.arange(2**bits)[:, None] >> torch.arange(bits - 1, -1, -1)) % 2
    return scale * (2.0 * signs.double() - 1)


def written_out(x, config):
    """With the [N, 2^bits] softmax over all codes."""
    distance = (x.unsqueeze(-2) - every_code(config.bits, config.scale)).square().sum(-1)
    p = (-distance / config.temperature).softmax(-1)
    entropy = torch.special.entr
    mean = p.flatten(0, -3).mean(0)
    return entropy(p).sum(-1).mean() - config.diversity * entropy(mean).sum(-1).mean()


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_entropy_is_that_of_all_codes(bits):
    config = LFQConfig(bits=bits, num_codebooks=2, scale=0.7, temperature=0.8, diversity=1.3)
    x = torch.randn(3, 9, 2, bits, dtype=torch.float64)
    kept = torch.arange(9) < LENGTHS[:, None]
    for lengths in (None, LENGTHS):
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        clean = mine if lengths is None else torch.where(kept[..., None, None], mine, 0)
        loss = entropy_loss(clean, lengths, config, config.scale)
        expected = written_out(other if lengths is None else other[kept].unsqueeze(0), config)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, mine)[0], torch.autograd.grad(expected, other)[0])


def test_groups_bound_the_joint_entropy_from_above():
    x = torch.randn(3, 9, 1, 8, dtype=torch.float64)
    options = {"bits": 8, "temperature": 1.0}
    losses = [entropy_loss(x, None, LFQConfig(entropy_group=group, **options), 1.0) for group in (8, 4, 1)]
    assert losses[0] > losses[1] > losses[2]
    independent = x.clone()
    independent[..., 4:] = 0.3  # a constant half is independent of the other
    whole, halves = (
        entropy_loss(independent, None, LFQConfig(entropy_group=group, **options), 1.0) for group in (8, 4)
    )
    torch.testing.assert_close(whole, halves)


def test_joint_probabilities_add_up_to_one():
    p = torch.rand(4, 3, dtype=torch.float64)
    every = joint(p)
    assert every.shape == (4, 8)
    torch.testing.assert_close(every.sum(-1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(every[:, -1], p.prod(-1))


def test_many_bits_take_little_memory_and_stay_finite():
    quantizer = LFQ(LFQConfig(bits=40, entropy_group=12), 40)
    x = (30 * torch.randn(2, 50, 40)).requires_grad_()
    result = quantizer(x)
    sum(result.losses.values()).backward()
    assert torch.isfinite(x.grad).all()
    assert result.codes.max() > 2**32
    assert torch.equal(quantizer.decode(result.codes), result.quantized)


@pytest.mark.parametrize("bits", [1, 7, 62])
def test_codes_are_the_signs(bits):
    quantizer = LFQ(LFQConfig(bits=bits, scale=0.5), bits).eval()
    x = torch.randn(30, bits)
    x[0], x[1] = -1.0, 1.0
    quantized, codes, _ = quantizer(x)
    assert codes[0] == 0
    assert codes[1] == 2**bits - 1
    assert torch.equal(quantized, torch.where(x > 0, 0.5, -0.5))
    weights = 2 ** torch.arange(bits - 1, -1, -1)
    assert torch.equal(codes, ((x > 0) * weights).sum(-1))


def test_commitment_is_the_mean_square():
    quantizer = LFQ(LFQConfig(bits=4, commitment_weight=0.5, entropy_weight=0.0), 4)
    x = torch.randn(2, 6, 4, requires_grad=True)
    losses = quantizer(x, torch.tensor([6, 1])).losses
    assert set(losses) == {"commitment"}
    rows = torch.cat((x[0], x[1, :1]))
    torch.testing.assert_close(losses["commitment"], 0.5 * (rows - rows.sign().detach()).square().mean())
