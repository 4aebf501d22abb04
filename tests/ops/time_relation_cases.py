"""What every implementation of the time-relation ops is tested on, whichever its backend, device and dtype."""

from dataclasses import dataclass

import torch

import losatok_ext
from budget import GRADIENT_FACTOR, OUTPUT_FACTOR, assert_within_budget
from losatok_ext import ops
from losatok_ext.ops.reference import time_relation as reference
from losatok_ext.ops.time_relation import FACTORED_ERROR


@dataclass(frozen=True)
class Case:
    batch: int
    time: int
    low: int
    high: int
    lengths: tuple[int, ...] | None = None
    window: int | None = None
    likeness: float = 0.0  # 0: low has nothing to do with high; towards 1: the loss goes to 0 (needs low == high)

    def __str__(self):
        text = f"{self.batch}x{self.time}x{self.low}x{self.high}"
        text += "" if self.lengths is None else "-to" + "_".join(map(str, self.lengths))
        text += "" if self.window is None else f"-window{self.window}"
        return text + (f"-like{self.likeness}" if self.likeness else "")

    @property
    def algorithms(self):
        """Those that the arguments allow."""
        if self.window is None:
            return ("auto", "tiled", "factored")
        whole = self.window >= self.time - 1
        return ("auto", "tiled", "banded", *(("factored",) if whole else ()))

    def make(self, dtype=torch.float32, device="cpu", seed=0):
        """low [B, T, d], high [B, T, D], lengths [B] or None."""
        generator = torch.Generator().manual_seed(seed)
        high = torch.randn(self.batch, self.time, self.high, generator=generator, dtype=torch.float64)
        # neighbouring frames are alike, as they are in audio
        if self.time > 1:
            high[:, 1:] += high[:, :-1].clone()
        noise = torch.randn(self.batch, self.time, self.low, generator=generator, dtype=torch.float64)
        if self.likeness:
            rotation, _ = torch.linalg.qr(torch.randn(self.high, self.high, generator=generator, dtype=torch.float64))
            noise = self.likeness * (high @ rotation) + (1 - self.likeness) * noise
        lengths = None if self.lengths is None else torch.tensor(self.lengths, device=device)
        return noise.to(device, dtype), high.to(device, dtype), lengths


SMALL = (  # for any implementation, an interpreter included
    Case(2, 5, 3, 7),
    Case(1, 2, 2, 1),
    Case(3, 37, 16, 40, lengths=(37, 17, 0)),
    Case(2, 33, 12, 9, lengths=(1, 30)),
    Case(2, 33, 5, 8, window=32),
    Case(2, 40, 6, 21, window=1),
    Case(3, 50, 8, 19, lengths=(50, 25, 3), window=7),
    Case(2, 24, 16, 16, likeness=0.9),
)
LARGE = (  # several tiles, panels and blocks
    Case(2, 300, 32, 70, lengths=(300, 163)),
    Case(1, 1300, 8, 20),
    Case(1, 2500, 4, 12, lengths=(2401,)),
    Case(1, 1100, 8, 24, window=150),
    Case(1, 700, 16, 33, window=5),
    Case(5, 130, 16, 48, lengths=(130, 0, 7, 130, 60)),
    Case(2, 260, 24, 24, likeness=0.95),
)
CASES = SMALL + LARGE


def run(low, high, lengths=None, window=None, backend=None, **options):
    """The loss and its gradient by ``low``."""
    low = low.detach().clone().requires_grad_()
    if backend is None:
        loss = ops.time_relation_loss(low, high, lengths, window, **options)
    else:
        with losatok_ext.use_backend(backend):
            loss = ops.time_relation_loss(low, high, lengths, window, **options)
    loss.backward()
    return loss.detach(), low.grad


def run_reference(low, high, lengths=None, window=None):
    low = low.detach().clone().requires_grad_()
    loss = reference.time_relation_loss(low, high, lengths, window)
    loss.backward()
    return loss.detach(), low.grad


def rms(x):
    return x.double().square().mean().sqrt().item()


def assert_as_exact(result, theirs, exact, name, factor=OUTPUT_FACTOR):
    """Within the budget; in float64, where the reference is itself the exact one, to ten digits."""
    if result.dtype == torch.float64:
        assert rms(result - exact) <= 1e-10 * rms(exact), name
    else:
        assert_within_budget(result, theirs, exact, factor=factor, name=name)


def assert_factored_bound(loss, grad, low, high, exact, exact_grad):
    """One clip or several, all pairs, float32: the errors that the docstring admits for the factored form."""
    unit, teacher = (reference.normalized_rows(x.double()) for x in (low, high))
    pairs = low.shape[0] * low.shape[1] ** 2
    size = ((unit.mT @ unit).square().sum() + (teacher.mT @ teacher).square().sum()).item() / pairs
    assert abs(loss.item() - exact.item()) <= FACTORED_ERROR * size
    terms = (unit @ (unit.mT @ unit)).norm(dim=-1) + (teacher @ (teacher.mT @ unit)).norm(dim=-1)
    size = 4 / pairs * terms / low.double().norm(dim=-1)  # of each row of the gradient's two terms
    assert rms((grad - exact_grad).norm(dim=-1)) <= FACTORED_ERROR * rms(size)


LONG = {torch.float32: 80, torch.bfloat16: 80, torch.float64: 700}
"""A power of two that makes the squares of a row overflow. The gradient falls as much, and is still a normal number."""


def growth(time, dtype):
    """Factors for rows [T, 1]: two rows become too long to be squared, and a third for its products with those."""
    factors = torch.ones(time, 1, dtype=dtype)
    for row, exponent in ((0, LONG[dtype]), (3, LONG[dtype] + 20), (5, LONG[dtype] // 2)):
        factors[row:][:1] = 2.0**exponent
    return factors


def check_loss(case, dtype, device="cpu", backend=None, algorithm="auto", with_energy=False, factors=1):
    """Loss and gradient of ``backend`` against the reference in fp64, with the budget of tests/budget.py.

    The op gets its rows times ``factors`` (powers of two), which may not change the loss.
    """
    low, high, lengths = case.make(dtype, device)
    energy = None
    if with_energy:
        with losatok_ext.use_backend(backend or "native"):
            energy = ops.gram_energy(high * factors, lengths, case.window)
    options = {"algorithm": algorithm, "high_energy": energy}
    loss, grad = run(low * factors, high * factors, lengths, case.window, backend, **options)
    grad = grad * factors  # by low
    exact, exact_grad = run_reference(low.double(), high.double(), lengths, case.window)
    theirs, their_grad = run_reference(low, high, lengths, case.window)
    assert loss.dtype == grad.dtype == dtype
    if case.likeness and algorithm in ("auto", "factored") and dtype == torch.float32:
        return assert_factored_bound(loss, grad, low, high, exact, exact_grad)
    assert_as_exact(loss, theirs, exact, "loss")
    assert_as_exact(grad, their_grad, exact_grad, "gradient", GRADIENT_FACTOR)
    if lengths is not None:
        for b, length in enumerate(case.lengths):
            assert not grad[b, length:].any(), "the gradient past a length should be zero"


def check_energy(case, dtype, device="cpu", backend=None, factors=1):
    """``gram_energy`` of ``backend``, likewise."""
    _, high, lengths = case.make(dtype, device)
    with losatok_ext.use_backend(backend or "native"):
        energy = ops.gram_energy(high * factors, lengths, case.window)
    exact = reference.gram_energy(high.double(), lengths, case.window)
    theirs = reference.gram_energy(high, lengths, case.window)
    assert energy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_as_exact(energy, theirs, exact, "energy")
