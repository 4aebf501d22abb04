"""Runs the cases of raw ops through ``torch.library.opcheck``: their schemas, fake implementations and tracing.

A test file yields the cases of its ops, and :func:`opchecked` makes a test of them for every backend that has the ops::

    @opchecked("gated_residual_forward", "gated_residual_backward")
    def test_raw_gated_residual(dtype, device):
        yield "gated_residual_forward", (x, branch, gate)
        yield "gated_residual_backward", (grad, branch, gate)
"""

import pytest
import torch

from losatok_ext.ops.registry import OPS

CASES = {}
"""By raw op, the decorated function that yields its cases; of those test files that were imported."""

CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def opchecked(*names, dtypes=(torch.float32, torch.bfloat16, torch.float64)):
    """Decorator: a test of the cases (raw op's name, arguments) that the function yields for a dtype and a device.

    The native ops take each of ``dtypes``, on the CPU. The Triton ops, which have one fake implementation with the
    native ones, take float32, on the GPU or in the interpreter. The cases should be of all of ``names``, and no others.
    """
    declared = [op for op in OPS.values() if op.schemas.keys() & set(names)]
    runs = [("native", dtype) for dtype in dtypes]
    if all(op.triton is not None for op in declared):
        runs.append(("triton", torch.float32))

    def decorate(cases):
        CASES.update(dict.fromkeys(names, cases))

        @pytest.mark.parametrize(("backend", "dtype"), runs, ids=str)
        def test(backend, dtype, device):
            namespace = torch.ops.losatok
            if backend == "triton":
                from ops.triton_cases import needs_working_triton

                if needs_working_triton.args[0]:
                    pytest.skip(needs_working_triton.kwargs["reason"])
                namespace = torch.ops.losatok_triton
            seen = set()
            for name, arguments in cases(dtype, device if backend == "triton" else torch.device("cpu")):
                torch.library.opcheck(getattr(namespace, name).default, arguments, test_utils=CHECKS)
                seen.add(name)
            assert seen == set(names)

        test.__doc__ = cases.__doc__
        return test

    return decorate
