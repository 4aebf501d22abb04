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

#define LOSATOK_SIMD_KERNELS_FOR(T, SUFFIX)                                                                       \
  /* out = x + shift. */                                                                                          \
  void shift_values_##SUFFIX(const T* x, int64_t count, const T* shift, T* out);                                  \
  /* From tanh: values over half_width, and digits (whole numbers from 0; that of zero for a NaN). */             \
  void round_levels_##SUFFIX(const T* squeezed, int64_t count, const LevelTable<T>& table, T* values, T* digits); \
  /* indices[i] = the sum of digits [rows, features] times weights, exact below 2^24 (2^53 for double). */        \
  void number_rows_##SUFFIX(const T* digits, int64_t rows, int64_t features, const T* weights, int64_t* indices); \
  /* out = grad (1 - squeezed^2) slope. */                                                                        \
  void level_gradient_##SUFFIX(const T* squeezed, const T* grad, int64_t count, const T* slope, T* out);          \
  /* One row to integers 0..top, one per byte; false where a value or the range is not finite. */                 \
  bool affine_row_##SUFFIX(const T* x, int64_t count, int top, uint8_t* out, T* scale, T* offset);                \
  /* out = offset + scale q, computed in double. */                                                               \
  void affine_values_##SUFFIX(const uint8_t* q, int64_t count, T scale, T offset, T* out);

#define LOSATOK_SIMD_KERNELS                                           \
  LOSATOK_SIMD_KERNELS_FOR(float, f32)                                 \
  LOSATOK_SIMD_KERNELS_FOR(double, f64)                                \
  /* Two values a byte, the first in the low half; count values. */    \
  void pack_nibbles(const uint8_t* q, int64_t count, uint8_t* packed); \
  void unpack_nibbles(const uint8_t* packed, int64_t count, uint8_t* q);

LOSATOK_IN_EACH_ISA(LOSATOK_SIMD_KERNELS)
#undef LOSATOK_SIMD_KERNELS
#undef LOSATOK_SIMD_KERNELS_FOR
