"""What the CUDA tests share: they skip, with a reason, where CUDA sources cannot be compiled."""

from pathlib import Path

import pytest

from host_shim import build
from host_shim.ops import ORDERS, shim_ops


def pytest_collection_modifyitems(items):
    reason = build.missing()
    if reason is None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents and "gpu" not in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def ops():
    """The CUDA ops on CPU tensors, threads in forward order unless a test says otherwise."""
    return shim_ops()


@pytest.fixture
def in_every_order(ops):
    """Calls a function once per schedule and asks for the same bits from each; returns the first result."""

    def call(function):
        results = []
        for _, order, seed in ORDERS:
            ops.set_order(order, seed)
            results.append(function())
        ops.set_order(0, 0)
        for (name, *_), result in zip(ORDERS[1:], results[1:], strict=True):
            for i, (got, expected) in enumerate(zip(result, results[0], strict=True)):
                assert got.equal(expected), f"output {i} in {name} order differs from that in forward order"
        return results[0]

    return call
