"""time_relation_loss, forward and backward, and gram_energy at d = 128, D = 1280, beside eager and torch.compile.

Eager is the loss as one writes it down, without lengths or masks: two Gram matrices and their mean squared difference.
The share of the ceiling counts the products of the algorithm that ran.
"""

import pytest
import torch
import torch.nn.functional as F

from losatok_ext import ops

D, LOW = 1280, 128
HOUR = 90_000


def name(dtype):
    return str(dtype).removeprefix("torch.")


def eager(low, high):
    low, high = F.normalize(low, dim=-1), F.normalize(high, dim=-1)
    return F.mse_loss(low @ low.mT, high @ high.mT)


def eager_window(low, high, window):
    low, high = F.normalize(low, dim=-1), F.normalize(high, dim=-1)
    time = torch.arange(low.shape[1], device=low.device)
    band = (time[:, None] - time).abs() <= window
    return ((low @ low.mT - high @ high.mT).square() * band).sum() / (low.shape[0] * band.sum())


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def inputs(batch, time, dtype, device):
    low = torch.randn(batch, time, LOW, device=device).to(dtype).requires_grad_()
    return low, torch.randn(batch, time, D, device=device).to(dtype)


def step(function, low, *arguments, **options):
    return lambda: torch.autograd.grad(function(low, *arguments, **options), low)


def tiled_flop(batch, time):
    return batch * time**2 * (D + 3 * LOW)


def factored_flop(batch, time, energy_given):
    energy = 0 if energy_given else batch * time * D * min(time, D)
    return batch * time * 4 * LOW * (LOW + D) + energy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize(("batch", "time"), [(8, 250), (64, 250), (8, 750), (1, 750), (1, 7500)])
def test_loss(compare, device, dtype, batch, time):
    low, high = inputs(batch, time, dtype, device)
    compare(
        f"time_relation {name(dtype)} B={batch} T={time}",
        step(ops.time_relation_loss, low, high),
        {"eager": step(eager, low, high), "compile": step(compiled(eager), low, high)},
        factored_flop(batch, time, False) if time > 1400 else tiled_flop(batch, time),
        dtype,
        memory=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize(("batch", "time"), [(8, 250), (8, 750), (1, 7500)])
def test_loss_with_the_energy_given(compare, device, dtype, batch, time):
    low, high = inputs(batch, time, dtype, device)
    energy = ops.gram_energy(high)
    compare(
        f"time_relation {name(dtype)} B={batch} T={time}, high_energy",
        step(ops.time_relation_loss, low, high, high_energy=energy),
        {"eager": step(eager, low, high), "compile": step(compiled(eager), low, high)},
        tiled_flop(batch, time) if time < 400 else factored_flop(batch, time, True),
        dtype,
    )


@pytest.mark.parametrize("window", [1, 25, 250])
def test_window(compare, device, window):
    low, high = inputs(1, 3000, torch.float32, device)
    compare(
        f"time_relation float32 B=1 T=3000 window={window}",
        step(ops.time_relation_loss, low, high, window=window),
        {
            "eager": step(eager_window, low, high, window),
            "compile": step(compiled(eager_window), low, high, window),
        },
        memory=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("window", [None, 250])
def test_an_hour(compare, device, dtype, window):
    """No peer can: a Gram matrix of an hour takes 32 GB."""
    low, high = inputs(1, HOUR, dtype, device)
    compare(
        f"time_relation {name(dtype)} one hour" + (f" window={window}" if window else ""),
        step(ops.time_relation_loss, low, high, window=window),
        {},
        None if window else factored_flop(1, HOUR, False),
        dtype,
        memory=True,
    )


@pytest.mark.parametrize("time", [250, 7500])
def test_gram_energy(compare, device, time):
    _, high = inputs(1, time, torch.float32, device)

    def plain(high):
        rows = F.normalize(high, dim=-1)
        return (rows @ rows.mT).square().sum(dim=(1, 2))

    compare(
        f"gram_energy float32 B=1 T={time}",
        lambda: ops.gram_energy(high),
        {"eager": lambda: plain(high)},
        time * D * min(time, D),
    )
