"""Linear layers for inference: GELU inside the product, bfloat16 weights packed once for oneDNN, or int8 weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losatok_ext import ops

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_DTYPES = (
    {torch.float32, torch.bfloat16} if _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported() else {torch.float32}
)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the product runs through oneDNN: on a CPU, without gradients, neither traced nor under autocast."""
    return (
        _ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in _DTYPES
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.numel() > 0
    )


class Linear(nn.Linear):
    """``nn.Linear``, with GELU (erf) after it if :meth:`forward` gets ``gelu=True``.

    On a CPU without gradients, products in float32 and bfloat16 go through oneDNN, which applies GELU within the
    matrix product. Measured on one core (500 frames, 1280 to 5120 with GELU): 47 ms instead of 52 ms in
    float32, 9.8 ms instead of 13.5 ms in bfloat16. bfloat16 weights are packed for oneDNN at the first call, and again
    when they have changed; otherwise oneDNN would pack them at each call. The packed copy takes as much memory as the
    weight, and is not in the state dict. float32 weights are not packed: it would be 3 % faster.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._packed: tuple[Tensor, int, Tensor] | None = None  # what was packed, its version then, the packed copy

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """x [..., in] to [..., out]."""
        if _takes_onednn(x, self.weight):
            name, algorithm = ("gelu", "none") if gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise(x, self._weight_for(x), self.bias, name, [], algorithm)
        y = super().forward(x)
        return F.gelu(y) if gelu else y

    def _weight_for(self, x: Tensor) -> Tensor:
        weight = self.weight
        if x.dtype != torch.bfloat16 or weight.is_inference():  # inference tensors have no version counter
            return weight
        if self._packed is not None:
            # The packed weight is kept alive, so that no other weight can have its address.
            source, version, packed = self._packed
            if source.data_ptr() == weight.data_ptr() and version == weight._version:
                return packed
        source = weight.detach()
        self._packed = (source, weight._version, torch.ops.mkldnn._reorder_linear_weight(source))
        return self._packed[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}  # copies and unpickled modules pack their weights again


INT8_STEPS = 127
"""The largest magnitude of int8 weights. -128 is not used, so that the range is symmetric."""


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and a float32 scale for each output, which replaces a :class:`Linear`.

    ``weight`` [out, in] and ``scale`` [out] are in the state dict, take no gradient, and keep their dtypes when the
    module is cast to another dtype. See :func:`losatok_ext.ops.int8_linear`.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        bias: whether there is one.
    """

    scale: Tensor
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.ones(out_features, dtype=torch.float32))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features)) if bias else None)

    @classmethod
    def from_linear(cls, layer: nn.Linear) -> Int8Linear:
        """``layer`` with each row of its weight rounded to multiples of ``max |w| / 127``; the bias is shared."""
        with torch.device("meta"):
            result = cls(layer.in_features, layer.out_features, bias=False)
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1) / INT8_STEPS
        result.scale = torch.where(scale > 0, scale, 1.0)
        steps = (weight / result.scale[:, None]).round().clamp(-INT8_STEPS, INT8_STEPS)
        result.weight = nn.Parameter(steps.to(torch.int8), requires_grad=False)
        result.bias = layer.bias
        return result.train(layer.training)

    def to_linear(self, dtype: torch.dtype) -> Linear:
        """The :class:`Linear` with the same weights in ``dtype``; the bias is shared if it has that dtype."""
        with torch.device("meta"):
            result = Linear(self.in_features, self.out_features, self.bias is not None)
        result.weight = nn.Parameter((self.weight * self.scale[:, None]).to(dtype))
        if self.bias is not None:
            result.bias = nn.Parameter(self.bias.detach().to(dtype), self.bias.requires_grad)
        return result.train(self.training)

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """x [..., in] to [..., out], with GELU (erf) after it if ``gelu``."""
        return ops.int8_linear(x, self.weight, self.scale, self.bias, "gelu" if gelu else "none")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        scale = self.scale
        result = super()._apply(fn, recurse)
        if self.scale.dtype != scale.dtype:
            self.scale = scale.to(self.scale.device)
        return result

    def extra_repr(self) -> str:
        """The sizes, as ``nn.Linear`` shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
