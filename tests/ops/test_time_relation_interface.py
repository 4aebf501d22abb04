"""The time-relation ops under torch.compile, torch.export and opcheck, and what they say to bad input."""

import pytest
import torch

from losatok_ext import ops, use_backend
from ops.opcheck import opchecked
from ops.time_relation_cases import Case, run


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@opchecked("time_relation_forward", "gram_energy_forward")
def test_raw_ops(dtype, device):
    low, high, lengths = (t.to(device) for t in Case(2, 12, 3, 7, lengths=(12, 5)).make(dtype))
    energy = torch.rand(2).to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    for need_grad in (True, False):
        yield "time_relation_forward", (low, high, lengths, -1, "factored", energy, need_grad)
        yield "time_relation_forward", (low, high, lengths, -1, "tiled", None, need_grad)
        yield "time_relation_forward", (low, high, None, 2, "auto", None, need_grad)
    yield "gram_energy_forward", (high, lengths, 3)


def compiled_runs(function, batches, backend):
    """Runs of the compiled ``function`` on each of ``batches``, compiled once for all of them, beside plain ones."""
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
        for arguments in batches:
            yield function(*arguments), compiled(*arguments)


def batches():
    return [Case(b, t, 6, 14, lengths=tuple(t - k for k in range(b))).make() for b, t in ((2, 9), (3, 17), (5, 40))]


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"algorithm": "factored"}, {"algorithm": "tiled"}], ids=str)
def test_compiles_once_for_all_batch_sizes_and_lengths(options):
    def forward(low, high, lengths):
        return ops.time_relation_loss(torch.tanh(low), high, lengths, **options)

    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        compiled = torch.compile(forward, fullgraph=True, dynamic=True, backend="aot_eager")
        for low, high, lengths in batches():
            results = []
            for function in (forward, compiled):
                leaf = low.clone().requires_grad_()
                loss = function(leaf, high, lengths)
                loss.backward()
                results.append((loss.detach(), leaf.grad))
            torch.testing.assert_close(results[1], results[0])


def test_compiles_without_gradients_and_with_a_given_energy():
    def forward(low, high, lengths):
        energy = ops.gram_energy(high, lengths)
        return ops.time_relation_loss(low, high, lengths, high_energy=energy)

    for plain, compiled in compiled_runs(forward, batches(), "aot_eager"):
        torch.testing.assert_close(compiled, plain)


def test_compiles_with_inductor():
    def forward(low, high, lengths):
        return ops.time_relation_loss(low * 2, high, lengths)

    low, high, lengths = batches()[1]
    compiled = torch.compile(forward, fullgraph=True, dynamic=True)
    low.requires_grad_()
    loss = compiled(low, high, lengths)
    loss.backward()
    expected, grad = run(2 * low.detach(), high, lengths)
    torch.testing.assert_close(loss.detach(), expected)
    torch.testing.assert_close(low.grad, 2 * grad)


def test_compiles_under_autocast():
    def forward(low, high, lengths):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.time_relation_loss(low, high, lengths)

    for plain, compiled in compiled_runs(forward, batches(), "aot_eager"):
        assert compiled.dtype == torch.float32
        assert torch.equal(compiled, plain)


def test_exports():
    class Loss(torch.nn.Module):
        def forward(self, low, high, lengths):
            return ops.time_relation_loss(low, high, lengths), ops.gram_energy(high, lengths, 2)

    batch, time = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("time", min=2, max=10_000)
    sizes = {"low": {0: batch, 1: time}, "high": {0: batch, 1: time}, "lengths": {0: batch}}
    exported = torch.export.export(Loss(), batches()[0], dynamic_shapes=sizes).module()
    for data in batches():
        torch.testing.assert_close(exported(*data), Loss()(*data))


LOW, HIGH = torch.randn(2, 5, 3), torch.randn(2, 5, 7)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"low": [[1.0]]}, TypeError, "low should be a torch.Tensor"),
        ({"low": LOW.long()}, TypeError, "low should be one of float32, bfloat16, float16, float64, got int64"),
        ({"low": LOW[0]}, ValueError, r"low should have shape \[B, T, d\].*got \[5, 3\]"),
        ({"high": HIGH[0]}, ValueError, r"high should have shape \[B, T, D\]"),
        ({"low": LOW[:, :, :0]}, ValueError, "low should have at least one feature"),
        ({"high": HIGH[:, :, :0]}, ValueError, "high should have at least one feature"),
        ({"high": HIGH[:, :4]}, ValueError, r"high should have shape .*B and T those of low.*got \[2, 4, 7\]"),
        ({"high": HIGH[:1]}, ValueError, r"high should have shape .*got \[1, 5, 7\]"),
        ({"high": HIGH.bfloat16()}, TypeError, "high should have low's dtype torch.float32, got torch.bfloat16"),
        ({"high": HIGH.to("meta")}, ValueError, "high should be on low's device cpu, got meta"),
        ({"lengths": torch.tensor([5, 6])}, ValueError, r"lengths should lie within 0..5 .*got 5..6"),
        ({"lengths": torch.tensor([-1, 2])}, ValueError, r"lengths should lie within 0..5 .*got -1..2"),
        ({"lengths": torch.tensor([5.0, 2.0])}, TypeError, "lengths should be int64, got float32"),
        ({"lengths": torch.tensor([5])}, ValueError, r"lengths should have shape \[B\]"),
        ({"lengths": [5, 2]}, TypeError, "lengths should be a torch.Tensor of int64 or None, got list"),
        ({"window": -1}, ValueError, "window should be None or at least 0"),
        ({"window": 1.5}, TypeError, "window should be None or an int .*got float"),
        ({"window": True}, TypeError, "window should be None or an int .*got bool"),
        ({"algorithm": "fast"}, ValueError, "algorithm should be one of 'auto', 'tiled', 'factored', 'banded'"),
        ({"algorithm": "banded"}, ValueError, "'banded' should come with a window"),
        ({"algorithm": "factored", "window": 3}, ValueError, "'factored' compares all pairs.*T - 1 = 4, got 3"),
        ({"high_energy": torch.zeros(3)}, ValueError, r"high_energy should have shape \[B\]"),
        ({"high_energy": torch.zeros(2, dtype=torch.int64)}, TypeError, "high_energy should be one of"),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input_is_named(change, error, message, backend):
    arguments = {"low": LOW, "high": HIGH} | change
    with use_backend(backend), pytest.raises(error, match=message):
        ops.time_relation_loss(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"high": HIGH[0]}, ValueError, r"high should have shape \[B, T, D\]"),
        ({"high": HIGH.int()}, TypeError, "high should be one of"),
        ({"lengths": torch.tensor([5, 6])}, ValueError, r"lengths should lie within 0..5"),
        ({"window": -3}, ValueError, "window should be None or at least 0"),
    ],
)
def test_bad_input_of_the_energy_is_named(change, error, message):
    with pytest.raises(error, match=message):
        ops.gram_energy(**({"high": HIGH} | change))


def test_the_raw_op_guards_itself():
    loss = torch.ops.losatok.time_relation_forward
    with pytest.raises(ValueError, match=r"high should have shape \[2, 5, -1\]"):
        loss(LOW, HIGH[:, :3], None, -1, "auto", None, True)
    with pytest.raises(TypeError, match="high should be Float, got Double"):
        loss(LOW, HIGH.double(), None, -1, "auto", None, True)
    with pytest.raises(ValueError, match="should come without a window"):
        loss(LOW, HIGH, None, 1, "factored", None, True)
    with pytest.raises(ValueError, match="algorithm should be"):
        loss(LOW, HIGH, None, 1, "fast", None, True)
