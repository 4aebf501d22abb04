"""Codes that are a linear map of fixed vectors: the map alone learns, and moves all codes."""

import pytest
import torch

from losatok_ext.nn import ResidualVQConfig, SimVQ, SimVQConfig, VQConfig, build_quantizer
from nn.quantizer_cases import DIM, batch, spoiled

LENGTHS = torch.tensor([20, 4, 13])


@pytest.mark.parametrize("gradient", ["rotation", "straight_through"])
def test_codes_losses_and_gradients_are_their_formula(gradient):
    config = SimVQConfig(codebook_size=24, frozen_dim=5, gradient=gradient, commitment_weight=0.3, codebook_weight=0.7)
    quantizer = build_quantizer(config, DIM).double()
    assert isinstance(quantizer, SimVQ)
    frozen = quantizer.codebooks.frozen[0]
    weight = quantizer.codebooks.map.detach().clone().requires_grad_()
    x = batch(dtype=torch.float64)
    ours = spoiled(x, LENGTHS).requires_grad_()
    result = quantizer(ours, LENGTHS)
    sum(result.losses.values()).backward()

    table = frozen @ weight[0].T
    valid = torch.arange(20) < LENGTHS[:, None]
    plain = x.clone().requires_grad_()
    rows = plain[valid]
    codes = torch.cdist(rows, table).argmin(-1)
    assert torch.equal(result.codes[valid], codes)
    torch.testing.assert_close(result.quantized[valid], table[codes])
    commitment = 0.3 * (rows - table[codes].detach()).square().mean()
    learned = 0.7 * (rows.detach() - table[codes]).square().mean()
    torch.testing.assert_close(result.losses, {"commitment": commitment, "codebook": learned})
    (commitment + learned).backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    torch.testing.assert_close(quantizer.codebooks.map.grad, weight.grad)


def test_the_fixed_vectors_stay_and_all_codes_move():
    torch.manual_seed(0)
    quantizer = build_quantizer(SimVQConfig(codebook_size=64), DIM)
    assert [name for name, _ in quantizer.named_parameters()] == ["codebooks.map"]
    frozen, before = quantizer.codebooks.frozen.clone(), quantizer.codebooks.tables(1)[0]
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    errors = []
    for _ in range(40):
        losses = quantizer(batch()).losses
        errors.append(losses["codebook"].item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert errors[-1] < 0.7 * errors[0]
    assert torch.equal(quantizer.codebooks.frozen, frozen)
    assert (quantizer.codebooks.tables(1)[0] != before).any(-1).all()


def test_stages_and_their_dropout():
    config = SimVQConfig(codebook_size=16, stages=4, dropout=1.0, min_stages=2, dropout_multiple_of=2)
    quantizer = build_quantizer(config, DIM)
    x = batch(clips=40, time=3)
    result = quantizer(x)
    used = (result.codes >= 0).sum(-1)
    assert set(used.flatten().tolist()) == {2, 4}
    assert torch.equal(result.quantized, quantizer.decode(result.codes))
    errors = [(quantizer.decode(quantizer.encode(x)[..., :count]) - x).square().mean() for count in (1, 4)]
    assert errors[1] < errors[0]


def test_bfloat16_models_keep_their_map_in_float32():
    quantizer = build_quantizer(SimVQConfig(codebook_size=16, codebook_dim=4), DIM).bfloat16()
    assert quantizer.project_in.weight.dtype == torch.bfloat16
    assert quantizer.codebooks.map.dtype == quantizer.codebooks.frozen.dtype == torch.float32
    x = batch(dtype=torch.bfloat16)
    result = quantizer(x)
    assert result.quantized.dtype == torch.bfloat16
    assert torch.equal(quantizer.encode(x), result.codes)


def test_other_kinds_have_no_map():
    for config in (VQConfig(codebook="learned"), ResidualVQConfig(stages=2)):
        assert "codebooks.map" not in build_quantizer(config, DIM).state_dict()
