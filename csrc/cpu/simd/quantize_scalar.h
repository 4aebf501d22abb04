// Row kernels of scalar quantization (finite levels, affine integers), compiled once per instruction set (cpu/isa.h).
#pragma once

#include <cstdint>

#include "cpu/simd/kernels.h"

namespace losatok {

// Constants of finite scalar quantization, one per value: the features of a row, repeated for several rows.
template <class T>
struct LevelTable {
  const T *half_range, *offset, *half_width, *lowest, *highest;
};

}  // namespace losatok

#define LOSATOK_SIMD_KERNELS_FOR(T, SUFFIX)                                                                          \
  /* From tanh: values over half_width, and digits (whole numbers from 0; that of zero for a NaN). */                \
  void round_levels_##SUFFIX(const T* squeezed, int64_t count, const LevelTable<T>& table, T* values, T* digits);    \
  /* out = grad (1 - squeezed^2) half_range / half_width. */                                                         \
  void level_gradient_##SUFFIX(const T* squeezed, const T* grad, int64_t count, const LevelTable<T>& table, T* out); \
  /* One row to integers 0..top, one per byte; false where a value or the range is not finite. */                    \
  bool affine_row_##SUFFIX(const T* x, int64_t count, int top, uint8_t* out, T* scale, T* offset);                   \
  /* out = offset + scale q, computed in double. */                                                                  \
  void affine_values_##SUFFIX(const uint8_t* q, int64_t count, T scale, T offset, T* out);

#define LOSATOK_SIMD_KERNELS                                           \
  LOSATOK_SIMD_KERNELS_FOR(float, f32)                                 \
  LOSATOK_SIMD_KERNELS_FOR(double, f64)                                \
  /* Two values a byte, the first in the low half; count values. */    \
  void pack_nibbles(const uint8_t* q, int64_t count, uint8_t* packed); \
  void unpack_nibbles(const uint8_t* packed, int64_t count, uint8_t* q);

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
#undef LOSATOK_SIMD_KERNELS_FOR
