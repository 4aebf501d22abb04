"""What every implementation of the quantize family is tested on, and what its results must satisfy."""

import torch

from losatok_ext.ops.reference import quantize as reference

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
_TOP, _TINY = torch.finfo(torch.float32).max, 2.0**-149
AFFINE_EXTREMES = [
    [_TOP, -_TOP, 0.0, 1.0],  # the range overflows
    [_TINY, 3 * _TINY, 0.0, 5 * _TINY],  # the scale underflows
    [5.0, 5.0, 5.0, 5.0],
    [1e10, 1e10 + 1024, 1e10 + 2048, 1e10],
    [-0.0, 0.0, -0.0, 0.0],
]
LEAST = 1e-5  # how much farther than the nearest a choice may be, relative to the squared distance


def three_bad_rows():
    """Rows [5, 40], of which the first three hold a value that is not finite."""
    bad = torch.randn(5, 40)
    for row, (column, value) in enumerate(((0, torch.nan), (7, torch.inf), (39, -torch.inf))):
        bad[row, column] = value
    return bad


def rows_and_codes(lead, codes, features, dtype=torch.float32, shift=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, features, generator=generator) + shift
    codebook = torch.randn(codes, features, generator=generator) + shift
    return x.to(dtype), codebook.to(dtype)


def rows_and_codebooks(lead, stages, codes, features, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*lead, features, generator=generator) + 0.5
    shrinking = 0.7 ** torch.arange(stages).view(-1, 1, 1)
    return x.to(dtype), (torch.randn(stages, codes, features, generator=generator) * shrinking).to(dtype)


def _far_from_the_origin():
    codebook = (torch.randn(90, 40) * 1e-2 + 1e4).unique(dim=0)
    return codebook[torch.randperm(len(codebook))], codebook


def _clusters_that_no_centre_serves():
    # |x|^2 is 10^10 times the distances: products know nothing of them.
    centres = torch.randn(3, 1, 32) * 1e4
    codebook = (centres + torch.randn(3, 30, 32) * 0.1).flatten(0, 1)
    return (centres + torch.randn(3, 8, 32) * 0.1).flatten(0, 1), codebook


def _close_codes(apart):
    # Pairs of codes that no product tells apart, ``apart`` from each other: in one lane of the scan, or in two.
    twins = torch.randn(64 // apart, 1, apart, 48)
    codebook = (twins + torch.randn(64 // apart, 2, apart, 48) * 1e-3).reshape(128, 48)
    return codebook[torch.randperm(128)[:40]] + torch.randn(40, 48) * 1e-3, codebook


def _ties():
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randint(-2, 3, (50, 4), generator=generator).float()
    x = torch.randint(-2, 3, (40, 4), generator=generator) + 0.5
    return x, torch.cat([codebook, codebook])


def _scaled(scale):
    x, codebook = rows_and_codes((40,), 90, 24)
    return x * scale, codebook * scale


def _one_far_code():
    x, codebook = rows_and_codes((40,), 100, 64)
    codebook[17] = 1e6
    return x, codebook


def _overflowing_norms():
    codebook = torch.randn(50, 16) * 1e17
    codebook[::2] += 3e19  # |c|^2 is infinite in float32, distances among them are not
    return codebook[:40] * (1 + 1e-3), codebook


def _not_finite():
    x, codebook = rows_and_codes((40,), 80, 8)
    x[0, 3], x[1, 2], x[2] = torch.nan, torch.inf, 1e30
    codebook[0, 1], codebook[5], codebook[79, 7] = torch.nan, torch.inf, -torch.inf
    return x, codebook


HARD = {  # rows (more than 16) and codes of float32 that a search by products could get wrong
    "far from the origin": _far_from_the_origin,
    "clusters": _clusters_that_no_centre_serves,
    "close codes in one lane": lambda: _close_codes(64),
    "close codes in one lane and split": lambda: _close_codes(32),
    "close codes in two lanes": lambda: _close_codes(1),
    "ties": _ties,
    "tiny": lambda: _scaled(1e-20),
    "large": lambda: _scaled(1e17),
    "one far code": _one_far_code,
    "overflowing norms": _overflowing_norms,
    "not finite": _not_finite,
    "nothing finite": lambda: (torch.randn(20, 8), torch.full((9, 8), torch.nan)),
    "few features": lambda: rows_and_codes((40,), 500, 2),
}


def assert_decides(nearest, x, codebook):
    """``nearest(x [N, d], codebook)`` chooses the least distances, whether products go before differences or not.

    Where nothing is at a finite distance, it chooses as the reference does.
    """
    indices, squared_distance = nearest(x, codebook)
    expected, least = (t.cpu() for t in reference.vq_nearest(x.cpu(), codebook.cpu()))
    torch.testing.assert_close(squared_distance.cpu(), least, rtol=LEAST, atol=1e-44, equal_nan=True)
    every = reference.squared_distances(x.cpu(), codebook.cpu())
    chosen = every.gather(-1, indices.cpu()[:, None]).squeeze(-1)
    torch.testing.assert_close(chosen, least, rtol=LEAST, atol=1e-44, equal_nan=True)
    if (codebook == codebook.round()).all():  # every distance is exact: the lowest index of the nearest
        assert torch.equal(indices.cpu(), expected)
    few, as_near = nearest(x[:13], codebook)  # by differences alone
    assert torch.equal(indices[:13], few)
    torch.testing.assert_close(squared_distance[:13], as_near, rtol=0, atol=0, equal_nan=True)


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
