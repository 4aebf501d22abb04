// Products of small packed blocks through torch (oneDNN, generated per size), and what a processor multiplies.
#pragma once

#include <ATen/Context.h>
#include <ATen/native/CPUBlas.h>

#include <cstdint>

#include "cpu/isa.h"

#if !defined(CPUBLAS_BRGEMM_F32F32F32) || !defined(CPUBLAS_BRGEMM_BF16BF16F32)
#error "this torch has no block matrix products for float32 and bfloat16; build with torch 2.10 or newer"
#endif

namespace losatok {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Whether block products of bfloat16 are faster than those of float32.
inline bool multiplies_bfloat16() {
#if defined(__x86_64__)
  static const bool supported = __builtin_cpu_supports("avx512bf16");
  return supported && isa() == Isa::kAvx512 && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

}  // namespace losatok
