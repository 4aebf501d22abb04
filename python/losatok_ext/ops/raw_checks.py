"""Checks of the raw Triton ops (``torch.ops.losatok_triton.*``), made before a kernel is launched.

A raw op that is called with arguments that do not fit, as from an exported or edited graph, raises TypeError or
ValueError instead of reading or writing past a tensor. The native ops make the same checks in C++ (``csrc/checks``);
``tests/ops/test_raw_ops.py`` compares the two. A check looks at dtypes, sizes, devices and plain numbers, and reads no
tensor: on a GPU that would wait for it. Kernels clamp lengths, and pass over codes that are not there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ATTENTION = (
    "q float[B T H h], k same[B S H h], v same[B S H h], q_weight wide[h], k_weight wide[h], cos wide[T r], "
    "sin wide[T r], lengths int64[B], key_lengths int64[B]"
)
_PROJECTION = "x float[N D], weight_in same[H D], weight_out same[d H]"
_CONVOLUTION = (
    "x float[B T C], conv_weight same[C 1 k], conv_bias same[C], norm_weight same[C], norm_bias same[C], "
    "lengths int64[B]"
)

TENSORS = {
    "bottleneck_project_forward": f"{_PROJECTION}, bias_in same[H], bias_out same[d]",
    "bottleneck_project_backward": f"{_PROJECTION}, hidden same[N H], grad same[N d]",
    "normalized_reconstruction_loss_forward": (
        "z float[B T d], weight_in same[H d], bias_in same[H], weight_out same[D H], bias_out same[D], "
        "target float[B T D], lengths int64[B]"
    ),
    "layer_norm_modulate_forward": "x float[B T C], shift same[B C] or [B T C], scale same[B C] or [B T C]",
    "layer_norm_modulate_backward": (
        "x float[B T C], scale same[B C] or [B T C], grad same[B T C], mean wide[B T], rstd wide[B T]"
    ),
    "gated_residual_forward": "x float[B T C], branch same[B T C], gate same[B C] or [B T C]",
    "gated_residual_backward": "branch float[B T C], grad same[B T C], gate same[B C] or [B T C]",
    "dit_attention_forward": _ATTENTION,
    "dit_attention_backward": f"{_ATTENTION}, grad same[B T H h], out same[B T H h], lse wide[B H T]",
    "time_relation_forward": "low float[B T d], high same[B T D], lengths int64[B], high_energy float[B]",
    "gram_energy_forward": "high float[B T D], lengths int64[B]",
    "vq_nearest_forward": "x float[B T d], codebook float[K d], lengths int64[B]",
    "vq_nearest_backward": "x float[B T d], codebook float[K d], grad float[B T], indices int64[B T]",
    "rvq_encode_forward": "x float[B T d], codebooks float[Q K d], lengths int64[B]",
    "rvq_decode_forward": "codebooks float[Q K d], codes int64[N q]",
    "rvq_decode_backward": "codebooks float[Q K d], codes int64[N q], grad float[N d]",
    "fsq_quantize_forward": "x float[B T D], lengths int64[B]",
    "fsq_quantize_backward": "x float[B T D], grad float[B T D], lengths int64[B]",
    "fsq_dequantize_forward": "indices int64[N]",
    "affine_quantize_forward": "x float[N n]",
    "affine_dequantize_forward": "packed uint8[N bytes], scale float[N], offset float[N]",
    "polar_istft_forward": "head float[B T bins], window float[n], lengths int64[B]",
    "polar_istft_backward": "head float[B T bins], window float[n], lengths int64[B], grad float[B samples]",
    "depthwise_conv_norm_forward": _CONVOLUTION,
    "depthwise_conv_norm_backward": f"{_CONVOLUTION}, grad same[B T C]",
}
"""By raw op, the dtype and the sizes of its tensors: ``float`` is any floating dtype, ``same`` that of the first
tensor, ``wide`` that of its sums (float32, or float64). A size has one value wherever its letter stands. All tensors
lie on the device of the first."""

_FLOATING = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))


def _always(*allowed: torch.dtype) -> dict[torch.dtype, frozenset[torch.dtype]]:
    """The same dtypes, whatever that of the first tensor."""
    return dict.fromkeys(
        (dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)), frozenset(allowed)
    )


_KINDS: dict[str, Mapping[torch.dtype, frozenset[torch.dtype]]] = {
    "float": _always(*_FLOATING),
    "same": {dtype: frozenset((dtype,)) for dtype in _FLOATING},
    "wide": {dtype: frozenset((torch.promote_types(dtype, torch.float32),)) for dtype in _FLOATING},
    "int64": _always(torch.int64),
    "uint8": _always(torch.uint8),
}
"""By kind and the dtype of the op's first tensor, the dtypes that a tensor may have."""

