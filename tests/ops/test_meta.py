"""Meta tensors: every op says what it would return, without data."""

import pytest
import torch

from losatok_ext import ops, use_backend
from losatok_ext.ops.dispatch import BackendUnavailableError
from ops.public_calls import public_calls

CALLS = public_calls()


def moved(value, device):
    if isinstance(value, tuple):
        return tuple(moved(each, device) for each in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def facts(results):
    return [(each.shape, each.dtype) for each in (results if isinstance(results, tuple) else (results,))]


def test_every_public_op_is_called():
    assert {name for name, *_ in CALLS} == set(ops.__all__)


@pytest.mark.parametrize(("name", "function", "arguments"), CALLS, ids=[name for name, *_ in CALLS])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_shapes_and_dtypes_are_those_of_the_cpu(name, function, arguments, backend):
    if backend == "reference" and name in ("vq_nearest", "rvq_encode"):
        pytest.skip("its reference asks which rows are finite")
    with use_backend(backend):
        found = function(*moved(arguments, "meta"))
        assert facts(found) == facts(function(*arguments))
    assert all(each.is_meta for each in (found if isinstance(found, tuple) else (found,)))


def test_gradients_have_the_shapes_of_their_inputs():
    q, k, v = (torch.randn(2, 5, 4, 16, device="meta", requires_grad=True) for _ in range(3))
    ops.dit_attention(q, k, v).sum().backward()
    low = torch.randn(2, 5, 4, device="meta", requires_grad=True)
    ops.time_relation_loss(low, torch.randn(2, 5, 8, device="meta")).backward()
    assert all(each.grad.is_meta and each.grad.shape == each.shape for each in (q, k, v, low))


def test_triton_has_no_kernels_for_them():
    with use_backend("triton"), pytest.raises(BackendUnavailableError):
        ops.gram_energy(torch.randn(1, 2, 3, device="meta"))
