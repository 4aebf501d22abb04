// Row kernels of scalar quantization (finite levels, affine integers), compiled once per instruction set (cpu/isa.h).
// T is float or double.
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

#define LOSATOK_SIMD_KERNELS                                                                               \
  /* out = x + shift. */                                                                                   \
  template <class T>                                                                                       \
  void shift_values(const T* x, int64_t count, const T* shift, T* out);                                    \
  /* From tanh: values over half_width, and digits (whole numbers from 0; that of zero for a NaN). */      \
  template <class T>                                                                                       \
  void round_levels(const T* squeezed, int64_t count, const LevelTable<T>& table, T* values, T* digits);   \
  /* indices[i] = the sum of digits [rows, features] times weights, exact below 2^24 (2^53 for double). */ \
  template <class T>                                                                                       \
  void number_rows(const T* digits, int64_t rows, int64_t features, const T* weights, int64_t* indices);   \
  /* out = grad (1 - squeezed^2) slope. */                                                                 \
  template <class T>                                                                                       \
  void level_gradient(const T* squeezed, const T* grad, int64_t count, const T* slope, T* out);            \
  /* One row to integers 0..top, one per byte; false where a value or the range is not finite. */          \
  template <class T>                                                                                       \
  bool affine_row(const T* x, int64_t count, int top, uint8_t* out, T* scale, T* offset);                  \
  /* out = offset + scale q, computed in double. */                                                        \
  template <class T>                                                                                       \
  void affine_values(const uint8_t* q, int64_t count, T scale, T offset, T* out);                          \
  /* Two values a byte, the first in the low half; count values. */                                        \
  void pack_nibbles(const uint8_t* q, int64_t count, uint8_t* packed);                                     \
  void unpack_nibbles(const uint8_t* packed, int64_t count, uint8_t* q);

LOSATOK_IN_EACH_ISA(LOSATOK_SIMD_KERNELS)
#undef LOSATOK_SIMD_KERNELS
