"""The vocoder ops under opcheck, torch.compile and torch.export, on each instruction set, and with bad arguments."""

import pytest
import torch

from losatok_ext import ops, use_backend
from ops.bottleneck_cases import cast
from ops.opcheck import opchecked
from ops.vocoder_cases import conv_inputs, istft_inputs


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@opchecked("polar_istft_forward", "polar_istft_backward", "depthwise_conv_norm_forward", "depthwise_conv_norm_backward")
def test_raw_ops(dtype, device):
    head, window, some = (t.to(device) for t in cast(istft_inputs(2, 5, 16, 4, [5, 2]), dtype))
    x, *parameters, _ = (t if t is None else t.to(device) for t in cast(conv_inputs(2, 5, 6, 7, None), dtype))
    grad = torch.randn(2, 20).to(device, dtype)
    for lengths in (some, None):
        yield "polar_istft_forward", (head, window, 4, lengths)
        yield "polar_istft_forward", (head, window.float(), 4, lengths)
        yield "polar_istft_backward", (grad, head, window, 4, lengths)
        yield "depthwise_conv_norm_forward", (x, *parameters, 1e-5, lengths)
        yield "depthwise_conv_norm_forward", (x, parameters[0], None, None, None, 1e-5, lengths)
        for need in ((True, True), (False, True), (True, False)):
            yield "depthwise_conv_norm_backward", (x, x, *parameters[:3], 1e-5, lengths, *need)
        yield "depthwise_conv_norm_backward", (x, x, parameters[0], None, None, 1e-5, lengths, True, False)


def vocode(x, lengths, window, weight, bias, gain, shift, out):
    """Both ops, so that every path of their autograd is in the graph."""
    y = ops.depthwise_conv_norm(x, weight, bias, gain, shift, 1e-5, lengths)
    return ops.polar_istft(y @ out, window, 4, lengths)


def vocode_inputs(clips, time, with_lengths=True, seed=0):
    x, *parameters, _ = cast(conv_inputs(clips, time, 6, 7, None, seed), torch.float32)
    lengths = torch.arange(1, clips + 1) if with_lengths else None
    return (
        x,
        lengths,
        torch.hann_window(16),
        *parameters,
        torch.randn(6, 18, generator=torch.Generator().manual_seed(1)),
    )


def vocode_gradients(function, inputs):
    leaves = [t.requires_grad_() for t in (inputs[0], *inputs[3:])]
    audio = function(*inputs)
    return [audio.detach(), *torch.autograd.grad(audio.square().sum(), leaves)]


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("backend", "with_lengths"),
    [("aot_eager", True), ("aot_eager", False), pytest.param("inductor", True, marks=pytest.mark.slow)],
)
def test_training_compiles_once(backend, with_lengths):
    compiled = torch.compile(vocode, fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True, error_on_recompile=True):
        for clips, time in [
            (2, 9),
            (3, 9),
            (5, 11),
            (4, 30),
        ]:  # unlike channels and taps: equal sizes are taken to stay equal
            inputs = vocode_inputs(clips, time, with_lengths)
            torch.testing.assert_close(vocode_gradients(compiled, inputs), vocode_gradients(vocode, inputs))


@pytest.mark.usefixtures("_fresh_compiler")
def test_inference_and_autocast_compile():
    compiled = torch.compile(vocode, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for clips, time in [(2, 9), (3, 11)]:
            inputs = vocode_inputs(clips, time)
            assert torch.equal(compiled(*inputs), vocode(*inputs))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(*inputs), vocode(*inputs))


class Vocoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for i, constant in enumerate(vocode_inputs(1, 1)[2:]):
            self.register_buffer(f"constant{i}", constant)

    def forward(self, x, lengths):
        return vocode(x, lengths, *self.buffers())


def test_export_with_any_batch_and_length():
    batch, time = torch.export.Dim("batch", min=2), torch.export.Dim("time", min=8)
    sizes = {"x": {0: batch, 1: time}, "lengths": {0: batch}}
    program = torch.export.export(Vocoder(), vocode_inputs(2, 9)[:2], dynamic_shapes=sizes)
    for clips, frames in [(2, 9), (3, 31)]:
        arguments = vocode_inputs(clips, frames)[:2]
        assert torch.equal(program.module()(*arguments), Vocoder()(*arguments))


