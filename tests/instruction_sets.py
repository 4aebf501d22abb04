"""Runs the tests of the ops and the golden cases of the models as other processors would: `make isa`.

Each level caps the instruction sets of all that computes: our own kernels (LOSATOK_ISA), those of torch
(ATEN_CPU_CAPABILITY), and the two libraries that torch calls, oneDNN and MKL (MKL heeds its cap on Intel processors
only). A level that the processor at hand lacks is left out, with the reason.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Level:
    """One kind of processor: what it must have (names of /proc/cpuinfo), and the cap of each library."""

    name: str
    needs: tuple[str, ...]
    ours: str
    torch: str
    onednn: str
    mkl: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LOSATOK_ISA": self.ours,
            "ATEN_CPU_CAPABILITY": self.torch,
            "ONEDNN_MAX_CPU_ISA": self.onednn,
            "MKL_ENABLE_INSTRUCTIONS": self.mkl,
        }


LEVELS = (
    Level("default", (), "default", "default", "SSE41", "SSE4_2"),
    Level("avx2", AVX2, "avx2", "avx2", "AVX2", "AVX2"),
    Level("avx512", AVX512, "avx512", "avx512", "AVX512_CORE", "AVX512"),
    Level("avx512-bf16", (*AVX512, "avx512_bf16"), "avx512", "avx512", "AVX512_CORE_BF16", "AVX512_E1"),
    Level("amx", (*AVX512, "avx512_bf16", "amx_bf16"), "avx512", "avx512", "AVX512_CORE_AMX", "AVX512_E4"),
)

TESTS = (
    "ops/test_bottleneck.py::test_projection",
    "ops/test_bottleneck.py::test_loss",
    "ops/test_bottleneck.py::test_few_rows",
    "ops/test_bottleneck.py::test_activations",
    "ops/test_dit_attention.py::test_against_fp64",
    "ops/test_dit_modulation.py::test_against_fp64",
    "ops/test_int8_linear.py::test_against_fp64",
    "ops/test_int8_linear.py::test_int8_are_exact",
    "ops/test_quantize.py::test_chooses_the_least_distance",
    "ops/test_quantize.py::test_few_rows_and_many_rows_agree_bit_for_bit",
    "ops/test_quantize_residual.py::test_every_stage_chooses_the_nearest",
    "ops/test_quantize_scalar.py::test_fsq_matches_the_reference",
    "ops/test_quantize_scalar.py::test_affine_round_trip",
    "ops/test_time_relation.py::test_loss_and_gradient",
    "ops/test_time_relation.py::test_energy",
    "ops/test_vocoder.py::test_istft",
    "ops/test_vocoder.py::test_istft_of_any_size",
    "ops/test_vocoder.py::test_conv_norm",
    "ops/test_threads.py",
    "nn/test_istft.py",
    "nn/test_dit_block_published.py",
    "models/tokenizer/test_golden.py",
)

IN_EFFECT = """
import torch
from losatok_ext import _native
print(_native.module.instruction_set(), torch.backends.cpu.get_cpu_capability().lower())
"""


def features_of_the_processor() -> set[str]:
    """What /proc/cpuinfo lists; empty where there is none (another system, another family of processors)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {name for line in lines if line.startswith("flags") for name in line.split(":", 1)[1].split()}


def run(level: Level) -> bool:
    """Whether the tests pass on ``level``; what it could not cap fails too."""
    environment = {**os.environ, **level.environment}
    found = subprocess.run(
        [sys.executable, "-c", IN_EFFECT], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    if found != [level.ours, level.torch]:
        print(f"{level.name}: asked for {[level.ours, level.torch]} (ours, torch's), got {found}", flush=True)
        return False
    began = time.monotonic()
    # float16 is left out: on a CPU it is converted to float32 and computed as that.
    options = ["-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider", "-k", "not torch.float16"]
    command = [sys.executable, "-m", "pytest", *options, *TESTS]
    passed = subprocess.run(command, cwd=HERE, env=environment).returncode == 0
    print(f"{level.name}: {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s", flush=True)
    return passed


def main() -> int:
    """Run each level that the processor has; 1 where one fails."""
    features, failed = features_of_the_processor(), []
    for level in LEVELS:
        lacking = [name for name in level.needs if name not in features]
        if lacking:
            print(f"{level.name}: skipped, this processor has no {', '.join(lacking)}", flush=True)
        elif not run(level):
            failed.append(level.name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
