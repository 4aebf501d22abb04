"""int8_linear: the native op and the reference against fp64, whatever the sizes, and on every instruction set."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from budget import assert_within_budget
from losatok_ext import BackendUnavailableError, ops, use_backend
from losatok_ext.ops import dispatch
from losatok_ext.ops.reference.bottleneck import ACTIVATIONS
from losatok_ext.ops.reference.int8_linear import int8_linear as reference
from ops.bottleneck_cases import DTYPES, cast
from ops.opcheck import opchecked

# leading sizes of x, features D, outputs M
CASES = [
    ((1,), 1, 1),
    ((0,), 5, 3),
    ((3,), 0, 4),
    ((4,), 3, 0),
    ((), 6, 4),
    ((2, 0, 3), 5, 4),
    ((7,), 33, 17),
    ((2, 3, 5), 64, 128),
    ((3, 43), 31, 130),  # rows and columns beyond a block
    ((16,), 641, 65),  # an odd rest of the features beyond a block
    ((530,), 1300, 129),  # rows beyond a panel
]


def inputs(lead, features, outputs, seed=0, bias=True):
    """x, weight, scale, bias; all but the int8 weight in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes):
        return torch.randn(*sizes, dtype=torch.float64, generator=generator)

    weight = torch.randint(-127, 128, (outputs, features), dtype=torch.int8, generator=generator)
    scale = (0.5 + torch.rand(outputs, dtype=torch.float64, generator=generator)) / (64 * max(features, 1) ** 0.5)
    return [normal(*lead, features), weight, scale, normal(outputs) / 2 if bias else None]


def check(case, dtype, activation, bias=True):
    arguments = cast(inputs(*case, bias=bias), dtype)
    result = ops.int8_linear(*arguments, activation)
    assert result.dtype == dtype
    same = reference(*arguments, activation)
    exact = reference(*cast(arguments, torch.float64), activation)
    assert_within_budget(result, same, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_against_fp64(case, dtype, threads):
    check(case, dtype, "none", bias=False)
    check(case, dtype, "gelu")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    for dtype in (torch.float32, torch.float64):
        check(((9,), 40, 24), dtype, activation)


def test_int8_are_exact():
    """Every int8 comes through as it is: a unit vector picks a column of the weight."""
    weight = torch.arange(-128, 128).to(torch.int8).view(64, 4)
    for dtype in (torch.float32, torch.bfloat16):
        picked = ops.int8_linear(torch.eye(4, dtype=dtype), weight, torch.ones(64))
        assert torch.equal(picked, weight.t().to(dtype))


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 140),
    features=st.integers(1, 70),
    outputs=st.integers(1, 140),
    start=st.integers(0, 139),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_row_is_its_own(rows, features, outputs, start, dtype):
    """Whatever is beside it, NaN included, and wherever it lies: to the rounding of sums in another order."""
    x, *parameters = cast(inputs((rows,), features, outputs), dtype)
    start %= rows
    alone = ops.int8_linear(x[start], *parameters)
    others = x.clone()
    others[:start], others[start + 1 :] = float("nan"), float("inf")
    strided = torch.empty(rows, 2 * features + 1, dtype=dtype)[:, 1::2].copy_(others)
    for among in (others, strided):
        torch.testing.assert_close(ops.int8_linear(among, *parameters)[start], alone)


def test_gradients_are_those_of_the_reference():
    x, weight, scale, bias = inputs((3, 4), 5, 6)
    leaves = [t.requires_grad_() for t in (x, scale, bias)]
    assert torch.autograd.gradcheck(lambda x, s, b: ops.int8_linear(x, weight, s, b, "gelu"), leaves)
    with torch.no_grad():
        native = ops.int8_linear(x, weight, scale, bias, "gelu")
    torch.testing.assert_close(ops.int8_linear(x, weight, scale, bias, "gelu"), native)


def test_under_autocast_as_linear():
    x, weight, scale, bias = cast(inputs((3, 4), 50, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.int8_linear(x, weight, scale, bias)
        assert y.dtype == F.linear(x, weight.float()).dtype == torch.bfloat16
    assert torch.equal(y, ops.int8_linear(x.bfloat16(), weight, scale, bias))


@opchecked("int8_linear_forward", dtypes=DTYPES)
def test_raw_op(dtype, device):
    yield "int8_linear_forward", (*cast(inputs((5,), 12, 7), dtype), "gelu")


def test_compiles_once_and_exports():
    x, weight, scale, bias = cast(inputs((2, 9), 12, 7), torch.bfloat16)

    def function(x):
        return ops.int8_linear(x, weight, scale, bias, "gelu")

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with (
        torch.no_grad(),
        torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True, error_on_recompile=True),
    ):
        for clips, time in [(2, 9), (3, 9), (5, 11)]:
            x = torch.randn(clips, time, 12).bfloat16()
            assert torch.equal(compiled(x), function(x))
    torch.compiler.reset()

    class Layer(torch.nn.Module):
        def forward(self, x):
            return function(x)

    sizes = ({0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("time", min=2)},)
    with torch.no_grad():
        program = torch.export.export(Layer(), (x,), dynamic_shapes=sizes)
        longer = torch.randn(4, 30, 12).bfloat16()
        assert torch.equal(program.module()(longer), function(longer))


X, WEIGHT, ONES = torch.randn(2, 5), torch.ones(3, 5, dtype=torch.int8), torch.ones(3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x should be a torch.Tensor"),
        ({"x": X.long()}, TypeError, "x should be one of"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x should have shape \[\.\.\., D\]"),
        ({"x": X[:, :4]}, ValueError, r"weight should have shape \[M, D"),
        ({"weight": WEIGHT.float()}, TypeError, "weight should be one of int8, got float32"),
        ({"weight": WEIGHT.to("meta")}, ValueError, "weight should be on x's device"),
        ({"scale": ONES[:2]}, ValueError, r"scale should have shape \[M"),
        ({"scale": None}, TypeError, "scale should be a torch.Tensor"),
        ({"scale": ONES.to("meta")}, ValueError, "scale should be on x's device"),
        ({"bias": ONES[None]}, ValueError, r"bias should have shape \[M"),
        ({"bias": ONES.int()}, TypeError, "bias should be one of"),
        ({"activation": "tanh"}, ValueError, "activation should be one of .*got 'tanh'"),
    ],
)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_bad_input_is_named(change, error, message, backend):
    arguments = {"x": X, "weight": WEIGHT, "scale": ONES, "bias": ONES} | change
    with use_backend(backend), pytest.raises(error, match=message):
        ops.int8_linear(**arguments)


def test_gpu_kernels_are_missed_by_name():
    assert dispatch.choose("int8_linear", torch.device("cuda")) == "reference"
    with use_backend("native"), pytest.raises(BackendUnavailableError, match="int8_linear has no native kernel"):
        dispatch.choose("int8_linear", torch.device("cuda"))
