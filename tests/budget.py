"""The one table of tolerances: how far a result may be from fp64, in terms of what same-dtype PyTorch itself loses.

An op passes when its root-mean-square error against the fp64 reference is at most ``factor`` times the error that the
plain PyTorch reference makes in the same dtype, plus a floor of a few units in the last place (where PyTorch happens to
be exact).
"""

import torch

OUTPUT_FACTOR = 2.0
GRADIENT_FACTOR = 3.0
FLOOR_ULP = 4.0  # in units of the dtype's eps, relative to the root mean square of the fp64 result


def rms(x):
    return x.double().square().mean().sqrt().item() if x.numel() else 0.0


def assert_within_budget(result, same_dtype, exact, *, factor=OUTPUT_FACTOR, name="result"):
    """``result``: the op's; ``same_dtype``: the reference op in that dtype; ``exact``: the reference in fp64."""
    assert result.shape == exact.shape, f"{name}: shape {list(result.shape)}, expected {list(exact.shape)}"
    assert torch.isfinite(result).all(), f"{name} is not finite"
    error = rms(result.cpu().double() - exact.cpu())
    theirs = rms(same_dtype.cpu().double() - exact.cpu())
    floor = FLOOR_ULP * torch.finfo(result.dtype).eps * rms(exact)
    assert error <= factor * theirs + floor, (
        f"{name}: error {error:.3e} against fp64, PyTorch's own {theirs:.3e} in {result.dtype} "
        f"(allowed {factor} x, floor {floor:.1e})"
    )


def assert_op_within_budget(result, theirs, exact, need, dtype, rtol):
    """An op's output and its gradients of the arguments numbered in ``need``: each list holds them in this order.

    In float64 the reference itself is what the error is measured by, and it sums in another order: to ``rtol``, and a
    tenth of that for what is near 0.
    """
    names = ["output", *(f"gradient of argument {i}" for i in need)]
    for name, got, same_dtype, wide in zip(names, result, theirs, exact, strict=True):
        assert got.dtype == dtype
        if dtype == torch.float64:
            torch.testing.assert_close(got, wide, rtol=rtol, atol=rtol / 10, msg=lambda m, name=name: f"{name}: {m}")
        else:
            factor = OUTPUT_FACTOR if name == "output" else GRADIENT_FACTOR
            assert_within_budget(got, same_dtype, wide, factor=factor, name=name)
