"""int8_linear at the decoder's sizes, beside eager PyTorch that converts the weight, and F.linear in float32."""

import pytest
import torch
import torch.nn.functional as F

from losatok_ext import ops

IN, OUT = 1280, 3840


@pytest.mark.parametrize("rows", [25, 250, 2500])
def test_linear(compare, device, rows):
    if device == "cuda":
        pytest.skip("int8_linear runs as the reference on a GPU")
    x, bias = torch.randn(rows, IN), torch.randn(OUT)
    weight = torch.randint(-127, 128, (OUT, IN), dtype=torch.int8)
    scale = torch.rand(OUT) / 1000
    widened = weight * scale[:, None]
    compare(
        f"int8_linear float32 N={rows}",
        lambda: ops.int8_linear(x, weight, scale, bias),
        {
            "eager": lambda: F.linear(x, weight.float()) * scale + bias,
            "float32 weights": lambda: F.linear(x, widened, bias),
        },
        2 * rows * IN * OUT,
    )
