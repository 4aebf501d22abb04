"""Codes that the optimizer moves, beside vector-quantize-pytorch: the same codes, losses, gradients and steps."""

import pytest
import torch

from losatok_ext.nn import SimVQ, from_vector_quantize_pytorch
from nn.quantizer_cases import batch

peers = pytest.importorskip("vector_quantize_pytorch")

DIM = 16
LENGTHS = torch.tensor([20, 4, 13])


def steps_of(*modules):
    """A function that takes a loss and a latent of each module, compares the gradients and steps."""
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.01) for module in modules]

    def step(*pairs):
        for optimizer in optimizers:
            optimizer.zero_grad()
        for loss, _ in pairs:
            loss.backward()
        torch.testing.assert_close(*(x.grad for _, x in pairs), rtol=1e-4, atol=1e-5)
        for optimizer in optimizers:
            optimizer.step()

    return step


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: peers.SimVQ(dim=DIM, codebook_size=32),
        lambda: peers.SimVQ(dim=DIM, codebook_size=32, frozen_codebook_dim=6, rotation_trick=False),
        lambda: peers.SimVQ(dim=DIM, codebook_size=32, commitment_weight=0.5, input_to_quantize_commit_loss_weight=0.7),
        lambda: peers.ResidualSimVQ(dim=DIM, codebook_size=24, num_quantizers=3, rotation_trick=False),
    ],
    ids=["rotation", "straight-through", "weighted", "residual"],
)
def test_sim_vq_trains_alike(make, lengths):
    theirs = make().train()
    ours = from_vector_quantize_pytorch(theirs)
    assert isinstance(ours, SimVQ)
    step = steps_of(ours, theirs)
    valid = torch.ones(3, 20, dtype=torch.bool) if lengths is None else torch.arange(20) < lengths[:, None]
    for number in range(4):
        x, weights = batch(dim=DIM, seed=number), torch.randn(3, 20, DIM)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        result = ours(mine, lengths)
        quantized, codes, loss = theirs(other[valid].unsqueeze(0))  # theirs takes no mask
        assert torch.equal(result.codes[valid], codes[0])
        torch.testing.assert_close(result.quantized[valid], quantized[0], rtol=1e-4, atol=1e-5)
        told_twice = ours.config.commitment_weight / ours.config.codebook_weight  # one distance, weighted as two losses
        assert told_twice == pytest.approx(result.losses["commitment"].item() / result.losses["codebook"].item())
        losses = sum(result.losses.values()), loss.sum()
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4)
        own = (result.quantized[valid] * weights[valid]).sum() + losses[0]
        step((own, mine), ((quantized[0] * weights[valid]).sum() + losses[1], other))
        layers = getattr(theirs, "layers", [theirs])
        learned = torch.stack([layer.code_transform.weight for layer in layers])
        torch.testing.assert_close(ours.codebooks.map, learned, rtol=1e-4, atol=1e-5)
    codes = theirs.eval()(x)[1]
    assert torch.equal(ours.eval()(x).codes, codes)
    decoded = theirs.get_output_from_indices(codes) if ours.code_dim else theirs.indices_to_codes(codes)
    torch.testing.assert_close(ours.decode(codes), decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: peers.VectorQuantize(
            DIM, 32, directional_reparam=True, threshold_ema_dead_code=1e-6, directional_reparam_variance=0.02
        ),
        lambda: peers.VectorQuantize(DIM, 32, directional_reparam=True, threshold_ema_dead_code=1e-6, codebook_dim=6),
        lambda: peers.ResidualVQ(dim=DIM, codebook_size=24, num_quantizers=3, diveq=True),
        lambda: peers.ResidualVQ(dim=DIM, codebook_size=24, num_quantizers=3, diveq=True, codebook_dim=6),
    ],
    ids=["vector", "vector-projected", "residual", "residual-projected"],
)
def test_diveq_trains_alike(make, lengths, monkeypatch):
    theirs = make().train()
    ours = from_vector_quantize_pytorch(theirs)
    assert ours.config.gradient == "directional"
    step = steps_of(ours, theirs)
    valid = torch.ones(3, 20, dtype=torch.bool) if lengths is None else torch.arange(20) < lengths[:, None]
    masked = {} if lengths is None else {"mask": valid}
    noise = torch.randn(3, 20, ours.inner_dim)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.view(like.shape))
    monkeypatch.setattr("losatok_ext.nn.quantizers.chain.normal", lambda *_, **__: noise)
    for number in range(4):
        x, weights = batch(dim=DIM, seed=number), torch.randn(3, 20, DIM)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        result = ours(mine, lengths)
        quantized, codes, loss = theirs(other, **masked)
        assert torch.equal(result.codes[valid], codes[valid])
        assert result.losses == {}
        assert not loss.any()
        torch.testing.assert_close(result.quantized[valid], quantized[valid], rtol=1e-4, atol=1e-5)
        step(((result.quantized * weights).sum(), mine), ((quantized * weights).sum(), other))
        layers = getattr(theirs, "layers", [theirs])
        codebooks = torch.cat([layer._codebook.embed for layer in layers])
        torch.testing.assert_close(ours.codebooks.codes, codebooks, rtol=1e-4, atol=1e-5)
    codes = theirs.eval()(x)[1]
    result = ours.eval()(x)
    assert torch.equal(result.codes, codes)
    expected = theirs.get_output_from_indices(codes)  # their ResidualVQ adds noise in eval too
    torch.testing.assert_close(result.quantized, expected, rtol=1e-4, atol=1e-5)