HEAD, WINDOW = torch.randn(2, 5, 18), torch.hann_window(16)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"head": [[1.0]]}, TypeError, "head should be a torch.Tensor"),
        ({"head": HEAD.long()}, TypeError, "head should be one of"),
        ({"head": HEAD[0]}, ValueError, r"head should have shape \[B, T, n_fft \+ 2"),
        ({"head": HEAD[..., :17]}, ValueError, r"head should have shape .*\[\*, \*, 18\], got \[2, 5, 17\]"),
        ({"window": WINDOW[None]}, ValueError, r"window should have shape \[n_fft\]"),
        ({"window": WINDOW.int()}, TypeError, "window should be one of"),
        ({"window": WINDOW[:15]}, ValueError, "window should have an even number of samples"),
        ({"window": WINDOW.to("meta")}, ValueError, "window should be on head's device"),
        ({"hop": 5}, ValueError, "that hop divides.*got 16 samples and hop=5"),
        ({"hop": 0}, ValueError, "hop=0"),
        ({"hop": 4.0}, TypeError, "hop should be an int"),
        ({"hop": True}, TypeError, "hop should be an int"),
        ({"lengths": torch.tensor([5, 6])}, ValueError, r"lengths should lie within 0\.\.5"),
        ({"lengths": torch.tensor([5.0, 2.0])}, TypeError, "lengths should be int64"),
        ({"lengths": torch.tensor([5])}, ValueError, r"lengths should have shape \[B\]"),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input_of_the_istft_is_named(change, error, message, backend):
    with use_backend(backend), pytest.raises(error, match=message):
        ops.polar_istft(**({"head": HEAD, "window": WINDOW, "hop": 4} | change))


X, TAPS, ONES = torch.randn(2, 5, 6), torch.randn(6, 1, 7), torch.ones(6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x should be a torch.Tensor"),
        ({"x": X[0]}, ValueError, r"x should have shape \[B, T, C\]"),
        ({"x": X[..., :0]}, ValueError, "x should have at least one channel"),
        ({"conv_weight": TAPS.int()}, TypeError, "conv_weight should be one of"),
        ({"conv_weight": TAPS[:5]}, ValueError, r"conv_weight should have shape .*\[6, 1, \*\], got \[5, 1, 7\]"),
        ({"conv_weight": TAPS[..., :6]}, ValueError, "conv_weight should have an odd number of taps.*got 6"),
        ({"conv_weight": TAPS.double()}, TypeError, "conv_weight should have x's dtype"),
        ({"conv_bias": ONES[:5]}, ValueError, r"conv_bias should have shape \[C"),
        ({"norm_weight": ONES.double()}, TypeError, "norm_weight should have x's dtype"),
        ({"norm_bias": ONES.to("meta")}, ValueError, "norm_bias should be on x's device"),
        ({"eps": -1.0}, ValueError, "eps should be at least 0"),
        ({"eps": "small"}, TypeError, "eps should be a float"),
        ({"lengths": torch.tensor([-1, 2])}, ValueError, r"lengths should lie within 0\.\.5"),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input_of_the_convolution_is_named(change, error, message, backend):
    arguments = {"x": X, "conv_weight": TAPS, "conv_bias": ONES, "norm_weight": ONES, "norm_bias": ONES} | change
    with use_backend(backend), pytest.raises(error, match=message):
        ops.depthwise_conv_norm(**arguments)


def test_raw_ops_refuse_what_does_not_fit():
    raw = torch.ops.losatok
    with pytest.raises(ValueError, match="head should have shape"):
        raw.polar_istft_forward(HEAD[..., :17], WINDOW, 4, None)
    with pytest.raises(ValueError, match="hop should divide"):
        raw.polar_istft_forward(HEAD, WINDOW, 5, None)
    with pytest.raises(ValueError, match="grad should have shape"):
        raw.polar_istft_backward(HEAD[0], HEAD, WINDOW, 4, None)
    with pytest.raises(ValueError, match="conv_weight should have an odd number of taps"):
        raw.depthwise_conv_norm_forward(X, TAPS[..., :6], None, None, None, 1e-6, None)
    with pytest.raises(ValueError, match="norm_bias should have shape"):
        raw.depthwise_conv_norm_forward(X, TAPS, None, None, ONES[:5], 1e-6, None)
    with pytest.raises(ValueError, match=r"grad should have shape \[2, 5, 6\]"):
        raw.depthwise_conv_norm_backward(X[:, :4], X, TAPS, None, None, 1e-6, None, True, True)
