"""Rounding beside vector-quantize-pytorch: the same codes, values, losses and gradients."""

import pytest
import torch

from losatok_ext.nn import FSQ, LFQ, from_vector_quantize_pytorch
from nn.quantizer_cases import batch, in_our_order

peers = pytest.importorskip("vector_quantize_pytorch")

LENGTHS = torch.tensor([20, 4, 13])
RESIDUAL_FSQ = {"levels": [8, 5, 2, 3], "num_quantizers": 3}
RESIDUAL_LFQ = {"codebook_size": 32, "num_quantizers": 3, "commitment_loss_weight": 0.25, "entropy_loss_weight": 0.0}


@pytest.mark.parametrize("options", [{}, {"dim": 10}, {"num_codebooks": 2}, {"num_codebooks": 2, "dim": 7}], ids=str)
def test_fsq_is_alike(options):
    theirs = peers.FSQ(levels=[8, 5, 5, 3], **options)
    ours = from_vector_quantize_pytorch(theirs)
    assert isinstance(ours, FSQ)
    for x in (batch(dim=theirs.dim), 3 * batch(dim=theirs.dim, seed=1)):
        weights = torch.randn_like(x)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        result, (quantized, codes) = ours(mine), theirs(other)
        same = result.codes == codes
        assert same.double().mean() > 0.99  # a value between two levels falls either way
        kept = same if same.dim() == 2 else same.all(-1)
        torch.testing.assert_close(result.quantized[kept], quantized[kept], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.decode(codes), theirs.indices_to_codes(codes), rtol=1e-4, atol=1e-5)
        (result.quantized * weights).sum().backward()
        (quantized * weights).sum().backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ordered"),
    [
        (lambda: peers.ResidualFSQ(**RESIDUAL_FSQ), lambda codes: codes),
        (lambda: peers.ResidualFSQ(**RESIDUAL_FSQ, dim=10), lambda codes: codes),
        (lambda: peers.GroupedResidualFSQ(**RESIDUAL_FSQ, dim=12, groups=2), in_our_order),
        (lambda: peers.ResidualLFQ(**RESIDUAL_LFQ, dim=5), lambda codes: codes),
        (lambda: peers.ResidualLFQ(**RESIDUAL_LFQ, dim=10), lambda codes: codes),
        (lambda: peers.ResidualLFQ(**{**RESIDUAL_LFQ, "entropy_loss_weight": 0.1}, dim=10), lambda codes: codes),
        (lambda: peers.GroupedResidualLFQ(**RESIDUAL_LFQ, dim=12, groups=2), in_our_order),
    ],
    ids=["fsq", "fsq-projected", "fsq-grouped", "lfq", "lfq-projected", "lfq-entropy", "lfq-grouped"],
)
def test_residual_rounding_is_alike(theirs, ordered, request):
    theirs = theirs()
    # Theirs leaves the logarithm of a probability below 1e-5 at that.
    close = {"rtol": 2e-2, "atol": 2e-3} if "entropy" in request.node.name else {"rtol": 1e-5, "atol": 1e-6}
    ours = from_vector_quantize_pytorch(theirs)
    width = ours.dim
    for seed in range(3):
        x = batch(dim=width, seed=seed)
        weights = torch.randn_like(x)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        result, (quantized, codes, *loss) = ours(mine), theirs(other)
        assert torch.equal(result.codes, ordered(codes))
        torch.testing.assert_close(result.quantized, quantized, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            ours.decode(ordered(codes)), theirs.get_output_from_indices(codes), rtol=1e-5, atol=1e-6
        )
        own = (result.quantized * weights).sum() + sum(result.losses.values())
        expected = (quantized * weights).sum() + sum(part.sum() for part in loss)
        assert own.item() == pytest.approx(expected.item(), rel=2e-3, abs=2e-3)
        torch.testing.assert_close(*torch.autograd.grad(own, mine), *torch.autograd.grad(expected, other), **close)
    assert torch.equal(ours.eval()(x).codes, ordered(theirs.eval()(x)[1]))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])
@pytest.mark.parametrize(
    "options",
    [
        {"codebook_size": 256},
        {"codebook_size": 64, "dim": 10, "commitment_loss_weight": 0.25},
        {"codebook_size": 16, "num_codebooks": 3, "codebook_scale": 0.5, "diversity_gamma": 2.0},
    ],
    ids=str,
)
def test_lfq_is_alike(options, lengths):
    theirs = peers.LFQ(**options)
    ours = from_vector_quantize_pytorch(theirs)
    assert isinstance(ours, LFQ)
    valid = torch.arange(20) < (torch.tensor([20] * 3) if lengths is None else lengths)[:, None]
    for seed in range(3):
        # Near 0, or the softmax at temperature 0.01 is all on one code and no gradient of it is left to compare.
        x = 0.02 * batch(dim=theirs.dim, seed=seed)
        mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        # The valid frames alone: with a mask, theirs takes no mean over the frames in the entropy of the batch.
        result, (quantized, codes, loss) = ours(mine, lengths), theirs(other[valid].unsqueeze(0))
        assert torch.equal(result.codes[valid], codes[0])
        torch.testing.assert_close(result.quantized[valid], quantized[0])
        # Theirs leaves the logarithm of a probability below 1e-5 at that.
        assert sum(result.losses.values()).item() == pytest.approx(loss.item(), rel=2e-3, abs=2e-3)
        torch.testing.assert_close(ours.decode(codes), theirs.indices_to_codes(codes))
        (result.quantized[valid].sum() + sum(result.losses.values())).backward()
        (quantized.sum() + loss).backward()
        torch.testing.assert_close(mine.grad, other.grad, rtol=2e-2, atol=2e-3)
