"""Calls raw ops with wrong arguments: ``python hostile_calls.py [OP ...]``, all ops without names.

Each call differs from a valid one in one argument. Before a call its description goes to standard output, so that the
last line names the call that ended the process. At the end a line counts the calls and those that were refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

import torch

import losatok_ext.ops  # noqa: F401  # defines the raw ops
from losatok_ext.ops.registry import OPS

MOST = 1 << 24
"""Elements that a result may have: the valid calls give fewer than a thousand."""


def valid_calls() -> dict[str, tuple[Any, ...]]:
    """Arguments for each raw op."""
    torch.manual_seed(0)
    lengths = torch.tensor([7, 4])
    x, grad, branch = torch.randn(3, 2, 7, 5)
    gate, mean, rstd = torch.randn(2, 5), torch.randn(2, 7), torch.rand(2, 7) + 0.5
    weights = torch.randn(6, 5), torch.randn(6), torch.randn(4, 6), torch.randn(4)
    rows, z, target = torch.randn(9, 5), torch.randn(2, 7, 5), torch.randn(2, 7, 4)
    q, k, v, out = torch.randn(4, 2, 7, 2, 8)
    rope = torch.randn(7, 4), torch.randn(7, 4)
    prepared = torch.randn(8), torch.randn(8), *rope, lengths, lengths
    codebook, codebooks = torch.randn(10, 5), torch.randn(3, 10, 5)
    indices, codes = torch.randint(-1, 10, (2, 7)), torch.randint(-1, 10, (9, 3))
    levels = torch.randn(2, 7, 3)
    packed = torch.randint(0, 255, (4, 3), dtype=torch.uint8)
    integers = torch.randint(-9, 9, (4, 5)).to(torch.int8)
    head, window = torch.randn(2, 7, 18), torch.rand(16)
    conv = torch.randn(5, 1, 7), torch.randn(5), torch.randn(5)
    return {
        "bottleneck_project_forward": (rows, *weights, "gelu", True),
        "bottleneck_project_backward": (rows[:, :4], rows, torch.randn(9, 6), *weights[::2], "gelu", True, True),
        "normalized_reconstruction_loss_forward": (z, target, *weights, lengths, "gelu", True),
        "dit_attention_forward": (q, k, v, *prepared, "rms", 1e-6, False),
        "dit_attention_backward": (out, q, k, v, *prepared, out, torch.randn(2, 2, 7), "rms", 1e-6, False),
        "gated_residual_forward": (x, branch, gate),
        "gated_residual_backward": (grad, branch, gate),
        "int8_linear_forward": (
            rows,
            integers,
            torch.rand(4),
            torch.rand(4),
            "gelu",
        ),
        "layer_norm_modulate_forward": (x, gate, gate, 1e-6),
        "layer_norm_modulate_backward": (grad, x, gate, mean, rstd, False),
        "vq_nearest_forward": (x, codebook, lengths, "exact"),
        "vq_nearest_backward": (mean, x, codebook, indices, True, True),
        "rvq_encode_forward": (x, codebooks, lengths, "exact"),
        "rvq_decode_forward": (codes, codebooks),
        "rvq_decode_backward": (rows, codes, codebooks),
        "fsq_quantize_forward": (levels, [8, 5, 3], lengths),
        "fsq_quantize_backward": (levels, levels, [8, 5, 3], lengths),
        "fsq_dequantize_forward": (torch.randint(-1, 120, (9,)), [8, 5, 3], torch.float32),
        "affine_quantize_forward": (rows, 4),
        "affine_dequantize_forward": (packed, torch.rand(4), torch.rand(4), 4, 5, torch.float32),
        "time_relation_forward": (x, z, lengths, -1, "auto", torch.rand(2), True),
        "gram_energy_forward": (z, lengths, -1),
        "polar_istft_forward": (head, window, 4, lengths),
        "polar_istft_backward": (torch.randn(2, 28), head, window, 4, lengths),
        "depthwise_conv_norm_forward": (x, conv[0], conv[1], conv[1], conv[2], 1e-6, lengths),
        "depthwise_conv_norm_backward": (grad, x, conv[0], conv[1], conv[1], 1e-6, lengths, True, True),
    }


def wrong(value: Any) -> Iterator[tuple[str, Any]]:
    """What may stand in place of a valid argument, and what is wrong with it."""
    if isinstance(value, torch.Tensor):
        yield from _wrong_tensors(value)
    elif isinstance(value, bool):
        yield "the opposite", not value
    elif isinstance(value, int):
        yield from ((str(n), n) for n in (-(2**62), -5, -1, 0, 1, 3, 8, 1000, 2**31, 2**62))
    elif isinstance(value, float):
        yield from ((str(n), n) for n in (-1.0, 0.0, float("nan"), float("inf"), 1e300))
    elif isinstance(value, str):
        yield from ((repr(s), s) for s in ("", "evil", "x" * 10000))
    elif isinstance(value, list):
        wrong_lists = ([], [0], [-3] * 3, [1] * 3, [2**40] * 3, [2] * 70, value[:-1], [*value, 2], [0, *value[1:]])
        yield from ((str(numbers), numbers) for numbers in wrong_lists)
    elif isinstance(value, torch.dtype):
        yield from ((str(d), d) for d in (torch.int8, torch.int64, torch.bool, torch.complex64, torch.float64))


def _wrong_tensors(tensor: torch.Tensor) -> Iterator[tuple[str, Any]]:
    yield "None", None
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool):
        if dtype != tensor.dtype:
            yield str(dtype), tensor.to(dtype)
    yield "complex", tensor.to(torch.complex64)
    yield "on another device", tensor.to("meta")
    yield "a scalar", tensor.flatten()[0]
    yield "one dimension more", tensor[None]
    yield "flat", tensor.flatten()
    yield "sparse", tensor.to_sparse()
    for dim in range(tensor.dim()):
        size = tensor.shape[dim]
        yield f"shorter along {dim}", tensor.narrow(dim, 0, size - 1)
        yield f"empty along {dim}", tensor.narrow(dim, 0, 0)
        yield f"longer along {dim}", torch.cat([tensor, tensor], dim)
        yield f"one repeated along {dim}", tensor.narrow(dim, 0, 1).expand_as(tensor)
    if tensor.dim() >= 2:
        yield "transposed in memory", tensor.mT.contiguous().mT
    fills = (torch.nan, torch.inf, 1e38) if tensor.is_floating_point() else (-(2**62), -5, 10, 120, 1000, 2**40)
    for fill in fills:
        info = None if tensor.is_floating_point() else torch.iinfo(tensor.dtype)
        if info is None or info.min <= fill <= info.max:
            changed = tensor.clone()
            changed.view(-1)[-1] = fill
            yield f"with {fill} at its end", changed


def names_of(op: str) -> list[str]:
    """The names of the arguments of a raw op."""
    schema = next(found.schemas[op] for found in OPS.values() if op in found.schemas)
    return re.findall(r"(\w+)(?=[,)])", schema.split("->")[0])


def main(wanted: list[str]) -> None:
    """Call the ``wanted`` ops, or all."""
    calls = valid_calls()
    assert calls.keys() == {name for op in OPS.values() for name in op.schemas}, "an op has no valid call here"
    count = refused = 0
    for op in wanted or calls:
        function, arguments = getattr(torch.ops.losatok, op), calls[op]
        function(*arguments)
        for position, name in enumerate(names_of(op)):
            for what, value in wrong(arguments[position]):
                print(f"{op}: {name} is {what}", flush=True)
                count += 1
                try:
                    results = function(*arguments[:position], value, *arguments[position + 1 :])
                except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
                    refused += 1
                    continue
                for result in results if isinstance(results, tuple | list) else [results]:
                    assert result.numel() <= MOST, f"a result of {result.numel()} elements"
    print(f"{count} calls, {refused} refused")


if __name__ == "__main__":
    main(sys.argv[1:])
