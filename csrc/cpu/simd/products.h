// Products of small blocks, and how their operands are packed; compiled once per instruction set (see cpu/isa.h).
#pragma once

#include "cpu/simd/kernels.h"
#include "cpu/simd/values.h"

#define LOSATOK_PRODUCT_KERNELS                                                                                \
  /* c [m, n] = a [m, k] b [k, n], or c += with add; rows of a `stride` apart, b and c packed, n a multiple    \
     of 16. W is float or double. */                                                                           \
  template <class W>                                                                                           \
  void multiply(int64_t m, int64_t n, int64_t k, const W* a, int64_t stride, const W* b, W* c, bool add);      \
  /* out [columns, width] = x [rows, columns] transposed, zeros beyond `rows`. */                              \
  template <class T>                                                                                           \
  void transpose(const T* x, int64_t rows, int64_t columns, int64_t width, T* out);                            \
  /* The same with out [columns / 2, width, 2]: pairs of columns side by side, as bfloat16 products take them. \
   */                                                                                                          \
  void transpose_pairs(const Bf16* x, int64_t rows, int64_t columns, int64_t width, Bf16* out);

LOSATOK_IN_EACH_ISA(LOSATOK_PRODUCT_KERNELS)
#undef LOSATOK_PRODUCT_KERNELS
