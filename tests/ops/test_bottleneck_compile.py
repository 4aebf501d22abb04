"""The bottleneck ops under opcheck, torch.compile and torch.export."""

import pytest
import torch

from losatok_ext import ops
from ops.bottleneck_cases import cast, loss_inputs, projection
from ops.opcheck import opchecked


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@opchecked("bottleneck_project_forward", "bottleneck_project_backward")
def test_raw_projection(dtype, device):
    x, *weights = (t.to(device) for t in cast(projection((7,), 5, 4, 3), dtype))
    for keep_hidden in (True, False):
        yield "bottleneck_project_forward", (x, *weights, "gelu", keep_hidden)
    yield "bottleneck_project_forward", (x, weights[0], None, weights[2], None, "relu", False)
    grad, hidden = torch.randn(7, 3).to(device, dtype), torch.randn(7, 4).to(device, dtype)
    for need in [(True, True), (False, True), (True, False), (False, False)]:
        yield "bottleneck_project_backward", (grad, x, hidden, weights[0], weights[2], "gelu", *need)


@opchecked("normalized_reconstruction_loss_forward", dtypes=(torch.float32, torch.float16, torch.float64))
def test_raw_loss(dtype, device):
    *tensors, lengths = (t.to(device) for t in cast(loss_inputs(2, 7, 3, 5, 4, [7, 3]), dtype))
    for need_grad in (True, False):
        for frames in (lengths, None):
            yield "normalized_reconstruction_loss_forward", (*tensors, frames, "silu", need_grad)


def train_step(z, target, down, up, lengths):
    """Both ops, so that every path of their autograd is in the graph."""
    latent = ops.bottleneck_project(target, *down)
    return ops.normalized_reconstruction_loss(z + latent, target, *up, lengths) + latent.square().mean()


def step_inputs(clips, time, with_lengths=True):
    z, target, *up, _ = cast(loss_inputs(clips, time, 3, 5, 4, None), torch.float32)
    down = [t.requires_grad_() for t in cast(projection((1,), 4, 6, 3), torch.float32)[1:]]
    up = [t.requires_grad_() for t in up]
    return z.requires_grad_(), target, down, up, torch.arange(1, clips + 1) if with_lengths else None


def step_gradients(function, inputs):
    z, _, down, up, _ = inputs
    loss = function(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, [z, *down, *up])]


@pytest.mark.parametrize(
    ("backend", "with_lengths"),
    [("aot_eager", True), ("aot_eager", False), pytest.param("inductor", True, marks=pytest.mark.slow)],
)
def test_training_compiles_once(backend, with_lengths):
    compiled = torch.compile(train_step, fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True, error_on_recompile=True):
        for clips, time in [(2, 7), (3, 7), (5, 11), (4, 30)]:
            inputs = step_inputs(clips, time, with_lengths)
            torch.testing.assert_close(step_gradients(compiled, inputs), step_gradients(train_step, inputs))


def test_inference_compiles_once():
    def infer(x, *weights):
        return ops.bottleneck_project(x, *weights, "silu")

    compiled = torch.compile(infer, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1, error_on_recompile=True):
        for lead in [(7, 8), (9, 10), (11, 33)]:  # unlike the weights' sizes: equal sizes are taken to stay equal
            inputs = cast(projection(lead, 5, 4, 3), torch.float32)
            assert torch.equal(compiled(*inputs), infer(*inputs))


def test_autocast_compiles():
    inputs = step_inputs(2, 7)
    compiled = torch.compile(train_step, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(step_gradients(compiled, inputs), step_gradients(train_step, inputs))


class Bottleneck(torch.nn.Module):
    def __init__(self):
        super().__init__()
        _, *weights = cast(projection((1,), 5, 4, 3), torch.float32)
        for name, weight in zip(("weight_in", "bias_in", "weight_out", "bias_out"), weights, strict=True):
            self.register_parameter(name, torch.nn.Parameter(weight))

    def forward(self, x):
        return ops.bottleneck_project(x, self.weight_in, self.bias_in, self.weight_out, self.bias_out)


def test_export_with_any_batch_and_length():
    module = Bottleneck()
    batch, time = torch.export.Dim("batch", min=2), torch.export.Dim("time", min=2)
    program = torch.export.export(module, (torch.randn(2, 7, 5),), dynamic_shapes={"x": {0: batch, 1: time}})
    for lead in [(2, 7), (3, 31)]:
        x = torch.randn(*lead, 5)
        assert torch.equal(program.module()(x), module(x))
    names = [str(node.target) for node in program.run_decompositions().graph.nodes]
    assert any("losatok.bottleneck_project_forward" in name for name in names), names