Rule = Callable[[Mapping[str, Any], Mapping[str, int]], None]
"""Raises for what dtypes and sizes do not say: takes the arguments by name, and the sizes by letter."""


def _should(holds: bool, message: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"{message}, got {got}")


def _one_of(name: str, *allowed: str) -> Rule:
    def rule(arguments: Mapping[str, Any], _: Mapping[str, int]) -> None:
        _should(arguments[name] in allowed, f"{name} should be one of {', '.join(allowed)}", repr(arguments[name]))

    return rule


def _at_least_one(*letters: str) -> Rule:
    def rule(_: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        for letter in letters:
            _should(sizes[letter] > 0, f"the size {letter} should be at least 1", sizes[letter])

    return rule


def _heads(a: Mapping[str, Any], n: Mapping[str, int]) -> None:
    _should(1 <= n["h"] <= 256, "heads should have 1 to 256 features", n["h"])
    weights = a["q_weight"] is not None or a["k_weight"] is not None
    _should(a["norm"] != "none" or not weights, "q_weight and k_weight should be None without a norm", "norm none")
    _should((a["cos"] is None) == (a["sin"] is None), "cos and sin should come together", "one of them")
    if a["cos"] is not None:
        _should(1 <= n["r"] <= n["h"] // 2, f"cos and sin should have 1 to {n['h'] // 2} angles", n["r"])
        _should(n["S"] == n["T"], f"cos and sin should go with as many keys as queries, {n['T']}", n["S"])


def _algorithm(a: Mapping[str, Any], n: Mapping[str, int]) -> None:
    whole = a["algorithm"] != "factored" or not 0 <= a["window"] < n["T"] - 1
    _should(whole, f"algorithm factored should come without a window below T - 1 = {n['T'] - 1}", a["window"])


def _both_double(codes: str) -> Rule:
    def rule(a: Mapping[str, Any], _: Mapping[str, int]) -> None:
        if (a["x"].dtype == torch.float64) != (a[codes].dtype == torch.float64):
            raise TypeError(f"x and {codes} should both be float64 or neither, got {a['x'].dtype}, {a[codes].dtype}")

    return rule


def _stages(_: Mapping[str, Any], n: Mapping[str, int]) -> None:
    _should(n["q"] <= n["Q"], f"codes should be of at most {n['Q']} stages", n["q"])


def _levels(a: Mapping[str, Any], n: Mapping[str, int]) -> None:
    levels = a["levels"]
    for count in levels:
        _should(2 <= count <= 65536, "levels should each lie within 2..65536", count)
    _should(math.prod(levels) < 1 << 63, "levels should make fewer than 2^63 codes (an index is int64)", levels)
    if "D" in n:
        _should(len(levels) == n["D"], f"levels should be as many as the features of x, {n['D']}", len(levels))


def _bits(a: Mapping[str, Any], _: Mapping[str, int]) -> None:
    _should(a["bits"] in (4, 8), "bits should be 4 or 8", a["bits"])


def _packed(a: Mapping[str, Any], n: Mapping[str, int]) -> None:
    most, size = n["bytes"] if a["bits"] == 8 else 2 * n["bytes"], a["size"]
    fits = size == most or (a["bits"] == 4 and size == most - 1 and size >= 0)
    _should(fits, f"size should be the number of values that a row of packed holds, {most}", size)


def _result(a: Mapping[str, Any], _: Mapping[str, int]) -> None:
    if a["dtype"] not in _FLOATING:
        raise TypeError(f"dtype should be float32, bfloat16, float16 or float64, got {a['dtype']}")


def _frames(a: Mapping[str, Any], n: Mapping[str, int]) -> None:
    hop, size = a["hop"], n["n"]
    _should(size > 0 and size % 2 == 0, "window should have an even number of samples", size)
    divides = hop > 0 and size % hop == 0 and (size - hop) % 2 == 0
    _should(divides, "hop should divide the window and leave an even number of samples of it", hop)
    _should(n["bins"] == size + 2, f"head should have {size + 2} features, the samples of window and 2", n["bins"])
    if "samples" in n:
        _should(n["samples"] == hop * n["T"], f"grad should have hop T = {hop * n['T']} samples", n["samples"])


def _taps(_: Mapping[str, Any], n: Mapping[str, int]) -> None:
    _should(n["k"] % 2 == 1, "conv_weight should have an odd number of taps (its last size)", n["k"])


_ACTIVATION = _one_of("activation", "gelu", "gelu_tanh", "silu", "relu", "none")
_SEARCH = _one_of("precision", "exact", "fast")
_HEADS = (_one_of("norm", "none", "rms", "layer"), _heads)

RULES: dict[str, tuple[Rule, ...]] = {
    "bottleneck_project_forward": (_at_least_one("D", "H", "d"), _ACTIVATION),
    "bottleneck_project_backward": (_at_least_one("D", "H", "d"), _ACTIVATION),
    "normalized_reconstruction_loss_forward": (_at_least_one("D", "H", "d"), _ACTIVATION),
    "dit_attention_forward": _HEADS,
    "dit_attention_backward": _HEADS,
    "time_relation_forward": (
        _at_least_one("d", "D"),
        _one_of("algorithm", "auto", "tiled", "banded", "factored"),
        _algorithm,
    ),
    "gram_energy_forward": (_at_least_one("D"),),
    "vq_nearest_forward": (_at_least_one("K", "d"), _both_double("codebook"), _SEARCH),
    "vq_nearest_backward": (_at_least_one("K", "d"), _both_double("codebook")),
    "rvq_encode_forward": (_at_least_one("K", "d"), _both_double("codebooks"), _SEARCH),
    "rvq_decode_forward": (_stages,),
    "rvq_decode_backward": (_stages,),
    "fsq_quantize_forward": (_levels,),
    "fsq_quantize_backward": (_levels,),
    "fsq_dequantize_forward": (_levels, _result),
    "affine_quantize_forward": (_bits,),
    "affine_dequantize_forward": (_bits, _packed, _result),
    "polar_istft_forward": (_frames,),
    "polar_istft_backward": (_frames,),
    "depthwise_conv_norm_forward": (_at_least_one("C"), _taps),
    "depthwise_conv_norm_backward": (_at_least_one("C"), _taps),
}


class Check:
    """The check of one raw op: ``Check(schema)((x, branch, gate))``, called with all arguments in the schema's order.

    Args:
        schema: of the raw op, whose name is a key of :data:`TENSORS`. What the table says of a tensor that it has not
            is left out.
    """

    def __init__(self, schema: torch.FunctionSchema) -> None:
        op = schema.name.partition("::")[2]
        self._names, self._rules = tuple(a.name for a in schema.arguments), RULES.get(op, ())
        self._required = frozenset(a.name for a in schema.arguments if not isinstance(a.type, torch.OptionalType))
        self._tensors = []
        for part in re.split(r",\s*", TENSORS[op]):
            name, kind = re.match(r"(\w+) (\w+)", part).groups()  # type: ignore[union-attr]
            if name in self._names:
                shapes = {len(letters.split()): tuple(letters.split()) for letters in re.findall(r"\[(.*?)\]", part)}
                self._tensors.append((name, self._names.index(name), _KINDS[kind], shapes))

    def __call__(self, arguments: Sequence[Any]) -> None:
        """Raise TypeError or ValueError for ``arguments`` (those of the schema, in its order) that do not fit."""
        # Plain loops and few calls: this runs before every launch.
        dtype = device = None
        sizes = {"1": 1}
        for name, position, allowed, shapes in self._tensors:
            tensor = arguments[position]
            if tensor is None:
                if name in self._required:
                    raise TypeError(f"{name} should be a torch.Tensor, got None")
                continue
            if dtype is None:
                dtype, device = tensor.dtype, tensor.device
            if tensor.dtype not in allowed[dtype]:
                expected = " or ".join(sorted(str(d).removeprefix("torch.") for d in allowed[dtype]))
                raise TypeError(f"{name} should be {expected}, got {str(tensor.dtype).removeprefix('torch.')}")
            if tensor.device != device:
                raise ValueError(f"{name} should be on {device} as the op's other tensors, got {tensor.device}")
            shape = tensor.shape
            letters = shapes.get(len(shape))
            if letters is None:
                raise ValueError(self._shape_message(name, tensor, shapes, sizes))
            for letter, size in zip(letters, shape):  # noqa: B905 - of one length
                if sizes.setdefault(letter, size) != size:
                    raise ValueError(self._shape_message(name, tensor, shapes, sizes))
        if self._rules:
            named = dict(zip(self._names, arguments, strict=True))
            for rule in self._rules:
                rule(named, sizes)

    @staticmethod
    def _shape_message(name: str, tensor: Tensor, shapes: Mapping[int, Sequence[str]], sizes: Mapping[str, int]) -> str:
        spelt = " or ".join(f"[{', '.join(letters)}]" for letters in shapes.values())
        known = [f"{n} = {sizes[n]}" for letters in shapes.values() for n in letters if n in sizes and n != "1"]
        where = f" with {', '.join(dict.fromkeys(known))}" if known else ""
        return f"{name} should have shape {spelt}{where}, got {list(tensor.shape)}"
