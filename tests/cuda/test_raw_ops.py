"""The bindings of the CUDA kernels with wrong arguments, and kernels with codes that are not there."""

import pytest
import torch

from ops.hostile_calls import in_a_child


def test_no_wrong_argument_ends_the_process(ops):  # the fixture: compiled here, not in the child
    calls, refused = in_a_child("cuda")
    assert calls > 2000
    assert refused > calls / 2


@pytest.mark.parametrize("code", [-1, -5, 4, 2**40])
def test_a_code_that_is_not_there_has_no_gradient(ops, code):
    torch.manual_seed(0)
    x, codebook, grad = torch.randn(1, 3, 5), torch.randn(4, 5), torch.ones(1, 3)
    indices = torch.tensor([[1, code, 2]])
    grad_x, grad_codebook = ops("vq_nearest_backward", grad, x, codebook, indices, True, True)
    assert grad_x[0, 1].eq(0).all()
    torch.testing.assert_close(grad_x[0, ::2], 2 * (x[0, ::2] - codebook[1:3]))
    torch.testing.assert_close(grad_codebook[1:3], 2 * (codebook[1:3] - x[0, ::2]))
    assert grad_codebook[::3].eq(0).all()
