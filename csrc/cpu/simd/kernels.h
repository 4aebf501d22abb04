// Declarations of the row kernels that are compiled once per instruction set. Each family adds its own block to
// LOSATOK_SIMD_KERNELS of its own header; this one shows the pattern and holds what several families share.
#pragma once

#include <cstdint>

#define LOSATOK_SIMD_KERNELS                                                                           \
  /* out[i] = 1 / max(|row i|, eps), accumulated in float; row i starts at x + i * stride, in elements. */ \
  void inverse_norms(const float* x, int64_t rows, int64_t columns, int64_t stride, float eps, float* out);

namespace losatok {
namespace default_ {
LOSATOK_SIMD_KERNELS
}
namespace avx2 {
LOSATOK_SIMD_KERNELS
}
namespace avx512 {
LOSATOK_SIMD_KERNELS
}
}  // namespace losatok
#undef LOSATOK_SIMD_KERNELS
