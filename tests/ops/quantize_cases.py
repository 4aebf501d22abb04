"""What every implementation of the quantize family is tested on, and what its results must satisfy."""

import torch

SHAPES = [  # leading sizes of x, codes K, features d
    ((70,), 33, 5),
    ((3, 41), 100, 128),
    ((2, 2, 9), 7, 16),
    ((20,), 1, 4),
    ((40,), 64, 1),
    ((17,), 300, 33),
    ((65,), 257, 300),
    ((1,), 12, 8),
    ((0,), 5, 8),
    ((2, 0), 5, 8),
    ((), 9, 3),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LEVELS = [(8, 5, 5, 5), (4, 3), (2, 2, 2, 2, 2), (7,), (1000, 5), (65536, 3), (3,) * 30]
LEAST = 1e-5  # how much farther than the nearest a choice may be, relative to the squared distance


def rows_and_codes(lead, codes, features, dtype=torch.float32, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, features, generator=generator) + shift
    codebook = torch.randn(codes, features, generator=generator) + shift
    return x.to(dtype), codebook.to(dtype)


def distances(x, codebook):
    """[..., K] in float64, by differences: a few rows at a time."""
    rows = x.double().reshape(-1, x.shape[-1])
    parts = [(part[:, None] - codebook.double()).square().sum(-1) for part in rows.split(64)]
    return torch.cat(parts).view(*x.shape[:-1], codebook.shape[0])


def assert_nearest(x, codebook, indices, squared_distance, slack=0.0):
    """Indices are in range; what they chose is the least distance, and the distance told is its own."""
    assert indices.dtype == torch.int64
    assert indices.shape == squared_distance.shape == x.shape[:-1]
    if not indices.numel():
        return
    assert 0 <= indices.min() <= indices.max() < codebook.shape[0]
    every = distances(x, codebook)
    chosen = every.gather(-1, indices.unsqueeze(-1)).squeeze(-1)
    least = every.min(-1).values
    assert (chosen <= least * (1 + LEAST) + slack).all(), ((chosen - least) / least).max()
    torch.testing.assert_close(squared_distance.double(), chosen, rtol=LEAST, atol=1e-37)


def assert_chain(x, codebooks, codes, quantized):
    """Each stage chose the nearest code of what the stages before it left, within the rounding of that residual."""
    residual = x.double()
    for q in range(codebooks.shape[0]):
        every = distances(residual, codebooks[q])
        chosen = every.gather(-1, codes[..., q : q + 1]).squeeze(-1)
        least = every.min(-1).values
        rounding = (q + 1) * 2.0**-24 * (x.double().norm(dim=-1) + codebooks.double().norm(dim=-1).max() * q)
        if x.dtype == torch.float64:
            rounding = rounding * 2.0**-29
        assert (chosen <= least * (1 + LEAST) + 4 * rounding * least.sqrt() + 4 * rounding.square()).all()
        residual = residual - codebooks[q].double()[codes[..., q]]
    exact = sum(codebooks[q].double()[codes[..., q]] for q in range(codebooks.shape[0]))
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(x.dtype, 2 * torch.finfo(x.dtype).eps)
    torch.testing.assert_close(quantized.double(), exact, rtol=tolerance, atol=tolerance * 4)
    assert quantized.dtype == x.dtype
