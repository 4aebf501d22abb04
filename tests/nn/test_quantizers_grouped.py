"""Groups of features: each is what its own quantizer makes of it."""

import copy

import pytest
import torch

from losatok_ext.errors import ConfigError
from losatok_ext.nn import FSQConfig, GroupedConfig, ResidualVQConfig, VQConfig, build_quantizer
from nn.quantizer_cases import DIM, batch, total

LENGTHS = torch.tensor([20, 4, 13])
EACH = ResidualVQConfig(codebook_size=8, stages=4, dropout=0.7, min_stages=1, dropout_multiple_of=2)


def test_each_group_is_quantized_alone():
    quantizer = build_quantizer(GroupedConfig(2, ResidualVQConfig(codebook_size=8, stages=3, codebook_dim=3)), DIM)
    quantizer(batch(), LENGTHS)
    groups = copy.deepcopy(quantizer.quantizers)
    x = batch(seed=1).requires_grad_()
    torch.manual_seed(4)
    result = quantizer(x, LENGTHS)
    (grad,) = torch.autograd.grad(total(result), x)
    torch.manual_seed(4)
    weights = torch.linspace(-1, 1, DIM).chunk(2)
    loss, parts = torch.zeros(()), []
    own = x.detach().clone().requires_grad_()
    for group, part, weight in zip(groups, own.chunk(2, dim=-1), weights, strict=True):
        parts.append(group(part, LENGTHS))
        loss = loss + (parts[-1].quantized * weight).sum() + parts[-1].losses["commitment"]
    torch.testing.assert_close(grad, torch.autograd.grad(loss, own)[0])
    assert torch.equal(result.quantized, torch.cat([part.quantized for part in parts], dim=-1))
    torch.testing.assert_close(result.losses["commitment"], sum(part.losses["commitment"] for part in parts))
    assert result.codes.shape == (3, 20, 6)
    for number, part in enumerate(parts):
        assert torch.equal(result.codes[..., number::2], part.codes)
    for group, twin in zip(quantizer.quantizers, groups, strict=True):
        assert torch.equal(group.codebooks.codes, twin.codebooks.codes)


def test_a_clip_uses_as_many_stages_in_every_group():
    quantizer = build_quantizer(GroupedConfig(4, EACH), DIM)
    assert (quantizer(batch()).codes >= 0).all()  # the batch that the codebooks start from
    codes = quantizer(batch(clips=60, time=3)).codes.unflatten(-1, (4, 4))
    used = (codes >= 0).sum(-2)
    assert (used == used[:, :1, :1]).all()
    assert set(used.flatten().tolist()) == {2, 4}


def test_the_first_stages_of_all_groups_decode():
    quantizer = build_quantizer(GroupedConfig(4, EACH), DIM).eval()
    x = batch()
    codes = quantizer.encode(x)
    kept = torch.where(torch.arange(16) < 8, codes, -1)
    assert torch.equal(quantizer.decode(codes[..., :8]), quantizer.decode(kept))
    for count in (6, 20):
        with pytest.raises(ValueError, match=r"codes should have shape \[\.\.\., "):
            quantizer.decode(torch.zeros(2, count, dtype=torch.int64))


def test_groups_of_one_code_have_one_each():
    quantizer = build_quantizer(GroupedConfig(2, VQConfig(codebook_size=16)), DIM).eval()
    assert quantizer.encode(batch()).shape == (3, 20, 2)
    with pytest.raises(ValueError, match=r"codes should have shape \[\.\.\., n 2\]"):
        quantizer.decode(torch.zeros(3, 20, 4, dtype=torch.int64))
    twice = build_quantizer(GroupedConfig(2, FSQConfig((3, 4), num_codebooks=3)), 10)
    assert twice.encode(torch.randn(2, 5, 10)).shape == (2, 5, 6)


def test_groups_divide_the_features():
    with pytest.raises(ConfigError, match="groups should divide the 8 features of the latent, got 3"):
        build_quantizer(GroupedConfig(3), DIM)
