"""Compiles every Triton kernel ahead of time, with no GPU, in the configurations that the launch tables hold.

What is compiled is what would be launched: the raw ops run on meta tensors (shapes without data, which also shows that
nothing on the way asks the device for a value), and each launch is recorded instead of carried out. The recorded
arguments give signature, alignment and constants as Triton's own just-in-time compilation would see them.

    python tests/triton_ahead.py [--targets sm90,sm80] [--dtypes bfloat16,tf32] [--model-sizes-only] [--json FILE]

prints a table: registers, spilled bytes, shared memory, whether wgmma is used. Exit code 1 when a kernel does not
compile, needs more shared memory than the target has, or multiplies 16-bit matrices without wgmma on sm_90.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from losatok_ext.triton_kernels import (
    bottleneck,
    depthwise_conv_norm,
    dit_attention,
    gated_residual,
    launch,
    layer_norm_modulate,
    normalized_reconstruction_loss,
    polar_istft,
    quantize,
    quantize_scalar,
    time_relation,
)

KILO = 1024
# name: the launch tables' kind of device, compute capability, shared memory that one program may have
TARGETS = {
    "sm80": ("sm80", 80, 163 * KILO),
    "sm89": ("small", 89, 99 * KILO),
    "sm90": ("sm90", 90, 227 * KILO),
    "sm100": ("sm90", 100, 227 * KILO),
}
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float64: "*fp64",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
PRODUCT_KERNELS = (
    "project_kernel",
    "hidden_kernel",
    "grad_hidden_kernel",
    "tile_kernel",
    "coefficient_kernel",
    "search_kernel",
    "forward_kernel",
    "query_gradient_kernel",
    "key_gradient_kernel",
)


def run_ops(dtype: torch.dtype, model_sizes_only: bool) -> None:
    """Every raw op on meta tensors at the sizes of the published model, then in the variants that other sizes take."""

    def empty(*shape, of=dtype):
        return torch.empty(shape, dtype=of, device="meta")

    wide, hidden, narrow, many = 1280, 512, 128, 1 << 20
    down = (empty(hidden, wide), empty(hidden), empty(narrow, hidden), empty(narrow))
    up = (empty(hidden, narrow), empty(hidden), empty(wide, hidden), empty(wide))
    lengths = empty(4, of=torch.int64)
    for rows in (250, 8192, many):
        bottleneck.bottleneck_project_forward(empty(rows, wide), *down, "gelu", False)
    kept = (empty(many, narrow), empty(many, wide), empty(many, hidden), down[0], down[2])
    bottleneck.bottleneck_project_forward(empty(many, wide), *down, "gelu", True)
    bottleneck.bottleneck_project_backward(*kept, "gelu", True, True)
    latent, features = empty(4, 750, narrow), empty(4, 750, wide)
    normalized_reconstruction_loss.normalized_reconstruction_loss_forward(latent, features, *up, lengths, "gelu", True)
    for algorithm, need_grad in (("tiled", False), ("tiled", True), ("factored", True)):
        time_relation.time_relation_forward(latent, features, lengths, -1, algorithm, None, need_grad)
    run_quantize(empty, lengths)
    run_block_ops(empty, lengths, model_sizes_only)
    run_vocoder(empty, lengths, model_sizes_only)
    if model_sizes_only:
        return
    run_quantize_variants(empty, lengths, dtype)
    time_relation.time_relation_forward(latent, features, lengths, 32, "banded", None, True)
    time_relation.gram_energy_forward(features, lengths, -1)
    bottleneck.bottleneck_project_forward(empty(many, wide), *down[:2], empty(256, hidden), None, "gelu", False)
    bottleneck.bottleneck_project_forward(empty(many, narrow), *up, "gelu", True)
    # Sizes that no tile divides: the masked variants.
    odd = (empty(500, 1279), empty(500), empty(100, 500), empty(100))
    kept = (empty(999, 100), empty(999, 1279), empty(999, 500), odd[0], odd[2])
    bottleneck.bottleneck_project_forward(empty(many, 1279), *odd, "gelu_tanh", True)
    bottleneck.bottleneck_project_backward(*kept, "gelu_tanh", True, True)
    time_relation.time_relation_forward(empty(3, 333, 100), empty(3, 333, 1279), None, -1, "tiled", None, True)


def run_quantize(empty, lengths):
    """The quantize family at the sizes of its benchmark."""
    latent, grad = empty(4, 1500, 128), empty(4, 1500, of=torch.float32)
    codebook, indices = empty(8192, 128), empty(4, 1500, of=torch.int64)
    quantize.vq_nearest_forward(latent, codebook, lengths, "exact")
    quantize.rvq_encode_forward(latent, empty(8, 1024, 128), lengths, "exact")
    quantize.vq_nearest_backward(grad, latent, codebook, indices, True, True)
    levels = (8, 5, 5, 5)
    quantize_scalar.fsq_quantize_forward(empty(4, 1500, 4), levels, lengths)
    quantize_scalar.fsq_quantize_backward(empty(4, 1500, 4), empty(4, 1500, 4), levels, lengths)


def run_quantize_variants(empty, lengths, dtype):
    """Its other precision, few rows, many rows, every width of rows, and what decodes."""
    latent = empty(4, 1500, 128)
    quantize.vq_nearest_forward(latent, empty(8192, 128), None, "fast")
    for features, rows in ((8, 20000), (250, 300), (1000, 300), (1280, 300), (128, 1)):
        quantize.vq_nearest_forward(empty(1, rows, features), empty(1000, features), None, "exact")
    for features, rows in ((8, 20000), (1000, 300)):
        quantize.rvq_encode_forward(empty(1, rows, features), empty(3, 1000, features), lengths[:1], "exact")
    codes = empty(300, 3, of=torch.int64)
    quantize.rvq_decode_forward(codes, empty(4, 1000, 100))
    quantize.rvq_decode_backward(empty(300, 100), codes, empty(4, 1000, 100))
    quantize_scalar.fsq_dequantize_forward(codes[:, 0], (3,) * 30, dtype)
    for bits in (8, 4):
        packed, scale, offset = quantize_scalar.affine_quantize_forward(empty(300, 129), bits)
        quantize_scalar.affine_dequantize_forward(packed, scale, offset, bits, 129, dtype)


def run_block_ops(empty, lengths, model_sizes_only: bool) -> None:
    """The ops of a transformer block: a head size of each kind, and modulations of clips and of frames."""

    def attend(heads, size, norm, pairs, time=750, keys=None, lengths=lengths):
        q = empty(4, time, 3, heads, size)[:, :, 0]
        k, v = (empty(4, time if keys is None else keys, 3, heads, size)[:, :, i] for i in (1, 2))
        wide = torch.float32
        weight = empty(size, of=wide) if norm != "none" else None
        angles = empty(time, pairs, of=wide) if pairs else None
        arguments = (weight, weight, angles, angles, lengths, lengths)
        options = (norm, 1e-6, False)
        out, lse = dit_attention.dit_attention_forward(q, k, v, *arguments, *options)
        dit_attention.dit_attention_backward(out, q, k, v, *arguments, out, lse, *options)

    def modulate(width, per_frame):
        x = empty(4, 750, width)
        shift = empty(4, 750, width) if per_frame else empty(4, 6 * width)[:, :width]
        y, mean, rstd = layer_norm_modulate.layer_norm_modulate_forward(x, shift, shift, 1e-6)
        layer_norm_modulate.layer_norm_modulate_backward(y, x, shift, mean, rstd, per_frame)
        gated_residual.gated_residual_forward(x, y, shift)
        gated_residual.gated_residual_backward(y, y, shift)

    attend(8, 64, "rms", 32)
    attend(16, 80, "none", 0)
    attend(12, 128, "layer", 32)
    modulate(512, False)
    if model_sizes_only:
        return
    attend(8, 64, "none", 0, keys=77, lengths=None)
    attend(8, 32, "rms", 16)
    attend(8, 96, "rms", 48)
    attend(4, 256, "rms", 128)
    modulate(1536, True)
    modulate(1000, False)


def run_vocoder(empty, lengths, model_sizes_only: bool) -> None:
    """The ops of the decoder, at the sizes of the published one and at others."""

    def vocode(channels, taps, n_fft, hop, lengths, vector=True):
        head, window = empty(4, 750, n_fft + 2), empty(n_fft, of=torch.float32)
        audio = polar_istft.polar_istft_forward(head, window, hop, lengths)
        polar_istft.polar_istft_backward(audio, head, window, hop, lengths)
        x, weight, vector = empty(4, 750, channels), empty(channels, 1, taps), empty(channels) if vector else None
        depthwise_conv_norm.depthwise_conv_norm_forward(x, weight, vector, vector, vector, 1e-6, lengths)
        depthwise_conv_norm.depthwise_conv_norm_backward(x, x, weight, vector, vector, 1e-6, lengths, True, True)

    vocode(1280, 7, 1280, 320, lengths)
    if not model_sizes_only:
        vocode(250, 3, 600, 100, None, vector=False)


def describe(kernel, arguments, constants):
    """Signature, constants, alignment and options of a recorded launch, as just-in-time compilation sees them."""
    options = {k: v for k, v in constants.items() if k in ("num_warps", "num_stages", "enable_fp_fusion")}
    constants = {k: v for k, v in constants.items() if k not in options}
    signature, attributes = {}, {}
    for index, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if value is None or (isinstance(value, int) and value == 1):
            constants[name] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    return {name: signature[name] for name in kernel.arg_names}, constants, attributes, options


def record(target: str, dtype_name: str, model_sizes_only: bool = False):
    """The distinct launches of :func:`run_ops` for ``target`` and dtype."""
    launches = {}

    def recorder(kernel, grid, arguments, constants):
        assert all(isinstance(size, int) and 0 < size < 2**31 for size in grid), (kernel.__name__, grid)
        assert all(size < 2**16 for size in grid[1:]), (kernel.__name__, grid)
        described = describe(kernel, arguments, constants)
        launches.setdefault((kernel.__name__, repr(described)), (kernel, *described))

    launch.runner = recorder
    launch.kind = lambda device: TARGETS[target][0]
    launch.multiprocessors = lambda device: 132
    torch.backends.cuda.matmul.allow_tf32 = dtype_name == "tf32"
    run_ops(DTYPES[dtype_name], model_sizes_only)
    return list(launches.values())


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory, both per thread, as the compiled kernel declares them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"losatok-{os.getpid()}-{id(cubin)}.cubin"
    path.write_bytes(cubin)
    try:
        text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    finally:
        path.unlink()
    used = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert used, text
    return int(used[1]), int(used[2])


def local_arrays(ptx: str) -> int:
    """Bytes of local memory, in eights, that the code itself asks for: sines keep the digits of 2 / pi there that a
    large argument takes. What the stack has beyond is spilled.
    """
    sizes = re.findall(r"\.local \.align \d+ \.b8\s+\w+\[(\d+)\]", ptx)
    return sum(-(-int(size) // 8) * 8 for size in sizes)


def compile_one(target: str, dtype_name: str, item) -> dict:
    kernel, signature, constants, attributes, options = item
    _, capability, limit = TARGETS[target]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = registers_and_stack(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    shown = {k: v for k, v in constants.items() if k.isupper() and k not in ("PRECISION", "ACTIVATION")}
    row = {
        "target": target,
        "dtype": dtype_name,
        "kernel": kernel.__name__,
        "constants": " ".join(f"{k}={v}" for k, v in shown.items()),
        "warps": compiled.metadata.num_warps,
        "stages": compiled.metadata.num_stages,
        "registers": registers,
        "stack": stack,
        "spilled": max(0, stack - local_arrays(ptx)),
        "shared": compiled.metadata.shared,
        "matrix": len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b", ptx)),
        "wgmma": "wgmma.mma_async" in ptx,
        "failures": [],
    }
    if not compiled.asm["cubin"]:
        row["failures"].append("no cubin")
    if row["shared"] > limit:
        row["failures"].append(f"{row['shared']} bytes of shared memory, {target} has {limit}")
    tall = constants.get("BLOCK_M", 0) >= 64  # wgmma multiplies 64 rows; the tables for few rows take fewer
    half = dtype_name in ("bfloat16", "float16")
    if target == "sm90" and half and tall and kernel.__name__ in PRODUCT_KERNELS and not row["wgmma"]:
        row["failures"].append("no wgmma")
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="sm80,sm89,sm90,sm100")
    parser.add_argument("--dtypes", default="bfloat16,float16,float32,tf32")
    parser.add_argument("--model-sizes-only", action="store_true", help="without the variants that other sizes take")
    parser.add_argument("--json", help="write the table here as well")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    work = [
        (target, dtype, item)
        for target in arguments.targets.split(",")
        for dtype in arguments.dtypes.split(",")
        for item in record(target, dtype, arguments.model_sizes_only)
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(lambda item: compile_one(*item), work))
    for row in rows:
        print(
            "{target:6} {dtype:9} {kernel:24} {warps} warps {stages} stages {registers:4} registers "
            "{spilled:5} spilled {shared:7} shared {mark:6} {constants}".format(
                mark="wgmma" if row["wgmma"] else "", **row
            )
        )
    failed = [row for row in rows if row["failures"]]
    for row in failed:
        print(f"FAILED {row['target']} {row['dtype']} {row['kernel']} {row['constants']}: {'; '.join(row['failures'])}")
    print(f"{len(rows)} kernels compiled, {len(failed)} failed")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
