"""The gradient through the distance between a latent and its code."""

import pytest
import torch
import torch.nn.functional as F

from losatok_ext.nn import ResidualVQConfig, VectorQuantizer, VQConfig, build_quantizer
from nn.quantizer_cases import DIM, batch, spoiled

PLAIN = {"kmeans": False, "dead_below": 0.0}
LENGTHS = torch.tensor([20, 4, 13])


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_gradient_through_the_distance_is_that_of_plain_autograd(noise):
    """x + |c - x| u with constant u, written out with autograd, in float64; c is the sum of the codes of a clip."""
    config = ResidualVQConfig(
        codebook_size=16,
        stages=3,
        codebook="learned",
        gradient="directional",
        direction_noise=noise,
        commitment_weight=0.0,
        codebook_weight=0.0,
        dropout=0.8,
        **PLAIN,
    )
    quantizer = build_quantizer(config, DIM).double()
    books = quantizer.codebooks.codes.detach().clone().requires_grad_()
    x = batch(dtype=torch.float64)
    weights = torch.randn(3, 20, DIM, dtype=torch.float64)
    ours, plain = spoiled(x, LENGTHS).requires_grad_(), x.clone().requires_grad_()
    result = quantizer(ours, LENGTHS)
    assert result.losses == {}
    (result.quantized * weights).sum().backward()

    valid = torch.arange(20) < LENGTHS[:, None]
    codes = result.codes[valid]
    rows = plain[valid]
    target = sum(torch.where(own[:, None] >= 0, book[own], 0.0) for book, own in zip(books, codes.T, strict=True))
    length = (target - rows).norm(dim=-1, keepdim=True)
    direction = F.normalize((result.quantized[valid] - rows).detach(), dim=-1)
    along = (direction * F.normalize((target - rows).detach(), dim=-1)).sum(-1)
    assert (along > 1 - 1e-9).all() if noise == 0 else (along < 1).all() and along.mean() > 0.8
    expected = rows + length * direction
    torch.testing.assert_close(result.quantized[valid], expected)
    (expected * weights[valid]).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    torch.testing.assert_close(quantizer.codebooks.codes.grad, books.grad)
    quantizer.eval()
    again = x.clone().requires_grad_()
    assert torch.equal(quantizer(again, LENGTHS).quantized, quantizer.decode(quantizer.encode(x, LENGTHS)).to(x.dtype))


def test_a_latent_on_its_code_has_a_finite_gradient():
    quantizer = VectorQuantizer(
        VQConfig(codebook_size=8, codebook="learned", gradient="directional", direction_noise=0.0, **PLAIN), DIM
    )
    x = quantizer.codebook[:3].clone().requires_grad_()
    quantized = quantizer(x).quantized
    assert torch.equal(quantized, x)
    (grad,) = torch.autograd.grad(quantized.sum(), x)
    assert (grad == 1).all()
