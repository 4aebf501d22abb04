"""The quantize family beside vector-quantize-pytorch, and beside the bare matrix product that any search contains.

The share of the ceiling is that of bfloat16, whatever the dtype of the inputs: candidates come from bfloat16 products
where the processor has a unit for them. Elsewhere they come from float32 products, which are the fastest way to compute
bfloat16 products there and so are its ceiling. On a GPU they come from float16 products, as fast as those of bfloat16.
"""

import pytest
import torch

from losatok_ext import ops

peers = pytest.importorskip("vector_quantize_pytorch")

ROWS, FEATURES = 6000, 128


def rows_and_codes(device, *codes, dtype=torch.float32):
    return torch.randn(ROWS, FEATURES).to(device, dtype), torch.randn(*codes, FEATURES).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("codes", [1024, 8192])
def test_nearest(compare, device, codes, dtype):
    x, codebook = rows_and_codes(device, codes, dtype=dtype)
    peer = peers.VectorQuantize(dim=FEATURES, codebook_size=codes).to(device).eval()
    like_x = codebook.to(dtype)
    with torch.no_grad():
        compare(
            f"vq_nearest {str(dtype).removeprefix('torch.')} N={ROWS} K={codes}",
            lambda: ops.vq_nearest(x, codebook),
            {
                "vector-quantize-pytorch": lambda: peer(x[None]),
                "fast": lambda: ops.vq_nearest(x, codebook, precision="fast"),
                "product": lambda: x @ like_x.T,
            },
            2 * ROWS * codes * FEATURES,
            torch.bfloat16,
            memory=True,
        )


@pytest.mark.parametrize("rows", [1, 25, 250])
def test_few_rows(compare, device, rows):
    """Streaming: one token, one second, one clip."""
    x, codebook = torch.randn(rows, FEATURES, device=device), torch.randn(1024, FEATURES, device=device)
    peer = peers.VectorQuantize(dim=FEATURES, codebook_size=1024).to(device).eval()
    with torch.no_grad():
        compare(
            f"vq_nearest float32 N={rows} K=1024",
            lambda: ops.vq_nearest(x, codebook),
            {"vector-quantize-pytorch": lambda: peer(x[None])},
        )


def test_close_codes(compare, device):
    """The worst for a search by products: clusters so tight that most of a cluster must be decided by differences."""
    centres = torch.randn(8, 1, FEATURES) * 100
    codebook = (centres + torch.randn(8, 128, FEATURES) * 0.05).flatten(0, 1).to(device)
    x = (centres + torch.randn(8, ROWS // 8, FEATURES) * 0.05).flatten(0, 1).to(device)
    peer = peers.VectorQuantize(dim=FEATURES, codebook_size=1024).to(device).eval()
    with torch.no_grad():
        compare(
            f"vq_nearest float32 N={ROWS} K=1024, 8 clusters",
            lambda: ops.vq_nearest(x, codebook),
            {"vector-quantize-pytorch": lambda: peer(x[None])},
        )


def test_nearest_training(compare, device):
    """Distance and both gradients, beside the same written with cdist."""
    x, codebook = rows_and_codes(device, 1024)
    x.requires_grad_()
    codebook.requires_grad_()

    def ours():
        return torch.autograd.grad(ops.vq_nearest(x, codebook)[1].sum(), [x, codebook])

    def eager():
        indices = torch.cdist(x.detach(), codebook.detach()).argmin(-1)
        return torch.autograd.grad((x - codebook[indices]).square().sum(), [x, codebook])

    compare(f"vq_nearest + backward float32 N={ROWS} K=1024", ours, {"eager": eager}, memory=True)


def test_residual(compare, device):
    stages, codes = 8, 1024
    x, codebooks = rows_and_codes(device, stages, codes)
    peer = peers.ResidualVQ(dim=FEATURES, codebook_size=codes, num_quantizers=stages).to(device).eval()
    with torch.no_grad():
        compare(
            f"rvq_encode float32 N={ROWS} Q={stages} K={codes}",
            lambda: ops.rvq_encode(x, codebooks),
            {"vector-quantize-pytorch": lambda: peer(x[None]), "product": lambda: [x @ c.T for c in codebooks]},
            2 * ROWS * stages * codes * FEATURES,
            torch.bfloat16,
            memory=True,
        )


def test_residual_decode(compare, device):
    stages, codes = 8, 1024
    x, codebooks = rows_and_codes(device, stages, codes)
    peer = peers.ResidualVQ(dim=FEATURES, codebook_size=codes, num_quantizers=stages).to(device).eval()
    with torch.no_grad():
        chosen, _ = ops.rvq_encode(x, codebooks)
        compare(
            f"rvq_decode float32 N={ROWS} Q={stages} K={codes}",
            lambda: ops.rvq_decode(chosen, codebooks),
            {"vector-quantize-pytorch": lambda: peer.get_output_from_indices(chosen[None])},
        )


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_finite_levels(compare, device, training):
    levels, rows = (8, 5, 5, 5), 60_000
    x = torch.randn(1, rows, len(levels), device=device, requires_grad=training)
    peer = peers.FSQ(list(levels)).to(device)

    def step(function):
        if not training:
            return lambda: function(x)
        return lambda: torch.autograd.grad(function(x)[0].sum(), x)

    with torch.set_grad_enabled(training):
        compare(
            f"fsq_quantize{' + backward' if training else ''} float32 N={rows}",
            step(lambda x: ops.fsq_quantize(x, levels)),
            {"vector-quantize-pytorch": step(peer)},
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_affine(compare, device, bits):
    x = torch.randn(60_000, FEATURES, device=device)

    def eager():
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        scale = (high - low) / (2**bits - 1)
        q = ((x - low) / scale).round_().to(torch.uint8)
        return (q if bits == 8 else q[:, 0::2] | q[:, 1::2] << 4), scale, low

    compare(f"affine_quantize {bits} bits N={len(x)}", lambda: ops.affine_quantize(x, bits), {"eager": eager})


@pytest.mark.parametrize("bits", [8, 4])
def test_affine_back(compare, device, bits):
    packed, scale, offset = ops.affine_quantize(torch.randn(60_000, FEATURES, device=device), bits)

    def eager():
        q = packed if bits == 8 else torch.stack((packed & 15, packed >> 4), -1).flatten(1)
        return q * scale + offset

    label = f"affine_dequantize {bits} bits N={len(packed)}"
    compare(label, lambda: ops.affine_dequantize(packed, scale, offset, bits), {"eager": eager})


def test_finite_levels_back(compare, device):
    levels, rows = (8, 5, 5, 5), 60_000
    indices = torch.randint(0, 1000, (1, rows), device=device)
    peer = peers.FSQ(list(levels)).to(device)
    compare(
        f"fsq_dequantize float32 N={rows}",
        lambda: ops.fsq_dequantize(indices, levels),
        {"vector-quantize-pytorch": lambda: peer.indices_to_codes(indices)},
    )
