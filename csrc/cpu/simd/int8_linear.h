// Kernels of int8_linear, compiled once per instruction set (see cpu/isa.h).
#pragma once

#include <cstdint>

#include "cpu/simd/activation.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/values.h"

// T is float or Bf16.
#define LOSATOK_INT8_LINEAR_KERNELS                                                                                    \
  /* The second operand of a product: weight [rows, columns], rows `stride` apart, transposed and widened, with zeros  \
     beyond its rows and columns. float: out [depth, width]. Bf16: out [depth / 2, width, 2], pairs of columns side    \
     by side. depth and width, at least columns and rows, are multiples of 16 (Bf16: depth of 32). */                  \
  template <class T>                                                                                                   \
  void int8_operand(const int8_t* weight, int64_t stride, int64_t rows, int64_t columns, int64_t width, int64_t depth, \
                    T* out);                                                                                           \
  /* y = activation(sums * scale + bias) (null: none); sums [rows, width] packed, y [rows, columns], rows `stride`     \
     apart. */                                                                                                         \
  template <class T>                                                                                                   \
  void finish_int8(Activation activation, const float* sums, int64_t width, const float* scale, const float* bias,     \
                   int64_t rows, int64_t columns, T* y, int64_t stride);

LOSATOK_IN_EACH_ISA(LOSATOK_INT8_LINEAR_KERNELS)
#undef LOSATOK_INT8_LINEAR_KERNELS
